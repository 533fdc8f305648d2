"""`colqwen ask`: a question -> a chat model's answer, and the pages that it was shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional
from urllib.parse import urlsplit

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json
from llama_index_colqwen.cli.filters import choose_pages
from llama_index_colqwen.cli.hits import rows_of
from llama_index_colqwen.cli.options import AsJson, CollectionName, Embedder, File, Filter, Token, Uri
from llama_index_colqwen.errors import (
    ColQwenError,
    DocumentNotFoundError,
    EndpointError,
    EndpointUnavailableError,
    InvalidOptionError,
    MissingDependencyError,
    in_one_line,
)

if TYPE_CHECKING:
    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.llms import LLM

__all__ = ["ask"]

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


def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    llm: Annotated[
        str,
        typer.Option(
            envvar="OPENAI_MODEL",
            help="A model that sees images, by the name that its endpoint knows: any that speaks OpenAI's chat "
            "completions, at the address in OPENAI_BASE_URL (OpenAI's by default), with the key in OPENAI_API_KEY.",
        ),
    ],
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    embedder: Embedder = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many pages the model is shown.")] = 3,
    file: File = None,
    filter: Filter = None,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Show the model the pages' text and no pictures.")
    ] = False,
    llm_max_pixels: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Pictures are scaled down to so many pixels; 1000000 by default.", show_default=False),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the model, each time it is silent.")] = 120.0,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the pages that are found for it, with a chat model that sees them."""
    with plain_errors():
        from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
        from llama_index.core.schema import QueryBundle

        from llama_index_colqwen import ColQwenIndex
        from llama_index_colqwen.nodes import caption
        from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS

        base_url, api_key = _endpoint()
        model = _make_llm(llm, base_url, api_key, timeout)
        filters = choose_pages(file, filter)
        with ColQwenIndex.from_existing(uri, embedder, token=token, collection_name=collection_name) as index:
            engine = index.as_query_engine(
                model,
                multimodal=not text_only,
                similarity_top_k=top_k,
                filters=filters,
                llm_max_pixels=DEFAULT_LLM_PIXELS if llm_max_pixels is None else llm_max_pixels,
                text_qa_template=PromptTemplate(_TEXT_PROMPT),
                chat_content_qa_template=RichPromptTemplate(_IMAGE_PROMPT),
                streaming=not as_json,
            )
            query = QueryBundle(question)
            hits = engine.retrieve(query)
        if not hits:
            raise DocumentNotFoundError("No page is found: the collection is empty, or the filters keep none.")
        if text_only and not any(hit.text.strip() for hit in hits):
            raise DocumentNotFoundError("None of the pages that were found has text: ask without --text-only.")
        pieces: list[str] = []
        with _endpoint_errors(llm, base_url, api_key, timeout, text_only=text_only):
            for piece in _pieces(engine.synthesize(query, hits)):
                pieces.append(piece)
                if not as_json:
                    typer.echo(piece, nl=False)
        answer = "".join(pieces)
        if not answer.strip():
            raise EndpointError(f"The model {llm!r} at {_shown(base_url)} answered nothing.")
        if as_json:
            print_json({"answer": answer, "pages": rows_of(hits)})
            return
        typer.echo("\n\nPages that the model was shown:")
        for hit in hits:
            typer.echo(f"  {caption(hit.node)}")


def _endpoint() -> tuple[str, str]:
    """Return the endpoint's address and key, from the environment.

    Raises:
        InvalidOptionError: If the address is none, or the key is missing where one is needed, or cannot be one.
    """
    base_url = os.environ.get("OPENAI_BASE_URL", "").strip() or _OPENAI
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_address = False
    if not is_address:
        raise InvalidOptionError("OPENAI_BASE_URL is no address: it starts with http:// or https://.")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidOptionError("OPENAI_API_KEY is no key: it has characters that no key has.")
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
