"""A PDF or image file -> upright page images on white, text layer, word boxes; office documents as their PDFs.

Knows nothing of LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageSequence, UnidentifiedImageError

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import (
    DocumentError,
    MissingDependencyError,
    UnreadableDocumentError,
    UnsupportedDocumentError,
    in_one_line,
)
from llama_index_colqwen.images import fit_size, to_rgb
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.office import OFFICE_SUFFIXES, SHEET_SUFFIXES
from llama_index_colqwen.reading.pdf import PdfJob, Renderer, count_pages, render_pdf

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "DEFAULT_PAGE_TIMEOUT",
    "SUPPORTED_SUFFIXES",
    "Renderer",
    "expected_pages",
    "render_document",
    "split_pages",
]

_PDF_SUFFIXES = frozenset({".pdf"})
_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
_IMAGE_FORMATS = frozenset({"AVIF", "BMP", "GIF", "HEIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP"})
# How such images begin: what has no name is known by these, and by what AVIF and HEIC have from byte 4 on.
_IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"II*\0", b"MM\0*", b"GIF8", b"BM")
_HEIF_HEAD = b"ftyp"
SUPPORTED_SUFFIXES = _PDF_SUFFIXES | _IMAGE_SUFFIXES | OFFICE_SUFFIXES

DEFAULT_MAX_PIXELS = 2_103_750
"""A letter page at 150 dpi (1275 x 1650): 1.9 times, linearly, what ColQwen2's 768 visual tokens can see."""

DEFAULT_PAGE_TIMEOUT = 60.0

# Decoding takes up to 16 bytes a pixel (transparent images), 8 for most: 1.4 GB at the limit, which is Pillow's own.
_MAX_DECODED_PIXELS = 178_956_970
_TOO_LARGE = f"at most {_MAX_DECODED_PIXELS // 10**6} megapixels are decoded; scale it down first."


def render_document(
    source: Path | bytes,
    name: str,
    *,
    renderer: Renderer = "pdfium",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    extract_text: bool = True,
    password: str | None = None,
    pages: range | None = None,
    page_timeout: float = DEFAULT_PAGE_TIMEOUT,
) -> Generator[RenderedPage | DocumentError, None, None]:
    """Render a document page by page; memory is bounded by one page (by a few, with poppler).

    Args:
        source: A file on this machine, or its bytes; for an office document, the PDF that it was converted to.
        name: The file's name: error messages start with it, and its suffix says what the content has to be. Without a
            suffix the content says.
        renderer: For PDFs; images are decoded by Pillow.
        max_pixels: Pages of a PDF are drawn to about this many pixels, whatever their size in inches; images are only
            ever scaled down to it.
        extract_text: Whether to read the text layer and its word boxes.
        password: Opens an encrypted PDF.
        pages: Which pages of a PDF, 0-based; by default all.
        page_timeout: How many seconds a page of a PDF may take, and its opening.

    Yields:
        A page or, in place of one that is missing or corrupt, the error that says so; more pages may follow.

    Raises:
        UnsupportedDocumentError: If the suffix, or the content of what has none, is not one that is read.
        EncryptedDocumentError: If the password is missing or wrong.
        UnreadableDocumentError: If the file is corrupt, truncated, has no pages, takes too long to open, or is not what
            the suffix says.
        MissingDependencyError: If poppler is asked for and not installed.
    """
    if _is_pdf(source, name):
        sheets = Path(name).suffix.lower() in SHEET_SUFFIXES
        yield from render_pdf(
            PdfJob(source, name, renderer, password, page_timeout, max_pixels, extract_text, pages, sheets)
        )
    else:
        yield from _render_image_file(source, name, max_pixels)


def split_pages(
    source: Path | bytes, name: str, renderer: Renderer, password: str | None, most: int, page_timeout: float
) -> list[range | None]:
    """Part a document into ranges of at most so many pages (0-based) that can be rendered apart; None is all of it.

    Raises:
        DocumentError: As `render_document` does.
    """
    if not _is_pdf(source, name):
        return [None]
    count = count_pages(PdfJob(source, name, renderer, password, page_timeout))
    return [range(start, min(start + most, count)) for start in range(0, count, most)]


