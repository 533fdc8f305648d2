"""A file -> its pages: image, text and words; here, or in worker processes, which load nothing of LlamaIndex.

Knows nothing of how files are found and converted, or of LlamaIndex's documents.
"""

from __future__ import annotations

import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.concurrency import check_stopped, look_ahead
from llama_index_colqwen.errors import DocumentError
from llama_index_colqwen.images import encode_image, image_sha256, write_page_image
from llama_index_colqwen.pages import PageImage, RenderedPage, WordBox, pack_boxes
from llama_index_colqwen.reading import ocr
from llama_index_colqwen.reading.ocr_results import Result, read_once
from llama_index_colqwen.reading.rendering import Renderer, render_document, split_pages
from llama_index_colqwen.reading.sources import SourceFile, sha256

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

__all__ = ["ExtractedPage", "PageExtractor"]

_Tell: TypeAlias = Callable[[str], object]
"""Shows what is being read."""

_Extracted: TypeAlias = "ExtractedPage | DocumentError"
"""A page, or the error that is in its place or in that of all pages that were to follow."""

_Part: TypeAlias = Callable[[], Iterable[_Extracted]]

_PART_PAGES = 8  # read by a worker process at a time
_TELL_SECONDS = 0.5  # how often progress is shown while worker processes are waited for

# A page with fewer letters and digits than this has no text layer worth the name: a stamp, a page number.
_MIN_TEXT_CHARACTERS = 20


@dataclass(frozen=True)
class ExtractedPage:
    """A page that was read.

    Attributes:
        document_id: The sha256 of its file.
        page_number: From 1.
        image: The file that its image was written to, or else the encoded image.
        image_mimetype: "image/jpeg" and the like.
        text: Of its text layer, or what OCR read.
        metadata: Its document's.
        lacks_text: Whether OCR would have looked for text, and is not installed.
    """

    document_id: str
    page_number: int
    image: Path | bytes
    image_mimetype: str
    text: str
    metadata: dict[str, Any]
    lacks_text: bool


