"""Files -> one LlamaIndex `Document` per page, with its image, text and word boxes.

Knows nothing of embedders or Milvus.
"""

from __future__ import annotations

import base64
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index.core.bridge.pydantic import Field, ValidationError, field_validator
from llama_index.core.readers.base import BasePydanticReader
from llama_index.core.schema import Document, ImageDocument, MediaResource

from llama_index_colqwen.errors import (
    ConverterNotFoundError,
    DocumentError,
    InvalidOptionError,
    MissingDependencyError,
)
from llama_index_colqwen.nodes import HIDDEN_METADATA, make_page_id
from llama_index_colqwen.progress import tqdm
from llama_index_colqwen.reading import ocr
from llama_index_colqwen.reading.extraction import ExtractedPage, PageExtractor
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES, OfficeFile, convert
from llama_index_colqwen.reading.rendering import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_PAGE_TIMEOUT,
    Renderer,
    expected_pages,
)
from llama_index_colqwen.reading.sources import Source, SourceFile, find_files, sha256

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["DocumentStream", "MissingTextWarning", "PDFPageReader", "SkippedDocumentWarning", "Source"]

_Count: TypeAlias = Callable[[], "int | None"]
"""Counts the pages that there will be, if that is cheap."""

_CONVERTED_FILES = 16  # by one run of LibreOffice, of which the first page waits


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


class _LeftOut:
    """What could not be read of some files; said at the end, once for each reason."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
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
        files = find_files(source, extra_info or {}, self.image_dir, fs)
        count = cache(partial(self._count_pages, files)) if show_progress else _not_counted
        return DocumentStream(self._read(files, extra_info or {}, count, show_progress), count)

    def _read(
        self, files: Sequence[SourceFile], extra_info: dict[str, Any], count: _Count, show_progress: bool
    ) -> Generator[Document, None, None]:
        left_out = _LeftOut(files)
        pages_read = 0
        with (
            tempfile.TemporaryDirectory(prefix="colqwen-") as scratch,
            tqdm(total=count(), desc="Reading pages", unit="page", disable=not show_progress, delay=1) as progress,
            closing(
                self._extractor(extra_info).read_files(
                    self._converted(files, Path(scratch)), self.num_workers, partial(_tell, progress)
                )
            ) as parts,
        ):
            for number, read in parts:
                for page in read():
                    progress.set_postfix_str("", refresh=False)
                    if isinstance(page, DocumentError):
                        left_out.add(number, page, self.on_error, pages_read)
                        progress.update()
                        continue
                    if page.lacks_text:
                        left_out.without_text.append(f"{files[number].name} page {page.page_number}")
                    progress.update()
                    pages_read += 1
                    yield _to_document(page)
        left_out.warn()

    def _extractor(self, extra_info: dict[str, Any]) -> PageExtractor:
        return PageExtractor(
            image_dir=self.image_dir,
            renderer=self.renderer,
            max_pixels=self.max_pixels,
            extract_text=self.extract_text,
            ocr=self.ocr,
            password=self.password,
            page_timeout=self.page_timeout,
            extra_info=extra_info,
        )

    def _converted(self, files: Sequence[SourceFile], scratch: Path) -> Iterator[SourceFile | DocumentError]:
        """Yield the files, office documents as the PDFs that they are converted to when the first of some is needed."""
        office = [number for number, file in enumerate(files) if file.suffix in OFFICE_SUFFIXES]
        done: dict[int, SourceFile | DocumentError] = {}
        for number, file in enumerate(files):
            if file.suffix not in OFFICE_SUFFIXES:
                yield file
                continue
            if number not in done:
                some = office[office.index(number) :][:_CONVERTED_FILES]
                done = dict(zip(some, self._convert([files[one] for one in some], scratch), strict=True))
            yield done.pop(number)

    def _convert(self, files: Sequence[SourceFile], scratch: Path) -> list[SourceFile | DocumentError]:
        folder = scratch if self.image_dir is None else Path(self.image_dir) / "converted"
        found: list[tuple[str, SourceFile | DocumentError]] = []
        todo: dict[str, OfficeFile] = {}
        for file in files:
            try:
                source = file.load()
                document_id = sha256(source)
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

    def _count_pages(self, files: Sequence[SourceFile]) -> int | None:
        """Count the pages that there will be; None where a file would have to be fetched or converted for it."""
        if any(file.source is None or file.suffix in OFFICE_SUFFIXES for file in files):
            return None
        return sum(
            expected_pages(file.load(), file.name, self.renderer, self.password, self.page_timeout) for file in files
        )


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


def _to_document(page: ExtractedPage) -> Document:
    kwargs: dict[str, Any] = {"image_mimetype": page.image_mimetype}
    if isinstance(page.image, bytes):
        kwargs["image"] = base64.b64encode(page.image)
    else:
        kwargs["image_path"] = page.image
    return ImageDocument(
        id_=make_page_id(page.document_id, page.page_number),
        # Not text=...: an empty text would leave no resource at all, and ingestion caches key on its content.
        text_resource=MediaResource(text=page.text),
        metadata=page.metadata,
        excluded_llm_metadata_keys=list(HIDDEN_METADATA),
        excluded_embed_metadata_keys=list(HIDDEN_METADATA),
        **kwargs,
    )


def _not_counted() -> None:
    return None


def _tell(progress: tqdm[Any], what: str) -> None:
    """Show what is read, and the bar from now on: tqdm shows no end of one that is still in its delay."""
    progress.delay = 0
    progress.set_postfix_str(what)


def _and_more(others: Sequence[object], what: str) -> str:
    return f" (The same is true of {len(others)} more {what}.)" if others else ""


def _with_path(error: DocumentError, file: SourceFile) -> DocumentError:
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
