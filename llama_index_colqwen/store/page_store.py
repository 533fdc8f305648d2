"""Pages and their multi-vectors <-> Milvus: Milvus Lite on a file, a server, or Zilliz, by `uri` and `token`.

Knows nothing of LlamaIndex's nodes, PDFs or models, and does not score: it puts candidates forward. What is kept is in
`schema`; which pages are candidates is found by a `CandidateSearch`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_colqwen.concurrency import Lock, in_thread
from llama_index_colqwen.errors import (
    CollectionNotFoundError,
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidOptionError,
    QueryError,
    StoreError,
    check_count,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector, VectorDtype, encode_vectors
from llama_index_colqwen.pages import Page, PageFile, files_of, locate_image, with_files, with_relative_image
from llama_index_colqwen.store.connection import MilvusConnection, is_local, normalise_uri, quote, split_credentials
from llama_index_colqwen.store.lite_search import LiteSearch
from llama_index_colqwen.store.milvus_search import MilvusSearch
from llama_index_colqwen.store.native_search import NativeSearch
from llama_index_colqwen.store.schema import (
    ENTRY_FIELDS,
    READ_VERSIONS,
    SCHEMA_VERSION,
    AnnIndex,
    CandidateVectors,
    CollectionDescription,
    PageEntry,
    StoredVectors,
    candidates_collection,
    check_names,
    complete_collections,
    create_pages,
    filterable,
    page_from_row,
    page_row,
    parts_of,
    read_description,
    read_part,
    vector_id,
    vectors_hash,
    vectors_row,
)
from llama_index_colqwen.store.search import CandidateSearch, NewPage, PageFilter
from llama_index_colqwen.store.shared import SharedCollection, SharedUse, collection_lock, drop_shared
from llama_index_colqwen.store.table import MilvusTable, batches
from llama_index_colqwen.store.text_search import TextRanking, TextSearch, WordCounter, note_change
from llama_index_colqwen.store.vector_cache import CachedVectors, VectorCache
from llama_index_colqwen.store.vector_shards import VectorTables

if TYPE_CHECKING:
    from llama_index.core.vector_stores import MetadataFilters

__all__ = ["MilvusPageStore", "StoreCheck", "StoredDocument", "StoredState"]

_WRITE_PAGES = 16
_CANDIDATE_VECTORS = 128  # of 600 pages, the 100 best by 64 have .79 of the ten best; by 128, .98
_CACHE_BYTES = 8 << 30


@dataclass(frozen=True)
class StoredState:
    """What is kept of a page, by hash: compare to know whether to embed it again, or only to rewrite its row."""

    content_hash: str
    revision: str
    files: tuple[PageFile, ...] = ()
    """The files that the page is in."""


@dataclass(frozen=True)
class StoredDocument:
    """A document and which of its pages are stored."""

    document_id: str
    file_name: str
    page_ids: tuple[str, ...] = field(repr=False)

    @property
    def pages(self) -> int:
        """How many of its pages are stored."""
        return len(self.page_ids)


@dataclass(frozen=True)
class StoreCheck:
    """What `MilvusPageStore.check` found, and did about it.

    Attributes:
        pages: How many pages are stored.
        restored: How many had lost their vectors in Milvus, which were still in the cache and are written back.
        lost: The ids of those whose vectors are nowhere: they cannot be found until they are indexed again.
        orphans: How many multi-vectors belonged to no page, and were deleted.
        unsearchable: How many pages the search knew wrongly or not at all, and knows now.
        embedded: How many of the lost pages were embedded again, by `ColQwenIndex.check`.
    """

    pages: int
    restored: int = 0
    lost: list[str] = field(default_factory=list)
    orphans: int = 0
    unsearchable: int = 0
    embedded: int = 0


class MilvusPageStore:
    """Keep pages and their multi-vectors in Milvus, and find those that may answer a query.

    Safe for many threads. A Milvus Lite file is held by one process at a time; `close()` releases it. A server's
    collection is shared: what other processes write there is seen a moment later, what this one writes at once.

    Options that are not given are the collection's own; for a new collection, those below.

    Args:
        uri: A path ending in `.db` (Milvus Lite, embedded), or a server's address such as `http://localhost:19530`.
        token: `user:password` or an API key, for servers that ask for one; by default the environment's `MILVUS_TOKEN`,
            which an unpickled store takes too: tokens are not pickled.
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
        image_dir: Where page images lie; by default beside a Milvus Lite file, as `<name>.images`. Paths of images
            beneath it, or beneath the folder that it is in, are kept relative to it: all can be moved together.

    Attributes:
        image_dir: As given; None for a server where it was not.
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
        image_dir: str | Path | None = None,
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
        self.uri, credentials = split_credentials(normalise_uri(uri))
        if not is_local(self.uri):
            token = token or credentials or os.environ.get("MILVUS_TOKEN")
        self.collection_name = collection_name
        self._vector_dtype, self._candidate_vectors, self._ann_index = vector_dtype, candidate_vectors, ann_index
        self._cache_bytes = cache_bytes
        self._cache_option = cache_dir
        self._connection = MilvusConnection(self.uri, token, collection_name)
        self._cache_dir = self._choose_cache_dir(cache_dir)
        beside = Path(self.uri).with_suffix(".images") if self.is_local else None
        self.image_dir = beside if image_dir is None else Path(os.path.expanduser(image_dir)).absolute()
        self._pages = MilvusTable(self._connection, collection_name, "page_id")
        self._lock = Lock()
        self._opened: _Opened | None = None
        self._fingerprint: EmbedderFingerprint | None = None  # of the embedder it was opened for

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the store was made with, without its token; it connects again when it is used."""
        made_with: dict[str, Any] = {
            "uri": self.uri,
            "collection_name": self.collection_name,
            "vector_dtype": self._vector_dtype,
            "candidate_vectors": self._candidate_vectors,
            "ann_index": self._ann_index,
            "cache_dir": self._cache_option,
            "cache_bytes": self._cache_bytes,
            "image_dir": self.image_dir,
        }
        return partial(type(self), **made_with), (), {"_fingerprint": self._fingerprint}

    @property
    def is_local(self) -> bool:
        """Whether this is a Milvus Lite file, and not a server."""
        return self._connection.is_local

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
        opened = self._opened
        if opened is not None and opened.description.embedder == fingerprint and self._is_current(opened):
            return
        with self._lock, collection_lock(self._key):
            self._fingerprint = fingerprint
            found, is_new = self._description(), False
            if found is None:
                found = self._create(fingerprint, candidate_vectors)
                is_new = True
            opened = self._use(found)
            if is_new and self._ann_index is not None and isinstance(opened.search, MilvusSearch):
                opened.search.warn_of_ignored_parameters()

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
            self._check_fits(page)
        for some, some_vectors in zip(batches(pages, _WRITE_PAGES), batches(vectors, _WRITE_PAGES), strict=True):
            # Of a page that comes twice, the last one counts: one message cannot write a row twice.
            last = {page.page_id: place for place, page in enumerate(some)}
            self._add_batch([some[place] for place in last.values()], [some_vectors[place] for place in last.values()])

    def update(self, pages: Sequence[Page]) -> None:
        """Rewrite what is kept of pages (metadata, image path) whose content, and so their vectors, did not change.

        Raises:
            StoreError: If a page is not stored, or is stored with another content.
        """
        search = self._require_open().search
        with self._changing(search):
            entries = search.entries([page.page_id for page in pages])
            changed: list[tuple[Page, PageEntry]] = []
            for page in pages:
                entry = entries.get(page.page_id)
                if entry is None or entry.content_hash != page.content_hash:
                    raise StoreError(f"Page {page.page_id} is not stored with this content; add it with its vectors.")
                self._check_fits(page)
                page = with_relative_image(page, self.image_dir)
                changed.append((page, _entry(page, entry.vectors)))
            search.update(changed)
            means = self._pages.read([page.page_id for page in pages], ["page_id", "mean_vector"])
            mean_of = {row["page_id"]: row["mean_vector"] for row in means}
            rows = [page_row(page, entry, mean_of[page.page_id]) for page, entry in changed if page.page_id in mean_of]
            self._pages.upsert(rows, [_row_bytes(row) for row in rows])
            search.updated(changed)

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
        search = self._require_open().search
        chosen = _page_filter(filters)
        with self._changing(search):
            found = search.entries(page_ids) if page_ids else {}
            for document_id in document_ids:
                found |= _by_id(
                    search.find(
                        f"document_id == {quote(document_id)}",
                        lambda entry, wanted=document_id: entry.document_id == wanted,  # type: ignore[misc]
                    )
                )
            if chosen is not None:
                found |= _by_id(search.find(chosen.expression, chosen.keeps))
            return self._delete(list(found.values()))

    def delete_other_versions(
        self, versions: Mapping[str, Collection[str]], rewrite: Callable[[list[Page]], None] | None = None
    ) -> int:
        """Delete the pages of what files held before.

        A page whose file has other places, too, stays there.

        Args:
            versions: By `file_path`, the ids of the documents that the file holds now: none if it is gone.
            rewrite: Given the pages that stay, in fewer files, in place of `update`.

        Returns:
            How many pages were deleted.
        """
        from llama_index_colqwen.store.filters import any_of

        search = self._require_open().search
        chosen = any_of("file_path", list(versions))
        if chosen is None:
            return 0

        def current(entry: PageEntry) -> list[PageFile]:
            return [
                file
                for file in files_of(entry.metadata)
                if file.path is None or file.path not in versions or entry.document_id in versions[file.path]
            ]

        with self._changing(search):
            found = search.find(chosen.expression, lambda entry: current(entry) != files_of(entry.metadata))
            gone = [entry for entry in found if not current(entry)]
            kept = {entry.page_id: current(entry) for entry in found if current(entry)}
            (rewrite or self.update)([with_files(page, kept[page.page_id]) for page in self.get(list(kept))])
            return self._delete(gone)

    def clear(self) -> None:
        """Drop the collection: all its pages, and the fingerprint, so that any embedder can start it again.

        Raises:
            StoreError: If the collection is not one that this package made; it is left as it is.
        """
        with self._lock, collection_lock(self._key):
            found = self._description()
            self._forget()
            self._fingerprint = None
            drop_shared(self._key)
            if found is None:
                return
            with self._connection.errors("clear"):
                parts = parts_of(self._connection.client, self.collection_name, found)
            # The pages' collection goes first: what is left without it is not taken for a collection.
            self._pages.drop()
            for name in parts:
                MilvusTable(self._connection, name, "").drop()
            self._make_cache(found).clear()

    def check(self) -> StoreCheck:
        """Compare pages, vectors and what searches them, and repair what can be repaired.

        Reads the names of all vectors, which takes Milvus Lite about a second for a thousand pages.
        """
        opened = self._require_open()
        search, vectors = opened.search, opened.vectors
        with self._changing(search):
            unsearchable = search.check(_by_id(self._read_entries()))
            entries = _by_id(search.find())
            names = vectors.names(vectors.shards())
            needed = {(entry.vectors.shard, entry.vectors.vector_id): entry for entry in entries.values()}
            gone = [entry for (shard, name), entry in needed.items() if name not in names.get(shard, ())]
            cached = opened.cache.get([entry.vectors.vector_id for entry in gone])
            pages = {page.page_id: page for page in self.get([entry.page_id for entry in gone])}
            again = [entry for entry in gone if entry.vectors.vector_id in cached and entry.page_id in pages]
            for some in batches(again, _WRITE_PAGES):
                kept = [cached[entry.vectors.vector_id] for entry in some]
                self._add_encoded([pages[entry.page_id] for entry in some], kept)
            orphans = [
                StoredVectors(name, 0, shard)
                for shard, there in names.items()
                for name in there
                if (shard, name) not in needed
            ]
            vectors.remove(orphans)
            lost = sorted({entry.page_id for entry in gone} - {entry.page_id for entry in again})
            return StoreCheck(len(entries), len(again), lost, len(orphans), unsearchable)

    # ---- reading

    def count(self, filters: MetadataFilters | None = None) -> int:
        """Return how many pages are stored, or match filters."""
        search = self._require_open().search
        chosen = _page_filter(filters)
        return self._pages.count() if chosen is None else len(search.find(chosen.expression, chosen.keeps))

    def page_ids(self, filters: MetadataFilters | None = None) -> list[str]:
        """Return the ids of the pages that are stored, or match filters, by file name and page number."""
        search, chosen = self._require_open().search, _page_filter(filters)
        found = search.find() if chosen is None else search.find(chosen.expression, chosen.keeps)

        def place(entry: PageEntry) -> tuple[str, int, str]:
            number = entry.metadata.get("page_number")
            return str(entry.metadata.get("file_name")), number if isinstance(number, int) else 0, entry.page_id

        return [entry.page_id for entry in sorted(found, key=place)]

    def documents(self) -> list[StoredDocument]:
        """List the documents, by file name; of a document in several files, the first one's."""
        self._require_open()
        pages: dict[tuple[str, str], list[str]] = {}
        for row in self._pages.scan(["document_id", "file_name", "page_id"]):
            pages.setdefault((row["file_name"], row["document_id"]), []).append(row["page_id"])
        return [
            StoredDocument(document_id, name, tuple(sorted(ids))) for (name, document_id), ids in sorted(pages.items())
        ]

    def file_paths(self) -> set[str]:
        """Return the `file_path` of every file that a stored page is in."""
        search = self._require_open().search
        return {file.path for entry in search.find() for file in files_of(entry.metadata) if file.path}

    def states(self, page_ids: Sequence[str]) -> dict[str, StoredState]:
        """Return what is kept of these pages, by hash; pages that are not stored, or lost their vectors, are absent."""
        search = self._require_open().search
        entries = search.entries(page_ids)
        lost = search.lost(entries.values())
        return {
            page_id: StoredState(entry.content_hash, entry.revision, tuple(files_of(entry.metadata)))
            for page_id, entry in entries.items()
            if page_id not in lost
        }

    def get(self, page_ids: Sequence[str]) -> list[Page]:
        """Return pages in the order of their ids; ids that are not stored are left out."""
        self._require_open()
        pages = {row["page_id"]: self._page(row) for row in self._pages.read(page_ids, _PAGE)}
        return [pages[page_id] for page_id in page_ids if page_id in pages]

    def vectors(self, page_ids: Sequence[str]) -> list[Candidate]:
        """Return pages' exact multi-vectors and patch grids in the order of their ids.

        Pages that are not stored, or have lost their vectors, are left out.
        """
        opened = self._require_open()
        stored = {page_id: entry.vectors for page_id, entry in opened.search.entries(page_ids).items()}
        names = {vectors.vector_id: vectors for vectors in stored.values()}
        found = dict(opened.cache.read(names, opened.vectors.read))
        return [
            Candidate(page_id, *found[stored[page_id].vector_id])
            for page_id in page_ids
            if page_id in stored and stored[page_id].vector_id in found
        ]

    def candidates(
        self,
        query: MultiVector,
        candidate_k: int = 100,
        filters: MetadataFilters | None = None,
        exact: bool = False,
    ) -> Iterator[Candidate]:
        """Put forward the pages that may score highest, with their exact multi-vectors and patch grids.

        Few pages are all put forward: some 100 ColQwen2 pages with Milvus Lite, 256 pages on a server. Of
        more, those are that the first stage finds. Vectors are read from Milvus once and then from the local cache.

        Args:
            query: Float32, shape (num_query_tokens, dim), unit rows.
            candidate_k: How many to choose by the first stage.
            filters: Of metadata; pages that do not match are not candidates, and do not take the place of any.
            exact: Whether to put forward all that match, in order of page id with Milvus Lite.

        Raises:
            DimensionMismatchError: If the query's dim is not the collection's, or it has no rows.
            QueryError: If the query's vectors are not finite.
            InvalidOptionError: If `candidate_k` is below 1, or a filter's value does not go with its operator.
        """
        opened = self._require_open()
        dim = opened.description.embedder.dim
        check_count("candidate_k", candidate_k)
        if query.ndim != 2 or not len(query) or query.shape[1] != dim:
            raise DimensionMismatchError(
                f"Collection {self.collection_name!r} holds {dim}-dim vectors, and the query has shape {query.shape}."
            )
        if not np.isfinite(query).all():
            raise QueryError("The query's vectors are not finite: the embedder failed.")
        return opened.search.candidates(query, candidate_k, _page_filter(filters), exact)

    def rank_texts(
        self, queries: Sequence[str], words: WordCounter, top_k: int, filters: MetadataFilters | None = None
    ) -> TextRanking:
        """Rank pages by BM25 over their text (its first 65,535 bytes) and what else `words` counts.

        The first call reads all texts, and keeps their words in memory; later ones read what has changed.

        Args:
            queries: Texts whose words are looked for, all of them at once.
            words: What splits texts into words, and counts them: always the same one, or all texts are read again.
            top_k: How many pages to return; fewer if fewer have any of the words.
            filters: Of metadata; pages that do not match do not take the place of any.

        Raises:
            InvalidOptionError: If `top_k` is below 1, or a filter's value does not go with its operator.
        """
        opened, chosen = self._require_open(), _page_filter(filters)
        check_count("top_k", top_k)
        return opened.texts.rank(queries, words, top_k, chosen)

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
    apage_ids = in_thread(page_ids)
    adocuments = in_thread(documents)
    astates = in_thread(states)
    afile_paths = in_thread(file_paths)
    acheck = in_thread(check)
    aget = in_thread(get)
    avectors = in_thread(vectors)
    arank_texts = in_thread(rank_texts)

    async def acandidates(
        self,
        query: MultiVector,
        candidate_k: int = 100,
        filters: MetadataFilters | None = None,
        exact: bool = False,
    ) -> list[Candidate]:
        """Do `candidates` without blocking the event loop, and read them all."""
        return await asyncio.to_thread(lambda: list(self.candidates(query, candidate_k, filters, exact)))

    # ---- inside: pages

    def _check_fits(self, page: Page) -> None:
        """Refuse what a server's fields do not hold, before anything is written; Milvus Lite's have no limits."""
        if self.is_local:
            return
        for name, value, most in (
            ("page_id", page.page_id, 512),
            ("document_id", page.document_id, 512),
            ("file_name", page.file_name, 1024),
            ("metadata", json.dumps(filterable(page), ensure_ascii=False), 65_000),
        ):
            size = len(value.encode("utf-8", "surrogatepass"))
            if size > most:
                raise InvalidOptionError(
                    f"The {name} of {str(page)[:200]} takes {size} bytes, and a Milvus server holds {most}; nothing "
                    "was stored. Shorten it, or leave it out."
                )

    def _add_batch(self, pages: Sequence[Page], vectors: Sequence[MultiVector]) -> None:
        dtype = self._require_open().description.vector_dtype
        grids = [getattr(multi_vector, "patch_grid", None) for multi_vector in vectors]
        encoded = [encode_vectors(multi_vector, dtype) for multi_vector in vectors]
        self._add_encoded(pages, [CachedVectors(*both) for both in zip(encoded, grids, strict=True)], vectors)

    def _add_encoded(
        self, pages: Sequence[Page], encoded: Sequence[CachedVectors], vectors: Sequence[MultiVector] | None = None
    ) -> None:
        """Store pages; their vectors may be given as they came, before they were encoded."""
        opened = self._require_open()
        search = opened.search
        if vectors is None:
            vectors = [some.encoded.decode() for some in encoded]
        pages = [with_relative_image(page, self.image_dir) for page in pages]
        data = [some.encoded.to_bytes() for some in encoded]
        ids = [vector_id(page.page_id, vectors_hash(some)) for page, some in zip(pages, data, strict=True)]
        vector_rows = [
            vectors_row(page.page_id, name, some, kept.patch_grid)
            for page, name, some, kept in zip(pages, ids, data, encoded, strict=True)
        ]
        with self._changing(search):
            before = list(search.entries([page.page_id for page in pages]).values())
            # The order is what makes a page whole: its row, the last to be written, is what makes it stored.
            shard = opened.vectors.write(vector_rows, [4 * len(some) // 3 for some in data])
            new = [
                NewPage(page, _entry(page, StoredVectors(name, len(multi_vector), shard)), multi_vector, kept)
                for page, name, multi_vector, kept in zip(pages, ids, vectors, encoded, strict=True)
            ]
            search.write(new)
            rows = [page_row(one.page, one.entry, one.vectors.mean(axis=0).tolist()) for one in new]
            self._pages.upsert(rows, [_row_bytes(row) for row in rows])
            search.written(new, before)
            # The same vectors written again may be in another collection than before: only there they are outdated.
            kept_ids = set(ids)
            opened.vectors.remove(
                [
                    entry.vectors
                    for entry in before
                    if entry.vectors.vector_id not in kept_ids or entry.vectors.shard != shard
                ]
            )

    def _delete(self, entries: Sequence[PageEntry]) -> int:
        if entries:
            opened = self._require_open()
            # Pages first: without its row, a page is gone, whatever happens next.
            self._pages.remove([entry.page_id for entry in entries])
            opened.search.remove(entries)
            opened.vectors.remove([entry.vectors for entry in entries])
        return len(entries)

    @contextmanager
    def _changing(self, search: CandidateSearch) -> Iterator[None]:
        """Hold what a search wants held around a change, and take note of it."""
        try:
            with search.changing():
                yield
        finally:
            note_change(self._key)  # afterwards: who reads meanwhile may read what was there before

    def _read_entries(self) -> list[PageEntry]:
        return [PageEntry.of(row) for row in self._pages.scan(ENTRY_FIELDS)]

    def _page(self, row: Mapping[str, Any]) -> Page:
        page = page_from_row(dict(row))
        if page.image_path is None:
            return page
        return replace(page, image_path=locate_image(page.image_path, self.image_dir))

    # ---- inside: the collection

    @property
    def _key(self) -> tuple[str, str]:
        return self.uri, self.collection_name

    def _description(self) -> CollectionDescription | None:
        """Return what the collection says of itself; None if there is no such collection."""
        # Asking Milvus Lite would create the database, and a mistyped path should leave nothing behind.
        if not self._connection.is_open and self.is_local and not Path(self.uri).exists():
            return None
        if not self._pages.exists():
            return None
        with self._connection.errors("open"):
            found = read_description(self._connection.client, self.collection_name)
            part = read_part(self._connection.client, self.collection_name) if found is None else None
        if found is None:
            whose = f"is part of collection {part.collection_name!r}" if part else "was not made by this package"
            raise StoreError(
                f"Collection {self.collection_name!r} in {self.uri} {whose}; choose another collection_name."
            )
        return found

    def _create(
        self, fingerprint: EmbedderFingerprint, candidate_vectors: CandidateVectors | None
    ) -> CollectionDescription:
        """Create the collection, or, where others do so at the same time, return theirs."""
        if self._ann_index is not None and self._ann_index.native:
            version = "Milvus Lite" if self._is_lite() else str(self._connection.client.get_server_version())
            numbers = re.search(r"(\d+)\.(\d+)\.(\d+)", version)
            if self._is_lite() or (numbers and tuple(map(int, numbers.groups())) < (2, 6, 4)):
                raise InvalidOptionError(
                    f"AnnIndex(native=True) needs a Milvus server from 2.6.4 on, and {self.uri} is {version}, which "
                    "has no arrays of vectors: leave native out."
                )
        in_milvus = not self.is_local or self._candidate_vectors is not None or self._ann_index is not None
        made = CollectionDescription(
            fingerprint,
            self._vector_dtype or "int8",
            (self._candidate_vectors or candidate_vectors or _CANDIDATE_VECTORS) if in_milvus else None,
            (self._ann_index or AnnIndex()) if in_milvus else None,
        )
        with self._connection.errors("create"):
            check_names(self._connection.client, self.collection_name, made)
            create_pages(self._connection.client, self.collection_name, made)
        return self._require_description()

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
        if found.schema not in READ_VERSIONS:
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
        """Open a collection that there is, for the embedder that the store was opened for, or whichever made it."""
        self._check(description, self._fingerprint or description.embedder)
        self._forget()
        with self._connection.errors("open"):
            complete_collections(self._connection.client, self.collection_name, description, self._is_lite())
        cache = self._make_cache(description)
        for folder in self._cache_dir.glob(f"{self.collection_name}-*"):
            if folder != cache.folder:  # of a collection of this name that was cleared, maybe by another process
                shutil.rmtree(folder, ignore_errors=True)
        if description.ann_index is None or description.candidate_vectors is None:
            use = SharedUse(self._key, self, description.generation, lambda: self._make_shared(description, cache))
            shared = use.collection
            self._opened = _Opened(description, cache, shared.vectors, shared.search, shared.texts, use)
        else:
            vectors = VectorTables(self._connection, self.collection_name, description, sharded=False)
            way = NativeSearch if description.ann_index.native else MilvusSearch
            search = way(
                self._connection,
                self._pages,
                vectors,
                cache,
                candidates_collection(self.collection_name),
                description.candidate_vectors,
                # What searching takes is the reader's to say, and not the collection's.
                self._ann_index or description.ann_index,
            )
            texts = TextSearch(self._pages, search, self._key, self.is_local)
            self._opened = _Opened(description, cache, vectors, search, texts, None)
        self._fingerprint = description.embedder
        return self._opened

    def _make_shared(self, description: CollectionDescription, cache: VectorCache) -> SharedCollection:
        connection = MilvusConnection(self.uri, None, self.collection_name)
        vectors = VectorTables(connection, self.collection_name, description, sharded=True)
        pages = MilvusTable(connection, self.collection_name, "page_id")
        search = LiteSearch(connection, pages, vectors, cache, description.embedder.dim)
        texts = TextSearch(pages, search, self._key, is_local=True)
        return SharedCollection(description.generation, search, vectors, texts)

    def _is_current(self, opened: _Opened) -> bool:
        """Whether the collection is still the one that was opened, and was not made anew since, by anybody."""
        if opened.use is not None:
            return opened.use.is_current  # a file is one process's
        if not self._pages.exists():
            return False
        with self._connection.errors("open"):
            found = read_description(self._connection.client, self.collection_name)
        return found is not None and found.generation == opened.description.generation

    def _require_open(self) -> _Opened:
        """Return what is open, or open what there is.

        Raises:
            FingerprintMismatchError: If another embedder than the store was opened for has made the collection anew.
        """
        opened = self._opened
        if opened is not None and self._is_current(opened):
            return opened
        with self._lock:
            if self._opened is None or self._opened is opened:
                self._forget()
                return self._use(self._require_description())
            return self._opened

    def _forget(self) -> None:
        """Undo `_use`."""
        self._pages.forget()
        opened, self._opened = self._opened, None
        if opened is not None and opened.use is not None:
            opened.use.end()

    def _make_cache(self, description: CollectionDescription) -> VectorCache:
        folder = self._cache_dir / f"{self.collection_name}-{description.generation}"
        max_bytes = None if self.is_local else self._cache_bytes
        return VectorCache(folder, description.embedder.dim, description.vector_dtype, max_bytes)

    def _choose_cache_dir(self, given: str | Path | None) -> Path:
        if given is None and self.is_local:
            return Path(self.uri).with_suffix(".cache")
        from platformdirs import user_cache_path

        base = user_cache_path("llama-index-colqwen") if given is None else Path(os.path.expanduser(given)).resolve()
        return base / hashlib.sha256(self.uri.encode()).hexdigest()[:16]

    def _is_lite(self) -> bool:
        return self.is_local or "lite" in str(self._connection.client.get_server_version()).partition("-")[0]


@dataclass(frozen=True)
class _Opened:
    """A collection in use."""

    description: CollectionDescription
    cache: VectorCache
    vectors: VectorTables
    search: CandidateSearch
    texts: TextSearch
    use: SharedUse | None


_PAGE = ("page_id", "document_id", "file_name", "page_number", "content_hash", "node")


def _as_array(vectors: MultiVector, page: Page) -> MultiVector:
    try:
        return np.asanyarray(vectors, dtype=np.float32)  # any: `PageVectors` stay what they are
    except (TypeError, ValueError) as error:
        raise DimensionMismatchError(f"The vectors of page {page.page_id} are no table of numbers: {error}.") from error


def _row_bytes(row: Mapping[str, Any]) -> int:
    return sum(map(len, row["node"])) + len(row["text"]) + 4 * len(row["mean_vector"]) + 4096


def _entry(page: Page, stored: StoredVectors) -> PageEntry:
    return PageEntry(page.page_id, page.document_id, page.content_hash, page.revision, stored, filterable(page))


def _page_filter(filters: MetadataFilters | None) -> PageFilter | None:
    if filters is None:
        return None
    from llama_index_colqwen.store.filters import page_filter  # loads LlamaIndex, which the store does without

    return page_filter(filters)


def _by_id(entries: Sequence[PageEntry]) -> dict[str, PageEntry]:
    return {entry.page_id: entry for entry in entries}
