"""A question, an index and a chat model -> an answer that cites the pages that the model was shown.

For a shell and for a page in a browser: its errors name the options of the commands that started either.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
from llama_index.core.schema import NodeWithScore, QueryBundle

from llama_index_colqwen.addresses import check_token, split_address
from llama_index_colqwen.errors import (
    ColQwenError,
    DocumentNotFoundError,
    EndpointError,
    EndpointUnavailableError,
    InvalidOptionError,
    MissingDependencyError,
    in_one_line,
)
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.llms import LLM
    from llama_index.core.vector_stores import MetadataFilters

    from llama_index_colqwen.retriever import Mode

__all__ = ["ChatModel"]

_OPENAI = "https://api.openai.com/v1"

# Pages are shown in one request; that there are too many of them for a model, its endpoint has to say.
_CONTEXT_WINDOW = 128_000

_RULES = (
    "Answer the question from these pages only. After each statement, cite the page that it is from by its file name "
    "and page label, in square brackets: [report.pdf, page 4]. If the pages do not answer the question, say so."
)
_TEXT_PROMPT = (
    f"{_RULES}\n\nPages:\n---------------------\n{{context_str}}\n---------------------\nQuestion: {{query_str}}"
)
_IMAGE_PROMPT = (
    '{% chat role="user" %}\n'
    + _RULES
    + """

Pages; what stands before each picture says which it is:
---------------------
{% for message in context_messages %}
{% for block in message.blocks %}
{% if block.block_type == 'text' %}
{{ block.text }}
{% elif block.block_type == 'image' %}
{{ block.inline_url() | image }}
{% endif %}

