"""What Milvus keeps of a collection, and a page <-> its rows.

Every limit of 65,535 bytes a field is met by chunking. Knows nothing of connections or of searching.

- `<collection>`: a row a page: ids, text, node, metadata, hashes, and the mean of its vectors. A page is stored when
  this row is. The collection's properties and description carry the embedder's fingerprint.
- `<collection>_vectors`: a row a page: the exact multi-vector as base64 chunks. In Milvus Lite, more of these
  collections follow, numbered; the page's row says which.
- `<collection>_candidates`, where Milvus itself searches: a row a candidate vector.

Every collection says in its properties and description that this package made it, and the last two also of which
collection they are part. What does not say so is not touched.

Vectors are named by page and by what they are, so that a changed page's new vectors lie beside the old ones until the
page's row points to them: readers never see a mix.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.errors import StoreError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PatchGrid, VectorDtype
from llama_index_colqwen.pages import Page

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

__all__ = [
    "ENTRY_FIELDS",
    "AnnIndex",
    "CandidateVectors",
    "CollectionDescription",
    "PageEntry",
    "PartOf",
    "StoredVectors",
    "candidate_id",
    "candidate_rows",
    "candidates_collection",
    "check_names",
    "complete_collections",
    "create_pages",
    "create_vectors",
    "filterable",
    "page_from_row",
    "page_of_candidate",
    "page_row",
    "parts_of",
    "read_description",
    "read_part",
    "vector_id",
    "vectors_collection",
    "vectors_from_row",
    "vectors_hash",
    "vectors_row",
]

SCHEMA_VERSION = 4
"""Of new collections."""

_UNMARKED = 3
"""The version before, which is read and written as it is: its parts do not say of what they are part."""

READ_VERSIONS = (_UNMARKED, SCHEMA_VERSION)
"""The versions that this one reads and writes."""

CandidateVectors: TypeAlias = int | Literal["all"]

_MAKING_SECONDS = 10.0
_PROPERTY = "colqwen.collection"
_PART_PROPERTY = "colqwen.part_of"
UNLOADING = "_unloading"
"""Ends the name of a collection of vectors for a moment, while Milvus Lite is made to forget it."""
_MAX_VARCHAR = 65_535
CHUNK_CHARACTERS = 65_532
"""The largest multiple of 4 (whole base64 groups) within Milvus's VARCHAR limit of 65,535 bytes."""
MAX_NATIVE_VECTORS = 4096
"""How many vectors of a page a Milvus server holds in an array: pages with more are pooled to as many."""
NATIVE_FIELD = "vectors[vector]"
"""How that array is named in an index or a search."""
_MAX_CHUNKS = 256  # 16 MB of base64: 90,000 int8 vectors of dim 128 a page


@dataclass(frozen=True)
class AnnIndex:
    """How Milvus indexes candidate vectors, by inner product.

    Attributes:
        index_type: Such as "HNSW", "IVF_FLAT" or "FLAT".
        params: What the index is built with: for HNSW, `M` links a vector and `efConstruction` vectors looked at.
        search_params: What it is searched with, such as `ef`; by default as many as are asked for.
        native: Whether Milvus itself scores pages by MaxSim: a page is a row with an array of vectors, and one search
            returns pages. For servers from 2.6.4 on; it has not been run against one.
    """

    index_type: str = "HNSW"
    params: Mapping[str, Any] = field(default_factory=lambda: {"M": 16, "efConstruction": 200})
    search_params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    native: bool = False


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
        if fields["schema"] not in READ_VERSIONS:
            return cls(embedder, fields["vector_dtype"], schema=fields["schema"])
        ann_index = fields.pop("ann_index")
        return cls(embedder, ann_index=None if ann_index is None else AnnIndex(**ann_index), **fields)


@dataclass(frozen=True)
class PartOf:
    """What a part says of itself.

    Attributes:
        collection_name: Of which collection it is part.
        generation: Of which making of it; None if it was made before parts said so.
    """

    collection_name: str
    generation: str | None = None

    def to_json(self) -> str:
        """Write as JSON; equal parts are written alike, so that servers take a second creation for the first."""
        return json.dumps({"part_of": self.collection_name, "generation": self.generation}, sort_keys=True)


@dataclass(frozen=True)
class StoredVectors:
    """A page's vectors in Milvus: their name, how many they are, and which collection has them."""

    vector_id: str
    num_vectors: int
    shard: int = 0


ENTRY_FIELDS = (
    "page_id",
    "document_id",
    "content_hash",
    "revision",
    "vectors_hash",
    "num_vectors",
    "shard",
    "metadata",
)
"""What `PageEntry.of` reads of a row."""


@dataclass(frozen=True)
class PageEntry:
    """What is known of a stored page without its text: enough to find it, filter it, and know whether it changed."""

    page_id: str
    document_id: str
    content_hash: str
    revision: str
    vectors: StoredVectors
    metadata: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> PageEntry:
        """Read from a page's row."""
        stored = StoredVectors(vector_id(row["page_id"], row["vectors_hash"]), row["num_vectors"], row["shard"])
        return cls(
            row["page_id"], row["document_id"], row["content_hash"], row["revision"], stored, row["metadata"] or {}
        )

    @property
    def vectors_hash(self) -> str:
        """What `vectors_hash` said of its vectors."""
        return self.vectors.vector_id.rpartition(":")[2]


