"""`colqwen info`: a collection -> what it holds, and which embedder made it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, print_rows, stderr, stdout
from llama_index_colqwen.cli.options import AsJson, CollectionName, Token, Uri

if TYPE_CHECKING:
    from llama_index_colqwen import MilvusPageStore, StoreCheck

__all__ = ["info"]


def info(
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    check: Annotated[
        bool, typer.Option("--check", help="Compare pages with their vectors, and repair what is wrong.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a collection holds, and which embedder made it."""
    with plain_errors():
        from rich.markup import escape

        from llama_index_colqwen import MilvusPageStore

        with MilvusPageStore(uri, token, collection_name) as store:
            made_by, documents = store.fingerprint(), store.documents()
            checked = _check(store) if check else None
            lost = store.get(checked.lost[:5]) if checked else []
        pages = sum(document.pages for document in documents)
        if as_json:
            print_json(
                {
                    "uri": store.uri,
                    "collection_name": collection_name,
                    "embedder": json.loads(made_by.to_json()),
                    "pages": pages,
                    "documents": [
                        {"document_id": one.document_id, "file_name": one.file_name, "pages": one.pages}
                        for one in documents
                    ],
                    **({} if checked is None else {"check": asdict(checked)}),
                }
            )
        else:
            if checked is not None:
                stdout().print(_sentence(checked))
            stdout().print(f"Collection {collection_name} in {escape(store.uri)}, made by {escape(str(made_by))}")
            shown = 16 if stdout().is_terminal else None
            rows = [(document.file_name, document.pages, document.document_id[:shown]) for document in documents]
            print_rows(("File", "Pages", "Document id"), rows)
            stdout().print(f"{len(documents)} documents, {pages} pages")
        if checked is not None and checked.lost:
            names = ", ".join(f"page {page.page_number} of {page.file_name}" for page in lost)
            stderr().print(
                f"[red]Error:[/] {len(checked.lost)} pages lack their vectors and their images ({escape(names)}"
                f"{', ...' if len(checked.lost) > 5 else ''}): index their files again."
            )
            raise typer.Exit(1)


def _check(store: MilvusPageStore) -> StoreCheck:
    """Check a collection, and embed again what was lost."""
    from llama_index_colqwen import ColQwenIndex

    report = store.check()
    if not report.lost:
        return report
    again = ColQwenIndex.from_existing(store=store).check()
    return replace(report, embedded=again.embedded, lost=again.lost)


def _sentence(report: StoreCheck) -> str:
    done = [
        f"{number} {what}"
        for number, what in (
            (report.restored, "pages had lost their vectors, which were restored from the cache"),
            (report.embedded, "pages had lost their vectors and were embedded again"),
            (report.orphans, "multi-vectors belonged to no page and were deleted"),
            (report.unsearchable, "pages were not searched as they are and are now"),
        )
        if number
    ]
    return f"Checked {report.pages} pages: {'; '.join(done) or 'nothing was wrong'}."
