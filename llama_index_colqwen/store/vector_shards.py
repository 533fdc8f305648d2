"""Exact multi-vectors <-> the Milvus collections that keep them.

On a server that is one collection. Milvus Lite keeps every collection that is touched in memory, and not just once, for
good; so there it is one collection for every 512 pages, and those that are not written to are closed. Knows nothing of
pages but the ids of their vectors, and nothing of searching.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, bytes_a_vector
from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.schema import (
    UNLOADING,
    CollectionDescription,
    PartOf,
    StoredVectors,
    create_vectors,
    parts_of,
    read_part,
    vectors_collection,
    vectors_from_row,
)
from llama_index_colqwen.store.table import MESSAGE_BYTES, MilvusTable, Row
from llama_index_colqwen.store.vector_cache import CachedVectors

__all__ = ["VectorTables"]

_SHARD_PAGES = 512


class VectorTables:
    """The vectors of a collection; safe for many threads.

    Args:
        connection: To the database.
        collection_name: The pages' collection.
        description: What it says of itself.
        sharded: Whether there is one collection for every 512 pages.
    """

    def __init__(
        self, connection: MilvusConnection, collection_name: str, description: CollectionDescription, sharded: bool
    ) -> None:
        """See the class; nothing is opened yet."""
        self._connection, self._collection_name, self._description = connection, collection_name, description
        self._dim, self._dtype, self._sharded = description.embedder.dim, description.vector_dtype, sharded
        self._lock = Lock()
        self._tables: dict[int, MilvusTable] = {}  # those that are in Milvus Lite's memory
        self._current: int | None = None
        self._rows = 0
        self._to_delete: dict[int, list[str]] = {}
        self._numbers: set[int] | None = None  # of the collections that there are, once they were looked for

    def write(self, rows: Sequence[Row], sizes: Sequence[int]) -> int:
        """Write rows of vectors, and return which collection has them now."""
        if not self._sharded:
            self._table(0).upsert(rows, sizes)
            return 0
        with self._lock:
            self._delete_marked()
            if self._current is None:
                self._current = max(self._shards_there(), default=0)
                self._rows = self._table(self._current).count()
            elif self._rows >= _SHARD_PAGES:
                self._unload(self._current)
                self._current, self._rows = self._create_next(self._current), 0
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
            rows = self._read(shard, names, ("vector_id", "chunks", "patch_grid"), max(MESSAGE_BYTES // largest, 1))
            for row in rows:
                data, patch_grid = vectors_from_row(row)
                encoded = EncodedVectors.from_bytes(data, self._dim, self._dtype)
                yield row["vector_id"], CachedVectors(encoded, patch_grid)

    def names(self, shards: Iterable[int], names: Sequence[str] | None = None) -> dict[int, set[str]]:
        """Return the ids of the vectors that these collections have, all or of those named, without the vectors."""
        return {shard: {row["vector_id"] for row in self._read(shard, names, ("vector_id",), 512)} for shard in shards}

    def shards(self) -> list[int]:
        """Return which collections of vectors there are, by number."""
        with self._lock:
            return sorted(self._shards_there()) if self._sharded else [0]

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

    # ---- inside

    def _delete_marked(self, *, only_loaded: bool = False) -> None:
        for shard in [shard for shard in self._to_delete if shard in self._tables or not only_loaded]:
            names = self._to_delete.pop(shard)
            if self._sharded and shard not in self._shards_there():
                continue  # lost, and what was in it
            self._table(shard).remove(names)
            if self._sharded and shard != self._current and shard > 0:
                if self._table(shard).count() == 0:
                    self._tables.pop(shard).drop()
                    self._shards_there().discard(shard)
                else:
                    self._unload(shard)

    def _table(self, shard: int) -> MilvusTable:
        if self._sharded:
            self._shards_there()
        return self._tables.setdefault(shard, MilvusTable(self._connection, self._name(shard), "vector_id"))

    def _name(self, shard: int) -> str:
        return vectors_collection(self._collection_name) + (f"_{shard}" if shard else "")

    def _read(self, shard: int, names: Sequence[str] | None, fields: Sequence[str], rows: int) -> list[Row]:
        if not self._sharded:  # many threads may read at a time
            table = self._table(shard)
            return table.scan(fields) if names is None else table.read(names, fields, rows=rows)
        with self._lock:
            if shard not in self._shards_there():
                return []  # lost: what is missing is said by whoever asked
            table = self._table(shard)
            found = table.scan(fields) if names is None else table.read(names, fields, rows=rows)
            if shard != self._current:
                self._unload(shard)
            return found

    def _shards_there(self) -> set[int]:
        if self._numbers is None:
            self._numbers = set(self._shards())
        return self._numbers

    def _shards(self) -> list[int]:
        first = vectors_collection(self._collection_name)
        with self._connection.errors("open"):
            client = self._connection.client
            for name in client.list_collections():
                if re.fullmatch(rf"{first}(_\d+)?{UNLOADING}", name) and self._is_ours(name):
                    client.rename_collection(name, name.removesuffix(UNLOADING))  # a process died between two renamings
            names = parts_of(client, self._collection_name, self._description)
        numbers = [0, *(int(rest) for name in names if (rest := name.removeprefix(f"{first}_")).isdigit())]
        return [number for number in numbers if self._name(number) in names]

    def _is_ours(self, name: str) -> bool:
        found = read_part(self._connection.client, name)
        return found is not None and found.collection_name == self._collection_name

    def _create_next(self, after: int) -> int:
        """Create the next collection; a number that somebody else's collection has is passed over."""
        with self._connection.errors("add to"):
            client = self._connection.client
            taken = set(client.list_collections())
            shard = after + 1
            while self._name(shard) in taken:
                shard += 1
            create_vectors(client, self._name(shard), PartOf(self._collection_name, self._description.generation))
        self._shards_there().add(shard)
        return shard

    def _unload(self, shard: int) -> None:
        """Let Milvus Lite forget a collection until it is needed again: it does so when it renames one."""
        if not self._sharded:
            return
        import pyarrow

        self._tables.pop(shard, None)
        name = self._name(shard)
        with self._connection.errors("close"):
            self._connection.client.rename_collection(name, name + UNLOADING)
            self._connection.client.rename_collection(name + UNLOADING, name)
        pyarrow.default_memory_pool().release_unused()
