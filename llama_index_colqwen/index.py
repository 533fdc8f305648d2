"""Documents -> pages in the store: the write path, and the face of a LlamaIndex index.

Knows nothing of files, rendering or scoring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode

from llama_index_colqwen.embedders.protocol import (
    EmbedderFingerprint,
    MultiVectorEmbedder,
    recommended_candidate_vectors,
    resolve_embedder,
)
from llama_index_colqwen.indexing import IndexingReport, index_documents
from llama_index_colqwen.late_interaction.multivectors import VectorDtype
from llama_index_colqwen.retriever import ColQwenRetriever
from llama_index_colqwen.store.page_store import MilvusPageStore

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.llms import LLM
    from llama_index.core.vector_stores import MetadataFilters

__all__ = ["ColQwenIndex", "IndexingReport"]


class ColQwenIndex:
    """Pages, embedded and stored, ready to be asked.

    Attributes:
        store: Where the pages are.
        embedder: What embeds pages and queries.
        report: What the last indexing did.
    """

    def __init__(
        self,
        store: MilvusPageStore,
        embedder: str | EmbedderFingerprint | MultiVectorEmbedder = "lexical",
        image_dir: str | Path | None = None,
    ) -> None:
        """Open the store for the embedder; see `from_documents` for the arguments.

        Raises:
            FingerprintMismatchError: If another embedder made the collection.
            StoreLockedError: If another process holds the Milvus Lite file.
        """
        self.store = store
        self.embedder = resolve_embedder(embedder)
        self.report = IndexingReport()
        self._image_dir = store.image_dir if image_dir is None else Path(image_dir)
        store.open(self.embedder.fingerprint, recommended_candidate_vectors(self.embedder))

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        embedder: str | MultiVectorEmbedder = "lexical",
        *,
        uri: str | Path = "./colqwen.db",
        token: str | None = None,
        collection: str = "pages",
        vector_dtype: VectorDtype | None = None,
        image_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> ColQwenIndex:
        """Embed and store pages. Pages that are stored already, unchanged, are not embedded again.

        An interruption (Ctrl-C, a crash) keeps the finished batches; the same call goes on from there.

        Args:
            documents: From `PDFPageReader`, or any nodes with images. `lazy_load_data` streams in bounded memory.
            embedder: "lexical"; a visual model's hub id (such as "vidore/colqwen2-v1.0") or folder; or an embedder.
            uri: A path ending in `.db` (Milvus Lite, embedded), or a server's address.
            token: For servers that ask for one.
            collection: The collection's name.
            vector_dtype: How vectors are kept: "int8" (the default of a new collection) or "float16".
            image_dir: Where inline page images are written; by default beside the `.db`, as `<name>.images`.
            overwrite: Drop what the collection holds first.
            show_progress: Whether to show a progress bar.

        Raises:
            FingerprintMismatchError: If another embedder made the collection and `overwrite` is not given.
            InvalidOptionError: If a document has no page image.
            StoreLockedError: If another process holds the Milvus Lite file.
        """
        store = MilvusPageStore(uri, token, collection, vector_dtype)
        chosen = resolve_embedder(embedder)
        if overwrite:
            store.clear()
        index = cls(store, chosen, image_dir)
        index._write(documents, show_progress)
        return index

    @classmethod
    def from_existing(
        cls,
        uri: str | Path = "./colqwen.db",
        embedder: str | MultiVectorEmbedder | None = None,
        *,
        token: str | None = None,
        collection: str = "pages",
        vector_dtype: VectorDtype | None = None,
        image_dir: str | Path | None = None,
    ) -> ColQwenIndex:
        """Open an index that was made before.

        Args:
            uri: As for `from_documents`, and so are the arguments below.
            embedder: By default the one that the collection's fingerprint describes.
            token: For servers that ask for one.
            collection: The collection's name.
            vector_dtype: How vectors are kept, to be sure of it.
            image_dir: Where inline images of pages that are inserted later are written.

        Raises:
            CollectionNotFoundError: If nothing was indexed there.
            FingerprintMismatchError: If another embedder made the collection.
        """
        store = MilvusPageStore(uri, token, collection, vector_dtype)
        return cls(store, store.fingerprint() if embedder is None else embedder, image_dir)

    # ---- writing

    def insert(self, document: BaseNode) -> None:
        """Add one page, or replace the page with its id."""
        self.insert_nodes([document])

    def insert_nodes(self, nodes: Iterable[BaseNode], show_progress: bool = False) -> None:
        """Add pages, or replace those with their ids; `report` says what was done."""
        self._write(nodes, show_progress)

    def refresh_ref_docs(self, documents: Iterable[BaseNode], show_progress: bool = False) -> list[bool]:
        """Bring the index up to date with files as they are now.

        New and changed pages are written; pages that an earlier version of the same file (the same `file_path`) left
        behind are removed once the new ones are stored.

        Returns:
            For each document, whether anything was written for it.
        """
        versions: dict[str, str] = {}

        def noting(documents: Iterable[BaseNode]) -> Iterator[BaseNode]:
            for document in documents:
                path, document_id = document.metadata.get("file_path"), document.metadata.get("document_id")
                if path and document_id:
                    versions[str(path)] = str(document_id)
                yield document

        written = self._write(noting(documents), show_progress)
        for path, document_id in versions.items():
            self.report.removed += self.store.delete_other_versions(path, document_id)
        return written

    def delete_ref_doc(self, ref_doc_id: str) -> int:
        """Delete a page by its id, or all pages of a document by the document's id.

        Returns:
            How many pages were deleted.
        """
        return self.store.delete(page_ids=[ref_doc_id], document_ids=[ref_doc_id])

    def delete_nodes(self, node_ids: Sequence[str]) -> int:
        """Delete pages by id.

        Returns:
            How many pages were deleted.
        """
        return self.store.delete(page_ids=node_ids)

    # ---- reading

    def as_retriever(self, **kwargs: Any) -> ColQwenRetriever:  # noqa: ANN401 - passed on
        """Return a retriever; the arguments are `ColQwenRetriever`'s, such as `similarity_top_k`."""
        return ColQwenRetriever(self.store, self.embedder, **kwargs)

    def as_query_engine(
        self,
        llm: LLM | None = None,
        *,
        multimodal: bool = True,
        similarity_top_k: int = 3,
        filters: MetadataFilters | None = None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> BaseQueryEngine:
        """Return an engine that answers from the pages it retrieves.

        Args:
            llm: One that sees images, unless `multimodal` is off; by default `Settings.llm`.
            multimodal: Whether the model is given the page images, or only their text.
            similarity_top_k: How many pages the model is given.
            filters: Which pages to look at, by their metadata.
            kwargs: `RetrieverQueryEngine.from_args`'s, such as `streaming`.
        """
        from llama_index.core.query_engine import RetrieverQueryEngine

        retriever = self.as_retriever(similarity_top_k=similarity_top_k, filters=filters)
        return RetrieverQueryEngine.from_args(retriever, llm=llm, multimodal=multimodal, **kwargs)

    # ---- the same, for the event loop

    async def ainsert(self, document: BaseNode) -> None:
        """Do `insert` without blocking the event loop."""
        await asyncio.to_thread(self.insert, document)

    async def ainsert_nodes(self, nodes: Iterable[BaseNode], show_progress: bool = False) -> None:
        """Do `insert_nodes` without blocking the event loop."""
        await asyncio.to_thread(self.insert_nodes, nodes, show_progress)

    async def arefresh_ref_docs(self, documents: Iterable[BaseNode], show_progress: bool = False) -> list[bool]:
        """Do `refresh_ref_docs` without blocking the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, documents, show_progress)

    async def adelete_ref_doc(self, ref_doc_id: str) -> int:
        """Do `delete_ref_doc` without blocking the event loop."""
        return await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    async def adelete_nodes(self, node_ids: Sequence[str]) -> int:
        """Do `delete_nodes` without blocking the event loop."""
        return await asyncio.to_thread(self.delete_nodes, node_ids)

    # ---- inside

    def _write(self, documents: Iterable[BaseNode], show_progress: bool) -> list[bool]:
        self.report = IndexingReport()
        return index_documents(
            documents, self.embedder, self.store, self._image_dir, self.report, show_progress=show_progress
        )
