"""What Milvus keeps of a collection, and a page <-> its rows.

Every limit of 65,535 bytes a field is met by chunking. Knows nothing of connections or of searching.

- `<collection>`: a row a page: ids, text, node, metadata, hashes, and the mean of its vectors. A page is stored when
  this row is. The collection's properties and description carry the embedder's fingerprint.
- `<collection>_vectors`: a row a page: the exact multi-vector as base64 chunks. In Milvus Lite, more of these
  collections follow, numbered; the page's row says which.
- `<collection>_candidates`, where Milvus itself searches: a row a candidate vector.

Vectors are named by page and by what they are, so that a changed page's new vectors lie beside the old ones until the
page's row points to them: readers never see a mix.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PatchGrid, VectorDtype
from llama_index_colqwen.pages import Page

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

__all__ = [
    "AnnIndex",
    "CandidateVectors",
    "CollectionDescription",
    "candidate_id",
    "candidate_rows",
    "candidates_collection",
    "create_collections",
    "create_vectors",
    "filterable",
    "page_from_row",
    "page_of_candidate",
    "page_row",
    "read_description",
    "vector_id",
    "vectors_collection",
    "vectors_from_row",
    "vectors_hash",
    "vectors_row",
]

SCHEMA_VERSION = 3

CandidateVectors: TypeAlias = int | Literal["all"]

_PROPERTY = "colqwen.collection"
_MAX_VARCHAR = 65_535
CHUNK_CHARACTERS = 65_532
"""The largest multiple of 4 (whole base64 groups) within Milvus's VARCHAR limit of 65,535 bytes."""
_MAX_CHUNKS = 256  # 16 MB of base64: 90,000 int8 vectors of dim 128 a page


