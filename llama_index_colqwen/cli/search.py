"""`colqwen search`: a question -> the pages that answer it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, stdout
from llama_index_colqwen.cli.options import CollectionName, Token, Uri

__all__ = ["search"]


def search(
    question: Annotated[str, typer.Argument(help="What to look for, in words.")],
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    embedder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The embedder that made the collection, if it is not where it was."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="How many pages to show.")] = 5,
    explain: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A folder to write pictures to, and HTML files, of what matches on each page."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Find the pages that answer a question."""
    with plain_errors():
        from rich.markup import escape
        from rich.table import Table

        from llama_index_colqwen import ColQwenIndex
        from llama_index_colqwen.cli.explain import write_explanations

        with ColQwenIndex.from_existing(uri, embedder, token=token, collection_name=collection_name) as index:
            hits = index.as_retriever(similarity_top_k=top_k).retrieve(question)
            if explain is not None:
                write_explanations(index, question, hits, explain)
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
        stdout().print(table)
