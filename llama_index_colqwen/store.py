"""Pages and their multi-vectors <-> Milvus: Milvus Lite on a file, a server, or Zilliz, by `uri` and `token`.

Knows nothing of LlamaIndex, PDFs or models, and does not score: it puts candidates forward.

Two collections:

- `<collection>`: a row a page: ids, text, node, metadata, hashes, and the mean of its vectors. A page is stored when
  this row is. The collection's properties and description carry the embedder's fingerprint.
- `<collection>_vectors`: a row a page: the exact multi-vector as base64 chunks. Rows are named by page and content, so
  a changed page's new vectors lie beside the old ones until the page's row points to them: readers never see a mix.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llama_index_colqwen.codec import VectorDtype, decode_vectors, encode_vectors
from llama_index_colqwen.embedders.base import EmbedderFingerprint
from llama_index_colqwen.errors import (
    CollectionNotFoundError,
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidOptionError,
    StoreError,
)
from llama_index_colqwen.milvus import connect, disconnect, is_local, is_one_of, milvus_errors, normalise_uri, quote
from llama_index_colqwen.pages import Candidate, MultiVector, Page, PatchGrid
from llama_index_colqwen.schema import (
    CollectionDescription,
    create_collections,
    page_from_row,
    page_row,
    read_description,
    vector_id,
    vectors_collection,
    vectors_from_row,
    vectors_row,
)

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["MilvusPageStore", "StoredDocument", "StoredState"]

_WRITE_PAGES = 16  # a ColQwen2 page is 0.2 MB; a server takes messages up to 64 MB
_READ_PAGES = 64
_DELETE_PAGES = 1024
_SCAN_ROWS = 4096  # a server gives 16,384 at the most

_Item = TypeVar("_Item")

_STRONG: dict[str, Any] = {"consistency_level": "Strong"}
"""Read what was just written, whoever wrote it."""


@dataclass(frozen=True)
class StoredState:
    """What is kept of a page, by hash: compare to know whether to embed it again, or only to rewrite its row."""

    content_hash: str
    revision: str


@dataclass(frozen=True)
class StoredDocument:
    """A document and how many of its pages are stored."""

    document_id: str
    file_name: str
    pages: int


class MilvusPageStore:
    """Keep pages and their multi-vectors in Milvus.

    Safe for many threads. A Milvus Lite file is held by one process at a time; `close()` releases it.

    Args:
        uri: A path ending in `.db` (Milvus Lite, embedded), or a server's address such as `http://localhost:19530`.
        token: `user:password` or an API key, for servers that ask for one.
        collection: Letters, digits and underscores; several collections can share one database.
        vector_dtype: "int8" (one scale a vector) or "float16" (twice the size, exact to 0.0002).
    """

    def __init__(
        self,
        uri: str | Path = "./colqwen.db",
        token: str | None = None,
        collection: str = "pages",
        vector_dtype: VectorDtype = "int8",
    ) -> None:
        """See the class; nothing is opened yet."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", collection):
            raise InvalidOptionError(
                f"A collection's name has letters, digits and underscores, and no digit first; got {collection!r}."
            )
        self.uri = normalise_uri(uri)
        self.collection = collection
        self.vector_dtype: VectorDtype = vector_dtype
        self._token = token
        self._vectors_collection = vectors_collection(collection)
        self._lock = threading.RLock()
        self._connection: MilvusClient | None = None
        self._dim: int | None = None
        # page id -> (content hash, encoded vectors, patch grid): what searches read. It is filled on demand and checked
        # against the pages' rows at every search, so that nothing needs to tell it of changes.
        self._resident: dict[str, tuple[str, bytes, PatchGrid | None]] = {}

    @property
    def is_local(self) -> bool:
        """Whether this is a Milvus Lite file, and not a server."""
        return is_local(self.uri)

    @property
    def image_dir(self) -> Path | None:
        """Where page images lie unless told otherwise: beside the file, as `<name>.images`; nowhere for a server."""
        return Path(self.uri).with_suffix(".images") if self.is_local else None

    # ---- opening and closing

    def open(self, fingerprint: EmbedderFingerprint) -> None:
        """Open the collection for an embedder, creating it if it is not there.

        Raises:
            FingerprintMismatchError: If another embedder, or another `vector_dtype`, made the collection.
            StoreLockedError: If another process holds the Milvus Lite file.
            StoreError: If Milvus cannot be reached or refuses.
        """
        with self._lock:
            wanted = CollectionDescription(fingerprint, self.vector_dtype)
            found = self._description()
            if found is None:
                with self._milvus("create"):
                    create_collections(self._client, self.collection, wanted)
            elif found != wanted:
                raise FingerprintMismatchError(self._explain_mismatch(found, wanted))
            self._load(wanted)

    def fingerprint(self) -> EmbedderFingerprint:
        """Return the fingerprint of the embedder that made the collection.

        Raises:
            CollectionNotFoundError: If there is no such collection.
        """
        return self._require_description().embedder

    def close(self) -> None:
        """Let go of the database; a Milvus Lite file can then be opened by another process."""
        with self._lock:
            if self._connection is None:
                return
            disconnect(self._connection, self.uri)
            self._connection = None
            self._dim = None
            self._resident.clear()

    def __enter__(self) -> MilvusPageStore:
        """Return the store; leaving the block closes it."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    # ---- writing

    def add(self, pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        """Store pages with their multi-vectors; a page that is there already is replaced.

        Args:
            pages: With `image_path`, or without an image; inline images are not kept in Milvus.
            vectors: A multi-vector a page, each float32, shape (num_tokens, dim); of `PageVectors`, the patch grid is
                kept too.

        Raises:
            DimensionMismatchError: If a multi-vector's dim is not the collection's, or there is not one a page.
            StoreError: If vectors are not finite, or if Milvus refuses. What was stored by then stays; adding the same
                pages again resumes.
        """
        dim = self._require_open()
        if len(pages) != len(vectors):
            raise DimensionMismatchError(f"{len(pages)} pages came with {len(vectors)} multi-vectors.")
        for page, multi_vector in zip(pages, vectors, strict=True):
            if multi_vector.ndim != 2 or multi_vector.shape[1] != dim or not len(multi_vector):
                raise DimensionMismatchError(
                    f"Collection {self.collection!r} holds {dim}-dim vectors, one or more a page; page {page.page_id} "
                    f"came with shape {multi_vector.shape}."
                )
            if not np.isfinite(multi_vector).all():
                raise StoreError(f"The vectors of page {page.page_id} are not finite; nothing was stored.")
        for some, some_vectors in zip(_batches(pages, _WRITE_PAGES), _batches(vectors, _WRITE_PAGES), strict=True):
            self._add_batch(some, some_vectors)

    def update(self, pages: Sequence[Page]) -> None:
        """Rewrite what is kept of pages (metadata, image path) whose content, and so their vectors, did not change.

        Raises:
            StoreError: If a page is not stored, or is stored with another content.
        """
        rows = {row["page_id"]: row for row in self._get_rows([page.page_id for page in pages])}
        for page in pages:
            if page.page_id not in rows or rows[page.page_id]["content_hash"] != page.content_hash:
                raise StoreError(f"Page {page.page_id} is not stored with this content; add it with its vectors.")
        with self._milvus("update"):
            self._client.upsert(self.collection, [page_row(page, rows[page.page_id]["mean_vector"]) for page in pages])

    def delete(self, page_ids: Sequence[str] = (), document_ids: Sequence[str] = ()) -> int:
        """Delete pages by id, and all pages of documents by id; unknown ids are ignored.

        Returns:
            How many pages were deleted.
        """
        self._require_open()
        doomed = self._get_rows(page_ids, ["page_id", "content_hash"]) if page_ids else []
        for document_id in document_ids:
            expression = f"document_id == {quote(document_id)}"
            doomed.extend(self._scan(["page_id", "content_hash"], expression))
        self._delete_pages({row["page_id"]: row["content_hash"] for row in doomed})
        return len({row["page_id"] for row in doomed})

    def delete_other_versions(self, file_path: str, document_id: str) -> int:
        """Delete the pages of what a file held before: same `file_path`, another document id.

        Returns:
            How many pages were deleted.
        """
        self._require_open()
        expression = f'metadata["file_path"] == {quote(file_path)} and document_id != {quote(document_id)}'
        doomed = self._scan(["page_id", "content_hash"], expression)
        self._delete_pages({row["page_id"]: row["content_hash"] for row in doomed})
        return len(doomed)

    def clear(self) -> None:
        """Drop the collection: all its pages, and the fingerprint, so that any embedder can start it anew."""
        with self._lock, self._milvus("clear"):
            for name in (self.collection, self._vectors_collection):
                if self._client.has_collection(name):
                    self._client.drop_collection(name)
            self._dim = None
            self._resident.clear()

    # ---- reading

    def count(self) -> int:
        """Return how many pages are stored."""
        self._require_open()
        with self._milvus("count"):
            rows = self._client.query(self.collection, filter="", output_fields=["count(*)"], **_STRONG)
        return int(rows[0]["count(*)"])

    def documents(self) -> list[StoredDocument]:
        """List the documents, by file name."""
        self._require_open()
        pages: dict[tuple[str, str], int] = {}
        for row in self._scan(["document_id", "file_name"]):
            key = row["file_name"], row["document_id"]
            pages[key] = pages.get(key, 0) + 1
        return [StoredDocument(document_id, name, count) for (name, document_id), count in sorted(pages.items())]

    def states(self, page_ids: Sequence[str]) -> dict[str, StoredState]:
        """Return what is kept of these pages, by hash; pages that are not stored are absent."""
        self._require_open()
        rows = self._get_rows(page_ids, ["page_id", "content_hash", "revision"])
        return {row["page_id"]: StoredState(row["content_hash"], row["revision"]) for row in rows}

    def get(self, page_ids: Sequence[str]) -> list[Page]:
        """Return pages in the order of their ids; ids that are not stored are left out."""
        self._require_open()
        pages = {row["page_id"]: page_from_row(row) for row in self._get_rows(page_ids)}
        return [pages[page_id] for page_id in page_ids if page_id in pages]

    def candidates(self) -> Iterator[Candidate]:
        """Put every page forward, with its exact multi-vector and patch grid, in order of page id.

        Vectors are read from Milvus once and then held in memory, encoded (130 KB a ColQwen2 page as int8).
        """
        dim = self._require_open()
        with self._lock:
            stored = {row["page_id"]: row["content_hash"] for row in self._scan(["page_id", "content_hash"])}
            self._fill_resident(stored)
            chosen = [(page_id, self._resident[page_id]) for page_id in sorted(stored) if page_id in self._resident]
        for page_id, (_, data, patch_grid) in chosen:
            yield Candidate(page_id, decode_vectors(data, dim, self.vector_dtype), patch_grid)

    # ---- the same, for the event loop

    async def aadd(self, pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        """Do `add` without blocking the event loop."""
        await asyncio.to_thread(self.add, pages, vectors)

    async def adelete(self, page_ids: Sequence[str] = (), document_ids: Sequence[str] = ()) -> int:
        """Do `delete` without blocking the event loop."""
        return await asyncio.to_thread(self.delete, page_ids, document_ids)

    async def aclear(self) -> None:
        """Do `clear` without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    async def acount(self) -> int:
        """Do `count` without blocking the event loop."""
        return await asyncio.to_thread(self.count)

    async def aget(self, page_ids: Sequence[str]) -> list[Page]:
        """Do `get` without blocking the event loop."""
        return await asyncio.to_thread(self.get, page_ids)

    # ---- inside: rows

    def _add_batch(self, pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        before = self.states([page.page_id for page in pages])
        encoded = [encode_vectors(multi_vector, self.vector_dtype) for multi_vector in vectors]
        vector_rows = [
            vectors_row(page, data, getattr(multi_vector, "patch_grid", None))
            for page, data, multi_vector in zip(pages, encoded, vectors, strict=True)
        ]
        page_rows = [
            page_row(page, multi_vector.mean(axis=0).tolist())
            for page, multi_vector in zip(pages, vectors, strict=True)
        ]
        with self._milvus("add to"):
            # The order is what makes a page whole: its row, the last to be written, is what makes it stored.
            self._client.upsert(self._vectors_collection, vector_rows)
            self._client.upsert(self.collection, page_rows)
            outdated = [
                vector_id(page.page_id, before[page.page_id].content_hash)
                for page in pages
                if page.page_id in before and before[page.page_id].content_hash != page.content_hash
            ]
            self._remove_rows(self._vectors_collection, "vector_id", outdated)

    def _delete_pages(self, content_hashes: Mapping[str, str]) -> None:
        ids = [vector_id(page_id, content_hash) for page_id, content_hash in content_hashes.items()]
        with self._milvus("delete from"):
            # Pages first: without its row, a page is gone, whatever happens next.
            self._remove_rows(self.collection, "page_id", list(content_hashes))
            self._remove_rows(self._vectors_collection, "vector_id", ids)

    def _get_rows(self, page_ids: Sequence[str], fields: Sequence[str] = ("*",)) -> list[dict[str, Any]]:
        self._require_open()
        with self._milvus("read"):
            return self._read_rows(self.collection, "page_id", page_ids, fields)

    def _read_rows(
        self, collection: str, key: str, values: Sequence[str], fields: Sequence[str]
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for some in _batches(values, _READ_PAGES):
            rows.extend(self._client.query(collection, is_one_of(key, some), output_fields=list(fields), **_STRONG))
        return rows

    def _remove_rows(self, collection: str, key: str, values: Sequence[str]) -> None:
        for some in _batches(values, _DELETE_PAGES):
            self._client.delete(collection, filter=is_one_of(key, some))

    def _scan(self, fields: Sequence[str], expression: str = "") -> list[dict[str, Any]]:
        """Return all rows, or those an expression keeps, in no order."""
        with self._milvus("scan"):
            if self.is_local:
                # Milvus Lite has no limit of its own, and one query is three times as fast as pages of one.
                rows = self._client.query(
                    self.collection, filter=expression, output_fields=list(fields), limit=2**31 - 1, **_STRONG
                )
                return list(rows)
            # The paging of pymilvus's iterator, which pastes the last id into its filter as it is: here it is quoted.
            scanned: list[dict[str, Any]] = []
            last = ""
            while True:
                after = f"page_id > {quote(last)}"
                batch = self._client.query(
                    self.collection,
                    f"{after} and ({expression})" if expression else after,
                    output_fields=list({"page_id", *fields}),
                    limit=_SCAN_ROWS,
                    iterator="True",  # in order of id, and no row left out for another
                    reduce_stop_for_best="True",
                    **_STRONG,
                )
                if not batch:
                    return scanned
                scanned.extend(batch)
                last = max(row["page_id"] for row in batch)

    def _fill_resident(self, stored: dict[str, str]) -> None:
        for page_id in [page_id for page_id in self._resident if page_id not in stored]:
            del self._resident[page_id]
        missing = [
            page_id
            for page_id, content in stored.items()
            if page_id not in self._resident or self._resident[page_id][0] != content
        ]
        for some in _batches(missing, _READ_PAGES):
            ids = [vector_id(page_id, stored[page_id]) for page_id in some]
            with self._milvus("read vectors of"):
                rows = self._read_rows(self._vectors_collection, "vector_id", ids, ["page_id", "chunks", "patch_grid"])
            for row in rows:
                self._resident[row["page_id"]] = stored[row["page_id"]], *vectors_from_row(row)

    # ---- inside: the collection

    def _description(self) -> CollectionDescription | None:
        """Return what the collection says of itself; None if there is no such collection."""
        # Asking Milvus Lite would create the database, and a mistyped path should leave nothing behind.
        if self._connection is None and self.is_local and not Path(self.uri).exists():
            return None
        with self._milvus("open"):
            if not self._client.has_collection(self.collection):
                return None
            found = read_description(self._client, self.collection)
        if found is None:
            raise StoreError(
                f"Collection {self.collection!r} in {self.uri} was not made by this package; choose another collection."
            )
        return found

    def _require_description(self) -> CollectionDescription:
        found = self._description()
        if found is None:
            raise CollectionNotFoundError(
                f"There is no collection {self.collection!r} in {self.uri}: nothing has been indexed there. "
                "Index documents first, or check uri and collection."
            )
        return found

    def _explain_mismatch(self, found: CollectionDescription, wanted: CollectionDescription) -> str:
        where = f"Collection {self.collection!r} in {self.uri}"
        again = "or index again with overwrite=True"
        if found.schema != wanted.schema:
            return f"{where} has schema {found.schema}, this version reads {wanted.schema}: use that version, {again}."
        if found.embedder != wanted.embedder:
            return (
                f"{where} was made by {found.embedder}, but this embedder is {wanted.embedder}: open it with the "
                f"embedder that made it, {again}."
            )
        return (
            f"{where} keeps vectors as {found.vector_dtype}, but vector_dtype={wanted.vector_dtype!r} was asked for: "
            f"open it with vector_dtype={found.vector_dtype!r}, {again}."
        )

    def _load(self, description: CollectionDescription) -> int:
        with self._milvus("load"):
            self._client.load_collection(self.collection)
            self._client.load_collection(self._vectors_collection)
        self._dim = description.embedder.dim
        return self._dim

    def _require_open(self) -> int:
        """Return the dim, opening an existing collection for whichever embedder made it."""
        with self._lock:
            if self._dim is not None:
                return self._dim
            found = self._require_description()
            wanted = CollectionDescription(found.embedder, self.vector_dtype)
            if found != wanted:
                raise FingerprintMismatchError(self._explain_mismatch(found, wanted))
            return self._load(found)

    # ---- inside: the connection

    @property
    def _client(self) -> MilvusClient:
        with self._lock:
            if self._connection is None:
                self._connection = connect(self.uri, self._token)
            return self._connection

    def _milvus(self, action: str) -> AbstractContextManager[None]:
        return milvus_errors(action, self.collection, self.uri)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
