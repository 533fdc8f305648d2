"""A PDF -> page images, text layer, word boxes.

pdfium draws; poppler (through pdf2image) is the alternative. The text layer always comes from pdfium. Knows nothing of
LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.errors import (
    DocumentError,
    EncryptedDocumentError,
    MissingDependencyError,
    UnreadableDocumentError,
)
from llama_index_colqwen.images import fit_size
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.text_layer import read_text_layer

if TYPE_CHECKING:
    import pypdfium2
    from PIL import Image

__all__ = ["Renderer", "count_pages", "render_pdf"]

Renderer: TypeAlias = Literal["pdfium", "poppler"]

_POPPLER_PAGES = 8  # drawn by one process of poppler

# Small pages (receipts, cards) are not blown up beyond print resolution.
_MAX_DPI = 300

# pdfium keeps global state and is not thread-safe: every call into it holds this lock, and forks wait for it.
_PDFIUM_LOCK = Lock(hold=True)

_PDFIUM_PASSWORD_ERROR = 4


def count_pages(source: Path | bytes, name: str, renderer: Renderer, password: str | None) -> int:
    """Count a PDF's pages; the arguments and errors are `rendering.render_document`'s."""
    try:
        with _open_pdf(source, name, password) as pdf, _PDFIUM_LOCK:
            return len(pdf)
    except UnreadableDocumentError:
        if renderer == "pdfium":
            raise
        return int(_ask_poppler("pdfinfo", source, name, password)["Pages"])


def render_pdf(
    source: Path | bytes,
    name: str,
    renderer: Renderer,
    max_pixels: int,
    extract_text: bool,
    password: str | None,
    pages: range | None = None,
    *,
    outline_labels: bool = False,
) -> Iterator[RenderedPage | DocumentError]:
    """Render a PDF, or those of its pages, page by page; the arguments and errors are `rendering.render_document`'s.

    With `outline_labels`, pages are called what the outline calls the part that they are in: the sheets of a
    spreadsheet.
    """
    indexes = range(count_pages(source, name, renderer, password)) if pages is None else pages
    with ExitStack() as opened:
        try:
            pdf = opened.enter_context(_open_pdf(source, name, password))
        except UnreadableDocumentError:
            if renderer == "pdfium":
                raise
            yield from _draw_alone_with_poppler(source, name, indexes, max_pixels, password)
            return
        labels = _outline_labels(pdf) if outline_labels else {}
        for start in range(0, len(indexes), _POPPLER_PAGES):
            some = indexes[start : start + _POPPLER_PAGES]
            placed = {index: _place_page(pdf, index, name, max_pixels) for index in some}
            drawn = _draw_with_poppler(source, name, placed, password) if renderer == "poppler" else {}
            for index, placement in placed.items():
                image = drawn.get(index)
                if isinstance(placement, DocumentError):
                    yield placement
                elif isinstance(image, DocumentError):
                    yield image
                else:
                    page = _read_page(pdf, index, name, placement, image, extract_text=extract_text)
                    yield replace(page, page_label=labels[index]) if index in labels else page  # type: ignore[type-var]


def _outline_labels(pdf: pypdfium2.PdfDocument) -> dict[int, str]:
    """Name pages by the entry of the outline that is at or before them: "Costs", "Costs (2)"."""
    with _PDFIUM_LOCK:
        entries = [(entry.get_dest(), entry.get_title()) for entry in pdf.get_toc(max_depth=1)]
        starts = {dest.get_index(): title for dest, title in entries if dest is not None}
        count = len(pdf)
    labels: dict[int, str] = {}
    first, title = 0, ""
    for index in range(count):
        if index in starts:
            first, title = index, starts[index]
        if title:
            labels[index] = title if index == first else f"{title} ({index - first + 1})"
    return labels


@dataclass(frozen=True)
class _Placement:
    """How large a page is drawn: pixels a point, and pixels a side."""

    scale: float
    size: tuple[int, int]

    @classmethod
    def of(cls, width: float, height: float, max_pixels: int) -> _Placement:
        scale = min(math.sqrt(max_pixels / (width * height)), _MAX_DPI / 72)
        return cls(scale, fit_size(width * scale, height * scale, max_pixels))


def _place_page(pdf: pypdfium2.PdfDocument, index: int, name: str, max_pixels: int) -> _Placement | DocumentError:
    import pypdfium2

    try:
        with _PDFIUM_LOCK:
            width, height = pdf.get_page_size(index)  # in points, as the page is shown: turned and cropped
    except pypdfium2.PdfiumError as error:
        return UnreadableDocumentError(f"{name}: page {index + 1} is missing or corrupt ({error}).")
    if not (width > 0 and height > 0 and width * height < math.inf):
        return UnreadableDocumentError(f"{name}: page {index + 1} is corrupt (its size is {width} x {height} points).")
    return _Placement.of(width, height, max_pixels)


def _read_page(
    pdf: pypdfium2.PdfDocument,
    index: int,
    name: str,
    placement: _Placement,
    image: Image.Image | None,
    *,
    extract_text: bool,
) -> RenderedPage | DocumentError:
    """Read a page's text, and draw it unless that was done already."""
    import pypdfium2

    with _PDFIUM_LOCK:
        try:
            page = pdf[index]
            try:
                label = pdf.get_page_label(index) or str(index + 1)
                drawn = _draw_with_pdfium(page, placement.size) if image is None else image
                words, text = read_text_layer(page, index) if extract_text else ([], "")
                return RenderedPage(index + 1, label, drawn, words, text)
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            return UnreadableDocumentError(f"{name}: page {index + 1} is corrupt ({error}).")


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
                f"{name}: the PDF is truncated, corrupt or has no pages ({error}){_poppler_may()}."
            ) from error
    try:
        yield pdf
    finally:
        with _PDFIUM_LOCK:
            pdf.close()