def vectors_collection(collection_name: str) -> str:
    """Name the collection that keeps the exact multi-vectors."""
    return f"{collection_name}_vectors"


def candidates_collection(collection_name: str) -> str:
    """Name the collection that Milvus searches, where it does."""
    return f"{collection_name}_candidates"


# ---- collections: whose they are


def read_description(client: MilvusClient, collection_name: str) -> CollectionDescription | None:
    """Return what the collection says of itself; None if it is no collection of pages that this package made."""
    try:
        return CollectionDescription.from_json(_said(client.describe_collection(collection_name), _PROPERTY))
    except (KeyError, TypeError, ValueError):
        return None


def read_part(client: MilvusClient, name: str) -> PartOf | None:
    """Return of what a collection is part; None if it is no part that this package made."""
    described = client.describe_collection(name)
    try:
        said = json.loads(_said(described, _PART_PROPERTY))
        return PartOf(said["part_of"], said["generation"])
    except (KeyError, TypeError, ValueError):
        pass
    fields = {known["name"] for known in described["fields"]}
    named = re.fullmatch(rf"(.+)_(?:vectors(?:_\d+)?(?:{UNLOADING})?|candidates)", name)
    return PartOf(named[1]) if named and fields in _UNMARKED_FIELDS else None


def _said(described: Mapping[str, Any], name: str) -> str:
    # Milvus Lite keeps properties and forgets descriptions; servers have kept descriptions longer than properties.
    return str(described.get("properties", {}).get(name) or described.get("description") or "{}")


_UNMARKED_FIELDS = (
    {"vector_id", "page_id", "chunks", "patch_grid", "unused"},
    {"candidate_id", "page_id", "document_id", "sequence_id", "metadata", "vector"},
)
"""By these, the parts of a collection of the version before are known."""


def parts_of(client: MilvusClient, collection_name: str, description: CollectionDescription) -> list[str]:
    """Name the parts that there are of a collection, as it was made this time."""
    pattern = rf"{collection_name}_(vectors(_\d+)?|candidates)"
    names = [name for name in client.list_collections() if re.fullmatch(pattern, name)]
    return sorted(name for name in names if _belongs(read_part(client, name), collection_name, description))


def _belongs(part: PartOf | None, collection_name: str, description: CollectionDescription) -> bool:
    generations = {description.generation} | ({None} if description.schema == _UNMARKED else set())
    return part is not None and part.collection_name == collection_name and part.generation in generations


def check_names(client: MilvusClient, collection_name: str, description: CollectionDescription) -> list[str]:
    """Return which parts are there, of any making of the collection.

    Raises:
        StoreError: If a name that a part needs is taken by a collection that is not part of this one.
    """
    there = [name for name in _makers(collection_name, description, lite=True) if client.has_collection(name)]
    for name in there:
        found = read_part(client, name)
        if found is None or found.collection_name != collection_name:
            raise StoreError(
                f"Collection {collection_name!r} needs a collection {name!r} for its vectors, and there is one that is "
                "not part of it; nothing was changed. Choose another collection_name, or rename that collection."
            )
    return there


# ---- collections: making them


def create_pages(client: MilvusClient, collection_name: str, description: CollectionDescription) -> None:
    """Create the collection of pages; where others do at the same time, one of them does.

    Its description has the generation, so that no two are equal, and Milvus refuses the second: read which it is.
    """
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
    _create(client, collection_name, pages, properties={_PROPERTY: text})


def complete_collections(
    client: MilvusClient, collection_name: str, description: CollectionDescription, lite: bool
) -> bool:
    """Make what a collection of pages lacks: parts and indexes, whoever made it, or died while making it.

    Safe to be done by several at a time, and quick where there is nothing to make.

    Returns:
        Whether anything was made.

    Raises:
        StoreError: If a name that a part needs is taken by a collection that is not part of this one.
    """
    made = []
    for name in check_names(client, collection_name, description):
        if not _belongs(read_part(client, name), collection_name, description):  # of an earlier making, left behind
            client.drop_collection(name)
    if not _has_index(client, collection_name):
        _index(client, collection_name, "mean_vector")
        made.append(collection_name)
    for name, make in _makers(collection_name, description, lite).items():
        if not client.has_collection(name) or not _has_index(client, name):
            make(client, name)
            made.append(name)
    if made:
        # All at once: a server takes two and a half seconds for one or for three, nearly all of them waiting.
        with ThreadPoolExecutor(len(made)) as pool:
            list(pool.map(client.load_collection, made))
    return bool(made)


