"""A random generator -> a page with real text lines and drawn figures, and where those are.

Ten kinds of figures in six colours. Equal generators give equal pages. Knows nothing of models.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["COLOURS", "FIGURES", "KINDS", "Drawn", "DrawnPage", "Figure", "draw_page", "question"]

Figure: TypeAlias = tuple[str, str]
"""Colour and kind: ("red", "pie chart")."""

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_Colour: TypeAlias = tuple[int, int, int]
_Points: TypeAlias = list[tuple[float, float]]

COLOURS: dict[str, _Colour] = {
    "red": (205, 35, 40),
    "green": (35, 145, 65),
    "blue": (35, 85, 195),
    "orange": (240, 135, 20),
    "purple": (125, 50, 155),
    "black": (30, 30, 30),
}
_QUESTIONS = (
    "{figure}",
    "a {figure}",
    "the page with a {figure}",
    "which page has a {figure}?",
    "show me the {figure}",
    "find the page that shows a {figure}",
    "where is the {figure}?",
)
_WORDS = (
    "the of and to in a is that for it was on are as with his they at be this from have or by one had not but what all "
    "were when we there can an your which their said if will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over "
    "did down only way find use may water long little very after words called just where most know harbour report "
    "committee quarter measurement budget 2019 2024 12.5 340 17% section annual revenue method results discussion"
).split()


@dataclass(frozen=True)
class Drawn:
    """A figure on a page.

    Attributes:
        figure: Its colour and kind.
        box: Where it is, in pixels, its labels left out.
    """

    figure: Figure
    box: Box


@dataclass(frozen=True)
class DrawnPage:
    """A page.

    Attributes:
        image: RGB.
        figures: From top to bottom; none on a page of text.
    """

    image: Image.Image
    figures: list[Drawn]


def question(figure: Figure, rng: random.Random | None = None) -> str:
    """Ask for the page that has a figure; a generator chooses the words, without one they are "the page with a ..."."""
    words = _QUESTIONS[2] if rng is None else rng.choice(_QUESTIONS)
    return words.format(figure=" ".join(figure)).replace("a orange", "an orange")


def draw_page(rng: random.Random, figures: Sequence[Figure], size: tuple[int, int] = (392, 504)) -> DrawnPage:
    """Draw a page of so many pixels; figures lie below or beside each other, with text around them.

    There is room for three on a page of the usual size.
    """
    width, height = size
    image = Image.new("RGB", size, _jitter((250, 250, 247), rng, 5))
    sheet = _Sheet(image, rng)
    margin = rng.uniform(0.04, 0.09) * min(size)
    top = margin
    if rng.random() < 0.5:
        top = sheet.heading((margin, top, width - margin, height))
    slots = _slots(rng, len(figures), (margin, top, width - margin, height - margin))
    order = rng.sample(range(len(slots)), len(figures))
    figure_of = dict(zip(order, figures, strict=True))
    drawn = []
    for number, slot in enumerate(slots):
        if number in figure_of:
            drawn.append(Drawn(figure_of[number], sheet.figure(figure_of[number], slot)))
        else:
            sheet.text(slot)
    if rng.random() < 0.4:  # as smooth as what PDFs are rendered to
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    drawn.sort(key=lambda each: each.box[1])
    return DrawnPage(image, drawn)


def _slots(rng: random.Random, figures: int, area: Box) -> list[Box]:
    """Cut an area into rows, and some of them or a wide area into columns: a slot a figure, and some for text."""
    left, top, right, bottom = area
    width, height = right - left, bottom - top
    count = figures + rng.choice((0, 1, 1, 2) if figures < 3 else (0, 1))
    if not figures:
        count = rng.randint(1, 3)
    if count == 1:
        return [area]
    columns = 2 if width > 1.15 * height or (count >= 3 and rng.random() < 0.35) else 1
    rows = math.ceil(count / columns)
    cuts = [0.0]
    for share in (weights := [rng.uniform(0.8, 1.2) for _ in range(rows)]):
        cuts.append(cuts[-1] + share / sum(weights))
    middle = rng.uniform(0.45, 0.55) if columns == 2 else 1.0
    sides = [(left, left + middle * width)] + ([(left + middle * width + 0.03 * width, right)] if columns == 2 else [])
    return [
        (side[0], top + height * cuts[row], side[1], top + height * cuts[row + 1])
        for row in range(rows)
        for side in sides
    ]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _jitter(colour: Sequence[float], rng: random.Random, spread: int) -> _Colour:
    red, green, blue = (int(min(255, max(0, part + rng.randint(-spread, spread)))) for part in colour)
    return red, green, blue


def _tint(colour: _Colour, strength: float) -> _Colour:
    red, green, blue = (int(255 - (255 - part) * strength) for part in colour)
    return red, green, blue


class _Sheet:
    """What is drawn on: a page's image."""

    def __init__(self, image: Image.Image, rng: random.Random) -> None:
        self.image = image
        self.pen = ImageDraw.Draw(image)
        self.rng = rng
        self.size = rng.choice((8, 9, 10, 11, 12)) if min(image.size) > 250 else rng.choice((8, 9, 10))
        self.ink = _jitter((60, 60, 62), rng, 35)

    # ---- text

    def line(self, place: tuple[float, float], width: float, size: int, ink: _Colour) -> None:
        """Write words until the width is full."""
        font, text = _font(size), ""
        room = max(1, int(width / (0.52 * size)))
        while len(text) < room:
            text += self.rng.choice(_WORDS) + " "
        self.pen.text(place, text[:room].strip(), fill=ink, font=font)

    def heading(self, area: Box) -> float:
        """Write a heading, sometimes coloured, with a rule below; return where the rest begins."""
        left, top, right, _ = area
        size = int(self.size * self.rng.uniform(1.4, 2))
        ink = self.ink if self.rng.random() < 0.6 else _jitter(self.rng.choice(list(COLOURS.values())), self.rng, 20)
        self.line((left, top), (right - left) * self.rng.uniform(0.3, 0.9), size, ink)
        below = top + 1.5 * size
        if self.rng.random() < 0.4:
            self.pen.line([(left, below), (right, below)], fill=ink, width=self.rng.choice((1, 1, 2)))
        return below + 0.5 * size

    def text(self, slot: Box) -> None:
        """Fill a slot with paragraphs, or some of it."""
        left, top, right, bottom = slot
        bottom -= 0.5 * self.size
        bottom = top + (bottom - top) * self.rng.choice((1, 1, 0.6))
        if self.rng.random() < 0.25:
            top = self.heading(slot)
        step = self.size * self.rng.uniform(1.2, 1.7)
        while top + self.size < bottom:
            last = self.rng.random() < 0.15
            self.line((left, top), (right - left) * (self.rng.uniform(0.3, 0.9) if last else 1), self.size, self.ink)
            top += step * (1.8 if last else 1)

    # ---- figures

    def figure(self, figure: Figure, slot: Box) -> Box:
        """Draw a figure somewhere in a slot, sometimes with a caption; return its box."""
        colour_name, kind = figure
        rng = self.rng
        left, top, right, bottom = slot
        label = 1.6 * self.size
        top, bottom = top + 0.03 * (bottom - top), bottom - 0.04 * (bottom - top)
        if rng.random() < 0.35 and bottom - top > 6 * label:
            bottom -= label
            self.line((left, bottom + 0.2 * label), (right - left) * rng.uniform(0.3, 0.8), self.size, self.ink)
        if kind in _WITH_AXES:
            left, bottom = left + 1.2 * label, bottom - 0.8 * label
        room_x, room_y = right - left, bottom - top
        height = room_y * rng.uniform(0.65, 1)
        width = min(room_x * rng.uniform(0.55, 1), height * rng.uniform(*_SHAPE.get(kind, (0.9, 2.2))))
        height = min(height, width * 1.4)
        x = left + rng.random() * (room_x - width)
        y = top + rng.random() * (room_y - height)
        box = (x, y, x + width, y + height)
        colour = _tint(_jitter(COLOURS[colour_name], rng, 18), rng.uniform(0.8, 1))
        if kind in _WITH_AXES:
            self.axes(box)
        _DRAW[kind](self, box, colour)
        return box

    def axes(self, box: Box) -> None:
        """Draw axes, sometimes a grid and numbers."""
        rng, (left, top, right, bottom) = self.rng, box
        grey = _jitter((80, 80, 80), rng, 40)
        if rng.random() < 0.5:
            for row in range(rows := rng.randint(3, 6)):
                y = top + (bottom - top) * row / rows
                self.pen.line([(left, y), (right, y)], fill=(215, 215, 215), width=1)
        if rng.random() < 0.6:
            size = max(7, self.size - 2)
            for row in range(count := rng.randint(2, 5)):
                y = top + (bottom - top) * row / count
                self.pen.text((left - 1.7 * size, y), str(rng.randint(1, 99)), fill=grey, font=_font(size))
                x = left + (right - left) * (row + 0.3) / count
                self.pen.text((x, bottom + 3), str(rng.randint(1, 99)), fill=grey, font=_font(size))
        frame = [(left, top), (left, bottom), (right, bottom)]
        if rng.random() < 0.25:
            frame += [(right, top), (left, top)]
        self.pen.line(frame, fill=grey, width=rng.choice((1, 1, 2)))

    def bar_chart(self, box: Box, colour: _Colour) -> None:
        rng, (left, top, right, bottom) = self.rng, box
        count, lying = rng.randint(3, 8), rng.random() < 0.25
        fill, outline = rng.uniform(0.5, 0.9), rng.choice((None, None, None, self.ink))
        long = (right - left) if lying else (bottom - top)
        step = ((bottom - top) if lying else (right - left)) / count
        for number in range(count):
            begin = (number + (1 - fill) / 2) * step
            length = long * rng.uniform(0.2, 0.98)
            bar = (left, top + begin, left + length, top + begin + fill * step)
            if not lying:
                bar = (left + begin, bottom - length, left + begin + fill * step, bottom)
            self.pen.rectangle(bar, fill=colour, outline=outline)

    def pie_chart(self, box: Box, colour: _Colour) -> None:
        rng, circle = self.rng, _square(box)
        cuts = sorted(rng.uniform(0, 360) for _ in range(rng.randint(2, 5)))
        strengths = [0.4 + 0.6 * number / (len(cuts) - 1) for number in range(len(cuts))]
        for start, end, strength in zip(cuts, cuts[1:] + [cuts[0] + 360], strengths, strict=True):
            self.pen.pieslice(circle, start, end, fill=_tint(colour, strength), outline="white", width=2)
        if rng.random() < 0.2:  # a ring
            left, top, right, bottom = circle
            part = rng.uniform(0.28, 0.36) * (right - left)
            self.pen.ellipse((left + part, top + part, right - part, bottom - part), fill="white")

    def line_chart(self, box: Box, colour: _Colour) -> None:
        rng, (left, top, right, bottom) = self.rng, box
        for number in range(rng.choice((1, 1, 2))):
            count, level, points = rng.randint(5, 14), rng.uniform(0.2, 0.8), []
            for step in range(count):
                level = min(0.97, max(0.03, level + rng.uniform(-0.3, 0.3)))
                points.append((left + (right - left) * step / (count - 1), bottom - (bottom - top) * level))
            shade = _tint(colour, 1 - 0.35 * number)
            self.pen.line(points, fill=shade, width=rng.choice((1, 2, 3, 4)), joint="curve")
            if rng.random() < 0.3:
                for x, y in points:
                    self.pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=shade)

    def scatter_plot(self, box: Box, colour: _Colour) -> None:
        rng, (left, top, right, bottom) = self.rng, box
        radius, slope, spread = rng.uniform(2, 4), rng.choice((-1, 0, 1)), rng.uniform(0.1, 0.3)
        for _ in range(rng.randint(20, 60)):
            along = rng.random()
            across = rng.random() if slope == 0 else 0.5 + slope * (along - 0.5) + rng.gauss(0, spread)
            x = left + (right - left) * (0.03 + 0.94 * along)
            y = bottom - (bottom - top) * min(0.97, max(0.03, across))
            self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def table(self, box: Box, colour: _Colour) -> None:
        rng, (left, top, right, bottom) = self.rng, box
        size = max(7, min(self.size, int((bottom - top) / 5)))
        rows = max(3, min(10, int((bottom - top) / (size * rng.uniform(1.6, 2.4)))))
        columns = max(2, min(6, int((right - left) / (size * rng.uniform(3.5, 6)))))
        row_height, column_width = (bottom - top) / rows, (right - left) / columns
        striped = rng.random() < 0.4
        for row in range(rows):
            y = top + row * row_height
            if row == 0 or (striped and row % 2 == 0):
                fill = colour if row == 0 else _tint(colour, 0.15)
                self.pen.rectangle((left, y, right, y + row_height), fill=fill)
            for column in range(columns):
                text = rng.choice(_WORDS)[:6] if row == 0 or column == 0 else str(rng.randint(1, 9999))
                place = (left + (column + 0.12) * column_width, y + (row_height - size) / 2 - 1)
                self.pen.text(place, text, fill="white" if row == 0 else self.ink, font=_font(size))
        lines = [[(left, top + row * row_height), (right, top + row * row_height)] for row in range(rows + 1)]
        if rng.random() < 0.7:
            lines += [
                [(left + number * column_width, top), (left + number * column_width, bottom)]
                for number in range(columns + 1)
            ]
        for line in lines:
            self.pen.line(line, fill=colour, width=1)

    def map(self, box: Box, colour: _Colour) -> None:
        """Land with borders, and places named on it."""
        rng, (left, top, right, bottom) = self.rng, box
        width, height = right - left, bottom - top
        if rng.random() < 0.5:
            self.pen.rectangle(box, fill=(232, 238, 244), outline=(170, 170, 170))
        outline = _tint(colour, 0.95)
        columns, rows = rng.randint(2, 3), rng.randint(2, 3)

        def corner(column: int, row: int) -> tuple[float, float]:
            return (
                left + width * min(0.97, max(0.03, (column + rng.uniform(-0.22, 0.22)) / columns)),
                top + height * min(0.97, max(0.03, (row + rng.uniform(-0.22, 0.22)) / rows)),
            )

        corners = [[corner(column, row) for column in range(columns + 1)] for row in range(rows + 1)]
        across = [
            [_ragged(rng, corners[row][column], corners[row][column + 1]) for column in range(columns)]
            for row in range(rows + 1)
        ]
        down = [
            [_ragged(rng, corners[row][column], corners[row + 1][column]) for column in range(columns + 1)]
            for row in range(rows)
        ]
        for row in range(rows):
            for column in range(columns):
                border = across[row][column] + down[row][column + 1] + across[row + 1][column][::-1]
                border += down[row][column][::-1]
                self.pen.polygon(border, fill=_tint(colour, rng.uniform(0.3, 0.8)))
                self.pen.line([*border, border[0]], fill=outline, width=rng.choice((1, 2)))
        for _ in range(rng.randint(1, 5)):
            x, y = left + width * rng.uniform(0.15, 0.75), top + height * rng.uniform(0.15, 0.8)
            self.pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(40, 40, 40))
            self.pen.text((x + 4, y - 4), rng.choice(_WORDS)[:7], fill=(40, 40, 40), font=_font(max(7, self.size - 2)))

    def photo(self, box: Box, colour: _Colour) -> None:
        """Soft spots of light and shade, and grain, without a blank place."""
        rng = self.rng
        left, top, right, bottom = map(int, box)
        noise = np.random.default_rng(rng.getrandbits(32))
        width, height = max(2, right - left), max(2, bottom - top)
        light = noise.normal(0, 1, (rng.randint(3, 8), rng.randint(3, 8)))
        spots = np.asarray(Image.fromarray(light.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        tones = np.asarray(colour, dtype=np.float32) + rng.uniform(35, 60) * spots[..., None]
        tones = tones + rng.uniform(3, 12) * noise.normal(0, 1, (height, width, 1))
        self.image.paste(Image.fromarray(np.clip(tones, 0, 255).astype(np.uint8)), (left, top))

    def flow_diagram(self, box: Box, colour: _Colour) -> None:
        """Boxes with words in them, and arrows from one to the next."""
        rng, (left, top, right, bottom) = self.rng, box
        lying = right - left > bottom - top
        count = rng.randint(2, 4)
        step = ((right - left) if lying else (bottom - top)) / (count - 0.35)
        breadth = (bottom - top) if lying else (right - left)
        filled, width = rng.random() < 0.4, rng.choice((2, 3))
        before: tuple[float, float] | None = None
        for number in range(count):
            begin, thick = number * step, breadth * rng.uniform(0.4, 0.65)
            aside = rng.uniform(0, breadth - thick)
            cell = (left + aside, top + begin, left + aside + thick, top + begin + 0.65 * step)
            if lying:
                cell = (left + begin, top + aside, left + begin + 0.65 * step, top + aside + thick)
            near = (cell[0], (cell[1] + cell[3]) / 2) if lying else ((cell[0] + cell[2]) / 2, cell[1])
            far = (cell[2], near[1]) if lying else (near[0], cell[3])
            fill = _tint(colour, 0.2) if filled else None
            self.pen.rounded_rectangle(cell, rng.choice((0, 0, 6)), fill=fill, outline=colour, width=width)
            size = max(7, self.size - 1)
            room = max(1, int((cell[2] - cell[0]) / (0.6 * size)) - 1)
            place = ((cell[0] + cell[2]) / 2, (cell[1] + cell[3]) / 2)
            self.pen.text(place, rng.choice(_WORDS)[:room], fill=self.ink, font=_font(size), anchor="mm")
            if before is not None:
                self.pen.line([before, near], fill=colour, width=width)
                angle = math.atan2(near[1] - before[1], near[0] - before[0])
                wings = [(near[0] - 8 * math.cos(angle + a), near[1] - 8 * math.sin(angle + a)) for a in (-0.5, 0.5)]
                self.pen.polygon([near, *wings], fill=colour)
            before = far

    def signature(self, box: Box, colour: _Colour) -> None:
        """A pen's loops over a line to sign on."""
        rng, (left, top, right, bottom) = self.rng, box
        width, height = right - left, bottom - top
        turns, phase, lean = rng.uniform(4, 8), rng.uniform(0, 6), rng.uniform(0.03, 0.08)
        points = []
        for step in range(steps := 70):
            along = step / steps
            swing = (0.55 + 0.45 * math.sin(phase + 9 * along)) * (1 - 0.6 * along)
            angle = 2 * math.pi * turns * along
            x = left + width * (0.06 + 0.86 * along + lean * math.sin(angle + 1))
            y = top + height * (0.45 + 0.38 * swing * math.cos(angle) * (1 if along > 0.12 else 1.2))
            points.append((x, y))
        self.pen.line(points, fill=colour, width=rng.choice((1, 2, 2, 3)), joint="curve")
        self.pen.line([(left, bottom - 1), (right, bottom - 1)], fill=(140, 140, 140), width=1)

    def stamp(self, box: Box, colour: _Colour) -> None:
        """Two rings, a word across them, and marks between them."""
        rng, (left, top, right, bottom) = self.rng, _square(box)
        side, middle = right - left, ((left + right) / 2, (top + bottom) / 2)
        width = max(2, int(side / rng.uniform(22, 34)))
        self.pen.ellipse((left, top, right, bottom), outline=colour, width=width)
        inner = side * rng.uniform(0.13, 0.18)
        self.pen.ellipse((left + inner, top + inner, right - inner, bottom - inner), outline=colour, width=width)
        for number in range(marks := rng.randint(14, 24)):
            angle, radius = 2 * math.pi * number / marks, side / 2 - inner / 2
            x, y = middle[0] + radius * math.cos(angle), middle[1] + radius * math.sin(angle)
            self.pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=colour)
        size = max(7, int(side / 6.5))
        word = rng.choice(("PAID", "COPY", "VOID", "SEEN", "1987", "FILED"))
        self.pen.text(middle, word, fill=colour, font=_font(size), anchor="mm")


def _ragged(rng: random.Random, start: tuple[float, float], end: tuple[float, float]) -> _Points:
    """Return a border from one place to another, its end left out."""
    points = []
    span = math.dist(start, end)
    for step in range(6):
        part, swing = step / 6, 0.05 * span if step else 0.0
        points.append(
            (
                start[0] + (end[0] - start[0]) * part + rng.uniform(-swing, swing),
                start[1] + (end[1] - start[1]) * part + rng.uniform(-swing, swing),
            )
        )
    return points


def _square(box: Box) -> Box:
    left, top, right, bottom = box
    half, x, y = min(right - left, bottom - top) / 2, (left + right) / 2, (top + bottom) / 2
    return x - half, y - half, x + half, y + half


_WITH_AXES = ("bar chart", "line chart", "scatter plot")
_SHAPE = {"pie chart": (0.9, 1.1), "stamp": (0.9, 1.1), "signature": (2.0, 3.5)}  # width to height
_DRAW: dict[str, Callable[[_Sheet, Box, _Colour], None]] = {
    "bar chart": _Sheet.bar_chart,
    "pie chart": _Sheet.pie_chart,
    "line chart": _Sheet.line_chart,
    "scatter plot": _Sheet.scatter_plot,
    "table": _Sheet.table,
    "map": _Sheet.map,
    "photo": _Sheet.photo,
    "flow diagram": _Sheet.flow_diagram,
    "signature": _Sheet.signature,
    "stamp": _Sheet.stamp,
}

KINDS: tuple[str, ...] = tuple(_DRAW)
FIGURES: tuple[Figure, ...] = tuple((colour, kind) for kind in KINDS for colour in COLOURS)
