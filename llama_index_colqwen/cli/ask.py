"""`colqwen ask`: a question -> a chat model's answer, and the pages that it was shown."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json
from llama_index_colqwen.cli.filters import choose_pages
from llama_index_colqwen.cli.hits import rows_of
from llama_index_colqwen.cli.options import (
    AsJson,
    CollectionName,
    Embedder,
    File,
    Filter,
    LlmMaxPixels,
    LlmTimeout,
    Mode,
    RankedBy,
    ShownPages,
    TextOnly,
    Token,
    Uri,
)

__all__ = ["ask"]


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
    top_k: ShownPages = 3,
    mode: RankedBy = Mode.visual,
    file: File = None,
    filter: Filter = None,
    text_only: TextOnly = False,
    llm_max_pixels: LlmMaxPixels = None,
    timeout: LlmTimeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the pages that are found for it, with a chat model that sees them."""
    with plain_errors():
        from llama_index_colqwen import ColQwenIndex
        from llama_index_colqwen.asking import ChatModel
        from llama_index_colqwen.nodes import caption

        model = ChatModel(llm, text_only=text_only, max_pixels=llm_max_pixels, timeout=timeout)
        filters = choose_pages(file, filter)
        with ColQwenIndex.from_existing(uri, embedder, token=token, collection_name=collection_name) as index:
            hits, said = model.answer(index, question, top_k, filters, mode=mode.value, streaming=not as_json)
        pieces: list[str] = []
        for piece in said:
            pieces.append(piece)
            if not as_json:
                typer.echo(piece, nl=False)
        if as_json:
            print_json({"answer": "".join(pieces), "pages": rows_of(hits)})
            return
        typer.echo("\n\nPages that the model was shown:")
        for hit in hits:
            typer.echo(f"  {caption(hit.node)}")
