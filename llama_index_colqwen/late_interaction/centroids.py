"""Token vectors -> the centroids they lie near, and from there -> the pages that may answer a query.

The first stage where pages are searched on this machine, after PLAID (Santhanam et al. 2022, arXiv:2205.09707). Knows
nothing of files, Milvus or LlamaIndex.

Instead of its vectors, a page is known by the centroids that they lie near: some 500 numbers for 865 vectors. A query
token's similarity to the page is then its similarity to the nearest of these centroids, and only the pages near the
token's own best centroids have to be visited at all. What this loses, scoring the candidates' vectors makes good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.late_interaction.multivectors import MultiVector

__all__ = ["CentroidLists", "CentroidSnapshot", "Centroids", "number_of_centroids"]

CentroidIds = npt.NDArray[np.uint16]

_ITERATIONS = 6
_SAMPLE_A_CENTROID = 16
_CENTROIDS = 16

# How many centroids a query token visits. With 64 of 16,384, 98 to 100 % of the ten best of 1,000 pages were among the
# 100 best candidates on three kinds of synthetic pages; with 16 it was 71 to 99 %, and 256 gain nothing.
_VISITED = 64

_TAIL_PAGES = 256


def number_of_centroids(vectors: int) -> int:
    """Choose how many centroids serve so many vectors; it grows with the square root, as PLAID's."""
    return int(np.clip(_CENTROIDS * math.sqrt(vectors), 64, 1 << 16))  # ids are uint16


def sample_size(centroids: int) -> int:
    """Return how many vectors are wanted to train so many centroids."""
    return _SAMPLE_A_CENTROID * centroids


