"""Files -> one LlamaIndex `Document` per page, with its image, text and word boxes.

Knows nothing of embedders or Milvus.
"""

from __future__ import annotations

import base64
import hashlib
import multiprocessing.resource_tracker
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from llama_index.core.bridge.pydantic import Field, ValidationError, field_validator
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document, ImageDocument, MediaResource

from llama_index_colqwen.concurrency import check_stopped, look_ahead
from llama_index_colqwen.errors import (
    ConverterNotFoundError,
    DocumentError,
    DocumentNotFoundError,
    InvalidOptionError,
    MissingDependencyError,
    in_one_line,
)
from llama_index_colqwen.images import encode_image, image_sha256, write_page_image
from llama_index_colqwen.nodes import HIDDEN_METADATA, make_page_id
from llama_index_colqwen.pages import PageImage, RenderedPage, WordBox, join_surrogates, pack_boxes
from llama_index_colqwen.progress import tqdm
from llama_index_colqwen.reading import ocr
from llama_index_colqwen.reading.ocr_results import Result, read_once
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES, OfficeFile, convert
from llama_index_colqwen.reading.rendering import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_PAGE_TIMEOUT,
    SUPPORTED_SUFFIXES,
    Renderer,
    expected_pages,
    render_document,
    split_pages,
)

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from loky import ProcessPoolExecutor

__all__ = ["DocumentStream", "MissingTextWarning", "PDFPageReader", "SkippedDocumentWarning", "Source"]

Source: TypeAlias = str | PurePath | bytes
"""A path or an address of a file or folder, or a file's bytes."""

_AnyPath = TypeVar("_AnyPath", bound=PurePath)

_Read: TypeAlias = "_Page | DocumentError"
"""A page, or the error that is in its place or in that of all pages that were to follow."""

_Part: TypeAlias = Callable[[], Iterable[_Read]]

_Tell: TypeAlias = Callable[[str], object]
"""Shows what is being read."""

_Count: TypeAlias = Callable[[], "int | None"]
"""Counts the pages that there will be, if that is cheap."""

_PART_PAGES = 8  # read by a worker process at a time
_CONVERTED_FILES = 16  # by one run of LibreOffice, of which the first page waits
_TELL_SECONDS = 0.5  # how often progress is shown while worker processes are waited for

# A page with fewer letters and digits than this has no text layer worth the name: a stamp, a page number.
_MIN_TEXT_CHARACTERS = 20


class MissingTextWarning(UserWarning):
    """Pages without a text layer were read without OCR: their text is empty."""


class SkippedDocumentWarning(UserWarning):
    """Documents could not be read, wholly or in part, and were left out."""


class DocumentStream(Iterator[Document]):
    """Documents as they are read, one a page; what shows progress asks `operator.length_hint` how many there will be.

    It knows where progress is shown, and neither files are on an `fs` nor office documents among them.
    """

    def __init__(self, documents: Generator[Document, None, None], count: _Count) -> None:
        """Take what reads, and what counts the pages."""
        self._documents, self._count = documents, count

    def __next__(self) -> Document:
        """Read the next page."""
        return next(self._documents)

    def __length_hint__(self) -> int:
        """Return how many pages all files have, whatever of them was read or cannot be."""
        total = self._count()
        return NotImplemented if total is None else total

    def close(self) -> None:
        """Stop reading, and close the file that is being read."""
        self._documents.close()


@dataclass(frozen=True)
class _File:
    """A file that was found: what it is called in text, where it is, how to get its bytes, and its sha256 if known.

    Errors call it by its path within the folder that was given, if that is not its name.
    """

    name: str
    path: str | None
    source: Path | bytes | None
    fs: AbstractFileSystem | None = None
    document_id: str = ""
    within: str = ""

    @property
    def suffix(self) -> str:
        return PurePath(self.name).suffix.lower()

    def load(self) -> Path | bytes:
        if self.source is not None:
            return self.source
        try:
            data: bytes = self.fs.cat_file(self.path)  # type: ignore[union-attr]
        except Exception as error:  # whatever a file system raises
            raise DocumentError(f"{self.name}: the file cannot be fetched ({in_one_line(error)}).") from error
        return data


