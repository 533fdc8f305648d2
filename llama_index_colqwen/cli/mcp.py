"""`colqwen mcp`: a collection -> a Model Context Protocol server on standard input and output."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from llama_index_colqwen.cli.console import plain_errors
from llama_index_colqwen.cli.options import CollectionName, Embedder, Mode, RankedBy, Token, Uri

__all__ = ["mcp"]


def mcp(
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    embedder: Embedder = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many pages a search returns by default.")] = 5,
    mode: RankedBy = Mode.visual,
) -> None:
    """Let an assistant look into a collection: a Model Context Protocol server on standard input and output.

    The collection may be made later. The file is free for other commands when nothing was asked for five seconds.
    """
    with plain_errors():
        from llama_index_colqwen import MilvusPageStore
        from llama_index_colqwen.integrations.mcp import create_server

        with MilvusPageStore(uri, token, collection_name) as store, suppress(KeyboardInterrupt):
            create_server(store, embedder, top_k=top_k, mode=mode.value).run()
