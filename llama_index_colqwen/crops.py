"""Retrieved pages -> the same pages, each with a picture of the part that matches the question, for a chat model.

Knows nothing of retrieval or of any chat model.
"""

from __future__ import annotations

import base64
import copy
import logging
import math
from typing import Any

from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, PrivateAttr

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.errors import ColQwenError
from llama_index_colqwen.explain import Explanation, Region, explain
from llama_index_colqwen.images import encode_image, fit_size
from llama_index_colqwen.nodes import ImagelessPageNode, PageNode, caption
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["CropRegions"]

_LOGGER = logging.getLogger(__name__)

_LARGEST = 0.5  # of the page: a larger part shows a model little more than the page does, and costs as much


class CroppedPageNode(PageNode):
    """A page with a picture of a part of it, which a chat model is shown after the page's own.

    Attributes:
        crop: JPEG in base64.
    """

    crop: str = Field(repr=False)

    def get_content_blocks(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> list[Any]:
        """Return the page's blocks and the crop, side by side: so they stay together in a small context."""
        *texts, page = super().get_content_blocks(metadata_mode)
        what = "Two pictures: the page, and enlarged the part of it that matches the question best."
        return [*texts, TextBlock(text=what), page, ImageBlock(image=self.crop.encode(), image_mimetype="image/jpeg")]


class CropRegions(BaseNodePostprocessor):
    """Add to each page a picture of the region that matches the question best, in all pixels that the page image has.

    A chat model sees page images scaled down, by `llm_max_pixels` or by itself; small print is legible in the crop. All
    regions are noted in the metadata, as `Explanation.note_regions` does, for citations. Pages stay as they are for a
    question that has an image, or if nothing matches clearly, or it does all over the page.

    Args:
        embedder: The one that made the collection.
        store: Where the pages are.
        max_pixels: A crop has at most this many, width times height; by default all that it is cut from.
    """

    _embedder: MultiVectorEmbedder = PrivateAttr()
    _store: MilvusPageStore = PrivateAttr()
    _max_pixels: int | None = PrivateAttr()

    def __init__(self, embedder: MultiVectorEmbedder, store: MilvusPageStore, max_pixels: int | None = None) -> None:
        """See the class."""
        super().__init__()
        self._embedder, self._store, self._max_pixels = embedder, store, max_pixels

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this postprocessor under."""
        return "CropRegions"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None or query_bundle.image_path:
            return nodes
        return [self._cropped(query_bundle, found) for found in nodes]

    def _cropped(self, query: QueryBundle, found: NodeWithScore) -> NodeWithScore:
        if not isinstance(found.node, PageNode) or isinstance(found.node, ImagelessPageNode):
            return found
        try:
            explanation = explain(query, found.node, self._embedder, self._store)
            regions = explanation.regions()
            crop = _encoded(explanation, regions[0], self._max_pixels) if regions else None
        except ColQwenError as error:  # the page was changed or deleted since; the answer can do without its crop
            _LOGGER.warning("No crop of %s: %s", caption(found.node), error)
            return found
        fields = copy.deepcopy(dict(found.node))
        node = PageNode(**fields) if crop is None else CroppedPageNode(**fields, crop=crop)
        explanation.note_regions(node)
        return NodeWithScore(node=node, score=found.score)


def _encoded(explanation: Explanation, region: Region, max_pixels: int | None) -> str | None:
    """Return a region as a JPEG in base64; None if it is most of the page."""
    if (region.right - region.left) * (region.bottom - region.top) > _LARGEST:
        return None
    image = explanation.crop(region)
    if max_pixels is not None and (scale := math.sqrt(max_pixels / (image.width * image.height))) < 1:
        image = image.resize(fit_size(image.width * scale, image.height * scale, max_pixels))
    return base64.b64encode(encode_image(image).data).decode()