@dataclass(frozen=True)
class _Page:
    """A page that was read, and whether it lacks text that OCR would have found."""

    document: Document
    lacks_text: bool


class _LeftOut:
    """What could not be read of some files; said at the end, once for each reason."""

    def __init__(self, files: Sequence[_File]) -> None:
        self.without_text: list[str] = []
        self._files = files
        self._skipped: dict[int, list[str]] = {}  # a file's number -> what is wrong with its pages
        self._unconverted: list[ConverterNotFoundError] = []

    def add(self, number: int, page: DocumentError, on_error: Literal["raise", "skip"], pages_read: int) -> None:
        """Note an error of a file, or raise it."""
        file = self._files[number]
        error = _with_path(page, file)
        if isinstance(error, ConverterNotFoundError) and file.within:
            self._unconverted.append(error)
        elif on_error == "raise":
            raise _with_progress(error, number, len(self._files), pages_read)
        else:
            self._skipped.setdefault(number, []).append(str(error))

    def warn(self) -> None:
        """Say it; a folder in which nothing could be converted is an error."""
        if self._unconverted:
            first, *rest = self._unconverted
            if len(self._unconverted) == len(self._files):
                raise first
            warnings.warn(f"{first}{_and_more(rest, 'files')}", SkippedDocumentWarning, stacklevel=3)
        if self._skipped:
            told = "; ".join(f"{first}{_and_more(rest, 'of its pages')}" for first, *rest in self._skipped.values())
            number = f"{len(self._skipped)} of {len(self._files)} files"
            warnings.warn(
                f"{number} could not be read, wholly or in part: {told}", SkippedDocumentWarning, stacklevel=3
            )
        if self.without_text:
            message = (
                f"No text layer on {_name_some(self.without_text)}, and OCR is not installed: their text is empty. "
            )
            install = "pip install 'llama-index-colqwen[ocr]'"
            warnings.warn(message + f"Install it with: {install}", MissingTextWarning, stacklevel=3)


