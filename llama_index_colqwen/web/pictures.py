"""A page's id -> its thumbnail, its picture, and what a question matches on it; kept in bounded memory.

Knows nothing of HTTP. Pictures come from the index by a page's id alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from llama_index_colqwen.errors import DocumentNotFoundError
from llama_index_colqwen.explain.explanation import Explanation
from llama_index_colqwen.images import encode_image
from llama_index_colqwen.nodes import caption, node_from_page
from llama_index_colqwen.pages import Page, PageImage
from llama_index_colqwen.resize import image_for_llm
from llama_index_colqwen.retriever import node_to_show
from llama_index_colqwen.shared_index import SharedIndex

__all__ = ["Pictures"]

_T = TypeVar("_T")

_THUMBNAIL_PIXELS = 260_000  # 450 x 580 of a letter page: a card on a screen of two pixels a point
_THUMBNAIL_BYTES = 48 << 20  # of all that are kept: about a thousand
_PAGE_PIXELS = 2_000_000
_EXPLANATIONS = 64


class Pictures:
    """Draws pages, and remembers what it drew last.

    Args:
        shared: The index.
    """

    def __init__(self, shared: SharedIndex) -> None:
        """See the class."""
        self._shared = shared
        self._thumbnails = _Kept[PageImage](_THUMBNAIL_BYTES, lambda image: len(image.data))
        self._explanations = _Kept[Explanation](_EXPLANATIONS, lambda _: 1)

    def page(self, page_id: str) -> Page:
        """Return a page.

        Raises:
            DocumentNotFoundError: If it is not stored.
        """
        with self._shared.use() as index:
            found = index.store.get([page_id])
        if not found:
            raise DocumentNotFoundError("This page is not in the index, or not any more: search again.")
        return found[0]

    def thumbnail(self, page_id: str, version: str) -> PageImage:
        """Return a small picture of a page; `version` is any text that changes with the page.

        Raises:
            DocumentNotFoundError: If the page is not stored, or its image is gone.
            UnreadableDocumentError: If it is no image.
        """
        return self._thumbnails.get((page_id, version), lambda: _draw(self.page(page_id), _THUMBNAIL_PIXELS))

    def plain(self, page_id: str) -> PageImage:
        """Return a page's picture as it is; errors are those of `thumbnail`."""
        return _draw(self.page(page_id), _PAGE_PIXELS)

    def explanation(self, page_id: str, question: str) -> Explanation:
        """Say what of a page matches a question."""
        page = self.page(page_id)

        def explain() -> Explanation:
            with self._shared.use() as index:
                return index.explain(question, node_from_page(page))

        return self._explanations.get((page_id, page.content_hash, question), explain)

    def marked(self, page_id: str, question: str, token: int | None) -> PageImage:
        """Return a page's picture with what matches the question, or one token of it, drawn on it.

        Raises:
            InvalidOptionError: If the question has no such token.
            DocumentNotFoundError: If the page is not stored, or its image is gone.
            UnreadableDocumentError: If it is no image.
        """
        return encode_image(self.explanation(page_id, question).to_image(token))


def _draw(page: Page, max_pixels: int) -> PageImage:
    node = node_to_show(page)
    image = image_for_llm(node, max_pixels)
    if image is None:
        raise DocumentNotFoundError(f"The picture of {caption(node)} is gone: index its file again.")
    return image


class _Kept(Generic[_T]):
    """What was used last, up to a total size."""

    def __init__(self, most: int, size: Callable[[_T], int]) -> None:
        self._most, self._size, self._used = most, size, 0
        self._values: OrderedDict[Hashable, _T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what is kept, or make it."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()  # maybe by two threads at once, which costs less than to let all wait for one
        with self._lock:
            if key not in self._values:
                self._values[key] = made
                self._used += self._size(made)
            while self._used > self._most:
                _, dropped = self._values.popitem(last=False)
                self._used -= self._size(dropped)
        return made
