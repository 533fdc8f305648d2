"""Milvus Lite collections that several stores of this process have open, opened once.

A Milvus Lite file has one process, so what this process knows of a collection is all there is to know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from llama_index_colqwen.store.connection import MilvusConnection
from llama_index_colqwen.store.lite_search import LocalPages
from llama_index_colqwen.store.vector_shards import VectorTables

__all__ = ["SharedCollection", "close_shared", "drop_shared", "is_shared", "open_shared"]


@dataclass
class SharedCollection:
    """A Milvus Lite collection that stores of this process have open.

    Attributes:
        pages: What is known of it.
        vectors: Its exact vectors.
        connection: Of its own, for `vectors`: stores close theirs when they like.
        users: Which stores have it open.
    """

    pages: LocalPages
    vectors: VectorTables
    connection: MilvusConnection
    users: set[int] = field(default_factory=set)


_SHARED_LOCK = threading.RLock()


_SHARED: dict[tuple[str, str], SharedCollection] = {}


def open_shared(key: tuple[str, str], user: int, make: Callable[[], SharedCollection]) -> SharedCollection:
    """Return the collection of that uri and name, made if nobody has it open, for one more user."""
    with _SHARED_LOCK:
        if key not in _SHARED:
            _SHARED[key] = make()
        _SHARED[key].users.add(user)
        return _SHARED[key]


def is_shared(key: tuple[str, str], shared: SharedCollection) -> bool:
    """Whether that is still the collection of that uri and name: clearing it makes it another one."""
    with _SHARED_LOCK:
        return _SHARED.get(key) is shared


def close_shared(key: tuple[str, str], shared: SharedCollection, user: int) -> None:
    """Take a user off; the last one closes the collection."""
    with _SHARED_LOCK:
        shared.users.discard(user)
        if shared.users or _SHARED.get(key) is not shared:
            return
        del _SHARED[key]
        shared.pages.close()
        shared.vectors.close()
        shared.connection.close()


def drop_shared(key: tuple[str, str]) -> None:
    """Forget a collection that was dropped, whoever has it open."""
    with _SHARED_LOCK:
        if (shared := _SHARED.pop(key, None)) is not None:
            shared.pages.close(save=False)
            shared.connection.close()
