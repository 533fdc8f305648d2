"""What Milvus keeps of a collection, and a page <-> a row of it.

Every limit of 65,535 bytes a field is met by chunking. Knows nothing of connections or of searching.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index_colqwen.codec import VectorDtype, join_chunks, split_chunks
from llama_index_colqwen.embedders.base import EmbedderFingerprint
from llama_index_colqwen.pages import Page, PatchGrid

if TYPE_CHECKING:
    from pymilvus import CollectionSchema, MilvusClient

__all__ = [
    "CollectionDescription",
    "create_collections",
    "page_from_row",
    "page_row",
    "read_description",
    "vector_id",
    "vectors_collection",
    "vectors_from_row",
    "vectors_row",
]

SCHEMA_VERSION = 2

_PROPERTY = "colqwen.collection"
_MAX_VARCHAR = 65_535
_MAX_CHUNKS = 256  # 16 MB of base64: 90,000 int8 vectors of dim 128 a page


@dataclass(frozen=True)
class CollectionDescription:
    """What a collection says of itself: who embedded its pages, and how vectors are kept."""

    embedder: EmbedderFingerprint
    vector_dtype: VectorDtype
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Write as JSON."""
        fields = {"schema": self.schema, "vector_dtype": self.vector_dtype, "embedder": self.embedder.to_json()}
        return json.dumps(fields, sort_keys=True)


def vectors_collection(collection: str) -> str:
    """Name the collection that keeps the exact multi-vectors."""
    return f"{collection}_vectors"


def create_collections(client: MilvusClient, collection: str, description: CollectionDescription) -> None:
    """Create both collections; the pages' comes last, so that its presence means that both are there."""
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
    pages.add_field("metadata", DataType.JSON)
    _add_chunks(pages, "node")
    pages.add_field("mean_vector", DataType.FLOAT_VECTOR, dim=description.embedder.dim)

    vectors = client.create_schema(auto_id=False, enable_dynamic_field=False)
    vectors.add_field("vector_id", DataType.VARCHAR, is_primary=True, max_length=640)
    vectors.add_field("page_id", DataType.VARCHAR, max_length=512)
    _add_chunks(vectors, "chunks")
    vectors.add_field("patch_grid", DataType.ARRAY, element_type=DataType.INT64, max_capacity=3)
    # Milvus demands a vector field in every collection; this one is never searched.
    vectors.add_field("unused", DataType.FLOAT_VECTOR, dim=2)

    if client.has_collection(vectors_collection(collection)):
        client.drop_collection(vectors_collection(collection))
    _create(client, vectors_collection(collection), vectors, "unused", {})
    _create(client, collection, pages, "mean_vector", {_PROPERTY: text})


def read_description(client: MilvusClient, collection: str) -> CollectionDescription | None:
    """Return what the collection says of itself; None if this package did not make it."""
    described = client.describe_collection(collection)
    # Milvus Lite keeps properties and forgets descriptions; servers have kept descriptions longer than properties.
    text = described.get("properties", {}).get(_PROPERTY) or described.get("description") or "{}"
    try:
        fields = json.loads(text)
        return CollectionDescription(
            EmbedderFingerprint.from_json(fields["embedder"]), fields["vector_dtype"], fields["schema"]
        )
    except (KeyError, TypeError, ValueError):
        return None


def vector_id(page_id: str, content_hash: str) -> str:
    """Name a page's vectors by its content too, so that a changed page's new vectors can lie beside the old ones."""
    return f"{page_id}:{content_hash}"


def vectors_row(page: Page, encoded: bytes, patch_grid: PatchGrid | None) -> dict[str, Any]:
    """Write a page's encoded multi-vector as a row."""
    return {
        "vector_id": vector_id(page.page_id, page.content_hash),
        "page_id": page.page_id,
        "chunks": split_chunks(encoded),
        "patch_grid": [] if patch_grid is None else [patch_grid.rows, patch_grid.columns, patch_grid.start],
        "unused": [0.0, 0.0],
    }


def vectors_from_row(row: dict[str, Any]) -> tuple[bytes, PatchGrid | None]:
    """Undo `vectors_row`."""
    return join_chunks(row["chunks"]), PatchGrid(*row["patch_grid"]) if row["patch_grid"] else None


def page_row(page: Page, mean_vector: list[float]) -> dict[str, Any]:
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
        # Word boxes are long and nothing to filter by; the node keeps them.
        "metadata": {name: value for name, value in page.metadata.items() if name != "word_boxes"},
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
    client: MilvusClient, name: str, schema: CollectionSchema, vector_field: str, properties: dict[str, str]
) -> None:
    index = client.prepare_index_params()
    index.add_index(vector_field, index_type="FLAT", metric_type="IP")
    client.create_collection(
        name, schema=schema, index_params=index, consistency_level="Strong", properties=properties or None
    )
