"""Retrieved pages -> the same pages, their images scaled down for a chat model, which is billed by pixels.

Knows nothing of retrieval or of any model.
"""

from __future__ import annotations

import base64
import math

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle

from llama_index_colqwen.errors import InvalidOptionError, UnreadableDocumentError
from llama_index_colqwen.images import encode_image, fit_size, to_rgb
from llama_index_colqwen.nodes import page_from_node

__all__ = ["DEFAULT_LLM_PIXELS", "ResizeForLLM"]

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
        if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
            raise InvalidOptionError(f"max_pixels is a whole number of pixels, 1 or more; got {max_pixels!r}.")
        super().__init__(max_pixels=max_pixels)  # type: ignore[call-arg]  # a field of this class, not of its base

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
        if not isinstance(node, ImageNode) or (node.image is None and node.image_path is None):
            return found
        with page_from_node(node).open_image() as opened:
            scale = math.sqrt(self.max_pixels / (opened.width * opened.height))
            if scale >= 1:
                return found
            size = fit_size(opened.width * scale, opened.height * scale, self.max_pixels)
            opened.draft("RGB", size)  # a JPEG is decoded at a fraction of its size
            try:
                data = encode_image(to_rgb(opened, size)).data
            except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises over broken images
                raise UnreadableDocumentError(
                    f"The image of page {node.node_id!r} cannot be read ({error})."
                ) from error
        inline = {"image": base64.b64encode(data).decode(), "image_mimetype": "image/jpeg"}
        return NodeWithScore(node=node.model_copy(update=inline), score=found.score)
