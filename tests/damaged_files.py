"""Small PDFs and images of many kinds, and ways to damage them.

Knows nothing of the package.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pikepdf
from pikepdf import Array, Dictionary, Name
from PIL import Image, features
from reportlab.lib import colors
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

Files = dict[str, bytes]
"""A file's name -> its content."""

_NUMBER = re.compile(rb"-?\d+\.?\d*")
_WORD = re.compile(rb"/[A-Za-z0-9]+")
_EXTREMES = (b"0", b"-1", b"1", b"2", b"255", b"65536", b"2147483647", b"-2147483648", b"4294967296", b"1e38", b".1")
_OTHER_VALUES = (b"9" * 40, b"null", b"[]", b"<<>>", b"1 0 R", b"true", b"()")


def make_files() -> Files:
    """Make whole files, the same ones in every run."""
    pdfs = {
        "text.pdf": _drawn(_draw_text, compressed=False),
        "compressed.pdf": _drawn(_draw_text, compressed=True),
        "form.pdf": _drawn(_draw_form, compressed=False),
        "fonts.pdf": _drawn(_draw_fonts, compressed=False),
        "paint.pdf": _drawn(_draw_paint, compressed=False),
        "pictures.pdf": _drawn(_draw_pictures, compressed=True),
        **{f"scan-{mode}.pdf": _saved(_picture(mode), "PDF", creationDate=0, modDate=0) for mode in ("1", "L", "RGB")},
    }
    if features.check("jpg_2000"):
        pdfs["scan-jpx.pdf"] = _saved(_picture("RGBA"), "PDF", creationDate=0, modDate=0)
    pdfs["annotations.pdf"] = _with_annotations(pdfs["text.pdf"])
    pdfs["turned.pdf"] = _turned(pdfs["text.pdf"])
    streams = pikepdf.ObjectStreamMode.generate
    again: dict[str, dict[str, Any]] = {
        "xref": {"object_stream_mode": streams},
        "plain": {"compress_streams": False, "stream_decode_level": pikepdf.StreamDecodeLevel.generalized},
        "linear": {"linearize": True},
        "encrypted": {"encryption": pikepdf.Encryption(owner="owner", user="", R=3, aes=False, metadata=False)},
    }
    for name in ("text", "form", "fonts", "annotations"):
        pdfs |= {f"{name}-{how}.pdf": _resaved(pdfs[f"{name}.pdf"], **options) for how, options in again.items()}
    return pdfs | _make_images()


def _drawn(draw: Callable[[Canvas], None], *, compressed: bool) -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, (200, 260), invariant=1, pageCompression=int(compressed))
    draw(canvas)
    canvas.save()
    return buffer.getvalue()


def _draw_text(canvas: Canvas) -> None:
    for page in range(3):
        canvas.bookmarkPage(f"page-{page}")
        canvas.addOutlineEntry(f"Part {page}", f"page-{page}", level=0)
        canvas.addPageLabel(page, style="ROMAN_LOWER", start=3)
        for line in range(8):
            canvas.setFont("Times-Roman", 6 + 2 * line)
            canvas.drawString(10, 230 - 25 * line, f"The quick brown fox {page}, {line}")
        canvas.rotate(90)
        canvas.drawString(20, -190, "up the side")
        canvas.linkURL("https://example.org", (0, 0, 50, 50))
        canvas.showPage()


def _draw_form(canvas: Canvas) -> None:
    form = canvas.acroForm
    form.textfield(name="name", value="Ada Lovelace", x=10, y=200, width=150, height=20)
    form.textfield(name="notes", value="several\nlines", x=10, y=150, width=150, height=40, fieldFlags="multiline")
    form.checkbox(name="yes", checked=True, x=10, y=120, size=20)
    form.radio(name="colour", value="red", selected=True, x=50, y=120, size=20)
    form.radio(name="colour", value="blue", selected=False, x=80, y=120, size=20)
    form.choice(name="town", value="Paris", options=["Paris", "Rome"], x=10, y=80, width=100, height=20)
    form.listbox(name="list", value="two", options=["one", "two", "three"], x=10, y=20, width=100, height=50)
    canvas.drawString(10, 240, "A form")


