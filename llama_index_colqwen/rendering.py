"""A PDF or image file -> upright page images on white, text layer, word boxes.

Knows nothing of LlamaIndex, of embedders, or of where page images are kept.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from llama_index_colqwen.errors import DocumentError, UnreadableDocumentError, UnsupportedDocumentError
from llama_index_colqwen.pages import PageImage, RenderedPage
from llama_index_colqwen.pdf import Renderer, render_pdf

__all__ = ["DEFAULT_MAX_PIXELS", "SUPPORTED_SUFFIXES", "Renderer", "encode_image", "render_document"]

_PDF_SUFFIXES = frozenset({".pdf"})
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
SUPPORTED_SUFFIXES = _PDF_SUFFIXES | _IMAGE_SUFFIXES

DEFAULT_MAX_PIXELS = 2_103_750
"""A letter page at 150 dpi (1275 x 1650): 1.9 times, linearly, what ColQwen2's 768 visual tokens can see."""

# Three bytes a pixel while decoding: half a gigabyte. Pillow's own limit for refusing is the same number.
_MAX_DECODED_PIXELS = 178_956_970


def render_document(
    source: Path | bytes,
    name: str,
    *,
    renderer: Renderer = "pdfium",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    extract_text: bool = True,
    password: str | None = None,
) -> Iterator[RenderedPage]:
    """Render a document page by page; memory is bounded by one page (by a few, with poppler).

    Args:
        source: A file on this machine, or its bytes.
        name: The file's name: its suffix says what the content has to be, and error messages start with it.
        renderer: For PDFs; images are decoded by Pillow.
        max_pixels: Pages of a PDF are drawn to about this many pixels, whatever their size in inches; images are only
            ever scaled down to it.
        extract_text: Whether to read the text layer and its word boxes.
        password: Opens an encrypted PDF.

    Raises:
        UnsupportedDocumentError: If neither suffix nor content is one that is read.
        EncryptedDocumentError: If the password is missing or wrong.
        UnreadableDocumentError: If the content is corrupt, truncated, has no pages, or is not what the suffix says.
        MissingDependencyError: If poppler is asked for and not installed.
    """
    if _is_pdf(source, name):
        yield from render_pdf(source, name, renderer, max_pixels, extract_text, password)
    else:
        yield from _render_image_file(source, name, max_pixels)


def encode_image(image: Image.Image) -> PageImage:
    """Encode an RGB image as JPEG: 3 ms and 100 KB for a letter page, where PNG takes 85 ms and 150 KB."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return PageImage(buffer.getvalue(), image.width, image.height)


def _is_pdf(source: Path | bytes, name: str) -> bool:
    head = source[:1024] if isinstance(source, bytes) else _read_head(source, name)
    suffix = Path(name).suffix.lower()
    # Readers accept a header that is not at byte 0, but within the first kilobyte.
    pdf_content = b"%PDF-" in head
    if not head:
        raise UnreadableDocumentError(f"{name}: the file is empty.")
    if suffix not in SUPPORTED_SUFFIXES and not (not suffix and pdf_content):
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
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # Between 89 and 179 megapixels Pillow warns; those pages are decoded and scaled down.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as opened:
                if opened.format not in {"PNG", "JPEG", "MPO", "WEBP", "TIFF"}:
                    raise UnreadableDocumentError(f"{name}: this is a {opened.format} file by its content.")
                # Only a TIFF's frames are pages; in PNG, WebP and MPO they are an animation or a second view.
                frames = ImageSequence.Iterator(opened) if opened.format == "TIFF" else [opened]
                for number, frame in enumerate(frames, start=1):
                    image = _decode(frame, name, number, max_pixels)
                    yield RenderedPage(number, str(number), image, [], "")
        except Image.DecompressionBombError as error:
            raise UnreadableDocumentError(
                f"{name}: the image has more than {_MAX_DECODED_PIXELS // 10**6} megapixels; scale it down first."
            ) from error
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DocumentError):
                raise
            raise UnreadableDocumentError(f"{name}: the image is truncated or corrupt ({error}).") from error


def _decode(frame: Image.Image, name: str, number: int, max_pixels: int) -> Image.Image:
    if frame.width * frame.height > _MAX_DECODED_PIXELS:
        raise UnreadableDocumentError(
            f"{name}: page {number} is {frame.width} x {frame.height} pixels, and at most "
            f"{_MAX_DECODED_PIXELS // 10**6} megapixels are decoded; scale it down first."
        )
    scale = math.sqrt(max_pixels / (frame.width * frame.height))
    size = frame.size
    if scale < 1:
        size = max(1, int(frame.width * scale)), max(1, int(frame.height * scale))
        frame.draft("RGB", size)  # a JPEG is decoded at a fraction of its size; other formats ignore this
    # The turn is read from the frame before the pixels are converted: conversions drop the EXIF record.
    turned = ImageOps.exif_transpose(frame)
    if turned.size[0] * frame.size[0] and (turned.width > turned.height) != (frame.width > frame.height):
        size = size[1], size[0]
    upright = _to_rgb(turned)
    return upright.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0) if upright.size != size else upright


def _to_rgb(image: Image.Image) -> Image.Image:
    """Draw any Pillow mode the way a viewer shows it: 16 bits rescaled to 8, transparency on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I;16") else max(values.max(), 1.0)
        return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
