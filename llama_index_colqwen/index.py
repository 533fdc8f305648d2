"""Documents -> pages in the store: the write path, and the face of a LlamaIndex index.

Knows nothing of files, rendering or scoring.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from llama_index_colqwen.codec import VectorDtype
from llama_index_colqwen.embedders.base import EmbedderFingerprint, MultiVectorEmbedder, resolve_embedder
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.nodes import page_from_node, with_image_on_disk
from llama_index_colqwen.pages import Page
from llama_index_colqwen.retriever import ColQwenRetriever
from llama_index_colqwen.store import MilvusPageStore

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.llms import LLM

__all__ = ["ColQwenIndex", "IndexingReport"]

# Pages embedded and stored together; what an interruption can lose.
_BATCH_PAGES = 16


@dataclass
class IndexingReport:
    """What indexing did.

    Attributes:
        added: Pages that were not there.
        updated: Pages whose content or metadata changed.
        unchanged: Pages that were there already; they were not embedded again.
        removed: Pages of earlier versions of the same files (by `refresh_ref_docs` only).
        seconds: How long it took, wall clock.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    seconds: float = 0.0


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
        store.open(self.embedder.fingerprint)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        embedder: str | MultiVectorEmbedder = "lexical",
        *,
        uri: str | Path = "./colqwen.db",
        token: str | None = None,
        collection: str = "pages",
        vector_dtype: VectorDtype = "int8",
        image_dir: str | Path | None = None,
        overwrite: bool = False,
        show_progress: bool = True,
    ) -> ColQwenIndex:
        """Embed and store pages. Pages that are stored already, unchanged, are not embedded again.

        An interruption (Ctrl-C, a crash) keeps the finished batches; the same call goes on from there.

        Args:
            documents: From `PDFPageReader`, or any nodes with images. `lazy_load_data` streams in bounded memory.
            embedder: "lexical", or an embedder.
            uri: A path ending in `.db` (Milvus Lite, embedded), or a server's address.
            token: For servers that ask for one.
            collection: The collection's name.
            vector_dtype: How vectors are kept: "int8" or "float16".
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
        vector_dtype: VectorDtype = "int8",
        image_dir: str | Path | None = None,
    ) -> ColQwenIndex:
        """Open an index that was made before.

        Args:
            uri: As for `from_documents`, and so are the arguments below.
            embedder: By default the one that the collection's fingerprint describes.
            token: For servers that ask for one.
            collection: The collection's name.
            vector_dtype: How vectors are kept.
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
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> BaseQueryEngine:
        """Return an engine that answers from the pages it retrieves.

        Args:
            llm: One that sees images, unless `multimodal` is off; by default `Settings.llm`.
            multimodal: Whether the model is given the page images, or only their text.
            similarity_top_k: How many pages the model is given.
            kwargs: `RetrieverQueryEngine.from_args`'s, such as `streaming`.
        """
        from llama_index.core.query_engine import RetrieverQueryEngine

        retriever = self.as_retriever(similarity_top_k=similarity_top_k)
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
        """Write pages batch by batch; return for each document whether anything was written."""
        self.report = IndexingReport()
        started = time.perf_counter()
        written: list[bool] = []
        seen: set[str] = set()
        total = len(documents) if isinstance(documents, Sized) else None
        remaining = iter(documents)
        with tqdm(total=total, desc="Indexing pages", unit="page", disable=not show_progress) as progress:
            while batch := [page_from_node(document) for document in islice(remaining, _BATCH_PAGES)]:
                fresh: list[Page] = []
                for page in batch:
                    # The same bytes under two names are the same pages: the first name is kept.
                    if page.page_id not in seen:
                        seen.add(page.page_id)
                        fresh.append(page)
                changed = self._write_batch(fresh)
                for page in batch:
                    written.append(page.page_id in changed)
                    changed.discard(page.page_id)
                progress.update(len(batch))
                self.report.seconds = time.perf_counter() - started
        return written

    def _write_batch(self, pages: Sequence[Page]) -> set[str]:
        pages = [self._keep_image(page) for page in pages]
        states = self.store.states([page.page_id for page in pages])
        to_embed, to_update = [], []
        for page in pages:
            state = states.get(page.page_id)
            if state is None or state.content_hash != page.content_hash:
                to_embed.append(page)
            elif state.revision != page.revision:
                to_update.append(page)
        if to_embed:
            self.store.add(to_embed, self.embedder.embed_pages(to_embed))
        if to_update:
            self.store.update(to_update)
        self.report.added += sum(page.page_id not in states for page in to_embed)
        self.report.updated += sum(page.page_id in states for page in to_embed) + len(to_update)
        self.report.unchanged += len(pages) - len(to_embed) - len(to_update)
        return {page.page_id for page in (*to_embed, *to_update)}

    def _keep_image(self, page: Page) -> Page:
        if page.image is None:
            return page
        if self._image_dir is None:
            raise InvalidOptionError(
                f"{page.file_name} page {page.page_number} has its image inline, and Milvus at {self.store.uri} keeps "
                "no images: give image_dir=..., a folder that every reader of the index can open."
            )
        return with_image_on_disk(page, self._image_dir)
