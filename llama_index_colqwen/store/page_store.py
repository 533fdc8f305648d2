"""Pages and their multi-vectors <-> Milvus: Milvus Lite on a file, a server, or Zilliz, by `uri` and `token`.

Knows nothing of LlamaIndex's nodes, PDFs or models, and does not score: it puts candidates forward. What is kept is in
`schema`; which pages are candidates is found by `lite_search` (Milvus Lite) or `milvus_search` (servers).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_colqwen.concurrency import in_thread
from llama_index_colqwen.errors import (
    CollectionNotFoundError,
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidOptionError,
    StoreError,
    check_count,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector, VectorDtype, encode_vectors
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.connection import MilvusConnection, normalise_uri, quote
from llama_index_colqwen.store.filters import PageFilter, page_filter
from llama_index_colqwen.store.lite_search import LocalPages
from llama_index_colqwen.store.milvus_search import MAX_HITS, MilvusCandidates
from llama_index_colqwen.store.schema import (
    SCHEMA_VERSION,
    AnnIndex,
    CandidateVectors,
    CollectionDescription,
    candidates_collection,
    create_collections,
    page_from_row,
    page_row,
    read_description,
    vector_id,
    vectors_hash,
    vectors_row,
)
from llama_index_colqwen.store.shared import SharedCollection, close_shared, drop_shared, is_shared, open_shared
from llama_index_colqwen.store.table import MilvusTable, batches
from llama_index_colqwen.store.vector_cache import CachedVectors, VectorCache
from llama_index_colqwen.store.vector_shards import StoredVectors, VectorTables

if TYPE_CHECKING:
    from llama_index.core.vector_stores import MetadataFilters

__all__ = ["MilvusPageStore", "StoredDocument", "StoredState"]

_WRITE_PAGES = 16
_CANDIDATE_VECTORS = 128  # of 600 pages, the 100 best by 64 have .79 of the ten best; by 128, .98
_CACHE_BYTES = 8 << 30

# On a server, so many pages or fewer are all scored: their vectors are cached, and no first stage can lose any.
_EXACT_PAGES = 256

_VECTORS = ("page_id", "vectors_hash", "num_vectors", "shard")


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
    """Keep pages and their multi-vectors in Milvus, and find those that may answer a query.

    Safe for many threads. A Milvus Lite file is held by one process at a time; `close()` releases it.

    Options that are not given are the collection's own; for a new collection, those below.

    Args:
        uri: A path ending in `.db` (Milvus Lite, embedded), or a server's address such as `http://localhost:19530`.
        token: `user:password` or an API key, for servers that ask for one.
        collection_name: Letters, digits and underscores; several collections can share one database.
        vector_dtype: How exact vectors are kept: "int8" (the default; one scale a vector) or "float16" (twice the size,
            exact to 0.0002).
        candidate_vectors: How many vectors of a page Milvus searches for candidates: a number, to which they are
            pooled, or "all". By default, what the embedder says (128, or "all" for words) on a server, and none with
            Milvus Lite, where this process searches all of them, faster.
        ann_index: How Milvus indexes these; given with Milvus Lite, it searches too.
        cache_dir: Where vectors that were read are kept; by default beside a Milvus Lite file, as `<name>.cache`, and
            for a server in the user's cache folder.
        cache_bytes: How large the cache of a server may grow; 8 GB by default. With Milvus Lite it holds all pages.
    """

    def __init__(
        self,
        uri: str | Path = "./colqwen.db",
        token: str | None = None,
        collection_name: str = "pages",
        vector_dtype: VectorDtype | None = None,
        candidate_vectors: CandidateVectors | None = None,
        ann_index: AnnIndex | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        """See the class; nothing is opened yet."""
        if not isinstance(collection_name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", collection_name):
            raise InvalidOptionError(
                f"A collection's name has letters, digits and underscores, and no digit first; got {collection_name!r}."
            )
        if vector_dtype not in (None, "int8", "float16"):
            raise InvalidOptionError(f"vector_dtype is int8 or float16; got {vector_dtype!r}.")
        if candidate_vectors is not None and candidate_vectors != "all":
            check_count('candidate_vectors, if it is not "all",', candidate_vectors)
        check_count("cache_bytes", cache_bytes)
        self.uri = normalise_uri(uri)
        self.collection_name = collection_name
        self._vector_dtype, self._candidate_vectors, self._ann_index = vector_dtype, candidate_vectors, ann_index
        self._cache_bytes = cache_bytes
        self._connection = MilvusConnection(self.uri, token, collection_name)
        self._cache_dir = self._choose_cache_dir(cache_dir)
        self._pages = MilvusTable(self._connection, collection_name, "page_id")
        self._lock = threading.RLock()
        self._opened: _Opened | None = None

    @property
    def is_local(self) -> bool:
        """Whether this is a Milvus Lite file, and not a server."""
        return self._connection.is_local

    @property
    def image_dir(self) -> Path | None:
        """Where page images lie unless told otherwise: beside the file, as `<name>.images`; nowhere for a server."""
        return Path(self.uri).with_suffix(".images") if self.is_local else None

    # ---- opening and closing

    def open(self, fingerprint: EmbedderFingerprint, candidate_vectors: CandidateVectors | None = None) -> None:
        """Open the collection for an embedder, creating it if it is not there.

        Args:
            fingerprint: The embedder's.
            candidate_vectors: How many the embedder recommends, where a new collection keeps any.

        Raises:
            FingerprintMismatchError: If another embedder, or other options than those given, made the collection.
            StoreLockedError: If another process holds the Milvus Lite file.
            StoreError: If Milvus cannot be reached or refuses.
        """
        with self._lock:
            found = self._description()
            if found is not None:
                self._check(found, fingerprint)
                self._use(found)
                return
            in_milvus = not self.is_local or self._candidate_vectors is not None or self._ann_index is not None
            made = CollectionDescription(
                fingerprint,
                self._vector_dtype or "int8",
                (self._candidate_vectors or candidate_vectors or _CANDIDATE_VECTORS) if in_milvus else None,
                (self._ann_index or AnnIndex()) if in_milvus else None,
            )
            with self._connection.errors("create"):
                create_collections(self._connection.client, self.collection_name, made, self._is_lite())
            opened = self._use(made)
            if opened.candidates is not None and self._ann_index is not None:
                opened.candidates.warn_of_ignored_parameters()

    def fingerprint(self) -> EmbedderFingerprint:
        """Return the fingerprint of the embedder that made the collection.

        Raises:
            CollectionNotFoundError: If there is no such collection.
        """
        return self._require_description().embedder

    def close(self) -> None:
        """Close the database; a Milvus Lite file can then be opened by another process."""
        with self._lock:
            self._forget()
            self._connection.close()

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
        dim = self._require_open().description.embedder.dim
        if len(pages) != len(vectors):
            raise DimensionMismatchError(f"{len(pages)} pages came with {len(vectors)} multi-vectors.")
        vectors = [_as_array(multi_vector, page) for page, multi_vector in zip(pages, vectors, strict=True)]
        for page, multi_vector in zip(pages, vectors, strict=True):
            if multi_vector.ndim != 2 or multi_vector.shape[1] != dim or not len(multi_vector):
                raise DimensionMismatchError(
                    f"Collection {self.collection_name!r} holds {dim}-dim vectors, one or more a page; page "
                    f"{page.page_id} came with shape {multi_vector.shape}."
                )
            if not np.isfinite(multi_vector).all():
                raise StoreError(f"The vectors of page {page.page_id} are not finite; nothing was stored.")
        for some, some_vectors in zip(batches(pages, _WRITE_PAGES), batches(vectors, _WRITE_PAGES), strict=True):
            # Of a page that comes twice, the last one counts: one message cannot write a row twice.
            last = {page.page_id: place for place, page in enumerate(some)}
            self._add_batch([some[place] for place in last.values()], [some_vectors[place] for place in last.values()])

    def update(self, pages: Sequence[Page]) -> None:
        """Rewrite what is kept of pages (metadata, image path) whose content, and so their vectors, did not change.

        Raises:
            StoreError: If a page is not stored, or is stored with another content.
        """
        opened = self._require_open()
        with self._writing():
            rows = {row["page_id"]: row for row in self._pages.read([page.page_id for page in pages])}
            for page in pages:
                if page.page_id not in rows or rows[page.page_id]["content_hash"] != page.content_hash:
                    raise StoreError(f"Page {page.page_id} is not stored with this content; add it with its vectors.")
            if opened.candidates is not None:
                by_id = {page.page_id: page for page in pages}
                for some in batches(list(rows.values()), _WRITE_PAGES):
                    ids = {row["page_id"]: vector_id(row["page_id"], row["vectors_hash"]) for row in some}
                    found = self._read_vectors(some)
                    opened.candidates.write([(by_id[page.page_id], ids[page.page_id], page.vectors) for page in found])
            kept = [rows[page.page_id] for page in pages]
            new = [
                page_row(page, row["vectors_hash"], row["num_vectors"], row["shard"], row["mean_vector"])
                for page, row in zip(pages, kept, strict=True)
            ]
            self._pages.upsert(new, [_row_bytes(row) for row in new])

    def delete(
        self,
        page_ids: Sequence[str] = (),
        document_ids: Sequence[str] = (),
        filters: MetadataFilters | None = None,
    ) -> int:
        """Delete pages by id, all pages of documents by id, and all pages that filters match; unknown ids are ignored.

        Returns:
            How many pages were deleted.

        Raises:
            InvalidOptionError: If a filter's value does not go with its operator.
        """
        self._require_open()
        chosen = page_filter(filters)
        with self._writing():
            rows_to_delete = self._pages.read(page_ids, _VECTORS) if page_ids else []
            for document_id in document_ids:
                rows_to_delete.extend(self._pages.scan(_VECTORS, f"document_id == {quote(document_id)}"))
            if chosen is not None:
                rows_to_delete.extend(self._matching(chosen))
            return self._delete_rows(rows_to_delete)

    def delete_other_versions(self, file_path: str, document_id: str) -> int:
        """Delete the pages of what a file held before: same `file_path`, another document id.

        Returns:
            How many pages were deleted.
        """
        self._require_open()
        expression = f'metadata["file_path"] == {quote(file_path)} and document_id != {quote(document_id)}'
        with self._writing():
            return self._delete_rows(self._pages.scan(_VECTORS, expression))

    def clear(self) -> None:
        """Drop the collection: all its pages, and the fingerprint, so that any embedder can start it again."""
        with self._lock:
            found = self._description(strict=False)
            # The pages' collection goes first: what is left without it is not taken for a collection.
            self._pages.drop()
            VectorTables(self._connection, self.collection_name, 0, "int8", sharded=True).drop()
            MilvusTable(self._connection, candidates_collection(self.collection_name), "candidate_id").drop()
            self._forget()
            drop_shared((self.uri, self.collection_name))
            if found is not None:
                self._make_cache(found).clear()

    # ---- reading

    def count(self, filters: MetadataFilters | None = None) -> int:
        """Return how many pages are stored, or match filters."""
        self._require_open()
        chosen = page_filter(filters)
        return self._pages.count() if chosen is None else len(self._matching(chosen))

    def documents(self) -> list[StoredDocument]:
        """List the documents, by file name."""
        self._require_open()
        pages: dict[tuple[str, str], int] = {}
        for row in self._pages.scan(["document_id", "file_name"]):
            key = row["file_name"], row["document_id"]
            pages[key] = pages.get(key, 0) + 1
        return [StoredDocument(document_id, name, count) for (name, document_id), count in sorted(pages.items())]

    def states(self, page_ids: Sequence[str]) -> dict[str, StoredState]:
        """Return what is kept of these pages, by hash; pages that are not stored are absent."""
        self._require_open()
        rows = self._pages.read(page_ids, ["page_id", "content_hash", "revision"])
        return {row["page_id"]: StoredState(row["content_hash"], row["revision"]) for row in rows}

    def get(self, page_ids: Sequence[str]) -> list[Page]:
        """Return pages in the order of their ids; ids that are not stored are left out."""
        self._require_open()
        pages = {row["page_id"]: page_from_row(row) for row in self._pages.read(page_ids, _PAGE)}
        return [pages[page_id] for page_id in page_ids if page_id in pages]

    def candidates(
        self,
        query: MultiVector,
        candidate_k: int = 100,
        filters: MetadataFilters | None = None,
        exact: bool = False,
    ) -> Iterator[Candidate]:
        """Put forward the pages that may score highest, with their exact multi-vectors and patch grids.

        Few pages are all put forward: 200,000 vectors with Milvus Lite (230 ColQwen2 pages), 256 pages on a server. Of
        more, those are that the first stage finds. Vectors are read from Milvus once and then from the local cache.

        Args:
            query: Float32, shape (num_query_tokens, dim), unit rows.
            candidate_k: How many to choose by the first stage.
            filters: Of metadata; pages that do not match are not candidates, and do not take the place of any.
            exact: Whether to put forward all that match, in order of page id with Milvus Lite.

        Raises:
            DimensionMismatchError: If the query's dim is not the collection's, or it has no rows.
            InvalidOptionError: If `candidate_k` is below 1, or a filter's value does not go with its operator.
        """
        opened = self._require_open()
        dim = opened.description.embedder.dim
        check_count("candidate_k", candidate_k)
        if query.ndim != 2 or not len(query) or query.shape[1] != dim:
            raise DimensionMismatchError(
                f"Collection {self.collection_name!r} holds {dim}-dim vectors, and the query has shape {query.shape}."
            )
        chosen = page_filter(filters)
        if opened.shared is None:
            return self._read_vectors(self._hit_pages(opened, query, candidate_k, chosen, exact))
        local = self._local_pages(opened.shared)
        allowed = None if chosen is None else [row["page_id"] for row in self._matching(chosen)]
        if exact:
            return local.read(None if allowed is None else sorted(allowed), opened.vectors.read)
        return local.candidates(query, candidate_k, allowed, opened.vectors.read)

    # ---- the same, for the event loop

    aopen = in_thread(open)
    aclose = in_thread(close)
    afingerprint = in_thread(fingerprint)
    aadd = in_thread(add)
    aupdate = in_thread(update)
    adelete = in_thread(delete)
    adelete_other_versions = in_thread(delete_other_versions)
    aclear = in_thread(clear)
    acount = in_thread(count)
    adocuments = in_thread(documents)
    astates = in_thread(states)
    aget = in_thread(get)

    async def acandidates(
        self,
        query: MultiVector,
        candidate_k: int = 100,
        filters: MetadataFilters | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        """Do `candidates` without blocking the event loop, and read them all."""
        return await asyncio.to_thread(lambda: list(self.candidates(query, candidate_k, filters, exact)))

    # ---- inside: writing

    def _add_batch(self, pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        opened = self._require_open()
        encoded = [encode_vectors(multi_vector, opened.description.vector_dtype) for multi_vector in vectors]
        grids = [getattr(multi_vector, "patch_grid", None) for multi_vector in vectors]
        data = [some.to_bytes() for some in encoded]
        hashes = [vectors_hash(some) for some in data]
        ids = [vector_id(page.page_id, some) for page, some in zip(pages, hashes, strict=True)]
        vector_rows = [
            vectors_row(page.page_id, name, some, grid)
            for page, name, some, grid in zip(pages, ids, data, grids, strict=True)
        ]
        with self._writing():
            local = None if opened.shared is None else self._local_pages(opened.shared)
            before = [StoredVectors.of(row) for row in self._pages.read([page.page_id for page in pages], _VECTORS)]
            # The order is what makes a page whole: its row, the last to be written, is what makes it stored.
            shard = opened.vectors.write(vector_rows, [4 * len(some) // 3 for some in data])
            page_rows = [
                page_row(page, some_hash, len(multi_vector), shard, multi_vector.mean(axis=0).tolist())
                for page, some_hash, multi_vector in zip(pages, hashes, vectors, strict=True)
            ]
            if opened.candidates is not None:
                opened.candidates.write(list(zip(pages, ids, vectors, strict=True)))
            self._pages.upsert(page_rows, [_row_bytes(row) for row in page_rows])
            if local is not None:
                stored = {
                    page.page_id: (StoredVectors(name, len(some.values), shard), CachedVectors(some, grid))
                    for page, name, some, grid in zip(pages, ids, encoded, grids, strict=True)
                }
                local.put(stored, opened.vectors.read)
            # The same vectors written again may be in another collection than before: only there they are outdated.
            opened.vectors.remove([stored for stored in before if stored.vector_id not in ids or stored.shard != shard])
            if opened.candidates is not None:
                opened.candidates.remove([stored for stored in before if stored.vector_id not in ids])

    def _delete_rows(self, rows: Iterable[Mapping[str, Any]]) -> int:
        opened = self._require_open()
        deleted = {row["page_id"]: StoredVectors.of(row) for row in rows}
        if deleted:
            # Pages first: without its row, a page is gone, whatever happens next.
            self._pages.remove(list(deleted))
            if opened.shared is not None:
                opened.shared.pages.remove(deleted)
            opened.vectors.remove(deleted.values())
            if opened.candidates is not None:
                opened.candidates.remove(deleted.values())
        return len(deleted)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other threads from changing a Milvus Lite collection at the same time, from Milvus to what is local."""
        shared = self._require_open().shared
        if shared is None:
            yield
            return
        with shared.pages.writing:
            try:
                yield
            except BaseException:
                shared.pages.is_loaded = False  # Milvus may have got further than what is known here
                raise

    # ---- inside: reading

    def _matching(self, chosen: PageFilter) -> list[dict[str, Any]]:
        rows = self._pages.scan([*_VECTORS, "metadata"], chosen.expression)
        return [row for row in rows if chosen.matches(row["metadata"])]

    def _hit_pages(
        self, opened: _Opened, query: MultiVector, candidate_k: int, chosen: PageFilter | None, exact: bool
    ) -> list[dict[str, Any]]:
        """Return the rows of a server's candidates: all pages if they are few, or those whose vectors Milvus finds."""
        expression = "" if chosen is None else chosen.expression
        fields = [*_VECTORS, "metadata"] if chosen is not None else list(_VECTORS)
        if exact or opened.candidates is None or self._pages.count(expression) <= max(_EXACT_PAGES, candidate_k):
            return self._pages.scan(fields) if chosen is None else self._matching(chosen)
        hits = min(2 * candidate_k, MAX_HITS)
        while True:
            rows: list[dict[str, Any]] = []
            for page_ids in batches(opened.candidates.best(query, hits, expression), candidate_k):
                some = {row["page_id"]: row for row in self._pages.read(page_ids, fields, rows=candidate_k)}
                rows += [some[page_id] for page_id in page_ids if page_id in some]
                if chosen is not None:
                    rows = [row for row in rows if chosen.matches(row["metadata"])]
                if len(rows) >= candidate_k:
                    return rows[:candidate_k]
            if hits == MAX_HITS:
                # Too many hits were of pages that do not match, or of the same few pages.
                return self._pages.scan(fields) if chosen is None else self._matching(chosen)
            hits = min(4 * hits, MAX_HITS)

    def _read_vectors(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Candidate]:
        """Return the vectors of pages, from the cache or Milvus."""
        opened = self._require_open()
        pages = {row["page_id"]: StoredVectors.of(row) for row in rows}
        page_ids = {stored.vector_id: page_id for page_id, stored in pages.items()}
        read = opened.cache.read({stored.vector_id: stored for stored in pages.values()}, opened.vectors.read)
        return (Candidate(page_ids[name], *vectors) for name, vectors in read)

    # ---- inside: the collection

    def _description(self, *, strict: bool = True) -> CollectionDescription | None:
        """Return what the collection says of itself; None if there is no such collection, or, not strictly, of ours."""
        # Asking Milvus Lite would create the database, and a mistyped path should leave nothing behind.
        if not self._connection.is_open and self.is_local and not Path(self.uri).exists():
            return None
        if not self._pages.exists():
            return None
        with self._connection.errors("open"):
            found = read_description(self._connection.client, self.collection_name)
        if found is None and strict:
            raise StoreError(
                f"Collection {self.collection_name!r} in {self.uri} was not made by this package; choose another "
                "collection_name."
            )
        return found

    def _require_description(self) -> CollectionDescription:
        found = self._description()
        if found is None:
            raise CollectionNotFoundError(
                f"There is no collection {self.collection_name!r} in {self.uri}: nothing has been indexed there. "
                "Index documents first, or check uri and collection_name."
            )
        return found

    def _check(self, found: CollectionDescription, fingerprint: EmbedderFingerprint) -> None:
        """Refuse a collection that was made by another embedder, or otherwise than asked for."""
        where = f"Collection {self.collection_name!r} in {self.uri}"
        again = "or index again with overwrite=True"
        if found.schema != SCHEMA_VERSION:
            raise FingerprintMismatchError(
                f"{where} has schema {found.schema}, this version reads {SCHEMA_VERSION}: use that version, {again}."
            )
        if found.embedder != fingerprint:
            raise FingerprintMismatchError(
                f"{where} was made by {found.embedder}, but this embedder is {fingerprint}: open it with the embedder "
                f"that made it, {again}."
            )
        for option, has, asked in (
            ("vector_dtype", found.vector_dtype, self._vector_dtype),
            ("candidate_vectors", found.candidate_vectors, self._candidate_vectors),
            ("ann_index", found.ann_index, self._ann_index),
        ):
            if asked is not None and has != asked:
                raise FingerprintMismatchError(
                    f"{where} was made with {option}={has!r}, but {asked!r} was asked for: leave that out, {again}."
                )

    def _use(self, description: CollectionDescription) -> _Opened:
        candidates = None
        if description.ann_index is not None and description.candidate_vectors is not None:
            # What searching takes is the reader's to say, and not the collection's.
            ann_index = self._ann_index or description.ann_index
            name = candidates_collection(self.collection_name)
            candidates = MilvusCandidates(self._connection, name, description.candidate_vectors, ann_index)
        cache, shared = self._make_cache(description), None
        for folder in self._cache_dir.glob(f"{self.collection_name}-*"):
            if folder != cache.folder:  # of a collection of this name that was cleared, maybe by another process
                shutil.rmtree(folder, ignore_errors=True)
        if self.is_local and candidates is None:
            shared = open_shared(
                (self.uri, self.collection_name), id(self), lambda: self._make_shared(description, LocalPages(cache))
            )
        dim, dtype = description.embedder.dim, description.vector_dtype
        vectors = VectorTables(self._connection, self.collection_name, dim, dtype, sharded=False)
        self._opened = _Opened(description, cache, vectors if shared is None else shared.vectors, candidates, shared)
        return self._opened

    def _make_shared(self, description: CollectionDescription, pages: LocalPages) -> SharedCollection:
        connection = MilvusConnection(self.uri, None, self.collection_name)
        dim, dtype = description.embedder.dim, description.vector_dtype
        return SharedCollection(
            pages, VectorTables(connection, self.collection_name, dim, dtype, sharded=True), connection
        )

    def _require_open(self) -> _Opened:
        """Return what is open, opening an existing collection for whichever embedder made it."""
        with self._lock:
            shared = self._opened.shared if self._opened is not None else None
            if shared is not None and not is_shared((self.uri, self.collection_name), shared):
                self._forget()  # another store has cleared it
            if self._opened is None:
                found = self._require_description()
                self._check(found, found.embedder)
                return self._use(found)
            return self._opened

    def _local_pages(self, shared: SharedCollection) -> LocalPages:
        """Return what is known of a Milvus Lite collection, once it is."""
        if not shared.pages.is_loaded:
            with shared.pages.writing:
                if not shared.pages.is_loaded:  # still
                    stored = {row["page_id"]: StoredVectors.of(row) for row in self._pages.scan(_VECTORS)}
                    shared.pages.load(stored, shared.vectors.read)
        return shared.pages

    def _forget(self) -> None:
        """Undo `_use`."""
        self._pages.forget()
        if self._opened is not None and self._opened.shared is not None:
            close_shared((self.uri, self.collection_name), self._opened.shared, id(self))
        self._opened = None

    def _make_cache(self, description: CollectionDescription) -> VectorCache:
        folder = self._cache_dir / f"{self.collection_name}-{description.generation}"
        max_bytes = None if self.is_local else self._cache_bytes
        return VectorCache(folder, description.embedder.dim, description.vector_dtype, max_bytes)

    def _choose_cache_dir(self, given: str | Path | None) -> Path:
        if given is None and self.is_local:
            return Path(self.uri).with_suffix(".cache")
        from platformdirs import user_cache_path

        base = user_cache_path("llama-index-colqwen") if given is None else Path(given).expanduser().resolve()
        return base / hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    def _is_lite(self) -> bool:
        return self.is_local or "lite" in str(self._connection.client.get_server_version()).partition("-")[0]


@dataclass(frozen=True)
class _Opened:
    """A collection in use: `candidates` finds candidates in Milvus, `shared` in this process."""

    description: CollectionDescription
    cache: VectorCache
    vectors: VectorTables
    candidates: MilvusCandidates | None
    shared: SharedCollection | None


_PAGE = ("page_id", "document_id", "file_name", "page_number", "content_hash", "node")


def _as_array(vectors: MultiVector, page: Page) -> MultiVector:
    try:
        return np.asanyarray(vectors, dtype=np.float32)  # any: `PageVectors` stay what they are
    except (TypeError, ValueError) as error:
        raise DimensionMismatchError(f"The vectors of page {page.page_id} are no table of numbers: {error}.") from error


def _row_bytes(row: Mapping[str, Any]) -> int:
    return sum(map(len, row["node"])) + len(row["text"]) + 4 * len(row["mean_vector"]) + 4096
