"""A PDF -> page images, text layer, word boxes.

pdfium draws; poppler (through pdf2image) is the alternative. The text layer always comes from pdfium. Knows nothing of
LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import multiprocessing
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llama_index_colqwen.errors import (
    DocumentError,
    EncryptedDocumentError,
    MissingDependencyError,
    UnreadableDocumentError,
    in_one_line,
)
from llama_index_colqwen.images import fit_size
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.text_layer import read_text_layer
from llama_index_colqwen.reading.time_limit import PDFIUM_LOCK, LateError, PdfiumLostError, in_time, is_pdfium_lost

if TYPE_CHECKING:
    import pypdfium2
    from PIL import Image

__all__ = ["PdfJob", "Renderer", "count_pages", "render_pdf"]

Renderer: TypeAlias = Literal["pdfium", "poppler"]

_POPPLER_PAGES = 8  # drawn by one process of poppler

# Small pages (receipts, cards) are not blown up beyond print resolution.
_MAX_DPI = 300

_PDFIUM_PASSWORD_ERROR = 4

# Of outlines: more is no help to anybody, and a damaged file may have any number.
_MAX_ENTRIES = 10_000
_MAX_SECTION = 500  # characters


@dataclass(frozen=True)
class PdfJob:
    """A PDF, and how its pages are to be drawn; see `rendering.render_document`."""

    source: Path | bytes
    name: str
    renderer: Renderer
    password: str | None
    page_timeout: float
    max_pixels: int = 1
    extract_text: bool = True
    pages: range | None = None
    outline_labels: bool = False
    """Whether pages are called what the outline calls the part that they are in: the sheets of a spreadsheet."""


def count_pages(job: PdfJob) -> int:
    """Count a PDF's pages; the errors are `rendering.render_document`'s."""
    if not is_pdfium_lost():
        try:
            (count,) = in_time(lambda: map(_count, [job]), job.page_timeout)
            return count
        except LateError:
            raise _late(job, "opening it") from None
        except PdfiumLostError:
            pass
    with _other_process(job) as other:
        return other.submit(count_pages, job).result()


def page_size(job: PdfJob, index: int) -> tuple[float, float]:
    """Return a page's width and height in points, as it is shown: turned and cropped.

    Raises:
        DocumentError: If the PDF cannot be opened, or has no such page.
    """
    with _open_pdf(job, forms=False) as pdf:
        placed = _place_page(pdf, index, job)
        if isinstance(placed, DocumentError):
            raise placed
        with PDFIUM_LOCK:
            width, height = pdf.get_page_size(index)
            return float(width), float(height)


def render_pdf(job: PdfJob) -> Iterator[RenderedPage | DocumentError]:
    """Render a PDF, or those of its pages, page by page; the errors are `rendering.render_document`'s.

    A page that takes too long is an error in its place; a second one is the last.
    """
    lost = _Lost(None) if is_pdfium_lost() else None
    done = late = 0
    if lost is None:
        for item in _render_in_time(job):
            if isinstance(item, _Lost):
                lost = item
            else:
                yield item
                done += 1
    while lost is not None:
        if lost.late is not None:
            yield lost.late
            done, late = done + 1, late + 1
            if late == 2:
                return
        lost, more = None, True
        with _other_process(job) as other:
            while more and lost is None:
                items, more, lost = other.submit(_render_some, job, done).result()
                yield from items
                done += len(items)


@dataclass(frozen=True)
class _Lost:
    """pdfium is lost to this process: to a page that is late, or to another file."""

    late: DocumentError | None


def _render_in_time(job: PdfJob) -> Iterator[RenderedPage | DocumentError | _Lost]:
    """Yield pages until pdfium is lost."""
    place: int | None = None
    try:
        for item in in_time(lambda: _render_here(job), job.page_timeout):
            if isinstance(item, int):
                place = item
            else:
                yield item
    except LateError:
        if place is None:
            raise _late(job, "opening it") from None
        yield _Lost(_late(job, f"page {place + 1}"))
    except PdfiumLostError:
        yield _Lost(None)


def _late(job: PdfJob, what: str) -> DocumentError:
    return UnreadableDocumentError(f"{job.name}: {what} took pdfium more than {job.page_timeout:g} s (page_timeout).")


@contextmanager
def _other_process(job: PdfJob) -> Iterator[Executor]:
    """Start a process that has pdfium, which this one has lost; it is killed in the end."""
    from loky import ProcessPoolExecutor

    if multiprocessing.current_process().daemon:  # such have no children
        raise UnreadableDocumentError(f"{job.name}: pdfium has been lost to another file; start this process anew.")
    executor = ProcessPoolExecutor(1)
    try:
        yield executor
    finally:
        executor.shutdown(kill_workers=True)


def _render_some(job: PdfJob, start: int) -> tuple[list[RenderedPage | DocumentError], bool, _Lost | None]:
    """Render some of the pages, from a place among them on; say whether there are more, and whether pdfium is lost."""
    pages = range(count_pages(job)) if job.pages is None else job.pages
    some = pages[start : start + _POPPLER_PAGES]
    items: list[RenderedPage | DocumentError] = []
    for item in _render_in_time(replace(job, pages=some)):
        if isinstance(item, _Lost):
            return items, True, item
        items.append(item)
    return items, start + len(some) < len(pages), None


def _count(job: PdfJob) -> int:
    try:
        with _open_pdf(job, forms=False) as pdf, PDFIUM_LOCK:
            return len(pdf)
    except UnreadableDocumentError:
        if job.renderer == "pdfium":
            raise
        return int(_ask_poppler("pdfinfo", job)["Pages"])


def _render_here(job: PdfJob) -> Iterator[int | RenderedPage | DocumentError]:
    """Yield for every page its place in the file, from 0, and what it is."""
    indexes = range(_count(job)) if job.pages is None else job.pages
    with ExitStack() as opened:
        try:
            pdf = opened.enter_context(_open_pdf(job, forms=True))
        except UnreadableDocumentError:
            if job.renderer == "pdfium":
                raise
            yield from _draw_alone_with_poppler(job, indexes)
            return
        labels = _outline_labels(pdf) if job.outline_labels else {}
        sections = _sections(pdf) if job.extract_text else {}
        for start in range(0, len(indexes), _POPPLER_PAGES):
            some = indexes[start : start + _POPPLER_PAGES]
            placed = {index: _place_page(pdf, index, job) for index in some}
            drawn = _draw_with_poppler(job, placed) if job.renderer == "poppler" else {}
            for index, placement in placed.items():
                yield index
                image = drawn.get(index)
                if isinstance(placement, DocumentError):
                    yield placement
                elif isinstance(image, DocumentError):
                    yield image
                else:
                    page = _read_page(pdf, index, job, placement, image)
                    if isinstance(page, RenderedPage):
                        label = labels.get(index, page.page_label)
                        page = replace(page, page_label=label, section=sections.get(index, ""))
                    yield page


def _outline_labels(pdf: pypdfium2.PdfDocument) -> dict[int, str]:
    """Name pages by the entry of the outline that is at or before them: "Costs", "Costs (2)"."""
    starts, count = dict(_outline(pdf, max_depth=1)), _count_open(pdf)
    labels: dict[int, str] = {}
    first, title = 0, ""
    for index in range(count):
        if index in starts:
            first, title = index, starts[index]
        if title:
            labels[index] = title if index == first else f"{title} ({index - first + 1})"
    return labels


def _sections(pdf: pypdfium2.PdfDocument) -> dict[int, str]:
    """Title pages by the outline, whatever its levels: by all parts that begin there, or by the one that goes on."""
    starts: dict[int, list[str]] = {}
    for index, title in _outline(pdf):
        starts.setdefault(index, []).append(title)
    sections: dict[int, str] = {}
    title = ""
    for index in range(_count_open(pdf)) if starts else ():
        titles = starts.get(index)
        if section := "; ".join(titles) if titles else title:
            sections[index] = section[:_MAX_SECTION]
        title = titles[-1] if titles else title
    return sections


def _outline(pdf: pypdfium2.PdfDocument, max_depth: int = 15) -> list[tuple[int, str]]:
    """Return the outline's entries, in its order, with the place of the page that each one leads to."""
    entries: list[tuple[int, str]] = []
    with PDFIUM_LOCK:
        for entry in itertools.islice(pdf.get_toc(max_depth), _MAX_ENTRIES):
            try:
                title = " ".join(entry.get_title().split())
            except UnicodeDecodeError:
                continue
            dest = entry.get_dest()
            index = None if dest is None else dest.get_index()
            if index is not None and title:
                entries.append((index, title))
    return entries


