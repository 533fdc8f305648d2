"""A store -> an index that is open while it is used, and some seconds after: others can open its file in between.

For what runs long and is asked now and then. Knows nothing of who asks.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.errors import CollectionNotFoundError, ColQwenError
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["SharedIndex", "without_folders"]


class SharedIndex:
    """An index for several threads, closed when nobody has used it for some seconds; the embedder stays loaded.

    A server is left open.

    Attributes:
        store: Where the pages are; it need not hold anything yet.

    Args:
        store: See above.
        embedder: By default the one that the collection's fingerprint describes.
        idle_seconds: How long it stays open.
    """

    def __init__(
        self, store: MilvusPageStore, embedder: str | MultiVectorEmbedder | None = None, idle_seconds: float = 5.0
    ) -> None:
        """See the class; nothing is opened yet."""
        self.store = store
        self._embedder, self._idle_seconds = embedder, idle_seconds
        self._index: ColQwenIndex | None = None
        self._made_by: EmbedderFingerprint | None = None
        self._lock = threading.Lock()
        self._users = 0
        self._closing: threading.Timer | None = None

    @contextmanager
    def use(self, new: str | None = None) -> Iterator[ColQwenIndex]:
        """Give the index, which stays open within the block.

        Args:
            new: The embedder of a new collection, where there is none and no embedder was given.

        Raises:
            CollectionNotFoundError: If nothing was indexed there, and `new` is not given: none is made.
        """
        with self._lock:
            if self._closing is not None:
                self._closing.cancel()
            self._users += 1
        try:
            with self._lock:
                index = self._open(new)
            yield index
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self.store.is_local:
                    self._closing = threading.Timer(self._idle_seconds, self._close)
                    self._closing.daemon = True
                    self._closing.start()

    def close(self) -> None:
        """Close the store at once."""
        with self._lock:
            if self._closing is not None:
                self._closing.cancel()
            self.store.close()

    def _open(self, new: str | None) -> ColQwenIndex:
        try:
            made_by = self.store.fingerprint()  # not the store's `open`, which would make a collection
        except CollectionNotFoundError:
            if new is None:
                raise
            self._index = ColQwenIndex(self.store, self._embedder or new)
            self._made_by = self.store.fingerprint()
            return self._index
        if self._index is None or self._made_by != made_by:
            self._index = ColQwenIndex.from_existing(store=self.store, embedder=self._embedder)
            self._made_by = made_by
        return self._index

    def _close(self) -> None:
        with self._lock:
            if self._closing is threading.current_thread() and not self._users:  # else it was asked again meanwhile
                self.store.close()


def without_folders(error: ColQwenError, store: MilvusPageStore) -> str:
    """Return an error's sentence without the folders of this machine, for those who are not at it."""
    text = str(error)
    for place in (store.uri if store.is_local else None, store.image_dir):
        if place is not None:
            text = text.replace(f"{Path(place).parent}{os.sep}", "")
    return re.sub(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+", "", text)
