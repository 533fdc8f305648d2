"""Facts about a page -> a PDF or image file that has them.

Everything the tests read is made here, by reportlab, Pillow or by hand. Knows nothing of the package.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas

LETTER = (612.0, 792.0)
FONT = "Helvetica"
CAP_HEIGHT = 0.718
"""Of Helvetica, as a fraction of the font size."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the upright page."""


@dataclass(frozen=True)
class Text:
    """A line of text at a known position, in points from the lower left corner of the MediaBox."""

    x: float
    y: float
    string: str
    size: float = 24.0
    font: str = FONT

    @property
    def width(self) -> float:
        return float(stringWidth(self.string, self.font, self.size))


@dataclass(frozen=True)
class Sheet:
    """One page of a PDF. `scan` covers the whole MediaBox."""

    texts: Sequence[Text] = ()
    size: tuple[float, float] = LETTER
    rotate: int = 0
    crop: tuple[float, float, float, float] | None = None
    scan: Image.Image | None = None

    def box_of(self, text: Text) -> Box:
        """Say where a line of capitals has to stand on the upright page."""
        left, bottom, right, top = self.crop or (0.0, 0.0, *self.size)
        width, height = right - left, top - bottom
        x0, x1 = (text.x - left) / width, (text.x + text.width - left) / width
        y0, y1 = (top - text.y - CAP_HEIGHT * text.size) / height, (top - text.y) / height
        return {
            0: (x0, y0, x1, y1),
            90: (1 - y1, x0, 1 - y0, x1),  # /Rotate turns clockwise
            180: (1 - x1, 1 - y1, 1 - x0, 1 - y0),
            270: (y0, 1 - x1, y1, 1 - x0),
        }[self.rotate]


def write_pdf(path: Path, sheets: Sequence[Sheet], encryption: StandardEncryption | None = None) -> Path:
    """Write pages as a PDF; equal sheets give equal bytes, unless encrypted."""
    canvas = Canvas(str(path), invariant=1, encrypt=encryption)
    for sheet in sheets:
        # The canvas turns the MediaBox of a page that it rotates; here it is always `size`.
        canvas.setPageSize(sheet.size if sheet.rotate % 180 == 0 else sheet.size[::-1])
        canvas.setPageRotation(sheet.rotate)
        # The canvas keeps the CropBox of the page before.
        canvas.setCropBox(sheet.crop or (0, 0, *sheet.size))
        if sheet.scan is not None:
            canvas.drawImage(ImageReader(sheet.scan), 0, 0, *sheet.size)
        for text in sheet.texts:
            canvas.setFont(text.font, text.size)
            canvas.drawString(text.x, text.y, text.string)
        canvas.showPage()
    canvas.save()
    return path


def write_text_pdf(path: Path, *pages: str, password: str | None = None) -> Path:
    """Write letter pages of one line each; an empty string is an empty page."""
    sheets = [Sheet([Text(72, 700, page)] if page else []) for page in pages]
    return write_pdf(path, sheets, None if password is None else StandardEncryption(password, "owner-" + password))


def write_raw_pdf(path: Path, *objects: bytes) -> Path:
    """Write a PDF of the given objects, numbered from 1; the first is the catalog."""
    data = b"%PDF-1.7\n"
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
    data += b"trailer\n<</Size %d /Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, start)
    path.write_bytes(data)
    return path


def draw_scan(
    lines: Sequence[tuple[int, int, str]], size: tuple[int, int] = (850, 1100), font_size: int = 36
) -> Image.Image:
    """Draw text as a scanner would deliver it: pixels only. A line is (left, top, words)."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for left, top, words in lines:
        draw.text((left, top), words, fill="black", font=ImageFont.load_default(font_size))
    return image


def write_scan(path: Path, *scans: Image.Image) -> Path:
    """Write letter pages that are pictures only, without a text layer."""
    return write_pdf(path, [Sheet(scan=scan) for scan in scans])


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Encode an image with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_huge_png(path: Path, width: int, height: int, rows: int | None = None) -> Path:
    """Write a white 1-bit PNG without holding it in memory; with fewer `rows` than `height` it is a bomb's header."""
    compressor = zlib.compressobj(1)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    pieces = [compressor.compress(row) for _ in range(height if rows is None else rows)]
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = b"".join([*pieces, compressor.flush()])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b""))
    return path


def quadrants(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Draw red, green, blue and black corners, clockwise from top left: an image whose orientation can be seen."""
    image = Image.new("RGB", size)
    middle = size[0] // 2, size[1] // 2
    image.paste((255, 0, 0), (0, 0, *middle))
    image.paste((0, 255, 0), (middle[0], 0, size[0], middle[1]))
    image.paste((0, 0, 255), (middle[0], middle[1], *size))
    return image


def corner_colours(image: Image.Image) -> list[str]:
    """Name the corners' colours, clockwise from top left."""
    x0, y0 = image.width // 8, image.height // 8
    x1, y1 = image.width - 1 - x0, image.height - 1 - y0
    return [colour_name(image, point) for point in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]


def colour_name(image: Image.Image, point: tuple[int, int]) -> str:
    """Name a pixel's colour, forgiving what JPEG does to it."""
    pixel = image.convert("RGB").getpixel(point)
    assert isinstance(pixel, tuple)
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (0, 0, 0): "black", (1, 1, 1): "white"}
    return names.get((round(pixel[0] / 255), round(pixel[1] / 255), round(pixel[2] / 255)), str(pixel))


def walk(folder: Path) -> Iterator[Path]:
    """List the files of a folder, sorted."""
    return iter(sorted(path for path in folder.rglob("*") if path.is_file()))