def _count_open(pdf: pypdfium2.PdfDocument) -> int:
    with PDFIUM_LOCK:
        return len(pdf)


@dataclass(frozen=True)
class _Placement:
    """How large a page is drawn: pixels a point, and pixels a side."""

    scale: float
    size: tuple[int, int]

    @classmethod
    def of(cls, width: float, height: float, max_pixels: int) -> _Placement:
        scale = min(math.sqrt(max_pixels / (width * height)), _MAX_DPI / 72)
        return cls(scale, fit_size(width * scale, height * scale, max_pixels))


def _place_page(pdf: pypdfium2.PdfDocument, index: int, job: PdfJob) -> _Placement | DocumentError:
    import pypdfium2

    try:
        with PDFIUM_LOCK:
            width, height = pdf.get_page_size(index)  # in points, as the page is shown: turned and cropped
    except pypdfium2.PdfiumError as error:
        return UnreadableDocumentError(f"{job.name}: page {index + 1} is missing or corrupt ({error}).")
    return _place(width, height, index, job)


def _place(width: float, height: float, index: int, job: PdfJob) -> _Placement | DocumentError:
    if not (width > 0 and height > 0 and width * height < math.inf):
        return UnreadableDocumentError(
            f"{job.name}: page {index + 1} is corrupt (its size is {width} x {height} points)."
        )
    return _Placement.of(width, height, job.max_pixels)


