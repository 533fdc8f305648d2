"""A query -> the pages whose candidate vectors Milvus finds near its tokens.

The first stage where Milvus searches: on servers, and wherever `candidate_vectors` or an `AnnIndex` is asked for.

Each page has a few vectors in a collection with an ANN index, pooled from its multi-vector, or all of them. One batched
search finds the nearest to each query token; a page scores the sum over tokens of its best hit, and where a token hit
none of its vectors, of that token's worst hit: more it cannot have.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from llama_index_colqwen.late_interaction.maxsim import Candidate
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.late_interaction.pooling import pool_to
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.schema import (
    ENTRY_FIELDS,
    NATIVE_FIELD,
    AnnIndex,
    CandidateVectors,
    PageEntry,
    candidate_id,
    candidate_rows,
    page_from_row,
    page_of_candidate,
)
from llama_index_colqwen.store.search import NewPage, PageFilter, lost_pages
from llama_index_colqwen.store.table import MilvusTable, batches
from llama_index_colqwen.store.vector_cache import VectorCache
from llama_index_colqwen.store.vector_shards import VectorTables

__all__ = ["IgnoredParameterWarning", "MilvusSearch"]

_LOGGER = logging.getLogger(__name__)

_MAX_HITS = 16_384  # what a server finds for a vector at most

# So many pages or fewer are all scored: their vectors are cached, and no first stage can lose any.
_EXACT_PAGES = 256

_WRITE_PAGES = 16


class IgnoredParameterWarning(UserWarning):
    """Milvus did not take a parameter of the index."""


class MilvusSearch:
    """A `CandidateSearch` over the candidate vectors of a collection.

    Args:
        connection: To the database.
        pages: The pages' rows.
        vectors: Their exact vectors.
        cache: Of these, on this machine.
        name: The collection of candidate vectors.
        candidate_vectors: How many a page, or "all".
        ann_index: How they are indexed.
    """

    def __init__(
        self,
        connection: MilvusConnection,
        pages: MilvusTable,
        vectors: VectorTables,
        cache: VectorCache,
        name: str,
        candidate_vectors: CandidateVectors,
        ann_index: AnnIndex,
    ) -> None:
        """See the class; nothing is opened yet."""
        self._connection, self._pages, self._vectors, self._cache = connection, pages, vectors, cache
        self._table = MilvusTable(connection, name, "candidate_id")
        self._candidate_vectors, self._ann_index = candidate_vectors, ann_index
        self._field = NATIVE_FIELD if ann_index.native else "vector"

    # ---- changes

    def changing(self) -> AbstractContextManager[None]:
        """See `CandidateSearch`; Milvus needs nothing held."""
        return nullcontext()

    def write(self, pages: Sequence[NewPage]) -> None:
        """Write pages' candidates."""
        self._write([(new.page, new.entry.vectors.vector_id, new.vectors) for new in pages])

    def written(self, pages: Sequence[NewPage], before: Sequence[PageEntry]) -> None:
        """Delete the candidates of vectors that were replaced by others."""
        kept = {new.entry.vectors.vector_id for new in pages}
        self.remove([entry for entry in before if entry.vectors.vector_id not in kept])

    def update(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """Rewrite what is kept beside the candidates."""
        by_id = {page.page_id: page for page, _ in pages}
        for some in batches([entry for _, entry in pages], _WRITE_PAGES):
            ids = {entry.page_id: entry.vectors.vector_id for entry in some}
            self._write([(by_id[page.page_id], ids[page.page_id], page.vectors) for page in self._read(some)])

    def updated(self, pages: Sequence[tuple[Page, PageEntry]]) -> None:
        """See `CandidateSearch`; there is nothing left to do."""

    def remove(self, deleted: Sequence[PageEntry]) -> None:
        """Delete the candidates of these pages, by key: by anything else, servers take their time."""
        self._table.remove([name for entry in deleted for name in self._candidate_ids(entry)])

    def close(self) -> None:
        """See `CandidateSearch`; all is in Milvus."""

    # ---- what is stored

    def entries(self, page_ids: Sequence[str]) -> dict[str, PageEntry]:
        """Read the pages' rows."""
        return {row["page_id"]: PageEntry.of(row) for row in self._pages.read(page_ids, ENTRY_FIELDS)}

    def find(self, expression: str = "", keeps: Callable[[PageEntry], bool] | None = None) -> list[PageEntry]:
        """Read the rows that match."""
        found = map(PageEntry.of, self._pages.scan(ENTRY_FIELDS, expression))
        return [entry for entry in found if keeps is None or keeps(entry)]

    def lost(self, entries: Iterable[PageEntry]) -> set[str]:
        """Ask for the names of the vectors."""
        names = {entry.vectors.vector_id: entry.page_id for entry in entries}
        there = self._vectors.names([0], list(names))[0] if names else set()
        return {page_id for name, page_id in names.items() if name not in there}

    def check(self, entries: Mapping[str, PageEntry]) -> int:
        """Delete candidates of pages that there are not, and write those of pages that lack some."""
        wanted = {name: entry.page_id for entry in entries.values() for name in self._candidate_ids(entry)}
        there = {row["candidate_id"] for row in self._table.scan(["candidate_id"])}
        self._table.remove(sorted(there - wanted.keys()))
        lacking = {page_id for name, page_id in wanted.items() if name not in there}
        pages = self._pages.read(sorted(lacking))
        self.update([(page_from_row(row), entries[row["page_id"]]) for row in pages])
        return len(lacking | {page_of_candidate(name) for name in there - wanted.keys()})

    # ---- searching

    def candidates(
        self, query: MultiVector, candidate_k: int, chosen: PageFilter | None, exact: bool
    ) -> Iterator[Candidate]:
        """Put forward all pages if they are few, or those whose vectors Milvus finds."""
        return self._read(self._hit_pages(query, candidate_k, chosen, exact), chosen)

    def best(self, query: MultiVector, hits: int, expression: str = "") -> list[str]:
        """Return the ids of pages that were hit, those that probably score highest first.

        Args:
            query: Float32, shape (num_query_tokens, dim).
            hits: How many vectors to find for a token.
            expression: What candidates' metadata must match.
        """
        params = self._search_params(hits)
        scores: dict[str, float] = {}
        for rows in self._table.search(query.tolist(), hits, expression, params):
            best: dict[str, float] = {}
            for row in rows:
                best.setdefault(page_of_candidate(row["candidate_id"]), row["distance"])
            for page_id, similarity in best.items():
                scores[page_id] = scores.get(page_id, 0.0) + similarity - rows[-1]["distance"]
        return sorted(scores, key=lambda page_id: (-scores[page_id], page_id))

    def warn_of_ignored_parameters(self) -> None:
        """Say which of the index's parameters Milvus did not take."""
        with self._connection.errors("open"):
            taken = self._connection.client.describe_index(self._table.name, self._field) or {}
        ignored = sorted(set(self._ann_index.params) - set(taken))
        if ignored:
            warnings.warn(
                f"Milvus at {self._connection.uri} ignores {', '.join(ignored)} of {self._ann_index.index_type} and "
                "uses its own defaults.",
                IgnoredParameterWarning,
                stacklevel=2,
            )

    # ---- inside

    def _search_params(self, hits: int) -> dict[str, Any]:
        params = dict(self._ann_index.search_params)
        if "HNSW" in self._ann_index.index_type:
            params["ef"] = max(int(params.get("ef", 0)), hits)  # Milvus demands no less
        return params

    def _hit_pages(
        self, query: MultiVector, candidate_k: int, chosen: PageFilter | None, exact: bool
    ) -> list[PageEntry]:
        expression = "" if chosen is None else chosen.expression
        keeps = None if chosen is None else chosen.keeps
        if exact or self._pages.count(expression) <= max(_EXACT_PAGES, candidate_k):
            return self.find(expression, keeps)
        hits = min(2 * candidate_k, _MAX_HITS)
        while True:
            found: list[PageEntry] = []
            for page_ids in batches(self.best(query, hits, expression), candidate_k):
                some = self.entries(page_ids)
                found += [
                    some[page_id] for page_id in page_ids if page_id in some and (keeps is None or keeps(some[page_id]))
                ]
                if len(found) >= candidate_k:
                    return found[:candidate_k]
            if hits == _MAX_HITS:
                # Too many hits were of pages that do not match, or of the same few pages.
                return self.find(expression, keeps)
            hits = min(4 * hits, _MAX_HITS)

    def _read(self, entries: Iterable[PageEntry], chosen: PageFilter | None = None) -> Iterator[Candidate]:
        """Return the vectors of pages, from the cache or Milvus; pages that are replaced meanwhile, as they are now."""
        pages = {entry.vectors.vector_id: entry for entry in entries}
        yield from self._take(pages)
        if not pages:
            return
        now = self.entries([entry.page_id for entry in pages.values()]).values()
        replaced = [entry for entry in now if entry.vectors.vector_id not in pages]
        yield from self._take(
            {entry.vectors.vector_id: entry for entry in replaced if chosen is None or chosen.keeps(entry)}
        )
        if missing := self.lost(now):
            _LOGGER.warning(lost_pages(self._pages.name, self._connection.uri, missing))

    def _take(self, pages: dict[str, PageEntry]) -> Iterator[Candidate]:
        """Return the vectors of pages, by the vectors' names, and take out those that are there."""
        stored = {name: entry.vectors for name, entry in pages.items()}
        for name, vectors in self._cache.read(stored, self._vectors.read):
            yield Candidate(pages.pop(name).page_id, *vectors)

    def _write(self, pages: Sequence[tuple[Page, str, MultiVector]]) -> None:
        rows = []
        for page, vector_id, vectors in pages:
            number = self._candidate_vectors
            rows += candidate_rows(page, vector_id, vectors if number == "all" else pool_to(vectors, number))
        self._table.upsert(rows, [_bytes(row) for row in rows])

    def _candidate_ids(self, entry: PageEntry) -> list[str]:
        most, stored = self._candidate_vectors, entry.vectors
        number = stored.num_vectors if most == "all" else min(stored.num_vectors, most)
        return [candidate_id(stored.vector_id, row) for row in range(number)]


def _bytes(row: dict[str, Any]) -> int:
    return 4 * len(row["vector"]) + 600 + len(str(row["metadata"]))
