"""`colqwen info`: a collection -> what it holds, and which embedder made it."""

from __future__ import annotations

from llama_index_colqwen.cli.console import plain_errors, stdout
from llama_index_colqwen.cli.options import CollectionName, Token, Uri

__all__ = ["info"]


def info(uri: Uri = "./colqwen.db", token: Token = None, collection_name: CollectionName = "pages") -> None:
    """Show what a collection holds, and which embedder made it."""
    with plain_errors():
        from rich.markup import escape
        from rich.table import Table

        from llama_index_colqwen import MilvusPageStore

        with MilvusPageStore(uri, token, collection_name) as store:
            made_by, documents = store.fingerprint(), store.documents()
        stdout().print(f"Collection {collection_name} in {escape(uri)}, made by {escape(str(made_by))}")
        table = Table("File", "Pages", "Document id")
        for document in documents:
            table.add_row(escape(document.file_name), str(document.pages), document.document_id[:16])
        stdout().print(table)
        stdout().print(f"{len(documents)} documents, {sum(document.pages for document in documents)} pages")
