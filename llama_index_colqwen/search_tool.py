"""A retriever of pages -> a tool with which an agent looks for pages, and sees them.

Knows nothing of how pages are found, or of any model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ContentBlock, ImageBlock, TextBlock
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.tools import AsyncBaseTool, ToolMetadata, ToolOutput
from pydantic import BaseModel, Field

from llama_index_colqwen.errors import DocumentError, check_count
from llama_index_colqwen.nodes import caption, excerpt
from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS, image_for_llm

__all__ = ["PageSearchTool"]

_LOGGER = logging.getLogger(__name__)

_DESCRIPTION = (
    "Find the pages of the user's documents that answer a question. Each page comes with its file's name, its page "
    "number, its text, and its picture where pictures are shown."
)
_TEXT_BESIDE_A_PICTURE = 2_000
"""Characters: the picture has the rest."""


class _Arguments(BaseModel):
    question: str = Field(description="What to look for, in words.")


class PageSearchTool(AsyncBaseTool):
    """Lets an agent look for pages: what it gets of each is its caption, its text and its picture.

    `FunctionAgent(tools=[PageSearchTool(index.as_retriever())], llm=vision_llm)`. The model is sent neither paths nor
    ids. The pages themselves are the tool call's `tool_output.raw_output`, as a retriever returns them.

    Args:
        retriever: The index's, or any other whose nodes are pages.
        name: What the model calls the tool.
        description: What the model is told about it.
        multimodal: Whether the model is sent pictures, each after a text of at most 2,000 characters, or only the
            whole texts: for models that see no images, for `ReActAgent`, which passes on nothing but text, and for
            providers that take no images from tools.
        max_pixels: Pictures are scaled down to this many pixels.

    Raises:
        InvalidOptionError: If `max_pixels` is no whole number above 0.
    """

    def __init__(
        self,
        retriever: BaseRetriever,
        name: str = "search_pages",
        description: str = _DESCRIPTION,
        *,
        multimodal: bool = True,
        max_pixels: int = DEFAULT_LLM_PIXELS,
    ) -> None:
        """See the class."""
        self._retriever = retriever
        self._metadata = ToolMetadata(description, name, _Arguments)
        self._multimodal, self._max_pixels = multimodal, check_count("max_pixels", max_pixels)

    @property
    def metadata(self) -> ToolMetadata:
        """What the model is told about the tool."""
        return self._metadata

    def call(self, question: str) -> ToolOutput:
        """Return the pages that answer a question, best first, as content blocks.

        Raises:
            QueryError: If the question is empty. An agent is told so and may ask again.
        """
        return self._output(question, self._retriever.retrieve(question))

    async def acall(self, question: str) -> ToolOutput:
        """Return what `call` returns."""
        hits = await self._retriever.aretrieve(question)
        return await asyncio.to_thread(self._output, question, hits)

    def _output(self, question: str, hits: Sequence[NodeWithScore]) -> ToolOutput:
        blocks = [block for hit in hits for block in self._blocks(hit.node)]
        return ToolOutput(
            tool_name=self._metadata.get_name(),
            blocks=blocks or [TextBlock(text="No page was found.")],
            raw_input={"question": question},
            raw_output=list(hits),
        )

    def _blocks(self, node: BaseNode) -> list[ContentBlock]:
        image = None
        if self._multimodal:
            try:
                image = image_for_llm(node, self._max_pixels)
            except DocumentError as error:  # it was there when the page was found
                _LOGGER.warning("An agent is given a page as text: %s", error)
        text = node.get_content(MetadataMode.NONE).strip()
        if image is not None:
            text = excerpt(text, _TEXT_BESIDE_A_PICTURE)
        blocks: list[ContentBlock] = [TextBlock(text=f"{caption(node)}\n{text}".strip())]
        if image is not None:
            blocks.append(ImageBlock(image=image.data, image_mimetype=image.mimetype))
        return blocks
