"""An index -> a Model Context Protocol server, with which an assistant looks into it.

Knows nothing of transports, nor of options of the command line.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from pydantic import BaseModel, Field

from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.errors import (
    ColQwenError,
    DocumentError,
    MissingDependencyError,
    check_count,
)
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.nodes import caption
from llama_index_colqwen.pages import Page
from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS, image_for_llm
from llama_index_colqwen.retriever import Mode, check_mode, node_to_show
from llama_index_colqwen.shared_index import SharedIndex, without_folders
from llama_index_colqwen.snippet import snippet
from llama_index_colqwen.store.page_store import MilvusPageStore

try:
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ImageContent, TextContent, ToolAnnotations
except ImportError as error:
    raise MissingDependencyError("Serving an index to assistants needs mcp", "mcp") from error

__all__ = ["DEFAULT_TOP_K", "FoundPage", "IndexedDocuments", "create_server"]

_LOGGER = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
_IDLE_SECONDS = 5.0
_EXCERPT = 400
_LISTED = 200

_INSTRUCTIONS = (
    "The pages of the user's documents. search_pages finds pages by a question, get_page shows one: its picture and "
    "its whole text. Look at a page before you answer from it, and say which file and page an answer is from."
)


class FoundPage(BaseModel):
    """A page that was found, in words."""

    page_id: str = Field(description="What get_page shows the page by.")
    file_name: str
    page: str = Field(description="As it is printed on the page, or else its number.")
    score: float
    excerpt: str = Field(description="Some of the page's text.")


class IndexedDocument(BaseModel):
    """A file whose pages are found."""

    file_name: str
    pages: int


class IndexedDocuments(BaseModel):
    """Files, by name."""

    total: int = Field(description="How many there are; the first 200 are listed.")
    documents: list[IndexedDocument]


def create_server(
    store: MilvusPageStore,
    embedder: str | MultiVectorEmbedder | None = None,
    *,
    top_k: int = DEFAULT_TOP_K,
    mode: Mode = "visual",
    max_pixels: int = DEFAULT_LLM_PIXELS,
) -> MCPServer:
    """Make a server with the tools `search_pages`, `get_page` and `list_documents`: `create_server(store).run()`.

    Nothing is written to the index. It is opened when a tool is first called, and closed when none has been for five
    seconds, so that others can open a Milvus Lite file in between; the embedder stays loaded. Errors are told to the
    model, without the folders of this machine; so is what it finds.

    Args:
        store: Where the pages are; it need not hold anything yet.
        embedder: By default the one that the collection's fingerprint describes.
        top_k: How many pages a search returns, unless it asks for another number.
        mode: By what pages are ranked: "visual" (MaxSim), "text" (BM25) or "hybrid" (both).
        max_pixels: Pictures are scaled down to this many pixels.

    Raises:
        InvalidOptionError: If `top_k` or `max_pixels` is no whole number above 0, or there is no such mode.
        MissingDependencyError: If the extra `[mcp]` is not installed.
    """
    check_count("top_k", top_k)
    check_mode(mode)
    check_count("max_pixels", max_pixels)
    shared = _Shared(store, embedder)
    # Told on standard error, where a client's log is: what is of use for the person who set the server up.
    server = MCPServer(
        "colqwen", version=version("llama-index-colqwen"), instructions=_INSTRUCTIONS, log_level="WARNING"
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    @server.tool(annotations=reads)
    def search_pages(
        question: Annotated[str, Field(description="What to look for, in words.")],
        top_k: Annotated[int, Field(description="How many pages to return.", ge=1, le=100)] = top_k,
        file_name: Annotated[str | None, Field(description="Look into this file only.")] = None,
    ) -> list[FoundPage]:
        """Find the pages that answer a question, best first."""
        with shared.use() as index:
            if file_name is not None:
                _require_file(index, file_name)
            filters = None if file_name is None else _equal(file_name=file_name)
            hits = index.as_retriever(similarity_top_k=top_k, filters=filters, mode=mode).retrieve(question)
            language = str(index.embedder.fingerprint.options.get("language") or "en")
            return [
                FoundPage(
                    page_id=hit.node_id,
                    file_name=str(hit.metadata.get("file_name") or ""),
                    page=str(hit.metadata.get("page_label") or hit.metadata.get("page_number") or ""),
                    score=round(hit.get_score(), 4),
                    excerpt=snippet(question, hit.node.get_content(MetadataMode.NONE), language, _EXCERPT).text,
                )
                for hit in hits
            ]

    @server.tool(annotations=reads)
    def get_page(
        page_id: Annotated[str | None, Field(description="Of search_pages; or give file_name and page.")] = None,
        file_name: Annotated[str | None, Field(description="As list_documents has it.")] = None,
        page: Annotated[
            str | int | None, Field(description="What is printed on it ('iv'), or its number from 1.")
        ] = None,
    ) -> list[TextContent | ImageContent]:
        """Show one page: its picture and its text."""
        with shared.use() as index:
            if page_id is not None:
                found = _page_by_id(index, page_id)
            elif file_name is not None and page is not None:
                found = _page_of_file(index, file_name, str(page).strip())
            else:
                raise ToolError("Give a page_id, or a file_name and a page.")
            return _shown(found, max_pixels)

    @server.tool(annotations=reads)
    def list_documents(
        name_contains: Annotated[str, Field(description="List only files with this in their name.")] = "",
    ) -> IndexedDocuments:
        """List the files whose pages can be found."""
        with shared.use() as index:
            wanted = [
                IndexedDocument(file_name=document.file_name, pages=document.pages)
                for document in index.store.documents()
                if name_contains.casefold() in document.file_name.casefold()
            ]
            return IndexedDocuments(total=len(wanted), documents=wanted[:_LISTED])

    return server


class _Shared:
    """An index that is asked by one tool call at a time; our errors become the tool's."""

    def __init__(self, store: MilvusPageStore, embedder: str | MultiVectorEmbedder | None) -> None:
        self._index = SharedIndex(store, embedder, _IDLE_SECONDS)
        self._lock = threading.Lock()

    @contextmanager
    def use(self) -> Iterator[ColQwenIndex]:
        with self._lock:
            try:
                with self._index.use() as index:
                    yield index
            except ColQwenError as error:
                _LOGGER.warning("%s", error)
                raise ToolError(without_folders(error, self._index.store)) from error


