"""`colqwen index`: files -> stored pages."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing, redirect_stdout
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, stderr, stdout
from llama_index_colqwen.cli.options import AsJson, CollectionName, ImageDir, Token, Uri

if TYPE_CHECKING:
    from llama_index_colqwen import MultiVectorEmbedder, RayEmbedder

__all__ = ["index"]


class _Ocr(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


class _OnError(str, Enum):
    stop = "raise"
    skip = "skip"


def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="PDFs, images, office documents, or folders of them; or addresses, such as s3://bucket/reports."
        ),
    ],
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    image_dir: ImageDir = None,
    embedder: Annotated[
        str,
        typer.Option(
            help="lexical; a visual model: a hub id such as vidore/colqwen2-v1.0, or a folder; or a service's URL."
        ),
    ] = "lexical",
    ocr: Annotated[
        _Ocr, typer.Option(help="Which pages to read by OCR; auto: those without a text layer.")
    ] = _Ocr.auto,
    language: Annotated[
        str, typer.Option(help="ISO 639-1 code of the documents' language, for the lexical embedder.")
    ] = "en",
    password: Annotated[Optional[str], typer.Option(help="Opens encrypted PDFs.")] = None,  # noqa: UP045
    on_error: Annotated[_OnError, typer.Option(help="skip: leave out what cannot be read.")] = _OnError.stop,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Drop what the collection holds first.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the pages of files that are no longer on this machine's disk.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw pages and read them by OCR.")] = 1,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Embed on a Ray cluster: its HOST:PORT; auto: this machine's; local: start one here."),
    ] = None,
    actors: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many actors embed, with --ray; by default as many as there is room for."),
    ] = None,
    gpus: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="GPUs of each actor, with --ray; by default 1 if the cluster has any."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read files, embed their pages, and store them; what is stored and unchanged is skipped."""
    if ray is None and (actors, gpus) != (None, None):
        raise typer.BadParameter("--actors and --gpus go with --ray.")
    # Read when numpy is imported. Its products are small here, and more threads wait for one another: storing a page
    # took 17 ms of CPU with one, and 82 with two.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with plain_errors(), ExitStack() as stack:
        from rich.markup import escape

        from llama_index_colqwen import (
            ColQwenIndex,
            DocumentError,
            LexicalEmbedder,
            MilvusPageStore,
            PDFPageReader,
            RayEmbedder,
            resolve_embedder,
        )

        make = partial(LexicalEmbedder, language) if embedder == "lexical" else partial(resolve_embedder, embedder)
        chosen: MultiVectorEmbedder
        pool: RayEmbedder | None = None
        if ray is None:
            chosen = make()
        else:
            stack.enter_context(redirect_stdout(sys.stderr))  # Ray prints that an actor died
            chosen = pool = stack.enter_context(RayEmbedder(make, actors, gpus, address=ray, on_error=on_error.value))
        with MilvusPageStore(uri, token, collection_name) as store:
            reader = PDFPageReader(
                image_dir=image_dir or store.image_dir or Path("colqwen.images"),
                ocr=ocr.value,
                password=password,
                on_error=on_error.value,
                num_workers=workers,
            )
            # Closed, so that an interruption does not leave a PDF open while Python shuts pdfium down.
            with closing(reader.lazy_load_data(list(paths))) as documents:
                if overwrite:
                    store.clear()
                made = ColQwenIndex(store, chosen)
                try:
                    made.refresh_ref_docs(documents, show_progress=True, delete_missing=prune)
                except KeyboardInterrupt:
                    stderr().print(
                        f"Interrupted. {store.count()} pages are stored; the same command goes on from there."
                    )
                    raise typer.Exit(130) from None
                except DocumentError:
                    stderr().print(f"{store.count()} pages are stored.")
                    raise
            report, pages = made.report, store.count()
            done = [asdict(actor) for actor in pool.actors] if pool else []
            stack.close()
            if as_json:
                told = {"uri": store.uri, "collection_name": collection_name, "pages": pages, **asdict(report)}
                print_json({**told, "actors": done} if pool else told)
                return
            stdout().print(
                f"{pages} pages in {escape(store.uri)}: {report.added} added, {report.updated} updated, "
                f"{report.unchanged} unchanged, {report.removed} removed, in {report.seconds:.1f} s."
            )
            for actor in done:
                stdout().print("Actor on {node}: {pages} pages, replaced {replaced} times".format(**actor))
