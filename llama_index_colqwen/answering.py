"""Retrieved pages -> what a chat model is sent: every picture with its caption beside it.

Knows nothing of retrieval, Milvus or any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ContentBlock, ImageBlock
from llama_index.core.chat_engine.multi_modal_condense_plus_context import MultiModalCondensePlusContextChatEngine
from llama_index.core.indices.prompt_helper import DEFAULT_PADDING, ChatPromptHelper
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError
from llama_index_colqwen.nodes import ImagelessPageNode, caption

if TYPE_CHECKING:
    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.llms import LLM
    from llama_index.core.prompts import BasePromptTemplate
    from llama_index.core.tools import BaseTool

__all__ = ["PageChatEngine", "PagePromptHelper", "RequireImages", "check_chat_model"]

CHAT_SYSTEM_PROMPT = (
    "You answer questions about documents, whose pages you are shown as pictures. Answer from these pages, and name "
    "the file and the page that an answer is from. If they do not say, say so."
)


def check_chat_model(llm: LLM) -> None:
    """Refuse a model that takes no messages, and so no pictures.

    Raises:
        InvalidOptionError: If it is a completion model.
    """
    if not llm.metadata.is_chat_model:
        raise InvalidOptionError(
            f"{llm.metadata.model_name} ({type(llm).__name__}) is no chat model, so it cannot be shown page images: "
            "give one that sees images, or multimodal=False for answers from the pages' text."
        )


class PagePromptHelper(ChatPromptHelper):
    """Packs pages into as few messages as a model's context takes, and never parts a picture from its caption.

    LlamaIndex's own packs block by block: in a small context a model is shown pictures without their file and page.
    Query engines of `ColQwenIndex` use this one; for others, it is `get_response_synthesizer(chat_prompt_helper=...)`'s
    and `Settings.chat_prompt_helper`'s.
    """

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this helper under."""
        return "PagePromptHelper"

    async def arepack(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> list[ChatMessage]:
        """Join messages up to the size that the prompt leaves; a page is larger only if it does not fit alone."""
        size = await self._aget_available_chunk_size(prompt, padding=padding, llm=llm, tools=tools)
        packed: list[ChatMessage] = []
        used = 0
        for message in messages:
            for part in await _parts(message, size):
                tokens = await part.aestimate_tokens()
                if packed and used + tokens <= size and packed[-1].role == part.role:
                    packed[-1].blocks.extend(part.blocks)
                    used += tokens
                else:
                    packed.append(part)
                    used = tokens
        return packed

    async def atruncate(
        self,
        prompt: BasePromptTemplate,
        messages: Sequence[ChatMessage],
        padding: int = DEFAULT_PADDING,
        llm: LLM | None = None,
        tools: list[BaseTool] | None = None,
    ) -> Sequence[ChatMessage]:
        """Cut text to the size that the prompt leaves, in equal shares; pictures cannot be cut."""
        texts = [message for message in messages if not _has_image(message)]
        cut = list(await super().atruncate(prompt, texts, padding, llm, tools))
        return [message if _has_image(message) else cut.pop(0) for message in messages]


def _has_image(message: ChatMessage) -> bool:
    return any(isinstance(block, ImageBlock) for block in message.blocks)


async def _parts(message: ChatMessage, size: int) -> list[ChatMessage]:
    """Split a message after each picture, or pictures side by side, and text without one wherever it is too long."""
    groups: list[list[ContentBlock]] = [[]]
    for block in message.blocks:
        if groups[-1] and isinstance(groups[-1][-1], ImageBlock) and not isinstance(block, ImageBlock):
            groups.append([])
        groups[-1].append(block)
    parts: list[ChatMessage] = []
    for blocks in filter(None, groups):
        part = ChatMessage(role=message.role, blocks=blocks)
        parts += [part] if _has_image(part) else [_as_message(piece) for piece in await part.asplit(size)]
    return parts


def _as_message(piece: Any) -> ChatMessage:  # noqa: ANN401  # declared as any block that has blocks
    message: ChatMessage = piece
    return message


class RequireImages(BaseNodePostprocessor):
    """Refuses pages of which none has an image."""

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this postprocessor under."""
        return "RequireImages"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if nodes and all(isinstance(found.node, ImagelessPageNode) for found in nodes):
            raise DocumentNotFoundError(
                f"The images of all pages that were found are gone ({'; '.join(caption(hit.node) for hit in nodes)}): "
                "index their files again, or ask for answers from text with multimodal=False."
            )
        return nodes


class PageChatEngine(MultiModalCondensePlusContextChatEngine):
    """A chat over pages: LlamaIndex's own, which shows a model bare pictures, with what tells it whose they are."""

    def synthesize(self, query_str: str, nodes: list[NodeWithScore], *args: Any, **kwargs: Any) -> RESPONSE_TYPE:  # noqa: ANN401
        """Answer from pictures and captions; `source_nodes` are the pages."""
        response = super().synthesize(query_str, _with_captions(nodes), *args, **kwargs)
        response.source_nodes = nodes
        return response

    async def asynthesize(
        self,
        query_str: str,
        nodes: list[NodeWithScore],
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> RESPONSE_TYPE:
        """Do the same without blocking the event loop."""
        response = await super().asynthesize(query_str, _with_captions(nodes), *args, **kwargs)
        response.source_nodes = nodes
        return response


def _with_captions(nodes: list[NodeWithScore]) -> list[NodeWithScore]:
    """Return the pages with pictures, a text that says whose they are, in their order, and the others as text."""
    seen = [hit for hit in nodes if _has_picture(hit)]
    unseen = [hit for hit in nodes if not _has_picture(hit)]
    lines = [f"Picture {number}: {caption(found.node)}" for number, found in enumerate(seen, start=1)]
    texts = ["\n".join(lines), *(found.node.get_content(MetadataMode.LLM) for found in unseen)]
    return [*seen, *(NodeWithScore(node=TextNode(text=text)) for text in texts if text)]


def _has_picture(hit: NodeWithScore) -> bool:
    return isinstance(hit.node, ImageNode) and not isinstance(hit.node, ImagelessPageNode)
