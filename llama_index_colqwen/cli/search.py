"""`colqwen search`: a question -> the pages that answer it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, print_rows, stderr, stdout
from llama_index_colqwen.cli.filters import choose_pages
from llama_index_colqwen.cli.hits import rows_of
from llama_index_colqwen.cli.options import AsJson, CollectionName, Embedder, File, Filter, Mode, RankedBy, Token, Uri
from llama_index_colqwen.errors import DocumentNotFoundError

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore

    from llama_index_colqwen.snippet import Snippet

__all__ = ["search"]


def search(
    question: Annotated[str, typer.Argument(help="What to look for, in words.")],
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    embedder: Embedder = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many pages to show.")] = 5,
    mode: RankedBy = Mode.visual,
    file: File = None,
    filter: Filter = None,
    open_best: Annotated[
        bool, typer.Option("--open", help="Open the best page's image in the system's viewer.")
    ] = False,
    explain: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder to write pictures to, and HTML files, of what matches on each page."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the pages that answer a question; to another program, one line a page: its columns, with tabs between."""
    with plain_errors():
        from llama_index_colqwen import ColQwenIndex
        from llama_index_colqwen.cli.explain import write_explanations
        from llama_index_colqwen.snippet import snippet

        filters = choose_pages(file, filter)
        with ColQwenIndex.from_existing(uri, embedder, token=token, collection_name=collection_name) as index:
            hits = index.as_retriever(similarity_top_k=top_k, filters=filters, mode=mode.value).retrieve(question)
            if explain is not None:
                write_explanations(index, question, hits, explain)
            language = str(index.embedder.fingerprint.options.get("language") or "en")
        snippets = [snippet(question, hit.text, language) for hit in hits]
        if as_json:
            rows = zip(rows_of(hits), snippets, strict=True)
            print_json([{**row, "snippet": piece.text, "matched_words": piece.words} for row, piece in rows])
        elif hits:
            _show(hits, snippets)
        else:
            stderr().print(
                "No page is found: no page's metadata pass the filters."
                if filters
                else "No page is found: there is none."
            )
        if open_best and hits:
            _open(hits[0])


def _show(hits: Sequence[NodeWithScore], snippets: Sequence[Snippet]) -> None:
    from rich.text import Text

    from llama_index_colqwen.nodes import caption

    if not stdout().is_terminal:
        keys = ("rank", "score", "file_name", "page_label", "image_path")
        rows = zip(rows_of(hits), snippets, strict=True)
        print_rows((*keys, "snippet"), [[*(row[key] for key in keys), piece.text] for row, piece in rows])
        return
    for rank, (hit, piece) in enumerate(zip(hits, snippets, strict=True), start=1):
        title = Text(f"{rank}. {caption(hit.node)}", style="bold")
        stdout().print(title.append(f"  {hit.get_score():.3f}", style="not bold dim"))
        if piece.text:
            line = Text(piece.text)
            for start, end in piece.matches:
                line.stylize("bold yellow", start, end)
            stdout().print(Text("   ").append_text(line))
        if path := getattr(hit.node, "image_path", None):
            stdout().print(Text(f"   {path}", style="dim"))


def _open(hit: NodeWithScore) -> None:
    from llama_index_colqwen.nodes import caption

    path = getattr(hit.node, "image_path", None)
    if not path or not Path(path).exists():
        raise DocumentNotFoundError(f"The image of {caption(hit.node)} is gone: index its file again.")
    if typer.launch(path):
        raise DocumentNotFoundError(f"There is no viewer to open images with (xdg-open); the image is {path}.")