@dataclass(frozen=True)
class PageExtractor:
    """Reads the pages of files, with options of `PDFPageReader`, which says what they are.

    Attributes:
        extra_info: Metadata for every page.
    """

    image_dir: str | Path | None
    renderer: Renderer
    max_pixels: int
    extract_text: bool
    ocr: Literal["auto", "always", "never"]
    password: str | None = field(repr=False)
    page_timeout: float
    extra_info: dict[str, Any]

    def read_files(
        self, files: Iterable[SourceFile | DocumentError], num_workers: int, tell: _Tell
    ) -> Generator[tuple[int, _Part], None, None]:
        """Say for every file by its number, from 0, or for parts of it, how its pages are had.

        Args:
            files: Read in this order; errors are passed on in their place.
            num_workers: Processes that read; with 1, it is this one.
            tell: Called with what is being read, while OCR reads it or worker processes are waited for.
        """
        # multiprocessing's daemonic processes, such as SimpleDirectoryReader's, have no children.
        if num_workers == 1 or multiprocessing.current_process().daemon:
            for number, file in enumerate(files):
                yield number, partial(self._read_file, file, tell=tell)
            return
        with _interrupts_held():
            workers = _worker_processes(num_workers)

        def submitted() -> Iterator[tuple[int, _Part]]:
            for number, file in enumerate(files):
                try:
                    if isinstance(file, DocumentError):
                        raise file
                    source = file.load()
                    loaded = replace(file, source=source, fs=None, document_id=file.document_id or sha256(source))
                    ranges = split_pages(
                        source, file.name, self.renderer, self.password, _PART_PAGES, self.page_timeout
                    )
                except DocumentError as error:
                    failed: list[_Extracted] = [error]
                    yield number, lambda failed=failed: failed  # type: ignore[misc]
                    continue
                for pages in ranges:
                    with _interrupts_held():
                        reading = workers.submit(_read_part, self, loaded, pages)
                    first = f"{file.name} page {pages.start + 1}" if pages else file.name
                    yield number, partial(_wait_for, reading, partial(tell, first))

        try:
            yield from look_ahead(submitted(), 2 * num_workers)
        except BaseException:  # an error, Ctrl-C, or a reading that is not wanted any longer
            workers.shutdown(kill_workers=True)
            raise

    def _read_file(
        self, file: SourceFile | DocumentError, indexes: range | None = None, tell: _Tell = str
    ) -> Iterator[_Extracted]:
        if isinstance(file, DocumentError):
            yield file
            return
        try:
            source = file.load()
            document_id = file.document_id or sha256(source)
            rendered = render_document(
                source,
                file.name,
                renderer=self.renderer,
                max_pixels=self.max_pixels,
                extract_text=self.extract_text,
                password=self.password,
                pages=indexes,
                page_timeout=self.page_timeout,
            )
            with closing(rendered) as pages:  # an interruption's traceback would keep the file open
                for page in pages:
                    if isinstance(page, DocumentError):
                        yield page
                    else:
                        yield self._read_page(file, document_id, page, tell)
        except DocumentError as error:
            yield error

    def _read_page(self, file: SourceFile, document_id: str, page: RenderedPage, tell: _Tell) -> ExtractedPage:
        image = encode_image(page.image)
        begin_ocr = partial(tell, f"OCR: {file.name} page {page.page_number}")
        words, text, text_source = self._read_text(page, image, begin_ocr)
        metadata = {
            **self.extra_info,
            "file_name": file.name,
            **({"file_path": _escaped(file.path)} if file.path is not None else {}),
            "page_label": page.page_label,
            "page_number": page.page_number,
            "document_id": document_id,
            "page_sha256": image_sha256(image.data),
            "text_source": text_source,
            **({"section": page.section} if page.section else {}),
            "word_boxes": pack_boxes(words),
        }
        return ExtractedPage(
            document_id=document_id,
            page_number=page.page_number,
            image=image.data
            if self.image_dir is None
            else write_page_image(self.image_dir, document_id, page.page_number, image),
            image_mimetype=image.mimetype,
            text=text,
            metadata=metadata,
            lacks_text=text_source == "none" and not ocr.is_available() and self._wants_ocr(page),
        )

    def _wants_ocr(self, page: RenderedPage) -> bool:
        if not self.extract_text or self.ocr == "never":
            return False
        if self.ocr == "always":
            return True
        if sum(character.isalnum() for character in page.text) >= _MIN_TEXT_CHARACTERS:
            return False
        darkest, brightest = page.image.convert("L").getextrema()
        return darkest != brightest  # an empty sheet has nothing to read

    def _read_text(
        self, page: RenderedPage, image: PageImage, begin_ocr: Callable[[], object]
    ) -> tuple[list[WordBox], str, str]:
        if self._wants_ocr(page) and ocr.is_available():
            words, text = self._recognise(page, image, begin_ocr)
            if text:
                return words, text, "ocr"
        return page.words, page.text, "text-layer" if page.text else "none"

    def _recognise(
        self, page: RenderedPage, image: PageImage, begin_ocr: Callable[[], object]
    ) -> tuple[list[WordBox], str]:
        """Run OCR, or take what it read of the same image before."""
        name = f"{image_sha256(image.data)}-{ocr.ENGINE}"

        def read() -> Result:
            begin_ocr()
            return ocr.read_words(page.image)

        return read_once(name, self.image_dir, read)


def _read_part(extractor: PageExtractor, file: SourceFile, indexes: range | None) -> list[_Extracted]:
    """Read pages in a worker process."""
    return list(extractor._read_file(file, indexes))


def _end_with(parent: int) -> None:
    """Have this worker process end when its parent has: one that was killed tells nobody, and may hold loky's locks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="colqwen-watch-parent", daemon=True).start()


def _wait_for(reading: Future[list[_Extracted]], tell: Callable[[], object]) -> list[_Extracted]:
    while not wait([reading], timeout=_TELL_SECONDS).done:
        check_stopped()
        tell()
    return reading.result()


_WORKERS_OF: set[int] = set()
"""Processes that have the executor which loky keeps for the next reading: this one, or those it was forked off."""


def _worker_processes(number: int) -> ProcessPoolExecutor:
    from loky import ProcessPoolExecutor, get_reusable_executor

    if not _WORKERS_OF - {os.getpid()}:
        _WORKERS_OF.add(os.getpid())
        return get_reusable_executor(number, initializer=_end_with, initargs=(os.getpid(),))
    # A fork's copy of the parent's executor waits for ever; this one ends with the reading.
    return ProcessPoolExecutor(number, initializer=_end_with, initargs=(os.getpid(),))


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back, for ever in processes that are started meanwhile: a terminal sends it to them, too.

    They would each print a traceback; the process that started them ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Each process that is started starts this one, which with older Pythons lets go of what is held.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _escaped(path: str) -> str:
    """Write what is not UTF-8 in a path as an escape: two files never share one, which refreshing relies on."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")