@dataclass(frozen=True)
class AnnIndex:
    """How Milvus indexes candidate vectors, by inner product.

    Attributes:
        index_type: Such as "HNSW", "IVF_FLAT" or "FLAT".
        params: What the index is built with: for HNSW, `M` links a vector and `efConstruction` vectors looked at.
        search_params: What it is searched with, such as `ef`; by default as many as are asked for.
    """

    index_type: str = "HNSW"
    params: Mapping[str, Any] = field(default_factory=lambda: {"M": 16, "efConstruction": 200})
    search_params: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class CollectionDescription:
    """What a collection says of itself.

    Attributes:
        embedder: Who embedded its pages.
        vector_dtype: How exact vectors are kept.
        candidate_vectors: How many vectors a page Milvus searches; None if this machine does, over all of them.
        ann_index: How Milvus indexes these.
        schema: The version of these collections.
        generation: Another one each time that the collection is made; names what is cached of it.
    """

    embedder: EmbedderFingerprint
    vector_dtype: VectorDtype
    candidate_vectors: CandidateVectors | None = None
    ann_index: AnnIndex | None = None
    schema: int = SCHEMA_VERSION
    generation: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)

    def to_json(self) -> str:
        """Write as JSON."""
        ann_index = None if self.ann_index is None else asdict(self.ann_index)
        return json.dumps({**asdict(self), "embedder": self.embedder.to_json(), "ann_index": ann_index}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> CollectionDescription:
        """Undo `to_json`; of another version, only the version and the embedder.

        Raises:
            KeyError, TypeError, ValueError: If it is no description of this package's.
        """
        fields = json.loads(text)
        embedder = EmbedderFingerprint.from_json(fields.pop("embedder"))
        if fields["schema"] != SCHEMA_VERSION:
            return cls(embedder, fields["vector_dtype"], schema=fields["schema"])
        ann_index = fields.pop("ann_index")
        return cls(embedder, ann_index=None if ann_index is None else AnnIndex(**ann_index), **fields)


def vectors_collection(collection_name: str) -> str:
    """Name the collection that keeps the exact multi-vectors."""
    return f"{collection_name}_vectors"


def candidates_collection(collection_name: str) -> str:
    """Name the collection that Milvus searches, where it does."""
    return f"{collection_name}_candidates"


def create_collections(
    client: MilvusClient, collection_name: str, description: CollectionDescription, lite: bool
) -> None:
    """Create the collections; the pages' comes last, so that its presence means that all are there."""
    from pymilvus import DataType

    text = description.to_json()
    pages = client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
    pages.add_field("page_id", DataType.VARCHAR, is_primary=True, max_length=512)
    pages.add_field("document_id", DataType.VARCHAR, max_length=512)
    pages.add_field("file_name", DataType.VARCHAR, max_length=1024)
    pages.add_field("page_number", DataType.INT64)
    pages.add_field("text", DataType.VARCHAR, max_length=_MAX_VARCHAR)
    pages.add_field("content_hash", DataType.VARCHAR, max_length=64)
    pages.add_field("revision", DataType.VARCHAR, max_length=64)
    pages.add_field("vectors_hash", DataType.VARCHAR, max_length=64)
    pages.add_field("num_vectors", DataType.INT64)
    pages.add_field("shard", DataType.INT64)
    pages.add_field("metadata", DataType.JSON)
    _add_chunks(pages, "node")
    pages.add_field("mean_vector", DataType.FLOAT_VECTOR, dim=description.embedder.dim)

    for name in client.list_collections():
        if name == candidates_collection(collection_name) or re.fullmatch(
            rf"{vectors_collection(collection_name)}(_\d+)?", name
        ):
            client.drop_collection(name)
    made = [vectors_collection(collection_name)]
    create_vectors(client, made[0])
    if description.ann_index is not None:
        made.append(candidates_collection(collection_name))
        _create_candidates(client, collection_name, description, lite)
    _create(client, collection_name, pages, "mean_vector", properties={_PROPERTY: text})
    made.append(collection_name)
    # All at once: a server takes two and a half seconds for one or for three, nearly all of them waiting.
    with ThreadPoolExecutor(len(made)) as pool:
        list(pool.map(client.load_collection, made))


def create_vectors(client: MilvusClient, name: str) -> None:
    """Create a collection for exact multi-vectors; whoever reads it loads it."""
    from pymilvus import DataType

    vectors = client.create_schema(auto_id=False, enable_dynamic_field=False)
    vectors.add_field("vector_id", DataType.VARCHAR, is_primary=True, max_length=640)
    vectors.add_field("page_id", DataType.VARCHAR, max_length=512)
    _add_chunks(vectors, "chunks")
    vectors.add_field("patch_grid", DataType.ARRAY, element_type=DataType.INT64, max_capacity=3)
    # Milvus demands a vector field in every collection; this one is never searched.
    vectors.add_field("unused", DataType.FLOAT_VECTOR, dim=2)
    _create(client, name, vectors, "unused")


def _create_candidates(
    client: MilvusClient, collection_name: str, description: CollectionDescription, lite: bool
) -> None:
    from pymilvus import DataType

    candidates = client.create_schema(auto_id=False, enable_dynamic_field=False)
    candidates.add_field("candidate_id", DataType.VARCHAR, is_primary=True, max_length=672)
    candidates.add_field("page_id", DataType.VARCHAR, max_length=512)
    candidates.add_field("document_id", DataType.VARCHAR, max_length=512)
    candidates.add_field("sequence_id", DataType.INT64)
    candidates.add_field("metadata", DataType.JSON)
    candidates.add_field("vector", DataType.FLOAT_VECTOR, dim=description.embedder.dim)
    # Servers choose the index that they have for texts; Milvus Lite has one and wants it named.
    page_index = "INVERTED" if lite else ""
    _create(client, candidates_collection(collection_name), candidates, "vector", description.ann_index, page_index)


def read_description(client: MilvusClient, collection_name: str) -> CollectionDescription | None:
    """Return what the collection says of itself; None if this package did not make it."""
    described = client.describe_collection(collection_name)
    # Milvus Lite keeps properties and forgets descriptions; servers have kept descriptions longer than properties.
    text = described.get("properties", {}).get(_PROPERTY) or described.get("description") or "{}"
    try:
        return CollectionDescription.from_json(text)
    except (KeyError, TypeError, ValueError):
        return None


def split_chunks(data: bytes) -> list[str]:
    """Write bytes as base64 in chunks of at most 65,535 characters."""
    text = base64.b64encode(data).decode("ascii")
    return [text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS)]


def join_chunks(chunks: Sequence[str]) -> bytes:
    """Undo `split_chunks`."""
    return base64.b64decode("".join(chunks))


def vectors_hash(encoded: bytes) -> str:
    """Name encoded vectors by what they are, in hex."""
    return hashlib.blake2b(encoded, digest_size=8).hexdigest()


def vector_id(page_id: str, vectors_hash: str) -> str:
    """Name the row of a page's vectors."""
    return f"{page_id}:{vectors_hash}"


