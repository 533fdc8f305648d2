"""Queries -> multi-vectors, from memory if the same embedder was asked the same a moment ago.

A query is embedded again when a hit is explained, a page of results turned, a filter changed: for a model on a CPU that
is a second each. Knows nothing of any one embedder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.errors import ModelError
from llama_index_colqwen.late_interaction.multivectors import MultiVector

__all__ = ["embed_queries"]

# Of an embedder: a thousand queries of ColQwen2's, some forty of a model with 4,096 dims.
_MAX_BYTES = 16_000_000


class _Recent:
    """The newest queries of one embedder, as many as have room; used under the lock."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[str, MultiVector] = OrderedDict()
        self._bytes = 0

    def find(self, queries: Sequence[str]) -> dict[str, MultiVector]:
        found = {query: self._vectors[query] for query in queries if query in self._vectors}
        for query in found:
            self._vectors.move_to_end(query)
        return found

    def keep(self, vectors: dict[str, MultiVector]) -> None:
        for query, rows in vectors.items():
            if query not in self._vectors:  # else another thread asked the same meanwhile
                self._vectors[query] = rows
                self._bytes += rows.nbytes
        while self._bytes > _MAX_BYTES:
            self._bytes -= self._vectors.popitem(last=False)[1].nbytes


_OF: WeakKeyDictionary[MultiVectorEmbedder, _Recent] = WeakKeyDictionary()
_LOCK = Lock(hold=True)


def embed_queries(embedder: MultiVectorEmbedder, queries: Sequence[str]) -> list[MultiVector]:
    """Embed queries, those that are not remembered in one call. Safe for many threads.

    Args:
        embedder: Whose vectors are wanted. One that cannot be a key of a weak dictionary is always asked.
        queries: As `MultiVectorEmbedder.embed_queries` takes them.

    Returns:
        A multi-vector a query, as the embedder made it; read-only.

    Raises:
        QueryError: As the embedder does.
        ModelError: If it does not give a multi-vector a query.
    """
    try:
        with _LOCK:
            recent = _OF.setdefault(embedder, _Recent())
            known = recent.find(queries)
    except TypeError:  # not hashable, or without a place for weak references
        return list(embedder.embed_queries(queries))
    new = [query for query in dict.fromkeys(queries) if query not in known]
    if new:
        vectors = embedder.embed_queries(new)
        if len(vectors) != len(new):
            raise ModelError(f"{embedder.fingerprint} gave {len(vectors)} multi-vectors for {len(new)} queries.")
        made = {query: np.array(rows) for query, rows in zip(new, vectors, strict=True)}
        for rows in made.values():
            rows.flags.writeable = False
        with _LOCK:
            recent.keep(made)
        known |= made
    return [known[query] for query in queries]