def _equal(**values: str | int) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value) for key, value in values.items()])


def _require_file(index: ColQwenIndex, file_name: str) -> int:
    """Return how many pages a file has."""
    pages = index.store.count(_equal(file_name=file_name))
    if not pages:
        raise ToolError(f"There is no file {file_name!r}: list_documents says which there are.")
    return pages


def _page_by_id(index: ColQwenIndex, page_id: str) -> Page:
    found = index.store.get([page_id])
    if not found:
        raise ToolError(f"There is no page {page_id!r}: search_pages says the pages' ids.")
    return found[0]


def _page_of_file(index: ColQwenIndex, file_name: str, page: str) -> Page:
    ids = index.store.page_ids(_equal(file_name=file_name, page_label=page))
    if not ids and page.isdecimal():
        ids = index.store.page_ids(_equal(file_name=file_name, page_number=int(page)))
    if not ids:
        pages = _require_file(index, file_name)
        raise ToolError(f"{file_name} has no page {page!r}: it has {pages} pages.")
    if len(ids) > 1:
        raise ToolError(f"Several pages are page {page} of a file {file_name}; give one's page_id: {', '.join(ids)}")
    return _page_by_id(index, ids[0])


def _shown(page: Page, max_pixels: int) -> list[TextContent | ImageContent]:
    node = node_to_show(page)
    words = f"{caption(node)}\n{node.get_content(MetadataMode.NONE)}".strip()
    try:
        image = image_for_llm(node, max_pixels)
    except DocumentError as error:
        _LOGGER.warning("%s", error)
        image = None
    if image is None:
        return [TextContent(type="text", text=f"{words}\n(This page's picture cannot be read.)")]
    data = base64.b64encode(image.data).decode()
    return [
        TextContent(type="text", text=words),
        ImageContent(type="image", data=data, mime_type=image.mimetype),
    ]
