"""Turn form.txt into a scanned form: grey pictures of its pages, with no text layer.

An empty line ends a page. The first character of a line says what it is: "#" the title, "=" a section, ">" small
print, "[" a row of tick boxes, "+" a table row, "*" a bold one, "%" a signature and "@" the stamp, which comes last on
its page. Other lines are fields, "label: value | label: value", where "~" marks a value written by hand.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import reportlab
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont


def write(content: str, path: Path) -> None:
    """Write the form."""
    rng = np.random.default_rng(12)
    pages = []
    for text, angle in zip(content.strip().split("\n\n"), (0.5, -0.7, 0.35), strict=True):
        page, y = Image.new("L", (1240, 1754), 255), 110
        for line in text.splitlines():
            y = draw_line(page, line, y, rng)
        pages.append(scanned(page, angle, rng))
    dates = {"creationDate": time.gmtime(0), "modDate": time.gmtime(0)}
    pages[0].save(path, "PDF", resolution=150, quality=52, save_all=True, append_images=pages[1:], **dates)


def font(size: int, face: str = "Vera") -> ImageFont.FreeTypeFont:
    """Return one of the fonts that come with reportlab."""
    return ImageFont.truetype(str(Path(reportlab.__file__).parent / "fonts" / f"{face}.ttf"), size)


def draw_line(page: Image.Image, line: str, y: int, rng: np.random.Generator) -> int:
    """Draw one line of the form and return where the next one starts."""
    draw = ImageDraw.Draw(page)
    kind, rest, cells = line[0], line[2:], line.split(" | ")
    if kind == "#":
        draw.text((110, y), rest, font=font(40, "VeraBd"), fill=20)
        return y + 62
    if kind == ">":
        draw.text((110, y + 4), rest, font=font(20), fill=50)
        return y + 46
    if kind == "=":
        draw.rectangle((110, y + 16, 1130, y + 60), fill=205)
        draw.text((122, y + 23), rest, font=font(24, "VeraBd"), fill=20)
        return y + 76
    if kind == "[":
        draw_ticks(draw, cells, y + 6)
        return y + 66
    if kind in "+*":
        for x, width, cell in zip((110, 560, 710, 900), (450, 150, 190, 230), rest.split("|"), strict=True):
            draw.rectangle((x, y, x + width, y + 48), outline=90, width=2)
            draw.text((x + 12, y + 10), cell.strip(), font=font(24, "VeraBd" if kind == "*" else "Vera"), fill=20)
        return y + 48
    if kind == "%":
        wave = [24 * math.sin(t / 4) * math.sin(t / 11 + len(rest)) + t / 9 for t in range(100)]
        draw.line([(160 + 3.4 * t, y + 54 - up) for t, up in enumerate(wave)], fill=45, width=4, joint="curve")
        draw.line((130, y + 88, 640, y + 88), fill=90, width=2)
        draw.text((130, y + 94), rest, font=font(19), fill=70)
        return y + 136
    if kind == "@":
        draw_stamp(page, rest.split(" | "))
        return y
    width = (1020 - 12 * (len(cells) - 1)) // len(cells)
    for i, cell in enumerate(cells):
        draw_field(draw, cell, (110 + i * (width + 12), y, width), rng)
    return y + 88


def draw_field(draw: ImageDraw.ImageDraw, cell: str, box: tuple[int, int, int], rng: np.random.Generator) -> None:
    """Draw one labelled field with its value."""
    left, top, width = box
    label, _, value = cell.partition(": ")
    draw.rectangle((left, top, left + width, top + 76), outline=90, width=2)
    draw.text((left + 10, top + 6), label, font=font(19), fill=70)
    by_hand = value.startswith("~")
    face, ink = (font(28, "VeraIt"), 40) if by_hand else (font(27), 15)
    x: float = left + 18
    for letter in value.removeprefix("~"):
        wobble = int(rng.integers(-2, 3)) if by_hand else 0
        draw.text((x, top + 33 + wobble), letter, font=face, fill=ink)
        x += face.getlength(letter)


def draw_ticks(draw: ImageDraw.ImageDraw, cells: list[str], y: int) -> None:
    """Draw a row of tick boxes."""
    for i, cell in enumerate(cells):
        x = 110 + 1020 * i // len(cells)
        draw.rectangle((x, y + 8, x + 30, y + 38), outline=60, width=3)
        if cell.startswith("[x]"):
            draw.line((x + 4, y + 20, x + 13, y + 36, x + 40, y - 4), fill=30, width=5)
        draw.text((x + 46, y + 10), cell[4:], font=font(22), fill=30)


def draw_stamp(page: Image.Image, words: list[str]) -> None:
    """Press a round rubber stamp on the page."""
    stamp = Image.new("L", (330, 330), 255)
    draw = ImageDraw.Draw(stamp)
    for inset, width in ((6, 7), (24, 3)):
        draw.ellipse((inset, inset, 330 - inset, 330 - inset), outline=95, width=width)
    for text, y, size in zip(words, (88, 136, 196, 236), (27, 42, 25, 22), strict=True):
        draw.text((165, y), text, font=font(size, "VeraBd"), fill=95, anchor="ma")
    stamp = stamp.rotate(11, resample=Image.Resampling.BICUBIC, fillcolor=255)
    box = (780, 860, 1110, 1190)
    page.paste(ImageChops.multiply(page.crop(box), stamp), box)  # ink below the stamp stays visible


def scanned(page: Image.Image, angle: float, rng: np.random.Generator) -> Image.Image:
    """Return the page as a scanner would see it: turned, shaded, a little soft and noisy."""
    turned = page.rotate(angle, resample=Image.Resampling.BICUBIC, fillcolor=255).filter(ImageFilter.GaussianBlur(0.6))
    ink = np.asarray(turned, dtype=np.float64)
    down, across = np.mgrid[0 : ink.shape[0], 0 : ink.shape[1]]
    shade = 0.955 - 0.035 * across / ink.shape[1] + 0.015 * np.sin(down / 410)
    return Image.fromarray(np.clip(ink * shade + rng.normal(0, 2.2, ink.shape), 0, 255).astype(np.uint8))
