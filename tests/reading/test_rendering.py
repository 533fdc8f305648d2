"""Image files -> pages, and what is refused by content or name. PDFs have their own module."""

from __future__ import annotations

import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen.errors import (
    DocumentError,
    MissingDependencyError,
    UnreadableDocumentError,
    UnsupportedDocumentError,
)
from llama_index_colqwen.images import encode_image
from llama_index_colqwen.pages import RenderedPage
from llama_index_colqwen.reading.rendering import DEFAULT_MAX_PIXELS, expected_pages, render_document
from tests.documents import (
    colour_name,
    corner_colours,
    encode,
    quadrants,
    write_huge_png,
    write_text_pdf,
)
from tests.reading.rendered import render_pages

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "GIF": {},
    "BMP": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}
ORIENTATION = 0x0112


def render(data: bytes, name: str, **options: Any) -> list[RenderedPage]:  # noqa: ANN401
    return list(render_pages(data, name, **options))


def render_one(image: Image.Image, image_format: str, **options: Any) -> Image.Image:  # noqa: ANN401
    (page,) = render(encode(image, image_format, **LOSSLESS[image_format], **options), f"x.{image_format.lower()}")
    assert page.image.mode == "RGB"
    return page.image


IMAGE_NAMES = "x.png x.jpg x.jpeg x.webp x.tif x.TIFF x.PNG x.gif x.bmp x.avif x.heic x.HEIF".split()


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_image_file_is_one_page_without_text(name: str) -> None:
    if name.lower().startswith("x.hei"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    image_format = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "heic": "HEIF"}.get(name[2:], name[2:].upper())
    options = LOSSLESS.get(image_format, {"quality": -1, "chroma": 444})  # pillow-heif's
    (page,) = render(encode(quadrants(), image_format, **options), name)
    assert (page.page_number, page.page_label, page.words, page.text) == (1, "1", [], "")
    assert page.image.size == (64, 48)
    assert corner_colours(page.image) == ["red", "green", "blue", "black"]


def test_heic_image_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingDependencyError, match=r"llama-index-colqwen\[heic\]"):
        render(b"\0\0\0\x1cftypheic" + bytes(20), "photo.heic")


def test_error_over_a_cut_heic_image_is_one_line() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = encode(quadrants(), "HEIF")
    with pytest.raises(UnreadableDocumentError) as raised:  # libheif's own words end with a line end
        render(data[:-1], "photo.heic")
    assert re.fullmatch(r"photo\.heic: page 1: the image is truncated or corrupt \(.*\)\.", str(raised.value))


def test_error_over_what_is_no_image_names_only_the_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"no image")
    for source in (path, path.read_bytes()):
        with pytest.raises(UnreadableDocumentError) as raised:
            list(render_pages(source, path.name))
        assert str(raised.value) == "photo.png: the image is truncated, corrupt, or none that is read."


