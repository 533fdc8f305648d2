"""Retrieved pages -> the same pages, their images scaled down for a chat model, which is billed by pixels.

Knows nothing of retrieval or of any model.
"""

from __future__ import annotations

import base64
import math

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle
from PIL import Image

from llama_index_colqwen.errors import UnreadableDocumentError, check_count
from llama_index_colqwen.images import encode_image, fit_size, to_rgb
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.pages import Page, PageImage

__all__ = ["DEFAULT_LLM_PIXELS", "ResizeForLLM", "image_for_llm"]

DEFAULT_LLM_PIXELS = 1_000_000
"""Small print of a letter page stays readable: 98 dpi."""


class ResizeForLLM(BaseNodePostprocessor):
    """Scale down the images that a chat model is given: last of a query engine's `node_postprocessors`.

    `PDFPageReader(max_pixels=...)` draws pages for the embedder; a chat model is paid for by the pixel. Nodes whose
    images are small enough, or that have none, pass as they are. The others are copies: `image` is a JPEG in base64,
    `image_path` still that of the whole image.

    Attributes:
        max_pixels: An image has at most this many, width times height.
    """

    max_pixels: int = DEFAULT_LLM_PIXELS

    def __init__(self, max_pixels: int = DEFAULT_LLM_PIXELS) -> None:
        """See the class.

        Raises:
            InvalidOptionError: If `max_pixels` is no whole number above 0.
        """
        super().__init__(max_pixels=check_count("max_pixels", max_pixels))  # type: ignore[call-arg]  # a field of this class, not of its base

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this postprocessor under."""
        return "ResizeForLLM"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return [self._resized(node) for node in nodes]

    def _resized(self, found: NodeWithScore) -> NodeWithScore:
        node = found.node
        if not _has_image(node):
            return found
        scaled = _scaled(page_from_node(node), self.max_pixels)
        if scaled is None:
            return found
        inline = {"image": base64.b64encode(scaled.data).decode(), "image_mimetype": scaled.mimetype}
        return NodeWithScore(node=node.model_copy(update=inline), score=found.score)


def image_for_llm(node: BaseNode, max_pixels: int = DEFAULT_LLM_PIXELS) -> PageImage | None:
    """Return a page's image as a chat model takes it: JPEG, PNG, WebP or GIF; None if the node has none.

    Args:
        node: Of a page, or any other.
        max_pixels: Width times height of the image at most; larger ones are scaled down.

    Raises:
        DocumentNotFoundError: If its file is gone.
        UnreadableDocumentError: If it is no image.
    """
    if not _has_image(node):
        return None
    page = page_from_node(node)
    if (scaled := _scaled(page, max_pixels)) is not None:
        return scaled
    with page.open_image() as opened:
        mimetype = Image.MIME.get(opened.format or "", "")
        return PageImage(page.read_image(), mimetype) if mimetype in _TAKEN else _encoded(page, opened)


# What all chat models that see images take.
_TAKEN = ("image/jpeg", "image/png", "image/webp", "image/gif")


def _has_image(node: BaseNode) -> bool:
    return isinstance(node, ImageNode) and (node.image is not None or node.image_path is not None)


def _scaled(page: Page, max_pixels: int) -> PageImage | None:
    """Scale a page's image down; None if it is small enough."""
    with page.open_image() as opened:
        scale = math.sqrt(max_pixels / (opened.width * opened.height))
        if scale >= 1:
            return None
        size = fit_size(opened.width * scale, opened.height * scale, max_pixels)
        opened.draft("RGB", size)  # a JPEG is decoded at a fraction of its size
        return _encoded(page, opened, size)


def _encoded(page: Page, opened: Image.Image, size: tuple[int, int] | None = None) -> PageImage:
    try:
        return encode_image(to_rgb(opened, size))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises over broken images
        raise UnreadableDocumentError(f"The image of page {page.page_id!r} cannot be read ({error}).") from error
