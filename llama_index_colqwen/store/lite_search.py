"""A query -> the candidates among the pages of a Milvus Lite collection, searched in this process.

Milvus keeps the pages; a `LiteSearch` knows which there are and what can be filtered by, where their vectors lie in the
cache, and near which centroids. It is shared by all stores of the process that have the collection open, which is what
makes it right: a Milvus Lite file has one process. What it knows is kept beside the cache, with the state of the
database's files at the time: where they changed since, it is read from Milvus again.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from llama_index_colqwen.concurrency import Lock, gather
from llama_index_colqwen.errors import ColQwenError
from llama_index_colqwen.late_interaction.centroids import (
    CentroidIds,
    CentroidLists,
    Centroids,
    number_of_centroids,
    sample_size,
)
from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.schema import ENTRY_FIELDS, PageEntry, StoredVectors
from llama_index_colqwen.store.search import NewPage, PageFilter, lost_pages
from llama_index_colqwen.store.table import MilvusTable
from llama_index_colqwen.store.vector_cache import VectorCache
from llama_index_colqwen.store.vector_shards import VectorTables

__all__ = ["LiteSearch"]

_LOGGER = logging.getLogger(__name__)

# All pages are scored where that costs no more than as many vectors of 128 dims: 100 ColQwen2 pages, 20 to 30 ms. A
# first stage would save little, and could lose something. What looking up a page costs is counted in vectors, too:
# 5,000 pages of 30 vectors took half a second, nearly all of it for that.
_EXACT_VECTORS = 100_000
_PAGE_VECTORS = 150

# Centroids are trained again when there are this many times the vectors that they were trained for.
_GROWTH = 4

_BATCH_PAGES = 16
_SAVE_PAGES = 512  # what a crash loses takes a millisecond a page to work out again
_SAMPLE_PAGES = 2048
_KEPT_FILTERS = 16

_SAVED = ("page_id", "document_id", "content_hash", "revision", "vectors", "metadata")


class LiteSearch:
    """A `CandidateSearch` of a Milvus Lite collection: which pages there are, and which to look at for a query.

    Reading never waits for centroids to be trained; writing does.

    Args:
        connection: To the database; its own, since stores close theirs when they like.
        pages: The pages' rows.
        vectors: Their exact vectors.
        cache: Of these.
        dim: Of the vectors.
    """

    def __init__(
        self, connection: MilvusConnection, pages: MilvusTable, vectors: VectorTables, cache: VectorCache, dim: int
    ) -> None:
        """See the class; nothing is read yet."""
        self._dim = dim
        self._connection, self._rows, self._vectors, self._cache = connection, pages, vectors, cache
        self._writing = Lock()  # held by whoever changes the collection, from Milvus to here
        self._reading = Lock()  # guards what follows, for moments
        self._is_loaded = False
        self._pages: dict[str, PageEntry] = {}
        self._lost: set[str] = set()
        self._num_vectors = 0
        self._lists: CentroidLists | None = None
        self._trained_for = 0
        self._unsaved = 0  # pages whose centroids are not on disk
        self._changed = False  # whether entries are on disk as they are here
        self._filtered: OrderedDict[str, list[str]] = OrderedDict()
        _OPEN.add(self)

    # ---- changes

    @contextmanager
    def changing(self) -> Iterator[None]:
        """See `CandidateSearch`: other threads wait."""
        with self._writing:
            self._load()
            try:
                yield
            except BaseException:
                self._is_loaded = False  # Milvus may have got further than what is known here
                raise

    def write(self, pages: Sequence[NewPage]) -> None:
        """See `CandidateSearch`; readers go on with what there was."""

    def written(self, pages: Sequence[NewPage], before: Sequence[PageEntry]) -> None:
        """Take in pages that were stored."""
        with self._writing:
            kept = {new.entry.vectors.vector_id for new in pages}
            self._cache.remove(entry.vectors.vector_id for entry in before if entry.vectors.vector_id not in kept)
            for new in pages:
                self._cache.put(new.entry.vectors.vector_id, *new.encoded)
            lists = self._lists
            assigned = [] if lists is None else lists.centroids.assign([new.encoded.encoded.decode() for new in pages])
            with self._reading:
                self._take([new.entry for new in pages])
                self._lost -= {new.page.page_id for new in pages}
                if lists is not None:
                    for new, centroid_ids in zip(pages, assigned, strict=True):
                        lists.add(new.page.page_id, centroid_ids)
                self._unsaved += len(pages)
            self._train_if_grown()
            if self._unsaved > max(_SAVE_PAGES, len(self._pages) // 4):
                self._save_lists()

    def update(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """See `CandidateSearch`; readers go on with what there was."""

    def updated(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """Take in what changed."""
        with self._reading:
            self._take([entry for _, entry in pages])

    def remove(self, deleted: Sequence[PageEntry]) -> None:
        """Forget pages that were deleted."""
        self._cache.remove(entry.vectors.vector_id for entry in deleted)
        with self._writing, self._reading:
            for entry in deleted:
                if (stored := self._pages.pop(entry.page_id, None)) is not None:
                    self._num_vectors -= stored.vectors.num_vectors
                self._lost.discard(entry.page_id)
                if self._lists is not None:
                    self._lists.remove(entry.page_id)
            self._note_change()

    # ---- what is stored

    def entries(self, page_ids: Sequence[str]) -> dict[str, PageEntry]:
        """See `CandidateSearch`."""
        self._load()
        with self._reading:
            return {page_id: self._pages[page_id] for page_id in page_ids if page_id in self._pages}

    def find(self, expression: str = "", keeps: Callable[[PageEntry], bool] | None = None) -> list[PageEntry]:
        """See `CandidateSearch`; Milvus is not asked."""
        self._load()
        with self._reading:
            found = list(self._pages.values())
        return [entry for entry in found if keeps is None or keeps(entry)]

    def lost(self, entries: Iterable[PageEntry]) -> set[str]:
        """See `CandidateSearch`: those that neither the cache nor Milvus had."""
        self._load()
        with self._reading:
            return {entry.page_id for entry in entries} & self._lost

    def check(self, entries: Mapping[str, PageEntry]) -> int:
        """Read all again from Milvus: nothing is kept there for searching."""
        with self._writing:
            with self._reading:
                wrong = sum(self._pages.get(page_id) != entry for page_id, entry in entries.items())
                wrong += len(self._pages.keys() - entries.keys())
            self._is_loaded = False
            self._load(anew=True)
            return wrong

    # ---- what a search asks for

    def candidates(
        self, query: MultiVector, candidate_k: int, chosen: PageFilter | None, exact: bool
    ) -> Iterator[Candidate]:
        """Put forward the pages that probably score highest, or, where that is quick, all."""
        self._load_to_search()
        allowed = None if chosen is None else self._matching(chosen)
        with self._reading:
            if allowed is None:
                page_ids, vectors = list(self._pages), self._num_vectors
            else:
                page_ids = [page_id for page_id in allowed if page_id in self._pages]
                vectors = sum(self._pages[page_id].vectors.num_vectors for page_id in page_ids)
            snapshot = None
            is_many = len(page_ids) > candidate_k and self._cost(len(page_ids), vectors) > _EXACT_VECTORS
            if is_many and not exact and self._lists is not None:
                snapshot = self._lists.snapshot(None if allowed is None else page_ids)
        return self._read(sorted(page_ids) if snapshot is None else snapshot.best(query, candidate_k))

    def _cost(self, pages: int, vectors: int) -> float:
        """Say what scoring them costs, in vectors of 128 dims."""
        return vectors * self._dim / 128 + _PAGE_VECTORS * pages

    def _matching(self, chosen: PageFilter) -> list[str]:
        """Return the ids of the pages that match; kept, since retrievers ask with the same filters again and again."""
        with self._reading:
            if chosen.key in self._filtered:
                self._filtered.move_to_end(chosen.key)
                return self._filtered[chosen.key]
            found = list(self._pages.values())
            kept = self._filtered
        matching = [entry.page_id for entry in found if chosen.keeps(entry)]
        with self._reading:
            kept[chosen.key] = matching  # where pages changed meanwhile, this is thrown away
            if len(kept) > _KEPT_FILTERS:
                kept.popitem(last=False)
        return matching

    def _read(self, page_ids: Iterable[str]) -> Iterator[Candidate]:
        """Return pages with their vectors; those that are not there are left out."""
        with self._reading:
            pages = {
                entry.vectors.vector_id: entry
                for page_id in page_ids
                if page_id not in self._lost and (entry := self._pages.get(page_id)) is not None
            }
        stored = {name: entry.vectors for name, entry in pages.items()}
        for name, vectors in self._cache.read(stored, self._vectors.read):
            yield Candidate(pages.pop(name).page_id, *vectors)
        self._note_lost(pages.values())

    # ---- the pages that there are

    def _load_to_search(self) -> None:
        """Take in all pages and make their lists, while Milvus reads its files to give the rows of what is found."""
        if self._is_loaded:
            return
        loading = threading.Thread(target=self._load_rows, name="colqwen-load", daemon=True)
        loading.start()
        try:
            self._load()
            with self._reading:
                if self._lists is not None:
                    self._lists.snapshot()  # the first one sorts what pages lie near by centroid, and it is kept
        finally:
            loading.join()

    def _load_rows(self) -> None:
        with suppress(ColQwenError):  # whoever reads them meets it
            self._rows.load()

    def _load(self, *, anew: bool = False) -> None:
        """Take in all pages of the collection, unless they are known."""
        if self._is_loaded:
            return
        with self._writing:
            if self._is_loaded:  # by now
                return
            entries = None if anew or self._changed else self._read_entries()
            if entries is None:
                entries = [PageEntry.of(row) for row in self._rows.scan(ENTRY_FIELDS)]
                self._changed = True
            names: dict[str, StoredVectors] = {entry.vectors.vector_id: entry.vectors for entry in entries}
            self._cache.compact(names)
            with self._reading:
                self._pages, self._lost, self._num_vectors = {}, set(), 0
                changed = self._changed
                self._take(entries)
                self._changed = changed
            if missing := set(self._cache.missing(names)):
                _LOGGER.info("%d of %d pages are not cached and are read from Milvus.", len(missing), len(entries))
                for name, _ in self._cache.read({name: names[name] for name in missing}, self._vectors.read):
                    missing.discard(name)
                self._note_lost([entry for entry in entries if entry.vectors.vector_id in missing])
            lists = self._read_lists()
            self._lists = self._completed(lists) if lists is not None else None
            self._train_if_grown()
            self._is_loaded = True

    def _take(self, entries: Iterable[PageEntry]) -> None:
        """Let these take the place of what was known of their pages."""
        for entry in entries:
            if (before := self._pages.get(entry.page_id)) is not None:
                self._num_vectors -= before.vectors.num_vectors
            self._num_vectors += entry.vectors.num_vectors
            self._pages[entry.page_id] = entry
        self._note_change()

    def _note_change(self) -> None:
        self._changed = True
        self._filtered = OrderedDict()  # a new one: who is filtering has the old one

    def _note_lost(self, entries: Iterable[PageEntry]) -> None:
        with self._reading:
            # A page that was replaced or deleted meanwhile has other vectors by now, or none.
            lost = {
                entry.page_id
                for entry in entries
                if entry.page_id not in self._lost
                and (now := self._pages.get(entry.page_id)) is not None
                and now.vectors == entry.vectors
            }
            self._lost |= lost
        if lost:
            _LOGGER.warning(lost_pages(self._rows.name, self._connection.uri, lost))

    # ---- beside the cache

    def save(self) -> None:
        """Write down what is known, so that the next process need not work it out; Milvus Lite is not asked."""
        self._save_lists()
        self._save_entries()

    def close(self) -> None:
        """Save, and be done."""
        self._vectors.close()
        if self._changed:
            self._rows.flush()  # others may keep the database open: closing it changes no file any more
        self.discard()
        self.save()

    def discard(self) -> None:
        """Be done with a collection that was dropped."""
        _OPEN.discard(self)
        self._connection.close()

    @property
    def _saved_entries(self) -> Path:
        return self._cache.folder / "pages.json"

    def _save_entries(self) -> None:
        with self._reading:
            if not self._changed or not self._is_loaded:
                return
            entries = list(self._pages.values())
            self._changed = False
        try:
            state = self._connection.lite_state(self._rows.name)
            if state is None:
                return
            body = json.dumps([[getattr(entry, name) for name in _SAVED] for entry in entries], default=asdict).encode()
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._saved_entries.with_suffix(".part")
            unfinished.write_bytes(f"{state} {zlib.crc32(body)}\n".encode() + body)
            unfinished.replace(self._saved_entries)
        except (OSError, ColQwenError) as error:
            _LOGGER.info("What is known of pages cannot be kept in %s (%s).", self._cache.folder, error)

    def _read_entries(self) -> list[PageEntry] | None:
        """Return what was known of the pages; None if that was never written down, or the database changed since."""
        try:
            head, _, body = self._saved_entries.read_bytes().partition(b"\n")
            if head.decode() != f"{self._connection.lite_state(self._rows.name)} {zlib.crc32(body)}":
                return None
            self._changed = False
            return [
                PageEntry(page_id, document_id, content_hash, revision, StoredVectors(**vectors), metadata)
                for page_id, document_id, content_hash, revision, vectors, metadata in json.loads(body)
            ]
        except (OSError, ValueError, TypeError):
            return None

    # ---- centroids

    def _save_lists(self) -> None:
        """Write down near which centroids pages lie."""
        with self._reading:
            if self._lists is None or not self._unsaved:
                return
            centroids, pages = self._lists.centroids, self._lists.pages()
            names = [self._pages[page_id].vectors.vector_id for page_id in pages]
            ids = list(pages.values())
            self._unsaved = 0
        try:
            self._cache.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._cache.folder / "centroids.part"
            with unfinished.open("wb") as file:
                np.savez(
                    file,
                    coarse=centroids.coarse,
                    fine=centroids.fine,
                    trained_for=self._trained_for,
                    names=np.frombuffer(json.dumps(names).encode(), np.uint8),
                    lengths=np.array([len(page) for page in ids]),
                    ids=np.concatenate([np.empty(0, np.uint16), *ids]),
                )
            unfinished.replace(self._saved_lists)
        except OSError as error:
            _LOGGER.warning("Centroids cannot be kept in %s (%s).", self._cache.folder, error)

    @property
    def _saved_lists(self) -> Path:
        return self._cache.folder / "centroids.npz"

    def _read_lists(self) -> tuple[Centroids, dict[str, CentroidIds]] | None:
        """Return saved centroids, and by vector id the ids of those that pages lie near."""
        try:
            with np.load(self._saved_lists) as saved:  # a zip file: its members are checksummed
                centroids = Centroids(saved["coarse"], saved["fine"])
                self._trained_for = int(saved["trained_for"])
                names = json.loads(saved["names"].tobytes())
                pages = np.split(saved["ids"], np.cumsum(saved["lengths"])[:-1])
                return centroids, dict(zip(names, pages, strict=False))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            _LOGGER.warning("%s is corrupt; centroids are trained again.", self._saved_lists)
            return None

    def _train_if_grown(self) -> None:
        vectors = self._num_vectors
        if self._cost(len(self._pages), vectors) <= _EXACT_VECTORS or vectors <= _GROWTH * self._trained_for:
            return
        number = number_of_centroids(vectors)
        _LOGGER.info("Training %d centroids for %d vectors.", number, vectors)
        centroids = Centroids.train(self._sample(sample_size(number)), number)
        self._trained_for = vectors
        self._lists = self._completed((centroids, {}))

    def _completed(self, known: tuple[Centroids, Mapping[str, CentroidIds]]) -> CentroidLists:
        """Return lists of all pages: of what is known of them by vector id, and worked out for the others."""
        centroids, ids = known
        lists = CentroidLists(centroids)
        unknown = []
        for page_id, entry in self._pages.items():
            if entry.vectors.vector_id in ids:
                lists.add(page_id, ids[entry.vectors.vector_id])
            else:
                unknown.append(page_id)
        for batch in gather(self._read(unknown), _BATCH_PAGES):
            assigned = centroids.assign([candidate.vectors for candidate in batch])
            for candidate, centroid_ids in zip(batch, assigned, strict=True):
                lists.add(candidate.page_id, centroid_ids)
        self._unsaved += len(unknown)
        return lists

    def _sample(self, number: int) -> MultiVector:
        """Draw vectors of up to 2,048 pages, in random order."""
        random = np.random.default_rng(0)
        page_ids = sorted(self._pages)
        chosen = random.permutation(len(page_ids))[:_SAMPLE_PAGES]
        a_page = -(-number // len(chosen))
        drawn = []
        for candidate in self._read([page_ids[place] for place in chosen]):
            vectors = candidate.vectors
            drawn.append(vectors[random.permutation(len(vectors))[:a_page]])
        sample: MultiVector = np.concatenate(drawn)
        return sample[random.permutation(len(sample))[:number]]


_OPEN: set[LiteSearch] = set()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_OPEN.clear)


@atexit.register
def _save_all() -> None:
    """Save what was not closed.

    Registered before Milvus Lite is imported, and so called after it has closed its files. (To ask it anything at exit
    would be to wait for ever: its threads have ended by then.)
    """
    for search in list(_OPEN):
        search.save()
