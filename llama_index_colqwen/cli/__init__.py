"""`colqwen`: the main path from a shell.

Knows nothing that the library does not: it parses, calls, and prints. A mistake gets a sentence, never a traceback.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional, TextIO, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llama_index_colqwen import __version__
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.devices import Dtype
from llama_index_colqwen.embedders.lexical import LexicalEmbedder
from llama_index_colqwen.embedders.protocol import resolve_embedder
from llama_index_colqwen.errors import ColQwenError
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.reading.reader import PDFPageReader
from llama_index_colqwen.store.page_store import MilvusPageStore

__all__ = ["app"]

app = typer.Typer(
    name="colqwen",
    help="Ask questions of PDF pages as pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# Sentences are not broken into lines and not coloured: they are copied, and read by programs.
_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


class _Ocr(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


class _OnError(str, Enum):
    stop = "raise"
    skip = "skip"


# typer reads these at run time, so they stay Optional while Python 3.10 is supported.
_Db = Annotated[str, typer.Option("--db", help="A path ending in .db, or a Milvus server's address.")]
_Token = Annotated[Optional[str], typer.Option("--token", envvar="MILVUS_TOKEN", help="The server's token.")]  # noqa: UP045
_Collection = Annotated[str, typer.Option("--collection", help="The collection's name.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _out.print(__version__)
        raise typer.Exit()


@app.command()
def index(
    paths: Annotated[list[str], typer.Argument(help="PDFs, images, or folders of them.")],
    db: _Db = "./colqwen.db",
    token: _Token = None,
    collection: _Collection = "pages",
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where page images are written; by default beside the .db, as NAME.images."),
    ] = None,
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
) -> None:
    """Read files, embed their pages, and store them; what is stored and unchanged is skipped."""
    with _speaking_plainly():
        chosen = LexicalEmbedder(language) if embedder == "lexical" else resolve_embedder(embedder)
        with MilvusPageStore(db, token, collection) as store:
            image_dir = images or store.image_dir or Path("colqwen.images")
            reader = PDFPageReader(image_dir=image_dir, ocr=ocr.value, password=password, on_error=on_error.value)
            # Closed, so that an interruption does not leave a PDF open while Python shuts pdfium down.
            with closing(reader.lazy_load_data(list(paths))) as documents:
                if overwrite:
                    store.clear()
                made = ColQwenIndex(store, chosen)
                try:
                    made.refresh_ref_docs(documents, show_progress=True)
                except KeyboardInterrupt:
                    _err.print(f"Interrupted. {store.count()} pages are stored; the same command goes on from there.")
                    raise typer.Exit(130) from None
            report = made.report
            _out.print(
                f"{store.count()} pages in {escape(db)}: {report.added} added, {report.updated} updated, "
                f"{report.unchanged} unchanged, {report.removed} removed, in {report.seconds:.1f} s."
            )


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="What to look for, in words.")],
    db: _Db = "./colqwen.db",
    token: _Token = None,
    collection: _Collection = "pages",
    embedder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The embedder that made the collection, if it is not where it was."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many pages to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the pages that answer a question."""
    with _speaking_plainly():
        with MilvusPageStore(db, token, collection) as store:
            made = ColQwenIndex(store, embedder or store.fingerprint())
            retriever = made.as_retriever(similarity_top_k=top_k)
            hits = retriever.retrieve(question)
        rows = [
            {
                "rank": rank,
                "score": round(hit.get_score(), 4),
                "file_name": hit.metadata.get("file_name"),
                "page_number": hit.metadata.get("page_number"),
                "page_label": hit.metadata.get("page_label"),
                "image_path": getattr(hit.node, "image_path", None),
                "page_id": hit.node_id,
            }
            for rank, hit in enumerate(hits, start=1)
        ]
        if as_json:
            typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
            return
        table = Table("Rank", "Score", "File", "Page")
        table.add_column("Image", overflow="fold")  # a cut path could not be copied
        for row in rows:
            cells = (row["rank"], f"{row['score']:.3f}", row["file_name"], row["page_label"], row["image_path"])
            table.add_row(*(escape(str(cell)) for cell in cells))
        _out.print(table)


@app.command()
def info(db: _Db = "./colqwen.db", token: _Token = None, collection: _Collection = "pages") -> None:
    """Show what a collection holds, and which embedder made it."""
    with _speaking_plainly():
        with MilvusPageStore(db, token, collection) as store:
            made_by, documents = store.fingerprint(), store.documents()
        _out.print(f"Collection {collection} in {escape(db)}, made by {escape(str(made_by))}")
        table = Table("File", "Pages", "Document id")
        for document in documents:
            table.add_row(escape(document.file_name), str(document.pages), document.document_id[:16])
        _out.print(table)
        _out.print(f"{len(documents)} documents, {sum(document.pages for document in documents)} pages")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A hub id, or a folder.")] = "vidore/colqwen2-v1.0",
    host: Annotated[str, typer.Option(help="Any but this machine alone needs the secret COLQWEN_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 8000,
    device: Annotated[Optional[str], typer.Option(help="cuda, cuda:1, mps, cpu; by default the best.")] = None,  # noqa: UP045
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Pages a forward pass.")] = 4,
    max_visual_tokens: Annotated[int, typer.Option(help="Pages are scaled down to so many.")] = 768,
    pool_factor: Annotated[int, typer.Option(help="Divide a page's vectors by this; 1 keeps all.")] = 1,
    max_queue: Annotated[int, typer.Option(help="Images and texts that wait at most.")] = 512,
) -> None:
    """Answer other programs' requests with a model: EndpointEmbedder's other end.

    Clients send the token in COLQWEN_TOKEN, if there is one. Encryption (TLS) is a proxy's business.
    """
    with _speaking_plainly():
        from llama_index_colqwen.serving.app import Batching, create_app
        from llama_index_colqwen.serving.server import bind, make_server

        token = os.environ.get("COLQWEN_TOKEN", "").strip() or None
        with closing(bind(host, port, token=token)) as taken:
            embedder = ColQwenEmbedder(
                model, device, cast(Dtype, dtype), batch_size, max_visual_tokens, pool_factor=pool_factor
            )
            service = create_app(embedder, token=token, batching=Batching(max_queue=max_queue))
            address = f"{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}"
            _err.print(f"{escape(str(embedder.fingerprint))} on {embedder.devices[0]}: http://{address}, and /docs")
            with suppress(KeyboardInterrupt):
                make_server(service).run(sockets=[taken])


@app.command()
def doctor(
    uri: Annotated[Optional[str], typer.Option(help="A Milvus server to try as well.")] = None,  # noqa: UP045
    token: _Token = None,
) -> None:
    """Try what works on this machine, and print the line that mends what does not."""
    from llama_index_colqwen.cli.doctor import examine

    healthy = True
    for finding in examine(uri, token):
        healthy &= finding.works or not finding.required
        mark = "[green]works[/]" if finding.works else "[red]broken[/]" if finding.required else "[yellow]absent[/]"
        _out.print(f"{mark}  {escape(finding.what)}: {escape(finding.detail)}")
        if finding.mend:
            _out.print(f"        mend it with: {escape(finding.mend)}")
    if not healthy:
        raise typer.Exit(1)


@contextmanager
def _speaking_plainly() -> Iterator[None]:
    """Print our errors and warnings as sentences."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        _err.print(f"[yellow]Note:[/] {escape(str(message))}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except (ColQwenError, OSError) as error:
            _err.print(f"[red]Error:[/] {escape(str(error))}")
            raise typer.Exit(1) from None
