"""`colqwen delete`: names of files, and ids of documents and pages -> these are gone from a collection."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, stdout
from llama_index_colqwen.cli.options import AsJson, CollectionName, Token, Uri
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError

if TYPE_CHECKING:
    from llama_index_colqwen import MilvusPageStore

__all__ = ["delete"]

_SHORTEST_ID = 8


def delete(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE_OR_DOCUMENT...",
            help="Files, by name or path; documents, by the id that `info` shows or how that begins; pages, by id.",
        ),
    ],
    uri: Uri = "./colqwen.db",
    token: Token = None,
    collection_name: CollectionName = "pages",
    as_json: AsJson = False,
) -> None:
    """Delete pages from a collection, without asking. If a name matches nothing, nothing is deleted."""
    with plain_errors():
        from rich.markup import escape

        from llama_index_colqwen import MilvusPageStore

        with MilvusPageStore(uri, token, collection_name) as store:
            found = [_find(name, store) for name in names]
            deleted = store.delete(
                [page_id for page_ids, _ in found for page_id in page_ids],
                [document_id for _, document_ids in found for document_id in document_ids],
            )
            left = store.count()
        if as_json:
            print_json({"deleted": deleted, "pages": left})
        else:
            stdout().print(f"{deleted} page{'s' if deleted != 1 else ''} deleted; {left} left in {escape(store.uri)}.")


def _find(name: str, store: MilvusPageStore) -> tuple[list[str], list[str]]:
    """Return the ids of the pages, or else of the documents, that a name stands for.

    Raises:
        DocumentNotFoundError: If there are none.
        InvalidOptionError: If it is how the ids of several documents begin.
    """
    from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

    path = str(Path(os.path.expanduser(name)).resolve())
    of_file = [
        MetadataFilter(key="file_name", value=name),
        MetadataFilter(key="file_path", value=[name, path], operator=FilterOperator.IN),
    ]
    page_ids = [page.page_id for page in store.get([name])]
    page_ids += store.page_ids(MetadataFilters(filters=list(of_file), condition=FilterCondition.OR))
    documents = store.documents()
    ids = {one.document_id for one in documents if name in (one.document_id, one.file_name)}
    if not page_ids and not ids and len(name) >= _SHORTEST_ID:
        ids = {one.document_id for one in documents if one.document_id.startswith(name)}
        if len(ids) > 1:
            raise InvalidOptionError(f"The ids of {len(ids)} documents begin with {name!r}; nothing was deleted.")
    if not page_ids and not ids:
        raise DocumentNotFoundError(
            f"Nothing in collection {store.collection_name!r} is called {name!r}, no file, document or page; "
            "nothing was deleted."
        )
    return page_ids, sorted(ids)
