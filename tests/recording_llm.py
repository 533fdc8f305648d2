"""A model that sees images, and keeps exactly what it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    TextBlock,
)
from llama_index.core.llms.mock import MockLLM
from pydantic import PrivateAttr


class SeeingLLM(MockLLM):
    """Answers with how many images it was shown, or with what it was told to."""

    _answer: str | None = PrivateAttr()
    _context_window: int = PrivateAttr()
    _sent: list[list[ChatMessage]] = PrivateAttr(default_factory=list)

    def __init__(self, answer: str | None = None, context_window: int = 100_000) -> None:
        super().__init__(max_tokens=None, is_chat_model=True)
        self._answer, self._context_window = answer, context_window

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=self._context_window, is_chat_model=True, model_name="seeing")

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        self._sent.append(list(messages))
        content = f"{len(self.images())} images" if self._answer is None else self._answer
        return ChatResponse(message=ChatMessage(role="assistant", content=content), delta=content)

    def complete(self, prompt: str, *args: Any, **kwargs: Any) -> CompletionResponse:  # noqa: ANN401
        return CompletionResponse(text=str(self.chat([ChatMessage(content=prompt)]).message.content))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:  # noqa: ANN401
        response = self.chat(messages)

        def pieces() -> ChatResponseGen:
            yield response

        return pieces()

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:  # noqa: ANN401
        return self.chat(messages, **kwargs)

    async def acomplete(self, prompt: str, *args: Any, **kwargs: Any) -> CompletionResponse:  # noqa: ANN401
        return self.complete(prompt)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:  # noqa: ANN401
        response = self.chat(messages)

        async def pieces() -> ChatResponseAsyncGen:
            yield response

        return pieces()

    @property
    def calls(self) -> list[list[ChatMessage]]:
        """What it was sent, call by call."""
        return self._sent

    def images(self, call: int = -1) -> list[ImageBlock]:
        return [block for message in self._sent[call] for block in message.blocks if isinstance(block, ImageBlock)]

    def words(self, call: int = -1) -> str:
        blocks = [block for message in self._sent[call] for block in message.blocks]
        return "\n".join(block.text for block in blocks if isinstance(block, TextBlock))