def test_image_file_on_disk_and_its_bytes_are_the_same_page(tmp_path: Path) -> None:
    data = encode(quadrants(), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    (from_file,) = render_pages(tmp_path / "x.png", "x.png")
    assert from_file.image.tobytes() == render(data, "x.png")[0].image.tobytes()


def test_every_frame_of_a_tiff_is_a_page() -> None:
    frames = [Image.new("L", (64, 48), 255), quadrants((100, 200)), Image.new("1", (30, 30))]
    data = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    pages = render(data, "fax.tiff", max_pixels=10_000)
    assert [(page.page_number, page.page_label) for page in pages] == [(1, "1"), (2, "2"), (3, "3")]
    assert [page.image.size for page in pages] == [(64, 48), (70, 141), (30, 30)]
    assert [corner_colours(page.image)[0] for page in pages] == ["white", "red", "black"]
    assert [page.image.mode for page in pages] == ["RGB"] * 3


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_animation_is_one_page_its_first_frame(image_format: str) -> None:
    data = encode(
        Image.new("RGB", (64, 48), "white"), image_format, save_all=True, append_images=[quadrants(), quadrants()]
    )
    (page,) = render(data, f"x.{image_format.lower()}")
    assert colour_name(page.image, (3, 3)) == "white"


def half_red(mode: str, colour: Any, clear: Any) -> Image.Image:  # noqa: ANN401
    image = Image.new(mode, (64, 48), clear)
    image.paste(colour, (0, 0, 32, 48))
    return image


def palette_image() -> Image.Image:
    image = half_red("P", 1, 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


@pytest.mark.parametrize(
    ("image", "image_format", "options"),
    [
        pytest.param(half_red("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), "PNG", {}, id="rgba-png"),
        pytest.param(half_red("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), "WEBP", {}, id="rgba-webp"),
        pytest.param(half_red("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), "TIFF", {}, id="rgba-tiff"),
        pytest.param(palette_image(), "PNG", {"transparency": 0}, id="palette-one-transparent-colour"),
        pytest.param(palette_image(), "PNG", {"transparency": bytes([0, 255])}, id="palette-alpha-table"),
        pytest.param(half_red("RGB", (255, 0, 0), (1, 2, 3)), "PNG", {"transparency": (1, 2, 3)}, id="rgb-colour-key"),
    ],
)
def test_transparency_is_drawn_on_white(image: Image.Image, image_format: str, options: dict[str, Any]) -> None:
    assert corner_colours(render_one(image, image_format, **options)) == ["red", "white", "white", "red"]


@pytest.mark.parametrize(
    ("image", "options"),
    [
        pytest.param(half_red("LA", (0, 255), (0, 0)), {}, id="grey-alpha"),
        pytest.param(half_red("L", 0, 7), {"transparency": 7}, id="grey-key"),
        pytest.param(half_red("I;16", 0, 7), {"transparency": 7}, id="16-bit-grey-key"),
    ],
)
def test_transparent_grey_is_drawn_on_white(image: Image.Image, options: dict[str, Any]) -> None:
    assert corner_colours(render_one(image, "PNG", **options)) == ["black", "white", "white", "black"]


def test_half_transparent_red_is_pink() -> None:
    assert render_one(Image.new("RGBA", (9, 9), (255, 0, 0, 128)), "PNG").getpixel((4, 4)) == (255, 127, 127)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_rescaled_and_not_clipped(image_format: str) -> None:
    ramp = np.tile(np.array([0, 1000, 16448, 32896, 65535], dtype=np.uint16), (9, 1))
    image = render_one(Image.fromarray(ramp), image_format)
    assert [image.getpixel((x, 4)) for x in range(5)] == [(level,) * 3 for level in (0, 3, 64, 128, 255)]


def test_dark_16_bit_grey_stays_dark() -> None:
    image = render_one(Image.fromarray(np.full((9, 9), 1000, dtype=np.uint16)), "PNG")
    assert image.getextrema() == ((3, 3),) * 3


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("inks", "colour"),
    [((0, 0, 0, 0), "white"), ((0, 255, 255, 0), "red"), ((0, 0, 0, 255), "black"), ((255, 255, 0, 0), "blue")],
)
def test_cmyk_inks_become_colours(image_format: str, inks: tuple[int, ...], colour: str) -> None:
    assert colour_name(render_one(Image.new("CMYK", (32, 32), inks), image_format), (16, 16)) == colour


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})])
def test_1_bit_image_is_black_on_white(image_format: str, options: dict[str, Any]) -> None:
    image = half_red("1", 0, 1)
    assert corner_colours(render_one(image, image_format, **options)) == ["black", "white", "white", "black"]


UPRIGHT_CORNERS = {  # of a red, green, blue, black picture, clockwise from top left; by the EXIF specification
    1: ["red", "green", "blue", "black"],
    2: ["green", "red", "black", "blue"],
    3: ["blue", "black", "red", "green"],
    4: ["black", "blue", "green", "red"],
    5: ["red", "black", "blue", "green"],
    6: ["black", "red", "green", "blue"],
    7: ["blue", "green", "red", "black"],
    8: ["green", "blue", "black", "red"],
}


@pytest.mark.parametrize("max_pixels", [DEFAULT_MAX_PIXELS, 9_000, 1_000, 100])
@pytest.mark.parametrize("size", [(640, 480), (100, 101), (101, 100), (100, 100)])
@pytest.mark.parametrize(
    ("image_format", "orientation"),
    [*(("JPEG", orientation) for orientation in UPRIGHT_CORNERS), ("PNG", 6), ("WEBP", 8), ("TIFF", 6)],
)
def test_exif_orientation_is_applied_at_every_scale(
    image_format: str, orientation: int, size: tuple[int, int], max_pixels: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(quadrants(size), image_format, exif=exif, **LOSSLESS[image_format])
    (page,) = render(data, f"x.{image_format.lower()}", max_pixels=max_pixels)
    width, height = size if orientation < 5 else size[::-1]
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    assert abs(page.image.width - width * scale) <= 1 and abs(page.image.height - height * scale) <= 1
    assert page.image.width * page.image.height <= max_pixels
    assert corner_colours(page.image) == UPRIGHT_CORNERS[orientation]


@pytest.mark.parametrize("image_format", list(LOSSLESS))
def test_large_image_is_scaled_down_to_max_pixels_and_small_one_not_up(image_format: str) -> None:
    data = encode(quadrants((640, 480)), image_format, **LOSSLESS[image_format])
    name = f"x.{image_format.lower()}"
    assert render(data, name)[0].image.size == (640, 480)
    assert render(data, name, max_pixels=1200)[0].image.size == (40, 30)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_strip_keeps_one_pixel_and_stays_within_max_pixels(size: tuple[int, int]) -> None:
    (page,) = render(encode(Image.new("L", size), "PNG"), "strip.png", max_pixels=100)
    assert min(page.image.size) == 1
    assert page.image.width * page.image.height <= 100


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("empty.png", b"", id="empty-png"),
        pytest.param("empty.pdf", b"", id="empty-pdf"),
        pytest.param("note.pdf", b"Dear reader, this is a text.", id="text-named-pdf"),
        pytest.param("note.png", b"Dear reader, this is a text.", id="text-named-png"),
        pytest.param("picture.pdf", encode(quadrants(), "PNG"), id="png-named-pdf"),
        pytest.param("bitmap.png", encode(quadrants(), "PPM"), id="ppm-named-png"),
        pytest.param("cut.png", encode(quadrants(), "PNG")[:-60], id="truncated-png"),
        pytest.param("cut.jpg", encode(quadrants((300, 200)), "JPEG")[:1500], id="truncated-jpeg"),
        pytest.param("cut.webp", encode(quadrants(), "WEBP")[:-20], id="truncated-webp"),
        pytest.param("head.jpg", encode(quadrants(), "JPEG")[:20], id="jpeg-header-only"),
    ],
)
def test_broken_file_is_unreadable_and_named(name: str, data: bytes) -> None:
    with pytest.raises(UnreadableDocumentError) as raised:
        render(data, name)
    assert str(raised.value).startswith(f"{name}: ")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, on broken tags
@pytest.mark.parametrize("compression", [None, "group4"])
def test_tiff_cut_anywhere_is_unreadable_or_gives_whole_pages(compression: str | None) -> None:
    frames = [Image.new("1", (200, 150), 1), Image.new("1", (100, 80), 1)]
    data = encode(frames[0], "TIFF", compression=compression, save_all=True, append_images=frames[1:])
    step = max(1, len(data) // 400)
    for length in range(1, len(data), step):
        pages: list[RenderedPage] = []
        try:
            pages.extend(render_pages(data[:length], "fax.tiff"))
        except DocumentError as error:
            assert str(error).startswith("fax.tiff: ")
        assert [page.image.size for page in pages] == [frame.size for frame in frames][: len(pages)]


def test_pdf_named_png_says_what_to_rename_it_to(tmp_path: Path) -> None:
    data = write_text_pdf(tmp_path / "x.pdf", "Hello").read_bytes()
    with pytest.raises(UnreadableDocumentError, match=r"^scan\.png: .*PDF.*rename.*\.pdf"):
        render(data, "scan.png")


def test_jpeg_named_png_is_read() -> None:
    assert render(encode(quadrants(), "JPEG"), "x.png")[0].image.size == (64, 48)


@pytest.mark.parametrize("name", ["letter.pages", "notes.log", "archive", "page.svg"])
def test_unsupported_type_is_refused_by_name_with_what_is_supported(name: str) -> None:
    with pytest.raises(UnsupportedDocumentError, match=rf"^{name}: .*\.jpg.*\.pdf.*\.png.*\.tiff.*\.webp"):
        render(b"some content", name)


def test_missing_file_is_unreadable_and_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableDocumentError, match=r"^gone\.png: .*No such file"):
        list(render_pages(tmp_path / "gone.png", "gone.png"))


def test_decompression_bomb_is_refused_with_its_limit(tmp_path: Path) -> None:
    bomb = write_huge_png(tmp_path / "bomb.png", 60_000, 60_000, rows=1)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(UnreadableDocumentError, match=r"^bomb\.png: .*178 megapixels"):
        list(render_pages(bomb, bomb.name))


MEMORY = """
import json, sys
from pathlib import Path
from llama_index_colqwen.errors import UnreadableDocumentError
from tests.reading.rendered import render_pages

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

found = {}
for name in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = status("VmRSS")
    try:
        size = next(render_pages(Path(name), Path(name).name)).image.size
    except UnreadableDocumentError as error:
        size = None
    found[Path(name).stem] = size, status("VmHWM") - before
print(json.dumps(found))
"""

measures_memory = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)


@pytest.mark.slow
@measures_memory
def test_image_at_the_decoding_limit_is_within_the_pixel_target_and_bounded_memory(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    files = [
        write_huge_png(tmp_path / "over.png", 20_000, 9_000),
        write_huge_png(tmp_path / "under.png", 16_000, 11_000),
    ]
    found = json.loads(run_python(MEMORY, *files))
    for size, peak in found.values():
        assert size is None or size[0] * size[1] <= DEFAULT_MAX_PIXELS
        assert peak < 1.5e9
    assert found["under"][0] == [1749, 1202]


@pytest.mark.slow
@measures_memory
def test_decoding_takes_at_most_16_bytes_a_pixel_in_every_mode(tmp_path: Path, run_python: Callable[..., str]) -> None:
    side = 4000
    white = Image.new("L", (side, side), 255)
    images = {
        "bits": white.convert("1"),
        "colour": white.convert("RGB"),
        "transparent": white.convert("RGBA"),
        "grey16": Image.fromarray(np.full((side, side), 60_000, dtype=np.uint16)),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png", compress_level=1)
    found = json.loads(run_python(MEMORY, *(tmp_path / f"{name}.png" for name in images)))
    bytes_a_pixel = {name: round(peak / side**2, 1) for name, (_, peak) in found.items()}
    assert max(bytes_a_pixel.values()) <= 16, bytes_a_pixel


def test_reading_pages_alternately_leaves_the_warning_filters_as_they_were() -> None:
    data = encode(quadrants(), "TIFF", save_all=True, append_images=[quadrants()])
    before = list(warnings.filters)
    first, second = render_pages(data, "a.tiff"), render_pages(data, "b.tiff")
    next(first), next(second)
    assert warnings.filters == before, "between pages, the caller's own warnings are filtered differently"
    list(first), list(second)
    assert warnings.filters == before


def test_encoded_page_is_a_jpeg_of_the_same_size() -> None:
    encoded = encode_image(quadrants((640, 480)))
    with Image.open(io.BytesIO(encoded.data)) as image:
        assert (image.format, image.size, encoded.mimetype) == ("JPEG", (640, 480), "image/jpeg")
        assert corner_colours(image) == ["red", "green", "blue", "black"]


def test_pages_are_counted_before_they_are_drawn(tmp_path: Path) -> None:
    frames = [quadrants(), quadrants(), quadrants()]
    files = {
        "x.pdf": write_text_pdf(tmp_path / "x.pdf", "one", "two").read_bytes(),
        "x.tiff": encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "x.png": encode(quadrants(), "PNG"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        drawn = len(list(render_document(data, name)))
        assert expected_pages(data, name, "pdfium", None) == drawn
        assert expected_pages(tmp_path / name, name, "pdfium", None) == drawn


def test_what_cannot_be_counted_counts_as_the_page_that_its_error_stands_for(tmp_path: Path) -> None:
    encrypted = write_text_pdf(tmp_path / "x.pdf", "one", "two", password="geheim").read_bytes()
    for name, data in {
        "a.pdf": b"%PDF-1.7",
        "b.tiff": b"II*\0",
        "c.png": b"",
        "d.txt": b"x",
        "x.pdf": encrypted,
    }.items():
        assert expected_pages(data, name, "pdfium", None) == 1
    assert expected_pages(tmp_path / "gone.pdf", "gone.pdf", "pdfium", None) == 1
    assert expected_pages(encrypted, "x.pdf", "pdfium", "geheim") == 2