def vectors_row(page_id: str, vector_id: str, encoded: bytes, patch_grid: PatchGrid | None) -> dict[str, Any]:
    """Write a page's encoded multi-vector as a row."""
    return {
        "vector_id": vector_id,
        "page_id": page_id,
        "chunks": split_chunks(encoded),
        "patch_grid": [] if patch_grid is None else [patch_grid.rows, patch_grid.columns, patch_grid.start],
        "unused": [0.0, 0.0],
    }


def vectors_from_row(row: dict[str, Any]) -> tuple[bytes, PatchGrid | None]:
    """Undo `vectors_row`."""
    return join_chunks(row["chunks"]), PatchGrid(*row["patch_grid"]) if row["patch_grid"] else None


def candidate_rows(page: Page, vector_id: str, vectors: MultiVector) -> list[dict[str, Any]]:
    """Write a page's candidate vectors as rows, named by the page's vectors and numbered."""
    shared = {"page_id": page.page_id, "document_id": page.document_id, "metadata": filterable(page)}
    return [
        {"candidate_id": candidate_id(vector_id, number), "sequence_id": number, "vector": vector, **shared}
        for number, vector in enumerate(vectors.tolist())
    ]


def candidate_id(vector_id: str, number: int) -> str:
    """Name a candidate by the page's vectors and its place among them."""
    return f"{vector_id}:{number}"


def page_of_candidate(candidate_id: str) -> str:
    """Return the id of the page whose candidate it is."""
    return candidate_id.rsplit(":", 2)[0]


def filterable(page: Page) -> dict[str, Any]:
    """Return what filters can ask of a page: its metadata, and its columns where these lack them."""
    columns = {"document_id": page.document_id, "file_name": page.file_name, "page_number": page.page_number}
    # Word boxes are long and nothing to filter by; the node keeps them.
    return {**columns, **{name: value for name, value in page.metadata.items() if name != "word_boxes"}}


def page_row(page: Page, vectors_hash: str, num_vectors: int, shard: int, mean_vector: list[float]) -> dict[str, Any]:
    """Write a page as a row."""
    node = json.dumps(page.node, ensure_ascii=False, sort_keys=True)
    return {
        "page_id": page.page_id,
        "document_id": page.document_id,
        "file_name": page.file_name,
        "page_number": page.page_number,
        # For whoever looks into the collection; a longer text is whole in `node`.
        "text": page.text.encode("utf-8", "replace")[:_MAX_VARCHAR].decode("utf-8", "ignore"),
        "content_hash": page.content_hash,
        "revision": page.revision,
        "vectors_hash": vectors_hash,
        "num_vectors": num_vectors,
        "shard": shard,
        "metadata": filterable(page),
        "node": split_chunks(node.encode("utf-8", "surrogatepass")),
        "mean_vector": mean_vector,
    }


def page_from_row(row: dict[str, Any]) -> Page:
    """Undo `page_row`."""
    node = json.loads(join_chunks(row["node"]).decode("utf-8", "surrogatepass"))
    return Page(
        page_id=row["page_id"],
        document_id=row["document_id"],
        file_name=row["file_name"],
        page_number=row["page_number"],
        text=node.get("text", ""),
        image_path=node.get("image_path"),
        content_hash=row["content_hash"],
        node=node,
    )


def _add_chunks(schema: CollectionSchema, name: str) -> None:
    from pymilvus import DataType

    schema.add_field(
        name, DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=_MAX_CHUNKS, max_length=_MAX_VARCHAR
    )


def _create(
    client: MilvusClient,
    name: str,
    schema: CollectionSchema,
    vector_field: str,
    ann_index: AnnIndex | None = None,
    page_index: str | None = None,
    properties: dict[str, str] | None = None,
) -> None:
    indexes = client.prepare_index_params()
    ann = ann_index or AnnIndex("FLAT", {})
    indexes.add_index(vector_field, index_type=ann.index_type, metric_type="IP", params=dict(ann.params))
    if page_index is not None:
        indexes.add_index("page_id", index_type=page_index)
    client.create_collection(name, schema=schema, consistency_level="Strong", properties=properties)
    # An index of no rows is there at once. Given to `create_collection`, it would be waited for all the same, half a
    # second at a time; loading fails without it, and returns when the collection can be read.
    client.create_index(name, indexes, sync=False)