{% endfor %}
{% endfor %}
---------------------
Question: {{ query_str }}
{% endchat %}
"""
)

_ABOUT_IMAGES = re.compile(r"image|vision|multi-?modal|mmproj|content type", re.IGNORECASE)


class ChatModel:
    """A model behind OpenAI's chat completions, at the address in OPENAI_BASE_URL, with the key in OPENAI_API_KEY.

    Attributes:
        name: By which its endpoint knows it.

    Args:
        name: See above.
        text_only: Whether it is shown the pages' text and no pictures.
        max_pixels: Pictures are scaled down to so many; a megapixel by default.
        timeout: Seconds to wait for it, each time it is silent.

    Raises:
        InvalidOptionError: If the address is none, or the key is missing where one is needed, or cannot be one.
        MissingDependencyError: If the extra `[ask]` is not installed.
    """

    def __init__(
        self, name: str, *, text_only: bool = False, max_pixels: int | None = None, timeout: float = 120.0
    ) -> None:
        """See the class."""
        self.name = name
        self._text_only, self._timeout = text_only, timeout
        self._max_pixels = DEFAULT_LLM_PIXELS if max_pixels is None else max_pixels
        self._base_url, self._api_key = _endpoint()
        self._llm = _make_llm(name, self._base_url, self._api_key, timeout)

    def answer(
        self,
        index: ColQwenIndex,
        question: str,
        top_k: int,
        filters: MetadataFilters | None = None,
        *,
        mode: Mode = "visual",
        streaming: bool = True,
    ) -> tuple[Sequence[NodeWithScore], Iterator[str]]:
        """Find pages, and return them and what the model says of them, in pieces as they come.

        The model is asked when the first piece is. The index may be closed by then.

        Raises:
            DocumentNotFoundError: If no page is found, or none that has text for a model that is shown text.
            EndpointError: By the pieces, if the model refuses, fails, or says nothing.
        """
        engine = index.as_query_engine(
            self._llm,
            multimodal=not self._text_only,
            similarity_top_k=top_k,
            filters=filters,
            mode=mode,
            llm_max_pixels=self._max_pixels,
            text_qa_template=PromptTemplate(_TEXT_PROMPT),
            chat_content_qa_template=RichPromptTemplate(_IMAGE_PROMPT),
            streaming=streaming,
        )
        query = QueryBundle(question)
        hits = engine.retrieve(query)
        if not hits:
            raise DocumentNotFoundError("No page is found: the collection is empty, or the filters keep none.")
        if self._text_only and not any(hit.text.strip() for hit in hits):
            raise DocumentNotFoundError("None of the pages that were found has text: ask without --text-only.")
        return hits, self._said(engine, query, hits)

    def _said(self, engine: BaseQueryEngine, query: QueryBundle, hits: list[NodeWithScore]) -> Iterator[str]:
        said = False
        with _endpoint_errors(self.name, self._base_url, self._api_key, self._timeout, text_only=self._text_only):
            for piece in _pieces(engine.synthesize(query, hits)):
                said = said or bool(piece.strip())
                yield piece
        if not said:
            raise EndpointError(f"The model {self.name!r} at {_shown(self._base_url)} answered nothing.")


def _endpoint() -> tuple[str, str]:
    """Return the endpoint's address and key, from the environment.

    Raises:
        InvalidOptionError: If the address is none, or the key is missing where one is needed, or cannot be one.
    """
    base_url = os.environ.get("OPENAI_BASE_URL", "").strip() or _OPENAI
    parts = split_address(base_url)
    if parts is None:
        raise InvalidOptionError("OPENAI_BASE_URL is no address such as http://127.0.0.1:8000/v1.")
    key = check_token("OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", "").strip())
    if not key and parts.hostname == urlsplit(_OPENAI).hostname:
        raise InvalidOptionError(
            "There is no key: put OpenAI's in OPENAI_API_KEY, or the address of another endpoint in OPENAI_BASE_URL, "
            "such as http://127.0.0.1:8000/v1."
        )
    return base_url, key or "none"  # a local server needs none, and its client sends one all the same


def _make_llm(model: str, base_url: str, api_key: str, timeout: float) -> LLM:
    try:
        from llama_index.llms.openai_like import OpenAILike
        from openai import NOT_GIVEN
    except ImportError as error:
        raise MissingDependencyError("Asking a chat model needs its client", "ask") from error
    if not timeout > 0:
        raise InvalidOptionError(f"timeout is a number of seconds above 0; got {timeout:g}.")
    made: LLM = OpenAILike(
        model=model,
        api_base=base_url,
        api_key=api_key,
        is_chat_model=True,
        context_window=_CONTEXT_WINDOW,
        timeout=timeout,
        max_retries=0,  # someone waits at a terminal
        additional_kwargs={"temperature": NOT_GIVEN},  # reasoning models refuse any
    )
    return made


def _pieces(response: RESPONSE_TYPE) -> Iterator[str]:
    """Yield an answer in the pieces that it comes in, without what would steer a terminal."""
    from llama_index.core.base.response.schema import StreamingResponse

    for piece in response.response_gen if isinstance(response, StreamingResponse) else [str(response.response or "")]:  # type: ignore[union-attr]
        yield "".join(character for character in piece if character.isprintable() or character in "\n\t")


@contextmanager
def _endpoint_errors(model: str, base_url: str, api_key: str, timeout: float, *, text_only: bool) -> Iterator[None]:
    """Turn what goes wrong between here and the model into a sentence."""
    import openai

    address, name = _shown(base_url), f"The model {model!r} at {_shown(base_url)}"

    def told(error: Exception) -> str:
        text = str(error).replace(api_key, "(the key)") if api_key != "none" else str(error)
        return in_one_line(Exception(re.sub(r"data:[^\s\"']{64,}", "(a picture)", text)))

    try:
        yield
    except ColQwenError:
        raise
    except openai.APITimeoutError:
        raise EndpointUnavailableError(
            f"{name} did not answer within {timeout:g} s: wait longer with --timeout, or show it less with --top-k or "
            "--llm-max-pixels."
        ) from None
    except openai.APIConnectionError as error:
        raise EndpointUnavailableError(
            f"There is no model endpoint at {address} ({in_one_line(error.__cause__ or error)}): start it, or correct "
            "OPENAI_BASE_URL."
        ) from None
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        what = "no key was sent" if api_key == "none" else "the key is wrong, or may not use this model"
        raise EndpointError(f"{name} refused (HTTP {error.status_code}): {what}. Set OPENAI_API_KEY.") from None
    except openai.APIError as error:
        status = f" (HTTP {error.status_code})" if isinstance(error, openai.APIStatusError) else ""
        if not text_only and _ABOUT_IMAGES.search(str(error)):
            raise EndpointError(
                f"{name} refuses images{status}: {told(error)}. Take a model that sees, or --text-only."
            ) from None
        if isinstance(error, openai.NotFoundError):
            raise EndpointError(
                f"There is no model {model!r} at {address}{status}: {told(error)}. Correct --llm, or OPENAI_BASE_URL, "
                "which mostly ends in /v1."
            ) from None
        raise EndpointError(f"{name} failed{status}: {told(error)}.") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # what comes of answers of another form
        raise EndpointError(
            f"{name} answered something that is no chat completion ({in_one_line(error)}): correct OPENAI_BASE_URL, "
            "which mostly ends in /v1."
        ) from None


def _shown(base_url: str) -> str:
    """Return an address without what may be secret in it."""
    parts = urlsplit(base_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
