"""`colqwen ui`: a collection -> a page in the browser, to search it, to look at what matches, and to add files."""

from __future__ import annotations

import os
import sys
import threading
import time
import webbrowser
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, stderr
from llama_index_colqwen.cli.options import (
    CollectionName,
    Embedder,
    ImageDir,
    LlmMaxPixels,
    LlmTimeout,
    Mode,
    RankedBy,
    ShownPages,
    TextOnly,
    Token,
    Uri,
)

if TYPE_CHECKING:
    import uvicorn

__all__ = ["ui"]

_IDLE_SECONDS = 30.0


def ui(
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    image_dir: ImageDir = None,
    embedder: Embedder = None,
    mode: RankedBy = Mode.visual,
    host: Annotated[
        str, typer.Option(help="Any but this machine alone needs the secret COLQWEN_UI_TOKEN, which the page asks for.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8400,
    open_browser: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--open/--no-open", help="Open the browser; by default on a desktop.", show_default=False),
    ] = None,
    llm: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            envvar="OPENAI_MODEL",
            help="A model that answers, as for `colqwen ask`; without one, the page only finds.",
        ),
    ] = None,
    top_k: ShownPages = 3,
    text_only: TextOnly = False,
    llm_max_pixels: LlmMaxPixels = None,
    timeout: LlmTimeout = 120.0,
) -> None:
    """Look at a collection in the browser: search it, see what matches on a page, add files, ask.

    There need not be a collection yet. Files that are dropped on the page are kept beside it, in NAME.uploads. The .db
    is free for other commands when nothing was asked for half a minute.
    """
    with plain_errors():
        from rich.markup import escape

        from llama_index_colqwen import CollectionNotFoundError, MilvusPageStore
        from llama_index_colqwen.errors import check_count
        from llama_index_colqwen.serving.server import bind, make_server
        from llama_index_colqwen.shared_index import SharedIndex
        from llama_index_colqwen.web.app import create_app
        from llama_index_colqwen.web.uploads import Uploads

        check_count("top-k", top_k)
        secret = os.environ.get("COLQWEN_UI_TOKEN", "").strip() or None
        with (
            closing(bind(host, port, token=secret, variable="COLQWEN_UI_TOKEN")) as taken,
            MilvusPageStore(uri, token, collection_name, image_dir=image_dir) as store,
        ):
            model = None
            if llm:
                from llama_index_colqwen.asking import ChatModel

                model = ChatModel(llm, text_only=text_only, max_pixels=llm_max_pixels, timeout=timeout)
            shared = SharedIndex(store, embedder, _IDLE_SECONDS)
            with suppress(CollectionNotFoundError), shared.use():  # what is wrong with it is said here
                pass
            images = store.image_dir or Path("colqwen.images")
            beside = Path(store.uri) if store.is_local else images
            uploads = Uploads(shared, beside.with_suffix(".uploads").absolute(), images)
            app = create_app(shared, uploads, mode=mode.value, chat_model=model, shown_pages=top_k, token=secret)
            server = make_server(app)
            address = f"http://{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}/"
            asks = ", which asks for the secret in COLQWEN_UI_TOKEN" if secret else ""
            stderr().print(f"{escape(store.uri)}: {address}{asks}. Ctrl-C ends it.")
            if _has_desktop() if open_browser is None else open_browser:
                threading.Thread(target=_open, args=(server, address), daemon=True).start()
            with suppress(KeyboardInterrupt):
                server.run(sockets=[taken])


def _has_desktop() -> bool:
    """Whether someone sits at this machine who would see a browser."""
    if not sys.stderr.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(server: uvicorn.Server, address: str) -> None:
    while not server.started:
        time.sleep(0.05)
    webbrowser.open(address)
