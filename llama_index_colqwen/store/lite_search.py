"""A query -> the candidates among the pages of a Milvus Lite collection, searched in this process.

Milvus keeps the pages; a `LocalPages` knows which there are, where their vectors lie in the cache, and near which
centroids. It is shared by all stores of the process that have the collection open, which is what makes it right: a
Milvus Lite file has one process. Knows nothing of Milvus but functions that fetch vectors, and nothing of scoring.
"""

from __future__ import annotations

import atexit
import json
import logging
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.late_interaction.centroids import (
    CentroidIds,
    CentroidLists,
    Centroids,
    number_of_centroids,
    sample_size,
)
from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.store.vector_cache import CachedVectors, VectorCache
from llama_index_colqwen.store.vector_shards import StoredVectors

__all__ = ["Fetch", "LocalPages"]

_LOGGER = logging.getLogger(__name__)

# 200,000 vectors (230 ColQwen2 pages) are scored in 35 ms; a first stage would save little, and could lose something.
_EXACT_VECTORS = 200_000

# Centroids are trained again when there are this many times the vectors that they were trained for.
_GROWTH = 4

_BATCH_PAGES = 16
_SAVE_PAGES = 512  # what a crash loses takes a millisecond a page to work out again
_SAMPLE_PAGES = 2048


Fetch = Callable[[Mapping[str, StoredVectors]], Iterable[tuple[str, CachedVectors]]]
"""Vectors by id -> what Milvus has of them."""


