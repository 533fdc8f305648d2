"""Rows of a Milvus collection, by key or by expression, in messages that every engine takes.

Servers take messages of 64 MB, give 16,384 rows a query, and fields of 65,535 bytes. Knows nothing of what rows are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import StoreError
from llama_index_colqwen.store.connection import MilvusConnection, is_one_of, quote

__all__ = ["MESSAGE_BYTES", "MilvusTable", "Row", "batches"]

MESSAGE_BYTES = 16 << 20
SCAN_ROWS = 4096
_READ_ROWS = 64
_DELETE_ROWS = 1024
_NOT_LOADED = 101  # the code of Milvus's error
_ACTIONS = {"query": "read", "search": "search", "delete": "delete from"}  # what errors call them

# "Session" sees at once what this process has written, and what others wrote a moment later. "Strong" waits for the
# server's next tick every time: 200 to 500 ms a query on Milvus 2.3, for 3. But that version does not say when it
# deleted, so that sessions see deleted rows until that tick: for so long after deleting, this process reads strongly.
_DELETED_SECONDS = 2.0
_DELETED: dict[tuple[str, str], float] = {}

Row = dict[str, Any]
_Item = TypeVar("_Item")


class MilvusTable:
    """One collection, loaded when it is first read.

    Args:
        connection: To the database.
        name: The collection's.
        key: Its primary key, a text.
    """

    def __init__(self, connection: MilvusConnection, name: str, key: str) -> None:
        """See the class; nothing is opened yet."""
        self.name = name
        self._connection, self._key = connection, key
        self._lock = Lock()
        self._loaded = False

    def exists(self) -> bool:
        """Whether there is such a collection."""
        with self._connection.errors("open"):
            return bool(self._connection.client.has_collection(self.name))

    def drop(self) -> None:
        """Drop the collection, if it is there."""
        with self._connection.errors("clear"):
            if self._connection.client.has_collection(self.name):
                self._connection.client.drop_collection(self.name)
        self.forget()

    def flush(self) -> None:
        """Write what is in Milvus's memory to its files."""
        with self._connection.errors("close"):
            self._connection.client.flush(self.name)

    def forget(self) -> None:
        """Load it again at the next reading."""
        self._loaded = False

    # ---- reading

    def load(self) -> None:
        """Have Milvus read the collection's files; reading does that first of all."""
        with self._lock:
            if not self._loaded:
                with self._connection.errors("load"):
                    self._connection.client.load_collection(self.name)
                self._loaded = True

    def read(self, keys: Sequence[str], fields: Sequence[str] = ("*",), rows: int = _READ_ROWS) -> list[Row]:
        """Return the rows with these keys, in no order; so many a query."""
        found: list[Row] = []
        for some in batches(keys, rows):
            found.extend(self._query(is_one_of(self._key, some), fields))
        return found

    def scan(self, fields: Sequence[str], expression: str = "") -> list[Row]:
        """Return all rows, or those an expression keeps, in no order."""
        # Milvus Lite has no limit of its own, and one query is three times as fast as pages of one.
        limit = 2**31 - 1 if self._connection.is_local else SCAN_ROWS
        rows = self._query(expression, fields, limit=limit)
        if len(rows) < limit:
            return rows
        # The paging of pymilvus's iterator, which pastes the last id into its filter as it is: here it is quoted. Its
        # queries have the collection's own consistency, which is "Strong".
        scanned: list[Row] = []
        last = ""
        while True:
            after = f"{self._key} > {quote(last)}"
            batch = self._query(
                f"{after} and ({expression})" if expression else after,
                list({self._key, *fields}),
                limit=SCAN_ROWS,
                iterator="True",  # in order of key, and no row left out for another
                reduce_stop_for_best="True",
            )
            if not batch:
                return scanned
            scanned.extend(batch)
            last = max(row[self._key] for row in batch)

    def count(self, expression: str = "") -> int:
        """Return how many rows there are, or are kept by an expression."""
        return int(self._query(expression, ["count(*)"])[0]["count(*)"])

    def search(
        self,
        queries: Sequence[Any],
        limit: int,
        expression: str,
        params: Row,
        *,
        field: str | None = None,
        metric: str = "IP",
    ) -> list[list[Row]]:
        """Return, for each query, the rows of highest score, best first: `{key, "distance"}`.

        Args:
            queries: Vectors, or what else the field's metric compares.
            limit: How many rows a query.
            expression: What rows must match.
            params: Of the index.
            field: Where there are several fields with an index.
            metric: The index's.
        """
        found: list[list[Row]] = []
        # A server answers with 16,384 rows a vector and 64 MB at most; 150 bytes a row.
        for some in batches(queries, max(MESSAGE_BYTES // (limit * 150), 1)):
            hits = self._ask_loaded(
                "search",
                data=list(some),
                limit=limit,
                filter=expression,
                search_params={"metric_type": metric, "params": params},
                anns_field=field,
                consistency_level=self._consistency(),
            )
            # Milvus Lite and servers disagree on what the key is called in a hit; pymilvus knows.
            found.extend([{self._key: hit.id, "distance": hit.distance} for hit in row] for row in hits)
        return found

    # ---- writing

    def insert(self, rows: Sequence[Row], sizes: Sequence[int]) -> None:
        """Add rows whose keys are not there.

        Args:
            rows: Any number.
            sizes: About how many bytes each takes.
        """
        with self._connection.errors("add to"):
            for some in _messages(rows, sizes):
                self._connection.client.insert(self.name, some)

    def upsert(self, rows: Sequence[Row], sizes: Sequence[int]) -> None:
        """Add rows, or replace those with their keys; arguments as for `insert`."""
        with self._connection.errors("add to"):
            for some in _messages(rows, sizes):
                self._connection.client.upsert(self.name, some)

    def remove(self, keys: Sequence[str]) -> None:
        """Delete the rows with these keys."""
        for some in batches(keys, _DELETE_ROWS):
            self.remove_where(is_one_of(self._key, some))

    def remove_where(self, expression: str) -> None:
        """Delete the rows that an expression keeps."""
        self._ask_loaded("delete", filter=expression)
        if not self._connection.is_local:
            _DELETED[self._connection.uri, self.name] = time.monotonic()

    # ---- inside

    def _query(self, expression: str, fields: Sequence[str], **options: Any) -> list[Row]:  # noqa: ANN401 - passed on
        found = self._ask_loaded(
            "query",
            filter=expression,
            output_fields=list(fields),
            consistency_level=self._consistency(),
            **options,
        )
        return list(found)

    def _ask_loaded(self, method: str, **options: Any) -> Any:  # noqa: ANN401 - pymilvus is untyped
        """Call a method of the client that needs a loaded collection.

        Loaded again if it is loaded no more: another client may have released it, and a Milvus Lite server that was
        started again has not loaded it.
        """

        def load_and_ask() -> Any:  # noqa: ANN401
            self.load()
            with self._connection.errors(_ACTIONS[method]):
                return getattr(self._connection.client, method)(self.name, **options)

        try:
            return load_and_ask()
        except StoreError as error:
            if getattr(error.__cause__, "code", None) != _NOT_LOADED:
                raise
        self.forget()
        return load_and_ask()

    def _consistency(self) -> str:
        deleted = _DELETED.get((self._connection.uri, self.name), -_DELETED_SECONDS)
        return "Strong" if time.monotonic() - deleted < _DELETED_SECONDS else "Session"


def batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Cut a sequence into pieces of at most that many items."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _messages(rows: Iterable[Row], sizes: Iterable[int]) -> Iterator[list[Row]]:
    message: list[Row] = []
    total = 0
    for row, size in zip(rows, sizes, strict=True):
        if message and total + size > MESSAGE_BYTES:
            yield message
            message, total = [], 0
        message.append(row)
        total += size
    if message:
        yield message
