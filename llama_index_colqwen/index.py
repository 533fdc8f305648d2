"""Documents -> pages in the store -> retrievers and query engines: the face of a LlamaIndex index.

Knows nothing of files, rendering or scoring.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core import Settings
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import RefDocInfo

from llama_index_colqwen.answering import (
    CHAT_SYSTEM_PROMPT,
    PageChatEngine,
    PagePromptHelper,
    RequireImages,
    check_chat_model,
)
from llama_index_colqwen.concurrency import gather, in_thread
from llama_index_colqwen.crops import CropRegions
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, recommended_candidate_vectors, seen_by
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.explain.explanation import Explanation, explain
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.indexing import IndexingReport, index_documents
from llama_index_colqwen.late_interaction.multivectors import VectorDtype
from llama_index_colqwen.nodes import PageNode, node_from_page
from llama_index_colqwen.pages import Page
from llama_index_colqwen.resize import ResizeForLLM
from llama_index_colqwen.retriever import DEFAULT_CANDIDATE_K, DEFAULT_TOP_K, ColQwenRetriever, Mode, Score
from llama_index_colqwen.store.page_store import MilvusPageStore, StoreCheck

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.chat_engine.types import BaseChatEngine
    from llama_index.core.llms import LLM, ChatMessage
    from llama_index.core.memory import BaseMemory
    from llama_index.core.prompts import BasePromptTemplate
    from llama_index.core.response_synthesizers import BaseSynthesizer
    from llama_index.core.vector_stores import MetadataFilters
    from pydantic import BaseModel

__all__ = ["ColQwenIndex"]

_DEFAULT_URI = "./colqwen.db"
_DEFAULT_COLLECTION_NAME = "pages"
_EMBED_PAGES = 16
_READ_PAGES = 256


class ColQwenIndex:
    """Pages, embedded and stored, ready to be asked.

    Close it, or use it in a `with` block, to let another process open the same Milvus Lite file.

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
        if image_dir is not None:
            store.image_dir = Path(image_dir).expanduser().absolute()
        store.open(self.embedder.fingerprint, recommended_candidate_vectors(self.embedder))

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[BaseNode],
        embedder: str | MultiVectorEmbedder = "lexical",
        *,
        uri: str | Path = _DEFAULT_URI,
        token: str | None = None,
        collection_name: str = _DEFAULT_COLLECTION_NAME,
        vector_dtype: VectorDtype | None = None,
        store: MilvusPageStore | None = None,
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
            collection_name: The collection's name.
            vector_dtype: How vectors are kept: "int8" (the default of a new collection) or "float16".
            store: In place of the four before it, a store of your own, such as one with an `AnnIndex` or a cache
                elsewhere.
            image_dir: Where inline page images are written; by default beside the `.db`, as `<name>.images`.
            overwrite: Drop what the collection holds first.
            show_progress: Whether to show a progress bar, after a second.

        Raises:
            FingerprintMismatchError: If another embedder made the collection and `overwrite` is not given.
            NoPageImageError: If no document has a page image. Where some have, as in a folder of PDFs and texts, the
                others are left out, with a `SkippedDocumentWarning` and in `report.skipped`.
            DocumentNotFoundError: If a document's image file is gone.
            StoreLockedError: If another process holds the Milvus Lite file.
        """
        store = _choose_store(store, uri, token, collection_name, vector_dtype)
        chosen = resolve_embedder(embedder)
        if overwrite:
            store.clear()
        index = cls(store, chosen, image_dir)
        index._write(documents, show_progress)
        return index

    @classmethod
    def from_existing(
        cls,
        uri: str | Path = _DEFAULT_URI,
        embedder: str | MultiVectorEmbedder | None = None,
        *,
        token: str | None = None,
        collection_name: str = _DEFAULT_COLLECTION_NAME,
        vector_dtype: VectorDtype | None = None,
        store: MilvusPageStore | None = None,
        image_dir: str | Path | None = None,
    ) -> ColQwenIndex:
        """Open an index that was made before.

        Args:
            uri: As for `from_documents`, and so are the arguments below.
            embedder: By default the one that the collection's fingerprint describes.
            token: For servers that ask for one.
            collection_name: The collection's name.
            vector_dtype: How vectors are kept, to be sure of it.
            store: In place of these, a store of your own.
            image_dir: Where page images lie now, if they were moved otherwise than together with the database; and
                where inline images of pages that are inserted later are written.

        Raises:
            CollectionNotFoundError: If nothing was indexed there.
            FingerprintMismatchError: If another embedder made the collection.
        """
        store = _choose_store(store, uri, token, collection_name, vector_dtype)
        return cls(store, store.fingerprint() if embedder is None else embedder, image_dir)

    # ---- writing

    def insert(self, document: BaseNode) -> None:
        """Add one page, or replace the page with its id."""
        self.insert_nodes([document])

    def insert_nodes(self, nodes: Iterable[BaseNode], show_progress: bool = True) -> None:
        """Add pages, or replace those with their ids; `report` says what was done."""
        self._write(nodes, show_progress)

    def refresh_ref_docs(
        self, documents: Iterable[BaseNode], show_progress: bool = True, *, delete_missing: bool = False
    ) -> list[bool]:
        """Bring the index up to date with files as they are now.

        New and changed pages are written; pages that an earlier version of the same file (the same `file_path`) left
        behind are removed once the new ones are stored. A page that is in several files stays in the others.

        Args:
            documents: Whole files: all pages of each.
            show_progress: Whether to show a progress bar, after a second.
            delete_missing: Whether to remove the pages of files, too, that are neither among the documents nor on this
                machine's disk. Files with an address, such as one of S3, stay.

        Returns:
            For each document, whether anything was written for it.
        """
        versions: dict[str, set[str]] = {}

        def noting(documents: Iterable[BaseNode]) -> Iterator[BaseNode]:
            for document in documents:
                path, document_id = document.metadata.get("file_path"), document.metadata.get("document_id")
                if path and document_id:
                    versions.setdefault(str(path), set()).add(str(document_id))
                yield document

        written = self._write(noting(documents), show_progress, documents)
        if delete_missing:
            others = self.store.file_paths() - versions.keys()
            versions |= {path: set() for path in others if "://" not in path and not Path(path).exists()}
        self.report.removed += self.store.delete_other_versions(versions, self._rewrite)
        return written

    def update_ref_doc(self, document: BaseNode) -> None:
        """Replace the page with the document's id, or add it: what `insert` does."""
        self.insert(document)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False) -> int:
        """Delete a page by its id, or all pages of a document by the document's id.

        Args:
            ref_doc_id: Either id; one that is not stored is no error.
            delete_from_docstore: As LlamaIndex's indexes have it; there is no second place to delete from.

        Returns:
            How many pages were deleted.
        """
        return self.store.delete(page_ids=[ref_doc_id], document_ids=[ref_doc_id])

    def delete_nodes(self, node_ids: Sequence[str], delete_from_docstore: bool = False) -> int:
        """Delete pages by id.

        Args:
            node_ids: Page ids; those that are not stored are no error.
            delete_from_docstore: As for `delete_ref_doc`.

        Returns:
            How many pages were deleted.
        """
        return self.store.delete(page_ids=node_ids)

    def check(self) -> StoreCheck:
        """Compare pages with their vectors, and repair what is wrong.

        A copy that lacks files, or a process that was killed, can leave pages without vectors, and vectors without a
        page. What `MilvusPageStore.check` cannot restore is embedded again, where the page images are there.
        """
        checked = self.store.check()
        pages = [page for page in self.store.get(checked.lost) if page.image_path and Path(page.image_path).exists()]
        self._embed([seen_by(self.embedder, page) for page in pages])
        embedded = {page.page_id for page in pages}
        return replace(
            checked, embedded=len(embedded), lost=[page_id for page_id in checked.lost if page_id not in embedded]
        )

    # ---- reading

    def nodes(self, filters: MetadataFilters | None = None) -> list[PageNode]:
        """Return the nodes of all pages, or of those that filters keep, by file name and page number.

        They are those that retrieving returns, and have their hashes: a `BM25Retriever` made of them can be fused with
        this index's retriever, which knows by the hash what both have found.
        """
        ids = self.store.page_ids(filters)
        return [
            node_from_page(page)
            for start in range(0, len(ids), _READ_PAGES)
            for page in self.store.get(ids[start : start + _READ_PAGES])
        ]

    @property
    def docstore(self) -> SimpleDocumentStore:
        """A copy of all pages' nodes, for what wants a docstore; changing it does not change the index."""
        docstore = SimpleDocumentStore()
        docstore.add_documents(self.nodes())
        return docstore

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents by id, each with its page ids and `file_name`."""
        return {
            document.document_id: RefDocInfo(
                node_ids=list(document.page_ids), metadata={"file_name": document.file_name}
            )
            for document in self.store.documents()
        }

    def as_retriever(
        self,
        *,
        similarity_top_k: int = DEFAULT_TOP_K,
        candidate_k: int = DEFAULT_CANDIDATE_K,
        filters: MetadataFilters | None = None,
        score: Score = "maxsim",
        exact: bool = False,
        mode: Mode = "visual",
        text_weight: float | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> ColQwenRetriever:
        """Return a retriever; the arguments are `ColQwenRetriever`'s."""
        return ColQwenRetriever(
            self.store,
            self.embedder,
            similarity_top_k,
            candidate_k,
            filters,
            score,
            exact,
            mode=mode,
            text_weight=text_weight,
            callback_manager=callback_manager,
            verbose=verbose,
        )

    def as_query_engine(
        self,
        llm: LLM | None = None,
        *,
        multimodal: bool = True,
        similarity_top_k: int = DEFAULT_TOP_K,
        candidate_k: int = DEFAULT_CANDIDATE_K,
        filters: MetadataFilters | None = None,
        score: Score = "maxsim",
        exact: bool = False,
        mode: Mode = "visual",
        text_weight: float | None = None,
        llm_max_pixels: int | None = None,
        crops: bool = False,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        response_synthesizer: BaseSynthesizer | None = None,
        response_mode: ResponseMode | str = ResponseMode.COMPACT,
        text_qa_template: BasePromptTemplate | None = None,
        refine_template: BasePromptTemplate | None = None,
        summary_template: BasePromptTemplate | None = None,
        simple_template: BasePromptTemplate | None = None,
        chat_content_qa_template: BasePromptTemplate | None = None,
        chat_content_refine_template: BasePromptTemplate | None = None,
        output_cls: type[BaseModel] | None = None,
        use_async: bool = False,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> BaseQueryEngine:
        """Return an engine that answers from the pages it retrieves.

        `similarity_top_k` to `text_weight` are the retriever's; the others are `RetrieverQueryEngine.from_args`'s.

        Args:
            llm: One that sees images, unless `multimodal` is off; by default `Settings.llm`.
            multimodal: Whether the model is given the page images, or only their text.
            similarity_top_k: How many pages the model is given.
            candidate_k: How many pages are scored exactly, in a collection too large to score them all.
            filters: Which pages to look at, by their metadata.
            score: What the source nodes' scores are: "maxsim" or "normalized".
            exact: Whether to score every page, however many there are.
            mode: By what pages are ranked: "visual" (MaxSim), "text" (BM25) or "hybrid" (both).
            text_weight: How "hybrid" joins both: by ranks, or by scores with this weight of BM25's, from 0 to 1.
            llm_max_pixels: Page images are scaled down to this many pixels for the model, which is billed by them; see
                `ResizeForLLM`. By default the model is given what `PDFPageReader` drew.
            crops: Whether the model is given, beside each page, the part that matches best, enlarged; the source nodes'
                metadata then have `regions`. See `CropRegions`.
            node_postprocessors: What pages go through between retriever and model.
            response_synthesizer: In place of the one that the arguments below describe.
            response_mode: How pages become an answer, such as "compact" or "tree_summarize".
            text_qa_template: What a text model is asked.
            refine_template: What a text model is asked with the pages after the first.
            summary_template: What it is asked with `response_mode="tree_summarize"`.
            simple_template: What it is asked with `response_mode="generation"`.
            chat_content_qa_template: What a multimodal model is asked.
            chat_content_refine_template: What a multimodal model is asked with the pages after the first.
            output_cls: A pydantic class that the answer has to be of.
            use_async: Whether calls of the model overlap.
            streaming: Whether the answer comes in pieces.
            callback_manager: By default `Settings.callback_manager`.
            verbose: Whether LlamaIndex prints what it does.

        Raises:
            InvalidOptionError: If an option has no such value, `crops` is on and `multimodal` is not, or `multimodal`
                is on and the model is no chat model.
            DocumentNotFoundError: By the engine, if `multimodal` and the images of all pages that it found are gone;
                of some, they go as text.
        """
        from llama_index.core.query_engine import RetrieverQueryEngine

        try:
            answering = ResponseMode(response_mode)
        except ValueError as error:
            modes = ", ".join(known.value for known in ResponseMode)
            raise InvalidOptionError(f"response_mode is one of {modes}; got {response_mode!r}.") from error
        if crops and not multimodal:
            raise InvalidOptionError("crops=True shows a model pictures, and multimodal=False none: choose one.")
        retriever = self.as_retriever(
            similarity_top_k=similarity_top_k,
            candidate_k=candidate_k,
            filters=filters,
            score=score,
            exact=exact,
            mode=mode,
            text_weight=text_weight,
            callback_manager=callback_manager,
            verbose=verbose,
        )
        if response_synthesizer is None:
            llm = llm or Settings.llm
            if multimodal:
                check_chat_model(llm)
            response_synthesizer = get_response_synthesizer(
                llm=llm,
                chat_prompt_helper=Settings._chat_prompt_helper or PagePromptHelper.from_llm_metadata(llm.metadata),
                callback_manager=callback_manager,
                response_mode=answering,
                text_qa_template=text_qa_template,
                refine_template=refine_template,
                summary_template=summary_template,
                simple_template=simple_template,
                chat_content_qa_template=chat_content_qa_template,
                chat_content_refine_template=chat_content_refine_template,
                output_cls=output_cls,
                use_async=use_async,
                streaming=streaming,
                verbose=verbose,
                multimodal=multimodal,
            )
        return RetrieverQueryEngine(
            retriever,
            response_synthesizer=response_synthesizer,
            node_postprocessors=_postprocessors(
                [
                    *(node_postprocessors or []),
                    *([CropRegions(self.embedder, self.store, llm_max_pixels)] if crops else []),
                ],
                multimodal,
                llm_max_pixels,
            ),
            callback_manager=callback_manager or Settings.callback_manager,
        )

    def as_chat_engine(
        self,
        chat_mode: ChatMode | str = ChatMode.BEST,
        llm: LLM | None = None,
        *,
        multimodal: bool = True,
        similarity_top_k: int = DEFAULT_TOP_K,
        candidate_k: int = DEFAULT_CANDIDATE_K,
        filters: MetadataFilters | None = None,
        score: Score = "maxsim",
        exact: bool = False,
        mode: Mode = "visual",
        text_weight: float | None = None,
        llm_max_pixels: int | None = None,
        node_postprocessors: list[BaseNodePostprocessor] | None = None,
        system_prompt: str = CHAT_SYSTEM_PROMPT,
        chat_history: list[ChatMessage] | None = None,
        memory: BaseMemory | None = None,
        verbose: bool = False,
    ) -> BaseChatEngine:
        """Return a chat that answers from the pages it retrieves for each message.

        Of earlier turns the model sees what was said, not the pages.

        Args:
            chat_mode: "condense_plus_context", which is "best" (a message is made a question that stands alone, by what
                was said before); "context" (pages are found for the message as it is); or "condense_question" (a query
                engine answers the question that stands alone).
            llm: As for `as_query_engine`, and so are the arguments to `node_postprocessors`.
            multimodal: Whether the model is given the page images, or only their text.
            similarity_top_k: How many pages the model is given for a message.
            candidate_k: How many pages are scored exactly, in a collection too large to score them all.
            filters: Which pages to look at, by their metadata.
            score: What the source nodes' scores are: "maxsim" or "normalized".
            exact: Whether to score every page, however many there are.
            mode: By what pages are ranked: "visual" (MaxSim), "text" (BM25) or "hybrid" (both).
            text_weight: How "hybrid" joins both: by ranks, or by scores with this weight of BM25's, from 0 to 1.
            llm_max_pixels: Page images are scaled down to this many pixels for the model.
            node_postprocessors: What pages go through between retriever and model.
            system_prompt: What the model is told of its task.
            chat_history: What was said before.
            memory: Keeps what is said; by default as much of it as the model's context takes.
            verbose: Whether LlamaIndex prints what it does.

        Raises:
            InvalidOptionError: If an option has no such value, or the model is no chat model and `multimodal` is on.
        """
        from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine

        try:
            chat = ChatMode.CONDENSE_PLUS_CONTEXT if chat_mode == ChatMode.BEST else ChatMode(chat_mode)
        except ValueError:
            chat = ChatMode.SIMPLE
        if chat not in (ChatMode.CONDENSE_PLUS_CONTEXT, ChatMode.CONTEXT, ChatMode.CONDENSE_QUESTION):
            raise InvalidOptionError(
                f"chat_mode is best, condense_plus_context, context or condense_question; got {str(chat_mode)!r}."
            )
        llm = llm or Settings.llm
        retriever_options: dict[str, Any] = {
            "similarity_top_k": similarity_top_k,
            "candidate_k": candidate_k,
            "filters": filters,
            "score": score,
            "exact": exact,
            "mode": mode,
            "text_weight": text_weight,
        }
        chat_options: dict[str, Any] = {"chat_history": chat_history, "memory": memory, "verbose": verbose}
        if chat == ChatMode.CONDENSE_QUESTION:
            engine = self.as_query_engine(
                llm,
                multimodal=multimodal,
                llm_max_pixels=llm_max_pixels,
                node_postprocessors=node_postprocessors,
                **retriever_options,
            )
            return CondenseQuestionChatEngine.from_defaults(engine, llm=llm, **chat_options)
        if multimodal:
            check_chat_model(llm)
        chat_options |= {
            "retriever": self.as_retriever(**retriever_options),
            "node_postprocessors": _postprocessors(node_postprocessors, multimodal, llm_max_pixels),
            "system_prompt": system_prompt,
            "skip_condense": chat == ChatMode.CONTEXT,
        }
        if multimodal:
            return PageChatEngine.from_defaults(multi_modal_llm=llm, **chat_options)
        return CondensePlusContextChatEngine.from_defaults(llm=llm, **chat_options)

    def explain(self, query: str | QueryBundle, hit: NodeWithScore | BaseNode) -> Explanation:
        """Say which patches or words of a page matched a question, from the vectors that are stored.

        Args:
            query: What was asked.
            hit: A page that was found for it, or any other page of this index.

        Raises:
            InvalidOptionError: If the page is not in this index, or was stored anew since it was found.
            StoreError: If its vectors are lost.
            QueryError: If the query is empty.
        """
        return explain(query, hit, self.embedder, self.store)

    # ---- closing

    def close(self) -> None:
        """Close the store: another process can then open the Milvus Lite file. The next use opens it again."""
        self.store.close()

    def __enter__(self) -> ColQwenIndex:
        """Return the index; leaving the block closes it."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    # ---- the same, for the event loop

    ainsert = in_thread(insert)
    ainsert_nodes = in_thread(insert_nodes)
    arefresh_ref_docs = in_thread(refresh_ref_docs)
    aupdate_ref_doc = in_thread(update_ref_doc)
    adelete_ref_doc = in_thread(delete_ref_doc)
    adelete_nodes = in_thread(delete_nodes)
    acheck = in_thread(check)
    anodes = in_thread(nodes)
    aexplain = in_thread(explain)
    aclose = in_thread(close)

    # ---- inside

    def _write(
        self, documents: Iterable[BaseNode], show_progress: bool, counted: Iterable[BaseNode] | None = None
    ) -> list[bool]:
        self.report = IndexingReport()
        total = length_hint(documents if counted is None else counted) if show_progress else 0
        return index_documents(
            documents, self.embedder, self.store, self.report, show_progress=show_progress, total=total or None
        )

    def _rewrite(self, pages: Sequence[Page]) -> None:
        """Store pages that are in fewer files now; those are embedded again whose vectors that changes."""
        seen = [seen_by(self.embedder, page) for page in pages]
        same = {page.page_id for page, now in zip(pages, seen, strict=True) if page.content_hash == now.content_hash}
        self.store.update([page for page in seen if page.page_id in same])
        self._embed([page for page in seen if page.page_id not in same])

    def _embed(self, pages: Sequence[Page]) -> None:
        for some in gather(pages, _EMBED_PAGES):
            self.store.add(some, self.embedder.embed_pages(some))


def _postprocessors(
    given: list[BaseNodePostprocessor] | None, multimodal: bool, llm_max_pixels: int | None
) -> list[BaseNodePostprocessor]:
    """Return what pages go through between retriever and model."""
    if not multimodal:
        return list(given or [])
    resize = [] if llm_max_pixels is None else [ResizeForLLM(llm_max_pixels)]
    return [*(given or []), *resize, RequireImages()]


def _choose_store(
    given: MilvusPageStore | None,
    uri: str | Path,
    token: str | None,
    collection_name: str,
    vector_dtype: VectorDtype | None,
) -> MilvusPageStore:
    if given is None:
        return MilvusPageStore(uri, token, collection_name, vector_dtype)
    if (uri, token, collection_name, vector_dtype) != (_DEFAULT_URI, None, _DEFAULT_COLLECTION_NAME, None):
        raise InvalidOptionError(
            f"store={given.collection_name!r} in {given.uri} was given, and uri, token, collection_name or "
            "vector_dtype too: these are the store's own, so give them to it."
        )
    return given