class PDFPageReader(BasePydanticReader):
    """Read PDFs, images and office documents as pages: a `Document` each, with an id that never changes.

    - PDF.
    - PNG, JPEG, WebP, GIF, BMP, AVIF, HEIC (extra `[heic]`) and multi-page TIFF.
    - Through LibreOffice, where it is installed: slides (.pptx .ppt .odp), texts (.docx .doc .odt .rtf .txt .md),
      sheets (.xlsx .xls .ods .csv), and .html, .epub and .eml. They run no macros and fetch nothing. `page_label` is
      the slide's number, or the sheet's name.

    Also `SimpleDirectoryReader(file_extractor={".pdf": PDFPageReader()})`.

    Every document has the page's text (text layer, or OCR), its image (`image_path` with `image_dir`, else inline as
    base64 JPEG), and this metadata: `file_name` and `page_label`, which a language model sees, and, hidden from it,
    `file_path`, `page_number` (1-based), `document_id`, `page_sha256` (of the image), `text_source` ("text-layer",
    "ocr" or "none"), `word_boxes` (see `pages.unpack_boxes`) and, where a PDF has an outline, `section` (what it calls
    the parts that begin on the page, or else the one that goes on there). What is not UTF-8 in a file's name is U+FFFD
    in its `file_name`, and an escape in its `file_path`, which so is no other file's, but opens none.

    Attributes:
        image_dir: Where page images are written, once: a second reading writes nothing. What OCR read and what
            LibreOffice converted is kept there too, and nothing there is read as a document. `~` is the home folder.
            None keeps images inline.
        renderer: "pdfium", or "poppler" (extra `[poppler]` and poppler's programs; 2-4 times slower).
        max_pixels: A page is drawn to about this many pixels: by default 150 dpi for a letter page, fewer dpi for a
            poster.
        extract_text: Whether to read text and word boxes at all.
        ocr: "auto" reads pages without a text layer when the `[ocr]` extra is installed (1-3 s a page) and says once
            which pages it could not read otherwise; "always" reads every page; "never" none. What it read is kept by
            the image's content, in `image_dir` and in the user's cache (`~/.cache/llama-index-colqwen/ocr` on Linux,
            `XDG_CACHE_HOME`): no image is read twice, whichever folder it is read for.
        password: Opens encrypted PDFs.
        on_error: "raise", or "skip" to leave unreadable files and pages out and say so in one `SkippedDocumentWarning`.
        num_workers: Processes that draw pages and read them by OCR. pdfium takes one page at a time in a process: some
            40 a second. More pay for a fast GPU, for OCR, and for more than some hundred pages; they take seconds to
            start. Order and errors stay the same.
        page_timeout: How many seconds a page of a PDF may take to be drawn and its text to be read (not by OCR), and a
            PDF to be opened. Then it is given up, with an `UnreadableDocumentError`.
        convert_timeout: How many seconds LibreOffice may take for a document.
    """

    image_dir: str | Path | None = None
    renderer: Renderer = "pdfium"
    max_pixels: int = Field(default=DEFAULT_MAX_PIXELS, ge=1)
    extract_text: bool = True
    ocr: Literal["auto", "always", "never"] = "auto"
    password: str | None = Field(default=None, repr=False, exclude=True)
    on_error: Literal["raise", "skip"] = "raise"
    num_workers: int = Field(default=1, ge=1)
    page_timeout: float = Field(default=DEFAULT_PAGE_TIMEOUT, gt=0)
    convert_timeout: float = Field(default=120, gt=0)

    model_config = {"extra": "forbid", "validate_assignment": True}

    @field_validator("image_dir", mode="before")
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        return os.path.expanduser(str(value)) if isinstance(value, (str, PurePath)) else value

    @field_validator("ocr")
    @classmethod
    def _ocr_is_installed(cls, value: str) -> str:
        if value == "always" and not ocr.is_available():
            raise MissingDependencyError("ocr='always' needs OCR", "ocr")
        return value

    if not TYPE_CHECKING:  # type checkers know the options from the fields above

        def __init__(self, **options: object) -> None:
            """See the class.

            Raises:
                InvalidOptionError: If an option has no such value, or there is no such option.
            """
            with _option_errors():
                super().__init__(**options)

        def __setattr__(self, name: str, value: object) -> None:
            """Set an option; errors are those of `PDFPageReader(...)`."""
            with _option_errors():
                super().__setattr__(name, value)

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this reader under."""
        return "PDFPageReader"

    def load_data(
        self,
        source: Source | Sequence[Source],
        extra_info: dict[str, Any] | None = None,
        fs: AbstractFileSystem | None = None,
        show_progress: bool = True,
    ) -> list[Document]:
        """Read all pages; see `lazy_load_data`, which takes the same arguments."""
        with closing(self.lazy_load_data(source, extra_info, fs, show_progress)) as documents:
            return list(documents)

    def lazy_load_data(
        self,
        source: Source | Sequence[Source],
        extra_info: dict[str, Any] | None = None,
        fs: AbstractFileSystem | None = None,
        show_progress: bool = True,
    ) -> DocumentStream:
        """Read pages one at a time, in bounded memory; closing the stream closes the file it is at.

        Args:
            source: A file, a folder (read recursively, in order of name), a file's bytes, or a list of these; or an
                address, such as "s3://bucket/reports", for which fsspec needs the protocol's package, such as s3fs.
            extra_info: Metadata for every page. `file_name` and `file_path` name what is given as bytes.
            fs: An fsspec file system that the paths are on.
            show_progress: Whether to show a progress bar: after a second, or when OCR begins, which it names. It knows
                how many pages there are, unless files are on an `fs`.

        Raises:
            DocumentNotFoundError: If a path does not exist, or a folder has nothing that is read.
            UnsupportedDocumentError: If a file given by name is of a type that is not read.
            EncryptedDocumentError: If a password is missing or wrong.
            UnreadableDocumentError: If a file is truncated, corrupt, or has no pages.
            ConverterNotFoundError: If a file needs LibreOffice, which is not installed. In a folder such files are left
                out with a `SkippedDocumentWarning`, whatever `on_error` is, unless nothing else is there.
            MissingDependencyError: If an option needs an extra that is not installed.
        """
        # The paths are looked up now and not at the first page, so that a typing error is heard where it is made.
        files = self._find(source, extra_info or {}, fs)
        count = cache(partial(self._count_pages, files)) if show_progress else _not_counted
        return DocumentStream(self._read(files, extra_info or {}, count, show_progress), count)

    def _read(
        self, files: Sequence[_File], extra_info: dict[str, Any], count: _Count, show_progress: bool
    ) -> Generator[Document, None, None]:
        left_out = _LeftOut(files)
        pages_read = 0
        with (
            tempfile.TemporaryDirectory(prefix="colqwen-") as scratch,
            tqdm(total=count(), desc="Reading pages", unit="page", disable=not show_progress, delay=1) as progress,
            closing(self._parts(self._converted(files, Path(scratch)), extra_info, partial(_tell, progress))) as parts,
        ):
            for number, read in parts:
                for page in read():
                    progress.set_postfix_str("", refresh=False)
                    if isinstance(page, DocumentError):
                        left_out.add(number, page, self.on_error, pages_read)
                        progress.update()
                        continue
                    if page.lacks_text:
                        left_out.without_text.append(
                            f"{files[number].name} page {page.document.metadata['page_number']}"
                        )
                    progress.update()
                    pages_read += 1
                    yield page.document
        left_out.warn()

    def _converted(self, files: Sequence[_File], scratch: Path) -> Iterator[_File | DocumentError]:
        """Yield the files, office documents as the PDFs that they are converted to when the first of some is needed."""
        office = [number for number, file in enumerate(files) if file.suffix in OFFICE_SUFFIXES]
        done: dict[int, _File | DocumentError] = {}
        for number, file in enumerate(files):
            if file.suffix not in OFFICE_SUFFIXES:
                yield file
                continue
            if number not in done:
                some = office[office.index(number) :][:_CONVERTED_FILES]
                done = dict(zip(some, self._convert([files[one] for one in some], scratch), strict=True))
            yield done.pop(number)

    def _convert(self, files: Sequence[_File], scratch: Path) -> list[_File | DocumentError]:
        folder = scratch if self.image_dir is None else Path(self.image_dir) / "converted"
        found: list[tuple[str, _File | DocumentError]] = []
        todo: dict[str, OfficeFile] = {}
        for file in files:
            try:
                source = file.load()
                document_id = _sha256(source)
            except DocumentError as error:
                found.append(("", error))
                continue
            key = f"{document_id}{file.suffix}"
            path = folder / f"{key}.pdf"
            if not path.exists():
                todo[key] = OfficeFile(file.name, file.suffix, source)
            found.append((key, replace(file, source=path, fs=None, document_id=document_id)))
        errors = convert(todo, folder, self.convert_timeout) if todo else {}
        return [errors.get(key, file) for key, file in found]

    def _count_pages(self, files: Sequence[_File]) -> int | None:
        """Count the pages that there will be; None where a file would have to be fetched or converted for it."""
        if any(file.source is None or file.suffix in OFFICE_SUFFIXES for file in files):
            return None
        return sum(
            expected_pages(file.load(), file.name, self.renderer, self.password, self.page_timeout) for file in files
        )

    def _parts(
        self, files: Iterable[_File | DocumentError], extra_info: dict[str, Any], tell: _Tell
    ) -> Generator[tuple[int, _Part], None, None]:
        """Say for every file by its number, or for parts of it, how its pages are had."""
        # multiprocessing's daemonic processes, such as SimpleDirectoryReader's, have no children.
        if self.num_workers == 1 or multiprocessing.current_process().daemon:
            for number, file in enumerate(files):
                yield number, partial(self._read_file, file, extra_info, tell=tell)
            return
        with _interrupts_held():
            workers = _worker_processes(self.num_workers)

        def submitted() -> Iterator[tuple[int, _Part]]:
            for number, file in enumerate(files):
                try:
                    if isinstance(file, DocumentError):
                        raise file
                    source = file.load()
                    loaded = replace(file, source=source, fs=None, document_id=file.document_id or _sha256(source))
                    ranges = split_pages(
                        source, file.name, self.renderer, self.password, _PART_PAGES, self.page_timeout
                    )
                except DocumentError as error:
                    failed: list[_Read] = [error]
                    yield number, lambda failed=failed: failed  # type: ignore[misc]
                    continue
                for pages in ranges:
                    with _interrupts_held():
                        reading = workers.submit(_read_part, self, loaded, extra_info, pages)
                    first = f"{file.name} page {pages.start + 1}" if pages else file.name
                    yield number, partial(_wait_for, reading, partial(tell, first))

        try:
            yield from look_ahead(submitted(), 2 * self.num_workers)
        except BaseException:  # an error, Ctrl-C, or a reading that is not wanted any longer
            workers.shutdown(kill_workers=True)
            raise

    def _read_file(
        self,
        file: _File | DocumentError,
        extra_info: dict[str, Any],
        indexes: range | None = None,
        tell: _Tell = str,
    ) -> Iterator[_Read]:
        if isinstance(file, DocumentError):
            yield file
            return
        try:
            source = file.load()
            document_id = file.document_id or _sha256(source)
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
                        yield self._read_page(file, document_id, page, extra_info, tell)
        except DocumentError as error:
            yield error

    def _read_page(
        self, file: _File, document_id: str, page: RenderedPage, extra_info: dict[str, Any], tell: _Tell
    ) -> _Page:
        image = encode_image(page.image)
        begin_ocr = partial(tell, f"OCR: {file.name} page {page.page_number}")
        words, text, text_source = self._read_text(page, image, begin_ocr)
        lacks_text = text_source == "none" and not ocr.is_available() and self._wants_ocr(page)
        metadata = {
            **extra_info,
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
        return _Page(self._to_document(document_id, page.page_number, image, text, metadata), lacks_text)

    def _to_document(
        self, document_id: str, page_number: int, image: PageImage, text: str, metadata: dict[str, Any]
    ) -> Document:
        kwargs: dict[str, Any] = {"image_mimetype": image.mimetype}
        if self.image_dir is None:
            kwargs["image"] = base64.b64encode(image.data)
        else:
            kwargs["image_path"] = write_page_image(self.image_dir, document_id, page_number, image)
        return ImageDocument(
            id_=make_page_id(document_id, page_number),
            # Not text=...: an empty text would leave no resource at all, and ingestion caches key on its content.
            text_resource=MediaResource(text=text),
            metadata=metadata,
            excluded_llm_metadata_keys=list(HIDDEN_METADATA),
            excluded_embed_metadata_keys=list(HIDDEN_METADATA),
            **kwargs,
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

    def _find(
        self, source: Source | Sequence[Source], extra_info: dict[str, Any], fs: AbstractFileSystem | None
    ) -> list[_File]:
        if not isinstance(source, (str, PurePath, bytes, Iterable)):
            raise InvalidOptionError(f"A source is a path, bytes, or a list of these; got {type(source).__name__}.")
        sources = [source] if isinstance(source, (str, PurePath, bytes)) else list(source)
        if not sources:
            raise DocumentNotFoundError("No files were given: the list of paths is empty.")
        files: list[_File] = []
        for one in sources:
            if isinstance(one, bytes):
                name = str(extra_info.get("file_name") or f"document-{_sha256(one)[:8]}")
                files.append(_File(join_surrogates(name), extra_info.get("file_path"), one))
            elif isinstance(one, (str, PurePath)):
                files.extend(_find_path(str(one), self.image_dir, fs))
            else:
                raise InvalidOptionError(f"A source is a path or bytes; got {type(one).__name__}.")
        return files


@contextmanager
def _option_errors() -> Iterator[None]:
    """Turn what pydantic raises over options into our error."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, given = ".".join(map(str, first["loc"])), first.get("input")
        # Errors are logged; passwords must not be.
        got = "" if name == "password" else f"; got {given!r}"
        raise InvalidOptionError(f"PDFPageReader's option {name}: {first['msg']}{got}.") from None


