"""A PDF or image file -> upright page images on white, text layer, word boxes.

Knows nothing of LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import io
import itertools
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageSequence

from llama_index_colqwen.errors import DocumentError, UnreadableDocumentError, UnsupportedDocumentError
from llama_index_colqwen.pages import PageImage, RenderedPage
from llama_index_colqwen.reading.pdf import Renderer, count_pages, fit_size, render_pdf

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "SUPPORTED_SUFFIXES",
    "Renderer",
    "encode_image",
    "render_document",
    "split_pages",
    "to_rgb",
]

_PDF_SUFFIXES = frozenset({".pdf"})
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
# How PNG, JPEG, WebP and TIFF files begin: what has no name is known by these.
_IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"II*\0", b"MM\0*")
SUPPORTED_SUFFIXES = _PDF_SUFFIXES | _IMAGE_SUFFIXES

DEFAULT_MAX_PIXELS = 2_103_750
"""A letter page at 150 dpi (1275 x 1650): 1.9 times, linearly, what ColQwen2's 768 visual tokens can see."""

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
) -> Iterator[RenderedPage]:
    """Render a document page by page; memory is bounded by one page (by a few, with poppler).

    Args:
        source: A file on this machine, or its bytes.
        name: The file's name: error messages start with it, and its suffix says what the content has to be. Without a
            suffix the content says.
        renderer: For PDFs; images are decoded by Pillow.
        max_pixels: Pages of a PDF are drawn to about this many pixels, whatever their size in inches; images are only
            ever scaled down to it.
        extract_text: Whether to read the text layer and its word boxes.
        password: Opens an encrypted PDF.
        pages: Which pages of a PDF, 0-based; by default all.

    Raises:
        UnsupportedDocumentError: If the suffix, or the content of what has none, is not one that is read.
        EncryptedDocumentError: If the password is missing or wrong.
        UnreadableDocumentError: If the content is corrupt, truncated, has no pages, or is not what the suffix says.
        MissingDependencyError: If poppler is asked for and not installed.
    """
    if _is_pdf(source, name):
        yield from render_pdf(source, name, renderer, max_pixels, extract_text, password, pages)
    else:
        yield from _render_image_file(source, name, max_pixels)


def split_pages(source: Path | bytes, name: str, password: str | None, most: int) -> list[range | None]:
    """Part a document into ranges of at most so many pages (0-based) that can be rendered apart; None is all of it.

    Raises:
        DocumentError: As `render_document` does.
    """
    if not _is_pdf(source, name):
        return [None]
    count = count_pages(source, name, password)
    return [range(start, min(start + most, count)) for start in range(0, count, most)]


def encode_image(image: Image.Image) -> PageImage:
    """Encode an RGB image as JPEG: 3 ms and 100 KB for a letter page, where PNG takes 85 ms and 150 KB."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return PageImage(buffer.getvalue())


def to_rgb(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Draw any Pillow image as a viewer shows it: upright, transparent parts on white, 16-bit values rescaled.

    Args:
        image: Of any mode.
        size: What to scale it to before it is turned upright; by default it keeps its size.
    """
    image.load()
    # Noted before the pixels are converted: conversions drop the EXIF record. (Pillow turns a TIFF as it loads it.)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    # Scaled down in few bytes a pixel, and only then made RGB: memory is what a large scan costs.
    drawn = _scalable(image)
    if size is not None and drawn.size != size:
        drawn = drawn.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _on_white(drawn.transpose(_TURNS[orientation]) if orientation in _TURNS else drawn)


def _is_pdf(source: Path | bytes, name: str) -> bool:
    head = source[:1024] if isinstance(source, bytes) else _read_head(source, name)
    suffix = Path(name).suffix.lower()
    # Readers accept a header that is not at byte 0, but within the first kilobyte.
    pdf_content = b"%PDF-" in head
    if not head:
        raise UnreadableDocumentError(f"{name}: the file is empty.")
    if suffix not in SUPPORTED_SUFFIXES and (suffix or not (pdf_content or head.startswith(_IMAGE_HEADS))):
        raise UnsupportedDocumentError(
            f"{name}: files of type {suffix or '(none)'} are not read; supported are "
            f"{', '.join(sorted(SUPPORTED_SUFFIXES))}."
        )
    if pdf_content and suffix in _IMAGE_SUFFIXES:
        raise UnreadableDocumentError(f"{name}: this is a PDF by its content; rename it to end in .pdf.")
    return pdf_content or suffix in _PDF_SUFFIXES


def _read_head(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError as error:
        raise UnreadableDocumentError(f"{name}: the file cannot be read ({error.strerror}).") from error


def _render_image_file(source: Path | bytes, name: str, max_pixels: int) -> Iterator[RenderedPage]:
    with _decoding(name):
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    with opened:
        if opened.format not in {"PNG", "JPEG", "MPO", "WEBP", "TIFF"}:
            raise UnreadableDocumentError(f"{name}: this is a {opened.format} file by its content.")
        # Only a TIFF's frames are pages; in PNG, WebP and MPO they are an animation or a second view.
        frames = ImageSequence.Iterator(opened) if opened.format == "TIFF" else iter([opened])
        for number in itertools.count(1):
            with _decoding(f"{name}: page {number}"):
                frame = next(frames, None)
                image = None if frame is None else _decode(frame, f"{name}: page {number}", max_pixels)
            if image is None:
                return
            yield RenderedPage(number, str(number), image, [], "")


# Warning filters belong to the whole process: threads that change them take turns.
_WARNINGS_LOCK = threading.Lock()


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
        except Exception as error:  # over corrupt files Pillow raises OSError, TypeError, KeyError and more
            raise UnreadableDocumentError(f"{what}: the image is truncated or corrupt ({error}).") from error


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


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def _scalable(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to one of 8 bits a channel that can be resampled."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray((values >> 8).astype(np.uint8))
        key = image.info.get("transparency")
        if not isinstance(key, int):
            return grey
        return Image.merge("LA", (grey, Image.fromarray((values != key).astype(np.uint8) * np.uint8(255))))
    if image.mode in {"I", "F"}:
        values = np.asarray(image)
        # White is the least of the usual whites that no value exceeds: of shares (floats only), bytes, 16 bits.
        peak = float(values.max())
        top = next((white for white in ((1.0,) * (image.mode == "F") + (255.0, 65535.0)) if peak <= white), peak)
        return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in {"1", "L", "LA"} else "RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Draw what is transparent as a viewer shows it: on white."""
    if image.mode in {"LA", "RGBA"}:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
