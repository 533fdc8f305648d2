"""A query -> the pages whose candidate vectors Milvus finds near its tokens.

The first stage where Milvus searches: on servers, and wherever `candidate_vectors` or an `AnnIndex` is asked for. Knows
nothing of exact vectors or of filters' meaning.

Each page has a few vectors in a collection with an ANN index, pooled from its multi-vector, or all of them. One batched
search finds the nearest to each query token; a page scores the sum over tokens of its best hit, and where a token hit
none of its vectors, of that token's worst hit: more it cannot have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.late_interaction.pooling import pool_to
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.schema import AnnIndex, CandidateVectors, candidate_id, candidate_rows, page_of_candidate
from llama_index_colqwen.store.table import MilvusTable
from llama_index_colqwen.store.vector_shards import StoredVectors

__all__ = ["MAX_HITS", "IgnoredParameterWarning", "MilvusCandidates"]

MAX_HITS = 16_384
"""What a server finds for a vector at most."""


class IgnoredParameterWarning(UserWarning):
    """Milvus did not take a parameter of the index."""


class MilvusCandidates:
    """The candidate vectors of a collection.

    Args:
        connection: To the database.
        name: The collection's.
        candidate_vectors: How many a page, or "all".
        ann_index: How they are indexed.
    """

    def __init__(
        self, connection: MilvusConnection, name: str, candidate_vectors: CandidateVectors, ann_index: AnnIndex
    ) -> None:
        """See the class; nothing is opened yet."""
        self._connection = connection
        self._table = MilvusTable(connection, name, "candidate_id")
        self._candidate_vectors, self._ann_index = candidate_vectors, ann_index

    def write(self, pages: Sequence[tuple[Page, str, MultiVector]]) -> None:
        """Write pages' candidates, or rewrite what is kept beside them; each page with the id of its vectors."""
        rows = []
        for page, vector_id, vectors in pages:
            number = self._candidate_vectors
            rows += candidate_rows(page, vector_id, vectors if number == "all" else pool_to(vectors, number))
        self._table.upsert(rows, [_bytes(row) for row in rows])

    def remove(self, deleted: Iterable[StoredVectors]) -> None:
        """Delete the candidates of these vectors, by key: by anything else, servers take their time."""
        most = self._candidate_vectors
        numbers = {
            stored.vector_id: stored.num_vectors if most == "all" else min(stored.num_vectors, most)
            for stored in deleted
        }
        self._table.remove([candidate_id(name, row) for name, number in numbers.items() for row in range(number)])

    def best(self, query: MultiVector, hits: int, expression: str = "") -> list[str]:
        """Return the ids of pages that were hit, those that probably score highest first.

        Args:
            query: Float32, shape (num_query_tokens, dim).
            hits: How many vectors to find for a token.
            expression: What candidates' metadata must match.
        """
        params = dict(self._ann_index.search_params)
        if "HNSW" in self._ann_index.index_type:
            params["ef"] = max(int(params.get("ef", 0)), hits)  # Milvus demands no less
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
            taken = self._connection.client.describe_index(self._table.name, "vector") or {}
        ignored = sorted(set(self._ann_index.params) - set(taken))
        if ignored:
            warnings.warn(
                f"Milvus at {self._connection.uri} ignores {', '.join(ignored)} of {self._ann_index.index_type} and "
                "uses its own defaults.",
                IgnoredParameterWarning,
                stacklevel=2,
            )


def _bytes(row: dict[str, Any]) -> int:
    return 4 * len(row["vector"]) + 600 + len(str(row["metadata"]))
