"""Documents -> pages in the store, in stages that overlap.

Documents are drawn and looked up in one thread, embedded in the caller's, and stored in a third: a model waits for a
page to be drawn or stored only where that takes longer than to embed one. Knows nothing of files, models or scoring.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from llama_index.core.schema import BaseNode
from tqdm.auto import tqdm

from llama_index_colqwen.concurrency import WriteBehind, gather, read_ahead
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder, stream_pages
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.nodes import page_from_node, with_image_on_disk
from llama_index_colqwen.pages import Page
from llama_index_colqwen.store.page_store import MilvusPageStore, StoredState

__all__ = ["IndexingReport", "index_documents"]

_LOOKUP_PAGES = 8  # looked up in the store together
_AHEAD_PAGES = 64  # drawn and not yet embedded: 20 MB of images
_WRITE_PAGES = 16


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


def index_documents(
    documents: Iterable[BaseNode],
    embedder: MultiVectorEmbedder,
    store: MilvusPageStore,
    image_dir: Path | None,
    report: IndexingReport,
    *,
    show_progress: bool,
) -> list[bool]:
    """Embed and store what is not stored yet; what was embedded is stored even when an error or Ctrl-C ends it.

    Args:
        documents: Iterated in another thread.
        embedder: Runs in this thread.
        store: Open, for that embedder.
        image_dir: Where inline images are written.
        report: Kept up to date.
        show_progress: Whether to show a progress bar, with pages a second.

    Returns:
        For each document, whether anything was written for it.
    """
    if not isinstance(documents, Iterable):
        raise InvalidOptionError(f"documents are LlamaIndex documents, such as a list; got {type(documents).__name__}.")
    started = time.perf_counter()
    total = len(documents) if isinstance(documents, Sized) else None
    try:
        with tqdm(total=total, desc="Indexing pages", unit="page", disable=not show_progress, delay=1) as progress:
            run = _Run(store, image_dir, report, progress)
            with (
                WriteBehind(run.store_pages, _WRITE_PAGES) as writer,
                closing(read_ahead(run.pages_to_embed(documents), _AHEAD_PAGES)) as pages,
            ):
                for page, vectors in stream_pages(embedder, pages):
                    writer.put((page, vectors))
            return [page_id in run.written for page_id in run.page_ids]
    finally:
        report.seconds = time.perf_counter() - started


class _Run:
    """The stages, and what they tell each other."""

    def __init__(
        self, store: MilvusPageStore, image_dir: Path | None, report: IndexingReport, progress: tqdm[None]
    ) -> None:
        self.page_ids: list[str | None] = []  # one a document; None for what an earlier document is already
        self.written: set[str] = set()
        self._store = store
        self._image_dir = image_dir
        self._report = report
        self._progress = progress
        self._lock = threading.Lock()
        self._states: dict[str, StoredState] = {}

    def pages_to_embed(self, documents: Iterable[BaseNode]) -> Iterator[Page]:
        """Look documents up in the store; update what did not change but in metadata, and yield what did."""
        for batch in gather(map(page_from_node, documents), _LOOKUP_PAGES, first=2):
            fresh: dict[str, Page] = {}
            for page in batch:
                # The same bytes under two names are the same pages: the first name is kept.
                known = page.page_id in fresh or page.page_id in self._states
                self.page_ids.append(None if known else page.page_id)
                if not known:
                    fresh[page.page_id] = self._keep_image(page)
            states = self._store.states(list(fresh))
            self._count(len(batch) - len(fresh))
            self._states |= {page_id: states.get(page_id, _ABSENT) for page_id in fresh}
            to_embed, to_update, unchanged = _sort(fresh, states)
            if to_update:
                self._store.update(to_update)
                self._count(len(to_update), updated=len(to_update), page_ids=[page.page_id for page in to_update])
            self._count(unchanged, unchanged=unchanged)
            yield from to_embed

    def store_pages(self, pages: list[tuple[Page, MultiVector]]) -> None:
        """Store pages that were embedded."""
        self._store.add([page for page, _ in pages], [vectors for _, vectors in pages])
        page_ids = [page.page_id for page, _ in pages]
        added = sum(self._states[page_id] is _ABSENT for page_id in page_ids)
        self._count(len(pages), added=added, updated=len(pages) - added, page_ids=page_ids)

    def _count(
        self, pages: int, *, added: int = 0, updated: int = 0, unchanged: int = 0, page_ids: Iterable[str] = ()
    ) -> None:
        with self._lock:
            self._report.added += added
            self._report.updated += updated
            self._report.unchanged += unchanged
            self.written.update(page_ids)
            self._progress.update(pages)

    def _keep_image(self, page: Page) -> Page:
        if page.image is None:
            return page
        if self._image_dir is None:
            raise InvalidOptionError(
                f"{page.file_name} page {page.page_number} has its image inline, and Milvus at {self._store.uri} keeps "
                "no images: give image_dir=..., a folder that every reader of the index can open."
            )
        return with_image_on_disk(page, self._image_dir)


_ABSENT = StoredState("", "")


def _sort(fresh: Mapping[str, Page], states: Mapping[str, StoredState]) -> tuple[list[Page], list[Page], int]:
    to_embed, to_update = [], []
    for page_id, page in fresh.items():
        state = states.get(page_id, _ABSENT)
        if state.content_hash != page.content_hash:
            to_embed.append(page)
        elif state.revision != page.revision:
            to_update.append(page)
    return to_embed, to_update, len(fresh) - len(to_embed) - len(to_update)
