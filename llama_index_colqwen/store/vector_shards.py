"""Exact multi-vectors <-> the Milvus collections that keep them.

On a server that is one collection. Milvus Lite keeps every collection that is touched in memory, and not just once, for
good; so there it is one collection for every 512 pages, and those that are not written to are closed. Knows nothing of
pages but the ids of their vectors, and nothing of searching.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, VectorDtype, bytes_a_vector
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.schema import create_vectors, vector_id, vectors_collection, vectors_from_row
from llama_index_colqwen.store.table import MESSAGE_BYTES, MilvusTable, Row
from llama_index_colqwen.store.vector_cache import CachedVectors

__all__ = ["StoredVectors", "VectorTables"]

_SHARD_PAGES = 512


@dataclass(frozen=True)
class StoredVectors:
    """A page's vectors in Milvus: their name, how many they are, and which collection has them."""

    vector_id: str
    num_vectors: int
    shard: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredVectors:
        """Read from a page's row."""
        return cls(vector_id(row["page_id"], row["vectors_hash"]), row["num_vectors"], row["shard"])


class VectorTables:
    """The vectors of a collection; safe for many threads.

    Args:
        connection: To the database.
        collection_name: The pages' collection.
        dim: Length of a vector.
        dtype: How vectors are encoded.
        sharded: Whether there is one collection for every 512 pages.
    """

    def __init__(
        self, connection: MilvusConnection, collection_name: str, dim: int, dtype: VectorDtype, sharded: bool
    ) -> None:
        """See the class; nothing is opened yet."""
        self._connection, self._collection_name = connection, collection_name
        self._dim, self._dtype, self._sharded = dim, dtype, sharded
        self._lock = threading.RLock()
        self._tables: dict[int, MilvusTable] = {}  # those that are in Milvus Lite's memory
        self._current: int | None = None
        self._rows = 0
        self._to_delete: dict[int, list[str]] = {}
        self._repaired = False

    def write(self, rows: Sequence[Row], sizes: Sequence[int]) -> int:
        """Write rows of vectors, and return which collection has them now."""
        if not self._sharded:
            self._table(0).upsert(rows, sizes)
            return 0
        with self._lock:
            self._delete_marked()
            if self._current is None:
                self._current = max(self._shards(), default=0)
                self._rows = self._table(self._current).count()
            elif self._rows >= _SHARD_PAGES:
                self._unload(self._current)
                with self._connection.errors("add to"):
                    create_vectors(self._connection.client, self._name(self._current + 1))
                self._current, self._rows = self._current + 1, 0
            # A row takes the place of one with its key here, too, and `upsert` would look for that one first.
            self._table(self._current).insert(rows, sizes)
            self._rows += len(rows)
            return self._current

    def read(self, wanted: Mapping[str, StoredVectors]) -> Iterator[tuple[str, CachedVectors]]:
        """Return vectors, by id, in no order; messages stay far below a server's limit."""
        shards: dict[int, list[StoredVectors]] = {}
        for stored in wanted.values():
            shards.setdefault(stored.shard, []).append(stored)
        for shard, some in sorted(shards.items()):
            largest = max(stored.num_vectors for stored in some) * bytes_a_vector(self._dim, self._dtype) * 4 // 3
            names = [stored.vector_id for stored in some]
            with self._lock:
                rows = self._table(shard).read(
                    names, ["vector_id", "chunks", "patch_grid"], rows=max(MESSAGE_BYTES // largest, 1)
                )
                if shard != self._current:
                    self._unload(shard)
            for row in rows:
                data, patch_grid = vectors_from_row(row)
                encoded = EncodedVectors.from_bytes(data, self._dim, self._dtype)
                yield row["vector_id"], CachedVectors(encoded, patch_grid)

    def remove(self, deleted: Iterable[StoredVectors]) -> None:
        """Delete vectors; those in collections that would have to be read first, at the next writing or closing."""
        with self._lock:
            for stored in deleted:
                self._to_delete.setdefault(stored.shard, []).append(stored.vector_id)
            self._delete_marked(only_loaded=self._sharded)

    def close(self) -> None:
        """Delete what is still to be deleted."""
        with self._lock:
            self._delete_marked()
            self._tables, self._current = {}, None

    def drop(self) -> None:
        """Drop all collections of vectors."""
        with self._lock:
            for shard in self._shards():
                MilvusTable(self._connection, self._name(shard), "vector_id").drop()
            self._tables, self._current, self._to_delete = {}, None, {}

    # ---- inside

    def _delete_marked(self, *, only_loaded: bool = False) -> None:
        for shard in [shard for shard in self._to_delete if shard in self._tables or not only_loaded]:
            self._table(shard).remove(self._to_delete[shard])
            del self._to_delete[shard]
            if self._sharded and shard != self._current and shard > 0:
                if self._table(shard).count() == 0:
                    self._tables.pop(shard).drop()
                else:
                    self._unload(shard)

    def _table(self, shard: int) -> MilvusTable:
        if self._sharded and not self._repaired:
            self._shards()
        return self._tables.setdefault(shard, MilvusTable(self._connection, self._name(shard), "vector_id"))

    def _name(self, shard: int) -> str:
        return vectors_collection(self._collection_name) + (f"_{shard}" if shard else "")

    def _shards(self) -> list[int]:
        first = vectors_collection(self._collection_name)
        with self._connection.errors("open"):
            names = set(self._connection.client.list_collections())
        for name in [name for name in names if name.startswith(first) and name.endswith(_UNLOADING)]:
            with self._connection.errors("open"):  # a process died between the two renamings
                self._connection.client.rename_collection(name, name.removesuffix(_UNLOADING))
            names.add(name.removesuffix(_UNLOADING))
        self._repaired = True
        numbers = [0, *(int(rest) for name in names if (rest := name.removeprefix(f"{first}_")).isdigit())]
        return [number for number in numbers if self._name(number) in names]

    def _unload(self, shard: int) -> None:
        """Let Milvus Lite forget a collection until it is needed again: it does so when it renames one."""
        if not self._sharded:
            return
        import pyarrow

        self._tables.pop(shard, None)
        name = self._name(shard)
        with self._connection.errors("close"):
            self._connection.client.rename_collection(name, name + _UNLOADING)
            self._connection.client.rename_collection(name + _UNLOADING, name)
        pyarrow.default_memory_pool().release_unused()


_UNLOADING = "_unloading"