def _makers(
    collection_name: str, description: CollectionDescription, lite: bool
) -> dict[str, Callable[[MilvusClient, str], None]]:
    """Return what makes each part that a collection begins with, by name."""
    part = PartOf(collection_name, description.generation)
    makers: dict[str, Callable[[MilvusClient, str], None]] = {
        vectors_collection(collection_name): lambda client, name: create_vectors(client, name, part)
    }
    if description.ann_index is not None:
        makers[candidates_collection(collection_name)] = lambda client, name: _create_candidates(
            client, name, part, description, lite
        )
    return makers


def create_vectors(client: MilvusClient, name: str, part: PartOf) -> None:
    """Create a collection for exact multi-vectors; whoever reads it loads it."""
    from pymilvus import DataType

    vectors = client.create_schema(auto_id=False, enable_dynamic_field=False, description=part.to_json())
    vectors.add_field("vector_id", DataType.VARCHAR, is_primary=True, max_length=640)
    vectors.add_field("page_id", DataType.VARCHAR, max_length=512)
    _add_chunks(vectors, "chunks")
    vectors.add_field("patch_grid", DataType.ARRAY, element_type=DataType.INT64, max_capacity=3)
    # Milvus demands a vector field in every collection; this one is never searched.
    vectors.add_field("unused", DataType.FLOAT_VECTOR, dim=2)
    _create(client, name, vectors, properties={_PART_PROPERTY: part.to_json()})
    _index(client, name, "unused")


def _create_candidates(
    client: MilvusClient, name: str, part: PartOf, description: CollectionDescription, lite: bool
) -> None:
    from pymilvus import DataType

    candidates = client.create_schema(auto_id=False, enable_dynamic_field=False, description=part.to_json())
    candidates.add_field("candidate_id", DataType.VARCHAR, is_primary=True, max_length=672)
    candidates.add_field("page_id", DataType.VARCHAR, max_length=512)
    candidates.add_field("document_id", DataType.VARCHAR, max_length=512)
    candidates.add_field("sequence_id", DataType.INT64)
    candidates.add_field("metadata", DataType.JSON)
    dim = description.embedder.dim
    if description.ann_index is not None and description.ann_index.native:
        vectors = client.create_struct_field_schema()
        vectors.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        candidates.add_field(
            "vectors",
            DataType.ARRAY,
            element_type=DataType.STRUCT,
            struct_schema=vectors,
            max_capacity=MAX_NATIVE_VECTORS,
        )
    else:
        candidates.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    _create(client, name, candidates, properties={_PART_PROPERTY: part.to_json()})
    # Servers choose the index that they have for texts; Milvus Lite has one and wants it named.
    native = description.ann_index is not None and description.ann_index.native
    field_name, metric = (NATIVE_FIELD, "MAX_SIM_IP") if native else ("vector", "IP")
    _index(client, name, field_name, description.ann_index, "INVERTED" if lite else "", metric)


# ---- rows


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


def page_row(page: Page, entry: PageEntry, mean_vector: list[float]) -> dict[str, Any]:
    """Write a page as a row."""
    node = json.dumps(page.node, ensure_ascii=False, sort_keys=True)
    return {
        "page_id": page.page_id,
        "document_id": page.document_id,
        "file_name": page.file_name,
        "page_number": page.page_number,
        # For whoever looks into the collection; a longer text is whole in `node`.
        "text": page.text.encode("utf-8", "replace")[:_MAX_VARCHAR].decode("utf-8", "ignore"),
        "content_hash": entry.content_hash,
        "revision": entry.revision,
        "vectors_hash": entry.vectors_hash,
        "num_vectors": entry.vectors.num_vectors,
        "shard": entry.vectors.shard,
        "metadata": entry.metadata,
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


def _create(client: MilvusClient, name: str, schema: CollectionSchema, properties: dict[str, str]) -> None:
    from pymilvus.exceptions import MilvusException

    try:
        client.create_collection(name, schema=schema, consistency_level="Strong", properties=properties)
    except MilvusException as error:
        # Another process has made it at the same moment, or, in Milvus Lite, is about to have made it.
        deadline = time.monotonic() + _MAKING_SECONDS
        while not client.has_collection(name):
            if "exist" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _has_index(client: MilvusClient, name: str) -> bool:
    return bool(client.list_indexes(name))


def _index(
    client: MilvusClient,
    name: str,
    vector_field: str,
    ann_index: AnnIndex | None = None,
    page_index: str | None = None,
    metric: str = "IP",
) -> None:
    from pymilvus.exceptions import MilvusException

    indexes = client.prepare_index_params()
    ann = ann_index or AnnIndex("FLAT", {})
    indexes.add_index(vector_field, index_type=ann.index_type, metric_type=metric, params=dict(ann.params))
    if page_index is not None:
        indexes.add_index("page_id", index_type=page_index)
    try:
        # An index of no rows is there at once. Given to `create_collection`, it would be waited for all the same, half
        # a second at a time; loading fails without it, and returns when the collection can be read.
        client.create_index(name, indexes, sync=False)
    except MilvusException:
        if not _has_index(client, name):
            raise
        # Another process has made it at the same moment.