def _poppler_may() -> str:
    installed = importlib.util.find_spec("pdf2image") is not None and shutil.which("pdftoppm") is not None
    return "; renderer='poppler' opens some files that pdfium does not" if installed else ""


def _as_pdfium_takes(source: Path | bytes) -> Path | bytes:
    """Read a file whose path is not UTF-8: not all versions of pypdfium2 can open it."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        return Path(source).read_bytes()  # type: ignore[arg-type]  # bytes have no such path
    return source


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


def _draw_alone_with_poppler(
    source: Path | bytes, name: str, indexes: range, max_pixels: int, password: str | None
) -> Iterator[RenderedPage | DocumentError]:
    """Draw pages that pdfium does not open; without text, since pdfium alone reads text layers."""
    for index in indexes:
        info = _ask_poppler("pdfinfo", source, name, password, index, index)
        width, height = map(float, re.findall(r"[\d.]+", info[f"Page {index + 1:4} size"])[:2])
        placement = _Placement.of(width, height, max_pixels)
        image = _draw_with_poppler(source, name, {index: placement}, password)[index]
        yield image if isinstance(image, DocumentError) else RenderedPage(index + 1, str(index + 1), image, [], "")


def _draw_with_poppler(
    source: Path | bytes,
    name: str,
    placed: Mapping[int, _Placement | DocumentError],
    password: str | None,
) -> dict[int, Image.Image | DocumentError]:
    """Draw pages; neighbours of one size together, since a process a page is several times slower."""
    drawn: dict[int, Image.Image | DocumentError] = {}
    for placement, neighbours in itertools.groupby(placed.items(), key=lambda item: item[1]):
        if isinstance(placement, DocumentError):
            continue
        indexes = [index for index, _ in neighbours]
        images = _convert(source, name, indexes[0], indexes[-1], placement, password)
        if len(images) != len(indexes):  # poppler leaves out what it cannot draw, without saying which
            images = [
                image
                for index in indexes
                for image in _convert(source, name, index, index, placement, password) or [_undrawn(name, index)]
            ]
        drawn |= zip(indexes, images, strict=True)
    return drawn


def _convert(
    source: Path | bytes, name: str, first: int, last: int, placement: _Placement, password: str | None
) -> list[Image.Image | DocumentError]:
    # By resolution and not by size: poppler exchanges width and height of turned pages when given a size.
    images = _ask_poppler(
        "convert", source, name, password, first, last, dpi=placement.scale * 72, use_cropbox=True, ownerpw=password
    )
    # Both renderers give the same size; poppler rounds up.
    return [
        (image if image.size == placement.size else image.resize(placement.size)).convert("RGB") for image in images
    ]


def _undrawn(name: str, index: int) -> DocumentError:
    return UnreadableDocumentError(f"{name}: poppler cannot draw page {index + 1}; try renderer='pdfium'.")


def _ask_poppler(
    function: Literal["convert", "pdfinfo"],
    source: Path | bytes,
    name: str,
    password: str | None,
    first: int | None = None,
    last: int | None = None,
    **options: object,
) -> Any:  # noqa: ANN401 - pdf2image is untyped
    """Call pdf2image for pages that are counted from 0; its errors are ours."""
    try:
        import pdf2image
        from pdf2image import exceptions
    except ImportError as error:
        raise MissingDependencyError("renderer='poppler' needs pdf2image", "poppler") from error
    call = getattr(pdf2image, f"{function}_from_{'bytes' if isinstance(source, bytes) else 'path'}")
    if first is not None and last is not None:
        options |= {"first_page": first + 1, "last_page": last + 1}
    try:
        return call(source, userpw=password, **options)
    except exceptions.PDFInfoNotInstalledError as error:
        raise DocumentError(
            f"{name}: renderer='poppler' needs poppler's programs; on Debian: apt-get install poppler-utils."
        ) from error
    except (exceptions.PDFPageCountError, exceptions.PDFSyntaxError) as error:
        raise UnreadableDocumentError(f"{name}: poppler cannot read the PDF ({error}).") from error
