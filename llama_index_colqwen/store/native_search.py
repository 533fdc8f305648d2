"""A query -> the pages that Milvus itself ranks by MaxSim, from 2.6.4 on.

A page is one row with an array of vectors, pooled from its multi-vector or all of them, and one search compares the
query's vectors with it. What Milvus returns are candidates as any others: their exact vectors are scored here.

Not run against a server: none of that version could be had where this was made. What is sent was checked on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.late_interaction.pooling import pool_to
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.milvus_search import MilvusSearch
from llama_index_colqwen.store.schema import (
    MAX_NATIVE_VECTORS,
    NATIVE_FIELD,
    PageEntry,
    candidate_id,
    filterable,
    page_of_candidate,
)

__all__ = ["NativeSearch"]


class NativeSearch(MilvusSearch):
    """A `CandidateSearch` in which Milvus scores pages; arguments as for `MilvusSearch`."""

    def best(self, query: MultiVector, hits: int, expression: str = "") -> list[str]:
        """Return the ids of so many pages, those that Milvus scores highest first; arguments as for `MilvusSearch`."""
        from pymilvus.client.embedding_list import EmbeddingList

        [rows] = self._table.search(
            [EmbeddingList(list(query))],
            hits,
            expression,
            self._search_params(hits),
            field=NATIVE_FIELD,
            metric="MAX_SIM_IP",
        )
        return [page_of_candidate(row["candidate_id"]) for row in rows]

    def _write(self, pages: Sequence[tuple[Page, str, MultiVector]]) -> None:
        rows = []
        for page, vector_id, vectors in pages:
            most = self._candidate_vectors
            kept = pool_to(vectors, MAX_NATIVE_VECTORS if most == "all" else min(most, MAX_NATIVE_VECTORS))
            rows.append(
                {
                    "candidate_id": candidate_id(vector_id, 0),
                    "page_id": page.page_id,
                    "document_id": page.document_id,
                    "sequence_id": 0,
                    "metadata": filterable(page),
                    "vectors": [{"vector": vector} for vector in kept.tolist()],
                }
            )
        self._table.upsert(rows, [_bytes(row) for row in rows])

    def _candidate_ids(self, entry: PageEntry) -> list[str]:
        return [candidate_id(entry.vectors.vector_id, 0)]


def _bytes(row: dict[str, Any]) -> int:
    return 600 + len(str(row["metadata"])) + sum(4 * len(one["vector"]) for one in row["vectors"])
