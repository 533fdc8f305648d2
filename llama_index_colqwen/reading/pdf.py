"""A PDF -> page images, text layer, word boxes.

pdfium draws; poppler (through pdf2image) is the alternative. The text layer always comes from pdfium. Knows nothing of
LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import (
    DocumentError,
    EncryptedDocumentError,
    MissingDependencyError,
    UnreadableDocumentError,
)
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.text_layer import read_text_layer

if TYPE_CHECKING:
    import pypdfium2
    from PIL import Image

__all__ = ["Renderer", "count_pages", "fit_size", "render_pdf"]

Renderer: TypeAlias = Literal["pdfium", "poppler"]

# JPEG's limit is 65,535; libjpeg's is a little below.
_MAX_SIDE = 65_500

# Small pages (receipts, cards) are not blown up beyond print resolution.
_MAX_DPI = 300

# pdfium keeps global state and is not thread-safe: every call into it holds this lock, and forks wait for it.
_PDFIUM_LOCK = Lock(hold=True)

_PDFIUM_PASSWORD_ERROR = 4


def count_pages(source: Path | bytes, name: str, password: str | None) -> int:
    """Count a PDF's pages; the arguments and errors are `rendering.render_document`'s."""
    with _open_pdf(source, name, password) as pdf, _PDFIUM_LOCK:
        return len(pdf)


def render_pdf(
    source: Path | bytes,
    name: str,
    renderer: Renderer,
    max_pixels: int,
    extract_text: bool,
    password: str | None,
    pages: range | None = None,
) -> Iterator[RenderedPage]:
    """Render a PDF, or those of its pages, page by page; the arguments and errors are `rendering.render_document`'s."""
    with _open_pdf(source, name, password) as pdf:
        scales, sizes = [], []
        indexes = range(len(pdf)) if pages is None else pages
        for index in indexes:
            width, height = _page_size(pdf, index, name)
            scale = min(math.sqrt(max_pixels / (width * height)), _MAX_DPI / 72)
            scales.append(scale)
            sizes.append(fit_size(width * scale, height * scale, max_pixels))
        first = indexes[0] if indexes else 0
        drawn = _draw_with_poppler(source, name, first, scales, sizes, password) if renderer == "poppler" else None
        for index, size in zip(indexes, sizes, strict=True):
            image = None if drawn is None else next(drawn)
            with _PDFIUM_LOCK:
                page = _load_page(pdf, index, name)
                try:
                    label = pdf.get_page_label(index) or str(index + 1)
                    if image is None:
                        image = _draw_with_pdfium(page, size)
                    words, text = read_text_layer(page, index) if extract_text else ([], "")
                finally:
                    page.close()
            yield RenderedPage(index + 1, label, image, words, text)


def fit_size(width: float, height: float, max_pixels: int) -> tuple[int, int]:
    """Round a size to whole pixels, at least one a side, within `max_pixels` and what a JPEG can hold."""
    # A strip thinner than a pixel keeps one pixel, so its other side has to stay within the target by itself.
    longest = min(max_pixels, _MAX_SIDE)
    return min(max(1, int(width)), longest), min(max(1, int(height)), longest)


@contextmanager
def _open_pdf(source: Path | bytes, name: str, password: str | None) -> Iterator[pypdfium2.PdfDocument]:
    import pypdfium2
    import pypdfium2.raw as pdfium

    source = _as_pdfium_takes(source)
    with _PDFIUM_LOCK:
        try:
            # pdfium keeps the last error code, and sets none for a PDF without pages: after an encrypted file, that
            # one would seem encrypted too. Loading nothing sets the code for a corrupt file.
            pdfium.FPDF_LoadMemDocument(b"", 0, None)
            pdf = pypdfium2.PdfDocument(source, password=password)
            # Without this, what people typed into a form would not be drawn.
            pdf.init_forms()
        except pypdfium2.PdfiumError as error:
            if error.err_code == _PDFIUM_PASSWORD_ERROR:
                needed = "the PDF is encrypted: give its password (password='...')"
                problem = "the password is wrong" if password else needed
                raise EncryptedDocumentError(f"{name}: {problem}.") from error
            raise UnreadableDocumentError(
                f"{name}: the PDF is truncated, corrupt or has no pages ({error})."
            ) from error
    try:
        yield pdf
    finally:
        with _PDFIUM_LOCK:
            pdf.close()