def _not_counted() -> None:
    return None


def _read_part(reader: PDFPageReader, file: _File, extra_info: dict[str, Any], indexes: range | None) -> list[_Read]:
    """Read pages in a worker process."""
    return list(reader._read_file(file, extra_info, indexes))


def _wait_for(reading: Future[list[_Read]], tell: Callable[[], object]) -> list[_Read]:
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
        return get_reusable_executor(number)
    # A fork's copy of the parent's executor waits for ever; this one ends with the reading.
    return ProcessPoolExecutor(number)


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


def _find_path(source: str, image_dir: str | Path | None, fs: AbstractFileSystem | None) -> Iterable[_File]:
    if fs is not None:
        return _find_remote(source, fs)
    return _find_url(source) if "://" in source else _find_local(source, image_dir)


def _find_url(url: str) -> Iterable[_File]:
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
        # Known by their addresses: a path alone would be one on this machine's disk.
        return [replace(file, path=fs.unstrip_protocol(file.path)) for file in _find_remote(path, fs)]
    except DocumentError:
        raise
    except Exception as error:  # no package for the protocol, no rights, no network
        raise DocumentError(f"{join_surrogates(url)}: cannot be looked up ({in_one_line(error)}).") from error


def _find_local(source: str, image_dir: str | Path | None) -> Iterable[_File]:
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        written = Path(image_dir).resolve() if image_dir else None
        inside = [
            child
            for child in sorted(path.rglob("*"))
            if child.is_file()
            and not _is_hidden(child.relative_to(path))
            and not (written and child.resolve().is_relative_to(written))
        ]
        chosen = _readable(inside, str(path))
    elif path.exists():
        chosen = [path]
    else:
        raise DocumentNotFoundError(f"{join_surrogates(str(path))}: there is no such file or folder.")
    return [
        _File(join_surrogates(child.name), str(child.resolve()), child, within=_within(child, path)) for child in chosen
    ]