def expected_pages(
    source: Path | bytes,
    name: str,
    renderer: Renderer,
    password: str | None,
    page_timeout: float = DEFAULT_PAGE_TIMEOUT,
) -> int:
    """Count a document's pages without drawing any, in about a millisecond; 1 where that fails, as reading will say."""
    try:
        if _is_pdf(source, name):
            return count_pages(PdfJob(source, name, renderer, password, page_timeout))
        with _decoding(name), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return int(getattr(opened, "n_frames", 1)) if opened.format == "TIFF" else 1
    except DocumentError:
        return 1


def _is_pdf(source: Path | bytes, name: str) -> bool:
    head = _head(source, name)
    suffix = Path(name).suffix.lower()
    # Readers accept a header that is not at byte 0, but within the first kilobyte.
    pdf_content = b"%PDF-" in head
    if not head:
        raise UnreadableDocumentError(f"{name}: the file is empty.")
    image_content = head.startswith(_IMAGE_HEADS) or head[4:8] == _HEIF_HEAD
    if suffix not in SUPPORTED_SUFFIXES and (suffix or not (pdf_content or image_content)):
        raise UnsupportedDocumentError(
            f"{name}: files of type {suffix or '(none)'} are not read; supported are "
            f"{', '.join(sorted(SUPPORTED_SUFFIXES))}."
        )
    if pdf_content and suffix in _IMAGE_SUFFIXES:
        raise UnreadableDocumentError(f"{name}: this is a PDF by its content; rename it to end in .pdf.")
    return pdf_content or suffix in _PDF_SUFFIXES


def _head(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source[:1024]
    try:
        with source.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise UnreadableDocumentError(f"{name}: the file cannot be read ({error.strerror}).") from error


def _render_image_file(source: Path | bytes, name: str, max_pixels: int) -> Iterator[RenderedPage]:
    head = _head(source, name)
    if head[4:8] == _HEIF_HEAD and head[8:12] != b"avif":
        _know_heif()
    with _decoding(name):
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    with opened:
        if opened.format not in _IMAGE_FORMATS:
            raise UnreadableDocumentError(f"{name}: this is a {opened.format} file by its content.")
        # Only a TIFF's frames are pages; in others they are an animation or a second view.
        frames = ImageSequence.Iterator(opened) if opened.format == "TIFF" else iter([opened])
        for number in itertools.count(1):
            with _decoding(f"{name}: page {number}"):
                frame = next(frames, None)
                image = None if frame is None else _decode(frame, f"{name}: page {number}", max_pixels)
            if image is None:
                return
            yield RenderedPage(number, str(number), image, [], "")


def _know_heif() -> None:
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingDependencyError("Reading HEIC images needs pillow-heif", "heic") from error
    pillow_heif.register_heif_opener()


# Warning filters belong to the whole process: threads that change them take turns.
_WARNINGS_LOCK = Lock(hold=True)


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    """Turn whatever Pillow raises over a broken file into one error, and its warnings into silence."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except DocumentError:
            raise
        except Image.DecompressionBombError as error:
            raise UnreadableDocumentError(f"{what}: {_TOO_LARGE}") from error
        except UnidentifiedImageError as error:  # which names the file's path, or the address of its bytes in memory
            raise UnreadableDocumentError(f"{what}: the image is truncated, corrupt, or none that is read.") from error
        except Exception as error:  # over corrupt files Pillow raises OSError, TypeError, KeyError and more
            raise UnreadableDocumentError(
                f"{what}: the image is truncated or corrupt ({in_one_line(error)})."
            ) from error


def _decode(frame: Image.Image, what: str, max_pixels: int) -> Image.Image:
    if frame.width * frame.height > _MAX_DECODED_PIXELS:
        raise UnreadableDocumentError(f"{what}: {frame.width} x {frame.height} pixels; {_TOO_LARGE}")
    size = _target_size(frame, max_pixels)
    frame.draft("RGB", size)  # a JPEG is decoded at a fraction of its size; other formats ignore this
    frame.load()
    if frame.format == "TIFF":
        size = _target_size(frame, max_pixels)  # Pillow turns a TIFF as it loads it, and forgets the orientation
    return to_rgb(frame, size)


def _target_size(frame: Image.Image, max_pixels: int) -> tuple[int, int]:
    scale = min(1.0, math.sqrt(max_pixels / (frame.width * frame.height)))
    return fit_size(frame.width * scale, frame.height * scale, max_pixels)