class LocalPages:
    """Which pages there are, their vectors, and which to look at for a query.

    Reading never waits for centroids to be trained; writing does. Methods that may have to read vectors from Milvus are
    given the function that does, by the store that calls them.

    Args:
        cache: Of the collection.
    """

    def __init__(self, cache: VectorCache) -> None:
        """See the class; `load` comes first, and again where `is_loaded` was unset."""
        self.writing = threading.RLock()  # held by whoever changes the collection, from Milvus to here
        self._reading = threading.RLock()  # guards what follows, for moments
        self.is_loaded = False
        self._cache = cache
        self._pages: dict[str, StoredVectors] = {}
        self._num_vectors = 0
        self._lists: CentroidLists | None = None
        self._trained_for = 0
        self._unsaved = 0
        atexit.register(self.save)

    # ---- the pages that there are

    def load(self, stored: Mapping[str, StoredVectors], fetch: Fetch) -> None:
        """Take in all pages of the collection, by id."""
        with self.writing:
            names = {page.vector_id: page for page in stored.values()}
            self._cache.compact(names)
            if missing := self._cache.missing(names):
                _LOGGER.info("%d of %d pages are not cached and are read from Milvus.", len(missing), len(stored))
                for _ in self._cache.read({name: names[name] for name in missing}, fetch):
                    pass
            with self._reading:
                self._pages = dict(stored)
                self._num_vectors = sum(page.num_vectors for page in names.values())
            lists = self._read_lists()
            self._lists = self._completed(lists, fetch) if lists is not None else None
            self._train_if_grown(fetch)
            self.is_loaded = True

    def put(self, pages: Mapping[str, tuple[StoredVectors, CachedVectors]], fetch: Fetch) -> None:
        """Take in pages that were stored, by id."""
        with self.writing:
            for stored, vectors in pages.values():
                self._cache.put(stored.vector_id, *vectors)
            lists = self._lists
            decoded = [] if lists is None else [vectors.encoded.decode() for _, vectors in pages.values()]
            assigned = [] if lists is None else lists.centroids.assign(decoded)
            with self._reading:
                for page_id, (stored, _) in pages.items():
                    self._num_vectors += stored.num_vectors
                    if (before := self._pages.get(page_id)) is not None:
                        self._num_vectors -= before.num_vectors
                    self._pages[page_id] = stored
                if lists is not None:
                    for page_id, centroid_ids in zip(pages, assigned, strict=True):
                        lists.add(page_id, centroid_ids)
                self._unsaved += len(pages)
            self._train_if_grown(fetch)
            if self._unsaved > max(_SAVE_PAGES, len(self._pages) // 4):
                self.save()

    def remove(self, page_ids: Iterable[str]) -> None:
        """Forget pages that were deleted."""
        with self.writing, self._reading:
            for page_id in page_ids:
                if (stored := self._pages.pop(page_id, None)) is not None:
                    self._num_vectors -= stored.num_vectors
                if self._lists is not None:
                    self._lists.remove(page_id)

    # ---- what a search asks for

    def candidates(
        self, query: MultiVector, candidate_k: int, allowed: Iterable[str] | None, fetch: Fetch
    ) -> Iterator[Candidate]:
        """Put forward the pages that probably score highest, or, where that is quick, all.

        Args:
            query: Float32, shape (num_query_tokens, dim).
            candidate_k: How many, at the most, where there is a first stage.
            allowed: The ids of the only pages to look at; all by default.
            fetch: Reads from Milvus what the cache has lost.
        """
        with self._reading:
            if allowed is None:
                page_ids, vectors = list(self._pages), self._num_vectors
            else:
                page_ids = [page_id for page_id in allowed if page_id in self._pages]
                vectors = sum(self._pages[page_id].num_vectors for page_id in page_ids)
            if self._lists is not None and len(page_ids) > candidate_k and vectors > _EXACT_VECTORS:
                page_ids = self._lists.best(query, candidate_k, None if allowed is None else page_ids)
        return self.read(page_ids, fetch)

    def read(self, page_ids: Iterable[str] | None, fetch: Fetch) -> Iterator[Candidate]:
        """Return pages with their vectors, or all of them in order of id; those that are not there are left out."""
        with self._reading:
            chosen = sorted(self._pages) if page_ids is None else page_ids
            pages = {self._pages[page_id].vector_id: page_id for page_id in chosen if page_id in self._pages}
            wanted = {vector_id: self._pages[page_id] for vector_id, page_id in pages.items()}
        return (Candidate(pages[name], *vectors) for name, vectors in self._cache.read(wanted, fetch))

    # ---- centroids

    def save(self) -> None:
        """Write down near which centroids pages lie, so that the next process need not work it out."""
        with self._reading:
            if self._lists is None or not self._unsaved:
                return
            centroids, pages = self._lists.centroids, self._lists.pages()
            names = [self._pages[page_id].vector_id for page_id in pages]
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

    def close(self, *, save: bool = True) -> None:
        """Save, and be done."""
        if save:
            self.save()
        atexit.unregister(self.save)

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

    def _train_if_grown(self, fetch: Fetch) -> None:
        vectors = self._num_vectors
        if vectors <= max(_EXACT_VECTORS, _GROWTH * self._trained_for):
            return
        number = number_of_centroids(vectors)
        _LOGGER.info("Training %d centroids for %d vectors.", number, vectors)
        centroids = Centroids.train(self._sample(sample_size(number), fetch), number)
        self._trained_for = vectors
        self._lists = self._completed((centroids, {}), fetch)

    def _completed(self, known: tuple[Centroids, Mapping[str, CentroidIds]], fetch: Fetch) -> CentroidLists:
        """Return lists of all pages: of what is known of them by vector id, and worked out for the others."""
        centroids, ids = known
        lists = CentroidLists(centroids)
        unknown = []
        for page_id, stored in self._pages.items():
            if stored.vector_id in ids:
                lists.add(page_id, ids[stored.vector_id])
            else:
                unknown.append(page_id)
        for batch in gather(self.read(unknown, fetch), _BATCH_PAGES):
            assigned = centroids.assign([candidate.vectors for candidate in batch])
            for candidate, centroid_ids in zip(batch, assigned, strict=True):
                lists.add(candidate.page_id, centroid_ids)
        self._unsaved += len(unknown)
        return lists

    def _sample(self, number: int, fetch: Fetch) -> MultiVector:
        """Draw vectors of up to 2,048 pages, in random order."""
        random = np.random.default_rng(0)
        page_ids = sorted(self._pages)
        chosen = random.permutation(len(page_ids))[:_SAMPLE_PAGES]
        a_page = -(-number // len(chosen))
        drawn = []
        for candidate in self.read([page_ids[place] for place in chosen], fetch):
            vectors = candidate.vectors
            drawn.append(vectors[random.permutation(len(vectors))[:a_page]])
        sample: MultiVector = np.concatenate(drawn)
        return sample[random.permutation(len(sample))[:number]]