def _find_remote(path: str, fs: AbstractFileSystem) -> Iterable[_File]:
    if fs.isdir(path):
        root = PurePosixPath(fs._strip_protocol(path))
        inside = [PurePosixPath(child) for child in sorted(fs.find(path))]
        chosen = _readable([child for child in inside if not _is_hidden(child.relative_to(root))], path)
        return [
            _File(join_surrogates(child.name), str(child), None, fs, within=_within(child, root)) for child in chosen
        ]
    if not fs.exists(path):
        raise DocumentNotFoundError(f"{join_surrogates(path)}: there is no such file or folder on {type(fs).__name__}.")
    return [_File(join_surrogates(PurePosixPath(path).name), path, None, fs)]


def _within(path: PurePath, given: PurePath) -> str:
    return "" if path == given else join_surrogates(path.relative_to(given).as_posix())


def _is_hidden(path: PurePath) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _readable(inside: Sequence[_AnyPath], folder: str) -> list[_AnyPath]:
    """Keep the files of a folder that are of a type that is read; a folder without any is an error."""
    chosen = [child for child in inside if child.suffix.lower() in SUPPORTED_SUFFIXES]
    if chosen:
        return chosen
    suffixes = sorted({child.suffix.lower() or "(none)" for child in inside})
    found = f"only files of type {', '.join(suffixes)}" if suffixes else "no files at all"
    supported = ", ".join(sorted(SUPPORTED_SUFFIXES))
    raise DocumentNotFoundError(join_surrogates(f"{folder}: the folder has {found}; supported are {supported}."))


