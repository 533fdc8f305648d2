"""Documents -> pages in the store, in stages that overlap.

Documents are drawn and looked up in one thread, embedded in the caller's, and stored in a third: a model waits for a
page to be drawn or stored only where that takes longer than to embed one. Knows nothing of files, models or scoring.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode

from llama_index_colqwen.concurrency import WriteBehind, check_stopped, gather, read_ahead
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, seen_by, stream_pages
from llama_index_colqwen.errors import InvalidOptionError, NoPageImageError
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.nodes import caption, page_from_node, with_image_on_disk
from llama_index_colqwen.pages import Page, files_of, with_files, with_relative_image
from llama_index_colqwen.progress import tqdm
from llama_index_colqwen.query import model_details
from llama_index_colqwen.reading.reader import SkippedDocumentWarning
from llama_index_colqwen.store.page_store import MilvusPageStore, StoredState

__all__ = ["IndexingReport", "index_documents"]

_DISPATCHER = get_dispatcher(__name__)
_LOOKUP_PAGES = 8  # looked up in the store together
_AHEAD_PAGES = 64  # drawn and not yet embedded: 20 MB of images
_WRITE_PAGES = 16
_NAMED = 5  # in one warning


@dataclass
class IndexingReport:
    """What indexing did.

    Attributes:
        added: Pages that were not there.
        updated: Pages whose content or metadata changed.
        unchanged: Pages that were there already; they were not embedded again.
        removed: Pages of earlier versions of the same files (by `refresh_ref_docs` only).
        skipped: Captions of what was left out: documents that have no page image, such as texts of other readers, and
            pages that an embedder with `on_error="skip"` could not embed.
        seconds: How long it took, wall clock.
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def index_documents(
    documents: Iterable[BaseNode],
    embedder: MultiVectorEmbedder,
    store: MilvusPageStore,
    report: IndexingReport,
    *,
    show_progress: bool,
    total: int | None = None,
) -> list[bool]:
    """Embed and store what is not stored yet; what was embedded is stored even when an error or Ctrl-C ends it.

    Args:
        documents: Iterated in another thread.
        embedder: Runs in this thread.
        store: Open, for that embedder; inline images are written to its `image_dir`.
        report: Kept up to date.
        show_progress: Whether to show a progress bar, with pages a second.
        total: How many documents there will be, for the bar.

    Returns:
        For each document, whether anything was written for it.

    Raises:
        NoPageImageError: If no document has a page image. Where some have, the others are left out, with a warning.
    """
    if not isinstance(documents, Iterable):
        raise InvalidOptionError(f"documents are LlamaIndex documents, such as a list; got {type(documents).__name__}.")
    started = time.perf_counter()
    try:
        with tqdm(total=total, desc="Indexing pages", unit="page", disable=not show_progress, delay=1) as progress:
            run = _Run(embedder, store, report, progress)
            _DISPATCHER.event(EmbeddingStartEvent(model_dict=model_details(embedder)))
            with (
                WriteBehind(run.store_pages, _WRITE_PAGES) as writer,
                closing(read_ahead(run.pages_to_embed(documents), _AHEAD_PAGES)) as pages,
            ):
                for page, vectors in stream_pages(embedder, pages):
                    writer.put((page, vectors))
            # Of pages, observers are told which: their vectors as lists of numbers would take gigabytes.
            _DISPATCHER.event(EmbeddingEndEvent(chunks=run.embedded, embeddings=[]))
            run.finish()
            _tell_of_skipped(report.skipped, len(run.page_ids))
            report.skipped += run.left_out()
            return [page_id in run.written for page_id in run.page_ids]
    finally:
        report.seconds = time.perf_counter() - started