def _as_pdfium_takes(source: Path | bytes) -> Path | bytes:
    """Read a file whose path is not UTF-8: not all versions of pypdfium2 can open it."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        return Path(source).read_bytes()  # type: ignore[arg-type]  # bytes have no such path
    return source


def _load_page(pdf: pypdfium2.PdfDocument, index: int, name: str) -> pypdfium2.PdfPage:
    import pypdfium2

    try:
        return pdf[index]
    except pypdfium2.PdfiumError as error:
        raise UnreadableDocumentError(f"{name}: page {index + 1} is corrupt ({error}).") from error


def _page_size(pdf: pypdfium2.PdfDocument, index: int, name: str) -> tuple[float, float]:
    """Return width and height in points, as the page is shown: turned and cropped."""
    import pypdfium2

    try:
        with _PDFIUM_LOCK:
            width, height = pdf.get_page_size(index)
    except pypdfium2.PdfiumError as error:
        raise UnreadableDocumentError(f"{name}: page {index + 1} is missing or corrupt ({error}).") from error
    if not (width > 0 and height > 0):
        raise UnreadableDocumentError(f"{name}: page {index + 1} is corrupt (its size is {width} x {height} points).")
    return width, height


def _draw_with_pdfium(page: pypdfium2.PdfPage, size: tuple[int, int]) -> Image.Image:
    import pypdfium2
    import pypdfium2.raw as pdfium

    # pypdfium2's own render() rounds the size by itself; drawing to a given size keeps both renderers' pages equal.
    bitmap = pypdfium2.PdfBitmap.new_native(*size, pdfium.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, *size)
    placement = (0, 0, *size, 0, pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER)
    pdfium.FPDF_RenderPageBitmap(bitmap, page, *placement)
    if page.formenv is not None:
        pdfium.FPDF_FFLDraw(page.formenv, bitmap, page, *placement)
    image: Image.Image = bitmap.to_pil().copy()
    bitmap.close()
    return image


def _draw_with_poppler(
    source: Path | bytes,
    name: str,
    first: int,
    scales: list[float],
    sizes: list[tuple[int, int]],
    password: str | None,
) -> Iterator[Image.Image]:
    try:
        import pdf2image
        from pdf2image import exceptions
    except ImportError as error:
        raise MissingDependencyError("renderer='poppler' needs pdf2image", "poppler") from error

    convert: Any = pdf2image.convert_from_bytes if isinstance(source, bytes) else pdf2image.convert_from_path
    start = 0
    while start < len(sizes):
        # A process a page is several times slower: neighbours of one size are drawn together, eight at most.
        stop = start + 1
        while stop < len(sizes) and stop - start < 8 and sizes[stop] == sizes[start]:
            stop += 1
        try:
            # By resolution and not by size: poppler exchanges width and height of turned pages when given a size.
            images = convert(
                source,
                first_page=first + start + 1,
                last_page=first + stop,
                dpi=scales[start] * 72,
                userpw=password,
                ownerpw=password,
                use_cropbox=True,
            )
        except exceptions.PDFInfoNotInstalledError as error:
            raise DocumentError(
                f"{name}: renderer='poppler' needs poppler's programs; on Debian: apt-get install poppler-utils."
            ) from error
        except (exceptions.PDFPageCountError, exceptions.PDFSyntaxError) as error:
            raise UnreadableDocumentError(f"{name}: poppler cannot read the PDF ({error}).") from error
        if len(images) != stop - start:
            raise UnreadableDocumentError(
                f"{name}: poppler drew {len(images)} of the pages {first + start + 1} to {first + stop}; try "
                "renderer='pdfium'."
            )
        for image, size in zip(images, sizes[start:stop], strict=True):
            # Both renderers give the same size; poppler rounds up.
            yield (image if image.size == size else image.resize(size)).convert("RGB")
        start = stop
