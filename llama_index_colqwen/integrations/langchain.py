"""An index -> a LangChain retriever, and its documents -> what a vision chat model is shown.

Knows nothing of how pages are found, or of any model.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from pydantic import ValidationError

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, MissingDependencyError, check_count
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.nodes import HIDDEN_METADATA, caption
from llama_index_colqwen.resize import DEFAULT_LLM_PIXELS, image_for_llm
from llama_index_colqwen.retriever import DEFAULT_TOP_K, Mode, check_mode
from llama_index_colqwen.store.filters import page_filter

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.messages.content import create_image_block, create_text_block
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingDependencyError("Retrieving for LangChain needs langchain-core", "langchain") from error

__all__ = ["ColQwenLangChainRetriever", "Filters", "content_blocks"]

Filters: TypeAlias = MetadataFilters | Mapping[str, Any]
"""LlamaIndex's filters; or values by their keys, all of which pages must have: of a list, one."""


class ColQwenLangChainRetriever(BaseRetriever):
    """Finds the pages that answer a question, as LangChain documents, best first.

    `invoke(question, k=5, filters={"file_name": "report.pdf"})` takes both for one question, and so does `ainvoke`.

    A document has the page's text as its `page_content` and the page's id as its `id`. Its metadata are those of the
    page that models may see, and: `page_id`, the `id_key` of an `EnsembleRetriever`, which takes pages without text
    for one another otherwise; `page_number`; `source`, such as "report.pdf, page iv"; `score`; and `image_path`, for
    people to be shown the page (absent if the image is gone). Show models the text or `content_blocks`, and not the
    metadata.

    Attributes:
        index: What is asked.
        k: How many pages to return; fewer if there are fewer.
        filters: Which pages to look at.
        mode: By what pages are ranked: "visual" (MaxSim), "text" (BM25) or "hybrid" (both).
    """

    index: ColQwenIndex
    k: int = DEFAULT_TOP_K
    filters: Filters | None = None
    mode: Mode = "visual"

    def __init__(
        self,
        index: ColQwenIndex,
        k: int = DEFAULT_TOP_K,
        filters: Filters | None = None,
        *,
        mode: Mode = "visual",
        name: str | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """See the class; `name`, `tags` and `metadata` are LangChain's, of the retriever's runs.

        Raises:
            InvalidOptionError: If `index` is none, `k` is no whole number above 0, a filter makes no sense, or
                there is no such mode.
        """
        # Before pydantic, which would make its own errors of ours.
        if not isinstance(index, ColQwenIndex):
            raise InvalidOptionError(f"index is a ColQwenIndex; got {type(index).__name__}.")
        check_count("k", k)
        page_filter(_metadata_filters(filters))
        check_mode(mode)
        super().__init__(  # type: ignore[call-arg]  # fields of this class, not of its base
            index=index, k=k, filters=filters, mode=mode, name=name, tags=tags, metadata=metadata
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun | None = None,
        k: int | None = None,
        filters: Filters | None = None,
    ) -> list[Document]:
        # LangChain passes on what is given to `invoke` only to methods that name it.
        return self._find(query, k, filters)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun | None = None,
        k: int | None = None,
        filters: Filters | None = None,
    ) -> list[Document]:
        return await asyncio.to_thread(self._find, query, k, filters)

    def _find(self, query: str, k: int | None, filters: Filters | None) -> list[Document]:
        retriever = self.index.as_retriever(
            similarity_top_k=check_count("k", self.k if k is None else k),
            filters=_metadata_filters(self.filters if filters is None else filters),
            mode=self.mode,
        )
        return [_document(hit) for hit in retriever.retrieve(query)]


def content_blocks(documents: Iterable[Document], *, max_pixels: int = DEFAULT_LLM_PIXELS) -> list[dict[str, Any]]:
    """Make what a vision chat model is shown: `HumanMessage(content=[question, *content_blocks(documents)])`.

    Args:
        documents: Of the retriever, or of others among them, whose text is shown.
        max_pixels: Pictures are scaled down to this many pixels, since models are billed by them.

    Returns:
        For each page its source ("report.pdf, page iv") as a text block, and its picture as a base64 image block, in
        LangChain's own format; for a page without an image, source and text in one block.

    Raises:
        DocumentNotFoundError: If an image has gone since its page was found.
        InvalidOptionError: If `max_pixels` is no whole number above 0.
    """
    check_count("max_pixels", max_pixels)
    blocks: list[dict[str, Any]] = []
    for document in documents:
        source, path = str(document.metadata.get("source") or "").strip(), document.metadata.get("image_path")
        if not path:
            blocks.append({**create_text_block(f"{source}\n{document.page_content}".strip())})
            continue
        if not Path(path).exists():
            raise DocumentNotFoundError(f"The image of {source or document.id} is gone: there is no {path}.")
        image = image_for_llm(ImageNode(id_=document.id or source, image_path=str(path)), max_pixels)
        assert image is not None  # it has a path
        data = base64.b64encode(image.data).decode()
        blocks += [{**create_text_block(source)}, {**create_image_block(base64=data, mime_type=image.mimetype)}]
    return blocks


def _document(hit: NodeWithScore) -> Document:
    node = hit.node
    hidden = {*HIDDEN_METADATA, *node.excluded_llm_metadata_keys}
    metadata = {key: value for key, value in node.metadata.items() if key not in hidden or key == "file_name"}
    metadata |= {
        "page_id": node.node_id,
        "page_number": node.metadata.get("page_number", 1),
        "source": caption(node),
        "score": hit.get_score(),
    }
    if isinstance(node, ImageNode) and node.image_path is not None:
        metadata["image_path"] = node.image_path
    return Document(page_content=node.get_content(MetadataMode.NONE), id=node.node_id, metadata=metadata)


def _metadata_filters(filters: Filters | None) -> MetadataFilters | None:
    if filters is None or isinstance(filters, MetadataFilters):
        return filters
    if not isinstance(filters, Mapping):
        raise InvalidOptionError(
            f"filters are {{'file_name': 'report.pdf'}}, or LlamaIndex's MetadataFilters; got {type(filters).__name__}."
        )
    try:
        return MetadataFilters(
            filters=[
                MetadataFilter(
                    key=key, value=value, operator=FilterOperator.IN if isinstance(value, list) else FilterOperator.EQ
                )
                for key, value in filters.items()
            ]
        )
    except ValidationError as error:
        raise InvalidOptionError(
            f"filters are numbers or texts, or lists of them, by key; got {dict(filters)!r}."
        ) from error