class _Run:
    """The stages, and what they tell each other."""

    def __init__(
        self, embedder: MultiVectorEmbedder, store: MilvusPageStore, report: IndexingReport, progress: tqdm[None]
    ) -> None:
        self.page_ids: list[str | None] = []  # one a document; None for what is stored already, as it is
        self.written: set[str] = set()
        self.embedded: list[str] = []
        self._embedder = embedder
        self._store = store
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._states: dict[str, StoredState] = {}  # of pages that were looked up, as they will be
        self._new: set[str] = set()
        self._to_embed: dict[str, str] = {}  # captions by page id, of all pages that the embedder was given
        self._later: dict[str, Page] = {}  # to be updated once they are stored

    def pages_to_embed(self, documents: Iterable[BaseNode]) -> Iterator[Page]:
        """Look documents up in the store; update what did not change but in metadata, and yield what did.

        Of documents with one id, the last one counts. The same bytes in several files are the same pages, which know
        all their files.
        """
        for looked_at in gather(map(self._look_at, documents), _LOOKUP_PAGES, first=2):
            batch = [page for page in looked_at if page is not None]
            stored = self._store.states([page.page_id for page in batch])
            to_embed: dict[str, Page] = {}
            to_update: dict[str, Page] = {}
            for page in looked_at:
                if page is None:
                    self.page_ids.append(None)
                    self._count(1)
                    continue
                page = self._keep_image(page)
                before = self._states.get(page.page_id) or stored.get(page.page_id)
                if before is None:
                    self._new.add(page.page_id)
                    before = _ABSENT
                # With all its files: an embedder may read their names.
                page = seen_by(self._embedder, _with_known_files(page, before))
                page = with_relative_image(page, self._store.image_dir)
                now = StoredState(page.content_hash, page.revision, tuple(files_of(page.metadata)))
                self._states[page.page_id] = now
                is_same = (now.content_hash, now.revision) == (before.content_hash, before.revision)
                self.page_ids.append(None if is_same else page.page_id)
                if is_same:
                    self._count(0, unchanged=1)
                elif now.content_hash != before.content_hash:
                    to_embed[page.page_id] = page
                    self._later.pop(page.page_id, None)
                elif page.page_id in to_embed:
                    to_embed[page.page_id] = page
                elif page.page_id in self._to_embed:
                    self._later[page.page_id] = page
                else:
                    to_update[page.page_id] = page
            if to_update:
                self._store.update(list(to_update.values()))
            self._count(len(batch) - len(to_embed), updated=len(to_update), page_ids=to_update)
            self._to_embed |= {page.page_id: _caption(page) for page in to_embed.values()}
            yield from to_embed.values()

    def store_pages(self, pages: list[tuple[Page, MultiVector]]) -> None:
        """Store pages that were embedded."""
        self.embedded += [_caption(page) for page, _ in pages]
        self._store.add([page for page, _ in pages], [vectors for _, vectors in pages])
        page_ids = {page.page_id for page, _ in pages}
        added = len(page_ids & self._new)
        self._new -= page_ids
        self._count(len(pages), added=added, updated=len(page_ids) - added, page_ids=page_ids)

    def finish(self) -> None:
        """Update pages whose metadata changed while they were being embedded."""
        later = {page_id: page for page_id, page in self._later.items() if page_id in self.written}
        self._store.update(list(later.values()))

    def left_out(self) -> list[str]:
        """Return the captions of pages that the embedder was given, and gave no vectors for."""
        return [name for page_id, name in self._to_embed.items() if page_id not in self.written]

    def _count(
        self, pages: int, *, added: int = 0, updated: int = 0, unchanged: int = 0, page_ids: Iterable[str] = ()
    ) -> None:
        with self._lock:
            self._report.added += added
            self._report.updated += updated
            self._report.unchanged += unchanged
            self.written.update(page_ids)
            self._progress.update(pages)

    def _look_at(self, document: BaseNode) -> Page | None:
        check_stopped()  # many in a row may give nothing to embed
        try:
            return page_from_node(document)
        except NoPageImageError:
            self._report.skipped.append(caption(document))
            return None

    def _keep_image(self, page: Page) -> Page:
        if page.image is None:
            return page
        if self._store.image_dir is None:
            raise InvalidOptionError(
                f"{page.file_name} page {page.page_number} has its image inline, and Milvus at {self._store.uri} keeps "
                "no images: give image_dir=..., a folder that every reader of the index can open."
            )
        return with_image_on_disk(page, self._store.image_dir)


_ABSENT = StoredState("", "")


def _caption(page: Page) -> str:
    return f"{page.file_name}, page {page.page_number}"


def _tell_of_skipped(skipped: list[str], documents: int) -> None:
    if not skipped:
        return
    named = "; ".join(skipped[:_NAMED]) + (f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else "")
    why = f"no page image, on disk or inline: {named}. Read files with PDFPageReader, which draws the pages."
    if len(skipped) == documents:
        raise NoPageImageError(f"The documents have {why}")
    warnings.warn(f"{len(skipped)} of {documents} documents were left out: they have {why}", SkippedDocumentWarning, 5)


def _with_known_files(page: Page, known: StoredState) -> Page:
    """Let a page whose id is that of a file's bytes know all the files that were found with these bytes."""
    own = files_of(page.metadata)
    if not _is_sha256(page.document_id) or any(file.path is None for file in (*own, *known.files)):
        return page
    return with_files(page, [*known.files, *(file for file in own if file not in known.files)])


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