@dataclass(frozen=True)
class Centroids:
    """A codebook of two levels: a vector belongs to the nearest fine centroid of its nearest coarse one.

    Two levels make training and assigning a page of 865 vectors to 16,384 centroids fifty times cheaper than one, at
    the price of some vectors that a neighbouring cell would have served a little better.

    Attributes:
        coarse: Float32, shape (cells, dim), unit rows.
        fine: Float32, shape (cells, centroids a cell, dim), unit rows.
    """

    coarse: MultiVector = field(repr=False)
    fine: npt.NDArray[np.float32] = field(repr=False)

    @classmethod
    def train(cls, sample: MultiVector, number: int, seed: int = 0) -> Centroids:
        """Cluster vectors by spherical k-means, cell by cell; 2 s of CPU for 16,384 centroids of 128 dims.

        Args:
            sample: Float32, shape (any number, dim), unit rows, in random order.
            number: About how many centroids.
            seed: Of the random starts; equal arguments give equal centroids.
        """
        random = np.random.default_rng(seed)
        cells = round(math.sqrt(number / 2))
        coarse = _kmeans(sample[: cells * 256], cells, random)
        cell_of = (sample @ coarse.T).argmax(axis=1)
        members = (sample[cell_of == cell] for cell in range(cells))
        # A cell that nothing fell into can be given any vectors: nothing will fall into it later either.
        fine = [_kmeans(some if len(some) else sample[:1], number // cells, random) for some in members]
        return cls(coarse, np.stack(fine))

    def __len__(self) -> int:
        """Return how many fine centroids there are."""
        return int(self.fine.shape[0] * self.fine.shape[1])

    def assign(self, pages: Sequence[MultiVector]) -> list[CentroidIds]:
        """Return, for each page, the ids of the centroids that its vectors belong to; each once, ascending.

        Args:
            pages: Each float32, shape (its num_tokens, dim); many pages together take half the time of one by one.
        """
        vectors = np.concatenate(pages)
        cell_of = (vectors @ self.coarse.T).argmax(axis=1)
        order = np.argsort(cell_of, kind="stable")
        ends = np.searchsorted(cell_of[order], np.arange(len(self.coarse) + 1))
        ids = np.empty(len(vectors), dtype=np.uint16)
        for cell, (start, end) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
            if start < end:
                rows = order[start:end]
                ids[rows] = (vectors[rows] @ self.fine[cell].T).argmax(axis=1) + cell * self.fine.shape[1]
        bounds = np.cumsum([len(page) for page in pages])[:-1]
        return [np.unique(page_ids) for page_ids in np.split(ids, bounds)]

    def similarities(self, query: MultiVector) -> npt.NDArray[np.float32]:
        """Return the inner products of a query with all fine centroids; shape (num_query_tokens, len(self))."""
        products: npt.NDArray[np.float32] = query @ self.fine.reshape(len(self), -1).T
        return products


class CentroidLists:
    """Pages by centroid: which pages to look at for a query.

    Not safe for threads; whoever shares it locks it. A page that is added again takes the place of the older one, and
    gaps close when they outnumber the pages.

    Args:
        centroids: What the pages' ids refer to.
    """

    def __init__(self, centroids: Centroids) -> None:
        """See the class."""
        self.centroids = centroids
        self._page_ids: list[str] = []
        self._centroid_ids: list[CentroidIds] = []
        self._slot_of: dict[str, int] = {}
        self._slots: npt.NDArray[np.intp] | None = None  # all that are taken, while nothing changes
        self._main = self._tail = _Postings.of([], 0, len(centroids))

    def __len__(self) -> int:
        """Return how many pages there are."""
        return len(self._slot_of)

    def __contains__(self, page_id: str) -> bool:
        """Say whether a page is there."""
        return page_id in self._slot_of

    def pages(self) -> dict[str, CentroidIds]:
        """Return all pages with their centroids."""
        return {page_id: self._centroid_ids[slot] for page_id, slot in self._slot_of.items()}

    def add(self, page_id: str, centroid_ids: CentroidIds) -> None:
        """Add a page, or replace it."""
        self._slots = None
        self._slot_of[page_id] = len(self._page_ids)
        self._page_ids.append(page_id)
        self._centroid_ids.append(centroid_ids)

    def remove(self, page_id: str) -> None:
        """Forget a page, if it is there."""
        self._slots = None
        self._slot_of.pop(page_id, None)

    def best(self, query: MultiVector, top_k: int, allowed: Iterable[str] | None = None) -> list[str]:
        """Return the pages that probably score highest, best first; see `CentroidSnapshot.best`."""
        return self.snapshot(allowed).best(query, top_k)

    def snapshot(self, allowed: Iterable[str] | None = None) -> CentroidSnapshot:
        """Return the lists as they are now, for any number of threads to search while these change.

        Args:
            allowed: The only pages to look at; all by default. Pages that are not here are passed over.
        """
        self._index_pages()
        if allowed is not None:
            slots = np.array([self._slot_of[name] for name in allowed if name in self._slot_of], dtype=np.intp)
        else:
            if self._slots is None:
                self._slots = np.fromiter(self._slot_of.values(), dtype=np.intp, count=len(self._slot_of))
            slots = self._slots
        return CentroidSnapshot(self.centroids, self._page_ids, len(self._page_ids), slots, (self._main, self._tail))

    def _index_pages(self) -> None:
        """Bring the postings up to date: new pages into the tail, which now and then becomes part of the rest."""
        size = len(self._page_ids)
        if size > 2 * len(self._slot_of) + _TAIL_PAGES:
            self._page_ids, self._centroid_ids = list(self._slot_of), list(self.pages().values())
            self._slot_of = {page_id: slot for slot, page_id in enumerate(self._page_ids)}
            self._slots = None
            self._main = self._tail = _Postings.of([], 0, len(self.centroids))
            size = len(self._page_ids)
        if self._tail.end == size:
            return
        if size - self._main.end > _TAIL_PAGES + self._main.end // 8:
            self._main = _Postings.of(self._centroid_ids, 0, len(self.centroids))
        self._tail = _Postings.of(self._centroid_ids, self._main.end, len(self.centroids))


@dataclass(frozen=True)
class CentroidSnapshot:
    """Lists of pages as they were at a moment; see `CentroidLists.snapshot`."""

    _centroids: Centroids
    _page_ids: list[str]  # of which later pages are no part
    _size: int
    _slots: npt.NDArray[np.intp]
    _postings: tuple[_Postings, _Postings]

    def best(self, query: MultiVector, top_k: int) -> list[str]:
        """Return the pages that probably score highest, best first.

        Args:
            query: Float32, shape (num_query_tokens, dim).
            top_k: How many; fewer if there are fewer.
        """
        slots = self._slots
        scores = self._scores(query)[slots]
        if top_k < len(slots):
            chosen = np.argpartition(-scores, top_k - 1)[:top_k]
            slots, scores = slots[chosen], scores[chosen]
        return [self._page_ids[slot] for slot in slots[np.argsort(-scores, kind="stable")]]

    def _scores(self, query: MultiVector) -> npt.NDArray[np.float32]:
        """Score all slots, shape (slots,); the sum over tokens of the best visited centroid that the page has."""
        similarities = self._centroids.similarities(query)
        visited = min(_VISITED, len(self._centroids) - 1)
        nearest = np.argpartition(similarities, -visited - 1, axis=1)[:, -visited - 1 :]
        # Worst first: a page near several of them is left with the best. The very worst is not visited but stands for
        # all that are not: no page that was passed over has a nearer centroid.
        order = np.argsort(np.take_along_axis(similarities, nearest, axis=1), axis=1)
        nearest = np.take_along_axis(nearest, order, axis=1)
        values = np.take_along_axis(similarities, nearest, axis=1)
        best = np.repeat(values[:, :1], self._size, axis=1)
        for postings in self._postings:
            slots, lengths = postings.lists(nearest[:, 1:].ravel())
            token = np.repeat(np.arange(len(query)), lengths.reshape(len(query), -1).sum(axis=1))
            best.ravel()[token * best.shape[1] + slots] = np.repeat(values[:, 1:].ravel(), lengths)
        scores: npt.NDArray[np.float32] = best.sum(axis=0)
        return scores


@dataclass(frozen=True)
class _Postings:
    """The slots of pages by centroid, one list after the other; fixed once made."""

    slots: npt.NDArray[np.int32]
    starts: npt.NDArray[np.intp]
    end: int

    @classmethod
    def of(cls, centroid_ids: Sequence[CentroidIds], first_slot: int, number: int) -> _Postings:
        pages = centroid_ids[first_slot:]
        ids = np.concatenate([np.empty(0, np.uint16), *pages])
        slots = np.repeat(np.arange(first_slot, len(centroid_ids), dtype=np.int32), [len(page) for page in pages])
        order = np.argsort(ids, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=number))])
        return cls(slots[order], starts, len(centroid_ids))

    def lists(self, centroids: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
        """Return the lists of these centroids, one after the other, and how long each is."""
        starts = self.starts[centroids]
        lengths = self.starts[centroids + 1] - starts
        ends = np.cumsum(lengths)
        return self.slots[np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)], lengths


def _kmeans(vectors: MultiVector, number: int, random: np.random.Generator) -> MultiVector:
    """Cluster unit vectors into unit centroids, shape (number, dim); with fewer vectors than that, some are equal."""
    centroids = vectors[random.choice(len(vectors), number, replace=len(vectors) < number)]
    for _ in range(_ITERATIONS):
        nearest = (vectors @ centroids.T).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        present, starts = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(vectors[order], starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        # Opposite vectors have no mean direction; their centroid stays where it is.
        kept = lengths[:, 0] > 1e-6
        centroids[present[kept]] = sums[kept] / lengths[kept]
        empty = np.setdiff1d(np.arange(number), present)
        centroids[empty] = vectors[random.integers(len(vectors), size=len(empty))]
    return centroids
