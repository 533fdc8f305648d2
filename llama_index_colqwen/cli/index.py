"""`colqwen index`: files -> stored pages."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, stderr, stdout
from llama_index_colqwen.cli.options import AsJson, CollectionName, ImageDir, Token, Uri

__all__ = ["index"]


class _Ocr(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


class _OnError(str, Enum):
    stop = "raise"
    skip = "skip"


def index(
    paths: Annotated[list[str], typer.Argument(help="PDFs, images, office documents, or folders of them.")],
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
    as_json: AsJson = False,
) -> None:
    """Read files, embed their pages, and store them; what is stored and unchanged is skipped."""
    with plain_errors():
        from rich.markup import escape

        from llama_index_colqwen import (
            ColQwenIndex,
            DocumentError,
            LexicalEmbedder,
            MilvusPageStore,
            PDFPageReader,
            resolve_embedder,
        )

        chosen = LexicalEmbedder(language) if embedder == "lexical" else resolve_embedder(embedder)
        with MilvusPageStore(uri, token, collection_name) as store:
            reader = PDFPageReader(
                image_dir=image_dir or store.image_dir or Path("colqwen.images"),
                ocr=ocr.value,
                password=password,
                on_error=on_error.value,
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
            if as_json:
                print_json({"uri": store.uri, "collection_name": collection_name, "pages": pages, **asdict(report)})
                return
            stdout().print(
                f"{pages} pages in {escape(store.uri)}: {report.added} added, {report.updated} updated, "
                f"{report.unchanged} unchanged, {report.removed} removed, in {report.seconds:.1f} s."
            )
