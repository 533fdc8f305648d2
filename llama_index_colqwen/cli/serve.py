"""`colqwen serve`: a model -> a service that other programs ask."""

from __future__ import annotations

import os
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Optional, cast

import typer

from llama_index_colqwen.cli.console import plain_errors, stderr

if TYPE_CHECKING:
    from llama_index_colqwen.embedders.devices import Dtype

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Argument(help="A hub id, or a folder.")] = "vidore/colqwen2-v1.0",
    host: Annotated[str, typer.Option(help="Any but this machine alone needs the secret COLQWEN_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8000,
    device: Annotated[Optional[str], typer.Option(help="cuda, cuda:1, mps, cpu; by default the best.")] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pages a forward pass.")] = 4,
    max_visual_tokens: Annotated[
        int | None,
        typer.Option(help="Pages are scaled down to so many; by default as the model was published, or 768."),  # noqa: UP045
    ] = None,
    pool_factor: Annotated[int, typer.Option(help="Divide a page's vectors by this; 1 keeps all.")] = 1,
    max_queue: Annotated[int, typer.Option(help="Images and texts that wait at most.")] = 512,
) -> None:
    """Answer other programs' requests with a model: EndpointEmbedder's other end.

    Clients send the token in COLQWEN_TOKEN, if there is one. For encryption (TLS), put a proxy before it.
    """
    with plain_errors():
        from rich.markup import escape

        from llama_index_colqwen import ColQwenEmbedder
        from llama_index_colqwen.addresses import check_token
        from llama_index_colqwen.serving.app import Batching, create_app
        from llama_index_colqwen.serving.server import bind, make_server

        token = check_token("COLQWEN_TOKEN", os.environ.get("COLQWEN_TOKEN", "").strip()) or None
        with closing(bind(host, port, token=token)) as taken:
            embedder = ColQwenEmbedder(
                model, device, cast("Dtype", dtype), batch_size, max_visual_tokens, pool_factor=pool_factor
            )
            service = create_app(embedder, token=token, batching=Batching(max_queue=max_queue))
            address = f"{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}"
            stderr().print(f"{escape(str(embedder.fingerprint))} on {embedder.devices[0]}: http://{address}, and /docs")
            with suppress(KeyboardInterrupt):
                make_server(service).run(sockets=[taken])
