"""Milvus Lite collections that several stores of this process have open, opened once.

A Milvus Lite file has one process, so what this process knows of a collection is all there is to know.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.store.lite_search import LiteSearch
from llama_index_colqwen.store.text_search import TextSearch
from llama_index_colqwen.store.vector_shards import VectorTables

__all__ = ["SharedCollection", "SharedUse", "collection_lock", "drop_shared"]

Key = tuple[str, str]
"""A uri and a collection's name."""


@dataclass
class SharedCollection:
    """A Milvus Lite collection that stores of this process have open.

    Attributes:
        generation: Of the collection.
        search: What is known of it.
        vectors: Its exact vectors.
        texts: Its pages' words.
        users: Which stores have it open.
    """

    generation: str
    search: LiteSearch
    vectors: VectorTables
    texts: TextSearch
    users: set[object] = field(default_factory=set)


# For each collection, held while it is made, opened or closed: others do not wait.
_LOCKS: dict[Key, Lock] = {}
_SHARED: dict[Key, SharedCollection] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SHARED.clear)  # they are the parent's, as the files are


def collection_lock(key: Key) -> Lock:
    """Return what this process holds while it makes, opens or closes a collection."""
    return _LOCKS.setdefault(key, Lock())


class SharedUse:
    """One store's use of a shared collection; when the store is closed or collected, it ends.

    Args:
        key: Which collection.
        user: The store.
        generation: Of the collection as it is now.
        make: Opens it, where nobody has it open.
    """

    def __init__(self, key: Key, user: object, generation: str, make: Callable[[], SharedCollection]) -> None:
        """See the class."""
        self._key, self._token = key, object()
        with collection_lock(key):
            if key in _SHARED and _SHARED[key].generation != generation:
                drop_shared(key)
            if key not in _SHARED:
                _SHARED[key] = make()
            self.collection = _SHARED[key]
            self.collection.users.add(self._token)
        self._end = weakref.finalize(user, _end_soon, key, self.collection, self._token)
        self._end.atexit = False

    @property
    def is_current(self) -> bool:
        """Whether that is still the collection of that name: clearing it makes it another one."""
        return _SHARED.get(self._key) is self.collection

    def end(self) -> None:
        """Take the store off; the last one closes the collection."""
        if self._end.detach() is not None:
            _end(self._key, self.collection, self._token)


def _end(key: Key, shared: SharedCollection, token: object, collected: bool = False) -> None:
    with collection_lock(key):
        shared.users.discard(token)
        if shared.users or _SHARED.get(key) is not shared:
            return
        del _SHARED[key]
        if collected:  # perhaps because the interpreter ends, and Milvus Lite does not answer any more
            shared.search.discard()
            shared.search.save()
        else:
            shared.search.close()


def _end_soon(key: Key, shared: SharedCollection, token: object) -> None:
    """End the use of a store that was collected, in a thread: the collector may call this while any lock is held."""
    if _SHARED.get(key) is not shared:
        return
    threading.Thread(target=_end, args=(key, shared, token, True), name="colqwen-close").start()


def drop_shared(key: Key) -> None:
    """Forget a collection that was dropped, whoever has it open."""
    with collection_lock(key):
        if (shared := _SHARED.pop(key, None)) is not None:
            shared.search.discard()
