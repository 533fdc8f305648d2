"""`colqwen info`: a collection -> what it holds, and which embedder made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llama_index_colqwen.cli.console import plain_errors, stderr, stdout
from llama_index_colqwen.cli.options import CollectionName, Token, Uri

if TYPE_CHECKING:
    from llama_index_colqwen import MilvusPageStore

__all__ = ["info"]


def info(
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    check: Annotated[
        bool, typer.Option("--check", help="Compare pages with their vectors, and repair what is wrong.")
    ] = False,
) -> None:
    """Show what a collection holds, and which embedder made it."""
    with plain_errors():
        from rich.markup import escape
        from rich.table import Table

        from llama_index_colqwen import MilvusPageStore

        with MilvusPageStore(uri, token, collection_name) as store:
            made_by, documents = store.fingerprint(), store.documents()
            if check:
                _check(store)
        stdout().print(f"Collection {collection_name} in {escape(store.uri)}, made by {escape(str(made_by))}")
        table = Table("File", "Pages", "Document id")
        for document in documents:
            table.add_row(escape(document.file_name), str(document.pages), document.document_id[:16])
        stdout().print(table)
        stdout().print(f"{len(documents)} documents, {sum(document.pages for document in documents)} pages")


def _check(store: MilvusPageStore) -> None:
    """Check a collection, and say what was found; raises `typer.Exit` if something is left to do."""
    from rich.markup import escape

    from llama_index_colqwen import ColQwenIndex

    report = store.check()
    embedded, lost = 0, report.lost
    if lost:
        again = ColQwenIndex.from_existing(store=store).check()
        embedded, lost = again.embedded, again.lost
    done = [
        f"{number} {what}"
        for number, what in (
            (report.restored, "pages had lost their vectors, which were restored from the cache"),
            (embedded, "pages had lost their vectors and were embedded again"),
            (report.orphans, "multi-vectors belonged to no page and were deleted"),
            (report.unsearchable, "pages were not searched as they are and are now"),
        )
        if number
    ]
    stdout().print(f"Checked {report.pages} pages: {'; '.join(done) or 'nothing was wrong'}.")
    if lost:
        names = ", ".join(f"page {page.page_number} of {page.file_name}" for page in store.get(lost[:5]))
        stderr().print(
            f"[red]Error:[/] {len(lost)} pages lack their vectors and their images ({escape(names)}"
            f"{', ...' if len(lost) > 5 else ''}): index their files again."
        )
        raise typer.Exit(1)