def _sha256(source: Path | bytes) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    try:
        with source.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DocumentError(f"{join_surrogates(source.name)}: the file cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def _tell(progress: tqdm[Any], what: str) -> None:
    """Show what is read, and the bar from now on: tqdm shows no end of one that is still in its delay."""
    progress.delay = 0
    progress.set_postfix_str(what)


def _and_more(others: Sequence[object], what: str) -> str:
    return f" (The same is true of {len(others)} more {what}.)" if others else ""


def _with_path(error: DocumentError, file: _File) -> DocumentError:
    """Let an error's sentence begin with the file's path within the folder, not only with its name."""
    message = str(error)
    if file.within and message.startswith(file.name):
        return _reworded(error, file.within + message[len(file.name) :])
    return error


def _with_progress(error: DocumentError, number: int, files: int, pages: int) -> DocumentError:
    """Let an error that ends a reading say how far that came, if anything else was to be read."""
    if files == 1 and not pages:
        return error
    read = f"{pages} page{'s were' if pages != 1 else ' was'} read before"
    skip = "on_error='skip', or --on-error skip in a shell, leaves out what cannot be read"
    return _reworded(error, f"{str(error).rstrip('.')} (file {number + 1} of {files}; {read}; {skip}).")


def _reworded(error: DocumentError, message: str) -> DocumentError:
    reworded = type(error)(message)
    reworded.__cause__ = error.__cause__
    return reworded


def _name_some(names: Sequence[str], most: int = 20) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} page{'s' if len(names) != 1 else ''} ({', '.join(names[:most])}{rest})"