def _draw_fonts(canvas: Canvas) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("HeiseiMin-W3"))
    pdfmetrics.registerFont(TTFont("Vera", "Vera.ttf"))
    for place, (font, text) in enumerate(
        [("HeiseiMin-W3", "日本語の文字"), ("Vera", "Ĝis revido"), ("Symbol", "abc"), ("ZapfDingbats", "abc")]
    ):
        canvas.setFont(font, 16)
        canvas.drawString(10, 200 - 40 * place, text)
    text = canvas.beginText(10, 20)
    text.setFont("Helvetica", 12, leading=9)
    text.setCharSpace(3)
    text.setWordSpace(5)
    text.setHorizScale(70)
    text.setRise(3)
    text.textLines("spaced\nout")
    canvas.drawText(text)


def _draw_paint(canvas: Canvas) -> None:
    canvas.linearGradient(0, 0, 200, 200, (colors.red, colors.green, colors.blue), (0, 0.3, 1))
    canvas.radialGradient(100, 100, 50, (colors.white, colors.black))
    canvas.setFillAlpha(0.5)
    canvas.setDash([1, 2, 3], 4)
    canvas.setBlendMode("Multiply")
    canvas.circle(60, 60, 40, fill=1)
    path = canvas.beginPath()
    path.moveTo(10, 10)
    path.curveTo(20, 90, 90, 20, 150, 150)
    path.close()
    canvas.clipPath(path)
    canvas.setFillColorCMYK(0.1, 0.2, 0.3, 0.4)
    canvas.beginForm("stamp")
    canvas.drawString(0, 0, "again")
    canvas.endForm()
    for place in range(3):
        canvas.translate(10, 20 * place)
        canvas.doForm("stamp")