def _read_page(
    pdf: pypdfium2.PdfDocument, index: int, job: PdfJob, placement: _Placement, image: Image.Image | None
) -> RenderedPage | DocumentError:
    """Read a page's text, and draw it unless that was done already."""
    import pypdfium2

    with PDFIUM_LOCK:
        try:
            page = pdf[index]
            try:
                label = pdf.get_page_label(index) or str(index + 1)
                drawn = _draw_with_pdfium(page, placement.size) if image is None else image
                words, text = read_text_layer(page, index) if job.extract_text else ([], "")
                return RenderedPage(index + 1, label, drawn, words, text)
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            return UnreadableDocumentError(f"{job.name}: page {index + 1} is corrupt ({error}).")


@contextmanager
def _open_pdf(job: PdfJob, *, forms: bool) -> Iterator[pypdfium2.PdfDocument]:
    import pypdfium2
    import pypdfium2.raw as pdfium

    source = _as_pdfium_takes(job.source)
    with PDFIUM_LOCK:
        try:
            # pdfium keeps the last error code, and sets none for a PDF without pages: after an encrypted file, that
            # one would seem encrypted too. Loading nothing sets the code for a corrupt file.
            pdfium.FPDF_LoadMemDocument(b"", 0, None)
            pdf = pypdfium2.PdfDocument(source, password=job.password)
            if forms:  # without this, what people typed into a form would not be drawn
                pdf.init_forms()
        except pypdfium2.PdfiumError as error:
            if error.err_code == _PDFIUM_PASSWORD_ERROR:
                needed = "the PDF is encrypted: give its password (password='...')"
                problem = "the password is wrong" if job.password else needed
                raise EncryptedDocumentError(f"{job.name}: {problem}.") from error
            raise UnreadableDocumentError(
                f"{job.name}: the PDF is truncated, corrupt or has no pages ({error}){_poppler_may()}."
            ) from error
    try:
        yield pdf
    finally:
        with PDFIUM_LOCK:
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


def _draw_alone_with_poppler(job: PdfJob, indexes: range) -> Iterator[int | RenderedPage | DocumentError]:
    """Draw pages that pdfium does not open; without text, since pdfium alone reads text layers."""
    for index in indexes:
        yield index
        info = _ask_poppler("pdfinfo", job, index, index)
        size = re.match(r"(\S+) x (\S+) ", info.get(f"Page {index + 1:4} size", ""))
        placement = _place(float(size[1]), float(size[2]), index, job) if size else _undrawn(job.name, index)
        if isinstance(placement, DocumentError):
            yield placement
            continue
        image = _draw_with_poppler(job, {index: placement})[index]
        yield image if isinstance(image, DocumentError) else RenderedPage(index + 1, str(index + 1), image, [], "")


def _draw_with_poppler(
    job: PdfJob, placed: Mapping[int, _Placement | DocumentError]
) -> dict[int, Image.Image | DocumentError]:
    """Draw pages; neighbours of one size together, since a process a page is several times slower."""
    drawn: dict[int, Image.Image | DocumentError] = {}
    for placement, neighbours in itertools.groupby(placed.items(), key=lambda item: item[1]):
        if isinstance(placement, DocumentError):
            continue
        indexes = [index for index, _ in neighbours]
        images = _convert(job, indexes[0], indexes[-1], placement)
        if len(images) != len(indexes):  # poppler leaves out what it cannot draw, without saying which
            images = [
                image
                for index in indexes
                for image in _convert(job, index, index, placement) or [_undrawn(job.name, index)]
            ]
        drawn |= zip(indexes, images, strict=True)
    return drawn


def _convert(job: PdfJob, first: int, last: int, placement: _Placement) -> list[Image.Image | DocumentError]:
    # By resolution and not by size: poppler exchanges width and height of turned pages when given a size.
    images = _ask_poppler("convert", job, first, last, dpi=placement.scale * 72, use_cropbox=True, ownerpw=job.password)
    # Both renderers give the same size; poppler rounds up.
    return [
        (image if image.size == placement.size else image.resize(placement.size)).convert("RGB") for image in images
    ]


def _undrawn(name: str, index: int) -> DocumentError:
    return UnreadableDocumentError(f"{name}: poppler cannot draw page {index + 1}; try renderer='pdfium'.")


def _ask_poppler(
    function: Literal["convert", "pdfinfo"],
    job: PdfJob,
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
    call = getattr(pdf2image, f"{function}_from_{'bytes' if isinstance(job.source, bytes) else 'path'}")
    if first is not None and last is not None:
        options |= {"first_page": first + 1, "last_page": last + 1}
    try:
        return call(job.source, userpw=job.password, timeout=job.page_timeout, **options)
    except exceptions.PDFInfoNotInstalledError as error:
        raise DocumentError(
            f"{job.name}: renderer='poppler' needs poppler's programs; on Debian: apt-get install poppler-utils."
        ) from error
    except (exceptions.PDFPageCountError, exceptions.PDFSyntaxError) as error:
        raise UnreadableDocumentError(f"{job.name}: poppler cannot read the PDF ({in_one_line(error)}).") from error
    except exceptions.PDFPopplerTimeoutError as error:
        raise UnreadableDocumentError(
            f"{job.name}: poppler took more than {job.page_timeout:g} s (page_timeout)."
        ) from error