def _draw_pictures(canvas: Canvas) -> None:
    for place, (mode, kind) in enumerate([("L", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")]):
        picture = ImageReader(io.BytesIO(_saved(_picture(mode), kind)))
        canvas.drawImage(picture, 10, 10 + 60 * place, 80, 50, mask="auto")


def _with_annotations(data: bytes) -> bytes:
    with pikepdf.open(io.BytesIO(data)) as pdf:
        look = pdf.make_stream(b"q 1 0 0 rg 0 0 80 20 re f BT /F1 9 Tf 2 5 Td (stamped) Tj ET Q")
        look.Type, look.Subtype, look.BBox = Name.XObject, Name.Form, [0, 0, 80, 20]
        look.Resources = Dictionary(Font=Dictionary(F1=next(iter(dict(pdf.pages[0].Resources.Font).values()))))
        kinds = [Name.FreeText, Name.Stamp, Name.Highlight, Name.Text, Name.Ink, Name.Square]
        for place, kind in enumerate(kinds):
            note = Dictionary(Type=Name.Annot, Subtype=kind, Rect=[20, 20 + 30 * place, 100, 40 + 30 * place], F=4)
            note.Contents = pikepdf.String(f"note {place}")
            note.DA = pikepdf.String("/Helv 9 Tf 0 g")
            note.QuadPoints = Array([20, 40, 100, 40, 20, 20, 100, 20])
            note.InkList = Array([Array([20, 20, 30, 30, 40, 20])])
            if kind in kinds[:2]:
                note.AP = Dictionary(N=look)
            pdf.pages[0].Annots.append(pdf.make_indirect(note))
        return _bytes_of(pdf)


def _turned(data: bytes) -> bytes:
    with pikepdf.open(io.BytesIO(data)) as pdf:
        for turns, page in enumerate(pdf.pages, 1):
            page.Rotate, page.CropBox, page.UserUnit = 90 * turns, [10, 20, 150, 200], turns
        return _bytes_of(pdf)


def _resaved(data: bytes, **options: Any) -> bytes:  # noqa: ANN401 - passed on
    with pikepdf.open(io.BytesIO(data)) as pdf:
        return _bytes_of(pdf, **options)


def _bytes_of(pdf: pikepdf.Pdf, **options: Any) -> bytes:  # noqa: ANN401 - passed on
    buffer = io.BytesIO()
    pdf.save(buffer, static_id=True, **options)
    return buffer.getvalue()


def _picture(mode: str, shade: int = 0) -> Image.Image:
    size = (64, 48)
    red, green = Image.linear_gradient("L").resize(size), Image.radial_gradient("L").resize(size)
    blue = red.point(lambda value: (value * 7 + shade) % 256)
    return Image.merge("RGBA", (red, green, blue, green)).convert("RGB" if mode == "CMYK" else mode).convert(mode)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401 - passed on
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _make_images() -> Files:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned

    def more() -> dict[str, Any]:  # pictures of its own for each file: Pillow keeps in them how they were saved
        return {"save_all": True, "append_images": [_picture("RGB", shade) for shade in (50, 90)]}

    grey = Image.linear_gradient("L").resize((64, 48))
    kinds: list[tuple[str, Image.Image, str, dict[str, Any]]] = [
        *((f"{mode}.png", _picture(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        ("16.png", grey.convert("I;16"), "PNG", {}),
        ("moving.png", _picture("RGB"), "PNG", more()),
        *((f"{mode}.jpg", _picture(mode), "JPEG", {"exif": exif}) for mode in ("L", "RGB", "CMYK")),
        ("progressive.jpg", _picture("RGB"), "JPEG", {"progressive": True, "optimize": True}),
        ("views.jpg", _picture("RGB"), "MPO", more()),
        *(
            (f"{packed}.tif", _picture("RGB"), "TIFF", {"compression": packed, **more()})
            for packed in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
        ),
        *((f"{packed}.tif", _picture("1"), "TIFF", {"compression": packed}) for packed in ("group3", "group4")),
        ("float.tif", grey.convert("F"), "TIFF", {"exif": exif}),
        ("moving.gif", _picture("RGB"), "GIF", more()),
        *((f"{mode}.bmp", _picture(mode), "BMP", {}) for mode in ("1", "P", "RGB")),
        ("lossy.webp", _picture("RGB"), "WEBP", {}),
        ("lossless.webp", _picture("RGBA"), "WEBP", {"lossless": True, "exif": exif}),
        ("moving.webp", _picture("RGB"), "WEBP", more()),
    ]
    if features.check("avif"):
        kinds.append(("picture.avif", _picture("RGBA"), "AVIF", {"exif": exif}))
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
        kinds.append(("picture.heic", _picture("RGB"), "HEIF", {"quality": 50}))
    return {name: _saved(image, kind, **options) for name, image, kind, options in kinds}


def mutate(files: Files, seed: int, number: int) -> tuple[str, bytes]:
    """Damage one of the files; the same seed and number make the same file, as long as `make_files` does.

    Returns:
        A name with the file's suffix, which says what it was, and the content.
    """
    chance = random.Random(f"{seed}/{number}")
    names = sorted(files)
    name = chance.choice(names)
    data = files[name]
    ways: list[Callable[[random.Random, bytes, bytes], bytes]] = [_flip, _flip, _cut, _swap, _repeat, _remove, _splice]
    if name.endswith(".pdf"):
        ways += [_renumber, _renumber, _rename]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        other = files[chance.choice([one for one in names if Path(one).suffix == Path(name).suffix])]
        data = chance.choice(ways)(chance, data, other)
    return f"{number}-{name}", data


def _block(chance: random.Random, data: bytes) -> tuple[int, int]:
    length = min(len(data), int(2 ** chance.uniform(0, 11)))
    start = chance.randrange(len(data) - length + 1)
    return start, start + length


def _flip(chance: random.Random, data: bytes, other: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(int(2 ** chance.uniform(0, 6)) if flipped else 0):
        flipped[chance.randrange(len(flipped))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    return bytes(flipped)


def _cut(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _swap(chance: random.Random, data: bytes, other: bytes) -> bytes:
    (first, first_end), (second, second_end) = sorted((_block(chance, data), _block(chance, data)))
    first_end = min(first_end, second)
    return b"".join(
        (data[:first], data[second:second_end], data[first_end:second], data[first:first_end], data[second_end:])
    )


def _repeat(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _block(chance, data)
    return data[:stop] + data[start:stop] * chance.choice((1, 2, 50)) + data[stop:]


def _remove(chance: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _block(chance, data)
    return data[:start] + data[stop:]


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    if chance.random() < 0.3:
        return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other)) :]
    (start, stop), (other_start, other_stop) = _block(chance, data), _block(chance, other)
    return data[:start] + other[other_start:other_stop] + data[stop:]


def _renumber(chance: random.Random, data: bytes, other: bytes) -> bytes:
    numbers = list(_NUMBER.finditer(data))
    if not numbers:
        return data
    found = chance.choice(numbers)
    if chance.random() < 0.5:  # as long as before, so that what follows stays where it is said to be
        new = bytes(chance.choice(b"0123456789") if digit in b"0123456789" else digit for digit in found.group())
    else:
        new = chance.choice((*_EXTREMES, *_OTHER_VALUES, chance.choice(numbers).group()))
    return data[: found.start()] + new + data[found.end() :]


def _rename(chance: random.Random, data: bytes, other: bytes) -> bytes:
    words = list(_WORD.finditer(data))
    others: list[bytes] = _WORD.findall(other)
    if not words or not others:
        return data
    found = chance.choice(words)
    return data[: found.start()] + chance.choice(others) + data[found.end() :]
