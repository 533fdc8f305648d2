"""Embeddings of tiny real models, compared with colpali-engine's own and with what can be known by hand."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import pickle
import queue
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import QueryBundle
from PIL import ExifTags, Image, ImageOps

from llama_index_colqwen import (
    ColQwenIndex,
    EmbedderFingerprint,
    FingerprintMismatchError,
    InvalidOptionError,
    ModelError,
    MultiVector,
    MultiVectorEmbedder,
    Page,
    PDFPageReader,
    QueryError,
    UnreadableDocumentError,
)
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.colqwen.families import FAMILIES
from llama_index_colqwen.embedders.colqwen.preprocessing import PreparedPage, cap_visual_tokens, prepare_page
from llama_index_colqwen.embedders.devices import Replica
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.late_interaction.multivectors import PageVectors
from llama_index_colqwen.nodes import page_from_node
from tests.checkpoints import ARCHITECTURES
from tests.documents import encode, write_huge_png
from tests.extras import needs_colqwen, torch
from tests.fakes import make_page
from tests.forks import in_fork, needs_fork

# colpali-engine's own way into ColPali makes numpy arrays of tensors, which torch does not do as numpy 2 asks for.
pytestmark = [
    needs_colqwen,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

Embedders: TypeAlias = Callable[..., ColQwenEmbedder]

FAMILY = {family.model: family for family in FAMILIES}
DYNAMIC = [name for name in ARCHITECTURES if FAMILY[name].layout == "dynamic"]
FIXED = [name for name in ARCHITECTURES if FAMILY[name].layout != "dynamic"]
TILED = [name for name in ARCHITECTURES if FAMILY[name].layout == "tiles"]
PREFIXED = {"ColQwen2", "ColQwen2_5", "ColPali", "ColIdefics3"}

every_family = pytest.mark.parametrize("name", ARCHITECTURES)

SIZES = {
    "portrait": (360, 500),
    "landscape": (500, 360),
    "small": (300, 200),
    "dot": (1, 1),
    "column": (1, 5000),
    "strip": (20000, 30),
}


@pytest.fixture(scope="session")
def embedders(checkpoint: Callable[[str], Path]) -> Embedders:
    """Load each embedder once."""
    loaded: dict[tuple[object, ...], ColQwenEmbedder] = {}

    def load(name: str, **options: Any) -> ColQwenEmbedder:  # noqa: ANN401 - passed on
        key = (name, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = ColQwenEmbedder(checkpoint(name), device="cpu", **options)
        return loaded[key]

    return load


@pytest.fixture
def qwen(embedders: Embedders) -> ColQwenEmbedder:
    return embedders("ColQwen2")


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Draw squares of random colours: what is seen of them is left when they are scaled."""
    width, height = size
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.NEAREST)


def page_of(image: Image.Image, name: str = "page", number: int = 1) -> Page:
    return dataclasses.replace(make_page(name, number=number), image=encode(image, "PNG", compress_level=1))


def all_sizes() -> list[Page]:
    return [page_of(noise(size, seed), name) for seed, (name, size) in enumerate(SIZES.items())]


@pytest.fixture(scope="session")
def alone(embedders: Embedders) -> Callable[[str], list[MultiVector]]:
    """Embed a page of every size by itself."""
    made: dict[str, list[MultiVector]] = {}

    def embed(name: str) -> list[MultiVector]:
        if name not in made:
            made[name] = [embedders(name).embed_pages([page])[0] for page in all_sizes()]
        return made[name]

    return embed


def assert_same(one: list[MultiVector], other: list[MultiVector], atol: float = 1e-5) -> None:
    assert len(one) == len(other)
    for vectors, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(vectors, expected, atol=atol)


def prepared(embedder: ColQwenEmbedder, page: Page) -> PreparedPage:
    return prepare_page(page, embedder._processor, embedder._family)


# ---- colpali-engine


class Engine:
    """colpali-engine called as its README says."""

    def __init__(self, folder: Path, name: str) -> None:
        models = importlib.import_module("colpali_engine.models")
        self.model = getattr(models, name).from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = getattr(models, FAMILY[name].processor).from_pretrained(folder)

    def run(self, inputs: Any) -> list[Any]:  # noqa: ANN401 - torch tensors
        with torch.no_grad():
            return list(torch.unbind(self.model(**inputs)))

    def pages(self, *images: Image.Image) -> list[Any]:
        return self.run(self.processor.process_images(list(images)))

    def queries(self, *queries: str) -> list[Any]:
        return self.run(self.processor.process_queries(list(queries)))


@pytest.fixture(scope="session")
def engine(checkpoint: Callable[[str], Path]) -> Callable[[str], Engine]:
    loaded: dict[str, Engine] = {}

    def load(name: str) -> Engine:
        if name not in loaded:
            loaded[name] = Engine(checkpoint(name), name)
        return loaded[name]

    return load


@every_family
def test_pages_queries_and_scores_are_those_of_colpali_engine(
    name: str, embedders: Embedders, engine: Callable[[str], Engine]
) -> None:
    ours, theirs = embedders(name), engine(name)
    images = [noise((300, 200), seed) for seed in (0, 1)]  # of one size: there they need no padding
    pages = [page_of(image) for image in images]
    inputs = prepared(ours, pages[0]).inputs
    expected = theirs.processor.process_images(images[:1])
    for key in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(inputs[key], expected[key].reshape(inputs[key].shape))

    their_pages = theirs.pages(*images)
    our_pages = ours.embed_pages(pages)
    for page, vectors, rows in zip(pages, our_pages, their_pages, strict=True):
        order = prepared(ours, page).order
        assert (order is not None) == (name in TILED)
        np.testing.assert_allclose(vectors, rows.numpy() if order is None else rows.numpy()[order], atol=1e-5)
        assert order is None or sorted(order) == list(range(len(rows)))

    queries = ["Which sensor drifted least?", "x"]
    prefix = "Query: " if name in PREFIXED else ""
    assert ours.query_prefix == prefix
    bare = embedders(name, query_prefix="")
    for query in queries:
        assert_same(ours.embed_queries([query]), [theirs.queries(prefix + query)[0].numpy()])
        assert_same(bare.embed_queries([query]), [theirs.queries(query)[0].numpy()])

    their_queries = [theirs.queries(prefix + query)[0] for query in queries]
    scores = theirs.processor.score_multi_vector(their_queries, their_pages, device="cpu").numpy()
    our_scores = [[maxsim(query, page) for page in our_pages] for query in ours.embed_queries(queries)]
    np.testing.assert_allclose(our_scores, scores, atol=1e-4)


def test_a_larger_neighbour_changes_a_score_in_colpali_engine_and_not_here(
    qwen: ColQwenEmbedder, engine: Callable[[str], Engine]
) -> None:
    theirs = engine("ColQwen2")
    small, large = noise((140, 112)), noise((360, 500), 1)
    [ours_alone], ours_beside = (
        qwen.embed_pages([page_of(small)]),
        qwen.embed_pages([page_of(small), page_of(large)])[0],
    )
    [theirs_alone], theirs_beside = theirs.pages(small), theirs.pages(small, large)[0]
    # A query that is as far from one of the page's rows as from the next: of 33 rows in 64 dims there is one.
    away = np.linalg.lstsq(ours_alone.astype(np.float64), -np.ones(len(ours_alone)), rcond=None)[0]
    query = (away / np.linalg.norm(away)).astype(np.float32)[None]
    expected = float((ours_alone @ query[0]).max())
    assert expected < -0.01

    def their_score(page: Any) -> float:  # noqa: ANN401 - torch.Tensor
        return float(theirs.processor.score_multi_vector([torch.from_numpy(query)], [page], device="cpu")[0, 0])

    assert maxsim(query, ours_alone) == pytest.approx(expected, abs=1e-4)
    assert maxsim(query, ours_beside) == pytest.approx(expected, abs=1e-4)
    assert their_score(theirs_alone) == pytest.approx(expected, abs=1e-4)
    assert their_score(theirs_beside) == 0  # of a row of padding
    assert len(theirs_beside) > len(ours_beside) == len(theirs_alone)


# ---- rows


@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_float32_units_without_padding(
    name: str, dtype: str, embedders: Embedders, alone: Callable[[str], list[MultiVector]]
) -> None:
    embedder = embedders(name, dtype=dtype)
    assert isinstance(embedder, MultiVectorEmbedder)
    # Of different sizes, so that there is padding to strip.
    pages = [page for page in all_sizes() if page.page_id in {"column", "small"}]
    vectors = embedder.embed_pages(pages) if dtype == "bfloat16" else alone(name)
    if dtype == "bfloat16":
        assert [len(rows) for rows in vectors] == [prepared(embedder, page).num_tokens for page in pages]
    for rows in (*vectors, *embedder.embed_queries(["x", "Which sensor drifted least, and why?"])):
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert rows.shape[1] == embedder.dim == embedder.fingerprint.dim
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_bfloat16_rows_are_near_those_of_float32(
    embedders: Embedders, alone: Callable[[str], list[MultiVector]]
) -> None:
    [half] = embedders("ColQwen2", dtype="bfloat16").embed_pages(all_sizes()[:1])
    assert (half * alone("ColQwen2")[0]).sum(axis=1).mean() > 0.98


# ---- batches


@every_family
def test_pages_do_not_depend_on_the_batch_they_are_made_in(
    name: str, checkpoint: Callable[[str], Path], alone: Callable[[str], list[MultiVector]]
) -> None:
    pages, expected = all_sizes(), alone(name)
    for batch_size in {"ColQwen2": (2, 3, 4, 5, 6, 7, 8)}.get(name, (4,) if name in TILED else (8, 4)):
        embedder = ColQwenEmbedder(checkpoint(name), device="cpu", batch_size=batch_size)
        order = np.random.default_rng(batch_size).permutation(len(pages))
        made = embedder.embed_pages([pages[position] for position in order])
        assert_same(made, [expected[position] for position in order])


def test_stream_gives_every_page_once_with_the_vectors_it_has_alone(
    checkpoint: Callable[[str], Path], alone: Callable[[str], list[MultiVector]]
) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", batch_size=2)
    pages = all_sizes() * 3
    made = [(page.page_id, vectors) for page, vectors in embedder.stream_pages(iter(pages))]
    assert sorted(name for name, _ in made) == sorted(page.page_id for page in pages)
    expected = dict(zip(SIZES, alone("ColQwen2"), strict=True))
    assert_same([vectors for _, vectors in made], [expected[name] for name, _ in made])


@every_family
def test_queries_do_not_depend_on_the_batch_they_are_made_in(name: str, embedders: Embedders) -> None:
    embedder = embedders(name)
    queries = [f"{'annual ' * (number % 9)}revenue of {number * 37}" for number in range(40)]
    together = embedder.embed_queries(queries)
    shown = range(0, 40, 3)
    assert_same([together[number] for number in shown], [embedder.embed_queries([queries[n]])[0] for n in shown])
    assert_same(embedder.embed_queries(queries[::-1])[::-1], together)


def test_nothing_gives_nothing(qwen: ColQwenEmbedder) -> None:
    assert qwen.embed_pages([]) == qwen.embed_queries([]) == list(qwen.stream_pages([])) == []


# ---- the patch grid

BLOCKS = {"top right": (0.7, 0.05, 0.95, 0.2), "bottom left": (0.05, 0.75, 0.2, 0.95)}
"""Left, top, right, bottom, as fractions of the page."""


@every_family
@pytest.mark.parametrize("size", [(700, 1000), (900, 400)], ids=["portrait", "landscape"])
def test_patch_grid_says_where_on_the_page_each_row_looks(
    name: str, size: tuple[int, int], embedders: Embedders
) -> None:
    # Noise on noise: what the tiny models see is contrast, and blank patches would look at whatever is not blank.
    before = noise(size, 1)
    pages = [page_of(before)]
    for left, top, right, bottom in BLOCKS.values():
        after, corner = before.copy(), (round(left * size[0]), round(top * size[1]))
        after.paste(noise((round((right - left) * size[0]), round((bottom - top) * size[1])), 9), corner)
        pages.append(page_of(after))
    unchanged, *changed = embedders(name).embed_pages(pages)
    for vectors, (left, top, right, bottom) in zip(changed, BLOCKS.values(), strict=True):
        assert isinstance(vectors, PageVectors)
        grid = vectors.patch_grid
        assert grid is not None
        patches = slice(grid.start, grid.start + grid.rows * grid.columns)
        change = np.linalg.norm(np.asarray(vectors) - np.asarray(unchanged), axis=1)[patches]
        rows, columns = np.divmod(np.arange(len(change)), grid.columns)
        # A patch at the block's edge sees it as well.
        within = (
            ((columns + 1) / grid.columns > left)
            & (columns / grid.columns < right)
            & ((rows + 1) / grid.rows > top)
            & (rows / grid.rows < bottom)
        )
        most = np.argsort(change)[::-1][: within.sum() // 2]
        # One patch in twelve is within. ColQwen3_5 mixes each with the three before it, ColQwen2_5 looks in windows.
        assert within[most].mean() >= (0.8 if name in {"ColQwen2_5", "ColQwen3_5"} else 1)
        assert change[within].mean() > 5 * change[~within].mean()


@every_family
def test_patch_grid_covers_all_patches_of_pages_of_any_shape(
    name: str, embedders: Embedders, alone: Callable[[str], list[MultiVector]]
) -> None:
    embedder = embedders(name)
    image_token = embedder._processor.tokenizer.convert_tokens_to_ids(embedder._processor.image_token)
    for page, vectors in zip(all_sizes(), alone(name), strict=True):
        made = prepared(embedder, page)
        assert isinstance(vectors, PageVectors)
        assert vectors.patch_grid == (grid := made.patch_grid)
        ids = made.inputs["input_ids"][0].numpy()
        ids = ids if made.order is None else ids[made.order]
        patches = ids[grid.start : grid.start + grid.rows * grid.columns]
        assert len(vectors) == len(ids)
        assert (patches == image_token).all()
        # Tiled models see the whole page once more, in 64 patches, where they have cut it up.
        rest = int((ids == image_token).sum()) - len(patches)
        assert rest == (64 if name in TILED and len(patches) > 64 else 0)


def test_slices_and_pooled_pages_have_no_patch_grid(embedders: Embedders) -> None:
    [page] = embedders("ColQwen2").embed_pages([page_of(noise((300, 200)))])
    assert isinstance(page, PageVectors)
    assert page.patch_grid is not None
    for derived in (page[2:], page[:], page + 0, page.copy(), page.astype(np.float32)):
        assert getattr(derived, "patch_grid", None) is None
    [pooled] = embedders("ColQwen2", pool_factor=3).embed_pages([page_of(noise((300, 200)))])
    assert getattr(pooled, "patch_grid", None) is None


# ---- visual tokens


def test_letter_page_has_as_many_tokens_as_with_the_published_model(qwen: ColQwenEmbedder) -> None:
    # 1275 x 1650 scaled to 768 squares of 28 pixels: 24 x 31
    made = prepared(qwen, page_of(Image.new("L", (1275, 1650), "white")))
    assert (made.patch_grid.rows, made.patch_grid.columns) == (31, 24)
    assert qwen.max_visual_tokens == 768


def lengths(most: int = 4000) -> st.SearchStrategy[int]:
    """Draw lengths of every magnitude."""
    return st.floats(0, float(np.log(most))).map(lambda exponent: round(np.exp(exponent)))


@pytest.fixture(scope="session")
def processors(embedders: Embedders) -> Callable[[str, int], Any]:
    """Return a family's processor with a cap of its own."""
    made: dict[tuple[str, int], Any] = {}

    def get(name: str, cap: int) -> Any:  # noqa: ANN401 - an optional package's type
        if (name, cap) not in made:
            made[name, cap] = copy.deepcopy(embedders(name)._processor)
            assert cap_visual_tokens(made[name, cap], FAMILY[name], cap, name) == cap
        return made[name, cap]

    return get


@pytest.mark.parametrize("name", DYNAMIC)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=lengths(), height=lengths())
def test_no_page_has_more_visual_tokens_than_768_and_its_shape_is_kept(
    name: str, width: int, height: int, processors: Callable[[str, int], Any]
) -> None:
    grid = prepare_page(page_of(Image.new("L", (width, height))), processors(name, 768), FAMILY[name]).patch_grid
    assert grid.rows * grid.columns <= 768
    # Sides are rounded to whole patches, which says nothing of those that have one.
    if min(grid.rows, grid.columns) > 1:
        shape = width / height
        assert (grid.columns - 1) / (grid.rows + 1) <= shape <= (grid.columns + 1) / (grid.rows - 1)


@pytest.mark.parametrize("name", ["ColQwen2", "ColQwen3"])
def test_lower_caps_are_kept_whatever_the_shape_of_the_page(name: str, processors: Callable[[str, int], Any]) -> None:
    for cap in (4, 5, 10, 17, 64, 150):
        for size in [(1, 1), (1, 3), (3, 2), (200, 300), (1, 4000), (4000, 1), (2000, 90), (600, 3000), (1275, 1650)]:
            page = page_of(Image.new("L", size))
            grid = prepare_page(page, processors(name, cap), FAMILY[name]).patch_grid
            assert 1 <= grid.rows * grid.columns <= cap


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_lower_cap_gives_fewer_rows_and_a_higher_one_more(name: str, embedders: Embedders) -> None:
    page = page_of(noise((1400, 1800)))
    patches = []
    for cap in (100, 768, 1500):
        embedder = embedders(name, max_visual_tokens=cap)
        made = prepared(embedder, page).patch_grid
        patches.append(made.rows * made.columns)
        assert 0.85 * cap <= patches[-1] <= cap == embedder.max_visual_tokens
    [vectors] = embedders(name, max_visual_tokens=100).embed_pages([page])
    assert len(vectors) < 120


@pytest.mark.parametrize("cap", [0, 3, -1])
def test_cap_below_four_is_refused(cap: int, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOptionError, match=f"4 or more; got {cap}"):
        ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", max_visual_tokens=cap)


@pytest.mark.parametrize("name", FIXED)
def test_cap_is_refused_by_models_with_their_own_number(name: str, checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidOptionError, match=f"max_visual_tokens=500.*{name}"):
        ColQwenEmbedder(checkpoint(name), device="cpu", max_visual_tokens=500)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"pool_factor": 0}])
def test_options_that_mean_nothing_are_refused_before_anything_is_loaded(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        ColQwenEmbedder("nowhere", **options)


# ---- images

SIZE = (196, 140)  # 7 x 5 patches of 28 pixels: nothing is scaled


def grey() -> Image.Image:
    """Draw a picture with black and white in it: values in wider numbers are scaled to the greatest of them."""
    image = noise(SIZE, 5).convert("L")
    for left, shade in ((0, 0), (28, 255)):
        image.paste(shade, (left, 0, left + 28, 28))
    return image


def see_through() -> Image.Image:
    """Draw the picture with its left part invisible: black under it, which must not be seen."""
    image = noise(SIZE, 6).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 90, SIZE[1]))
    return image


def on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.getchannel("A"))
    return white


def palette_with_hole() -> Image.Image:
    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 200, 30, 30, 20, 20, 220])
    for index in (1, 2):
        image.paste(index, (60 * index, 20, 60 * index + 40, 120))
    return image


def turned_jpeg() -> tuple[bytes, Image.Image]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(noise(SIZE, 7), "JPEG", quality=95, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        return data, ImageOps.exif_transpose(stored).convert("RGB")


def deep_grey() -> Image.Image:
    """Draw the grey picture in 16 bits, its low bytes filled."""
    return Image.fromarray(np.asarray(grey()).astype(np.uint16) * 257)


def in_every_mode() -> Iterator[tuple[str, str, bytes, Image.Image]]:
    """Yield what it is, its mode once opened, the file, and the picture as RGB on white."""
    colour, clear = noise(SIZE, 5), see_through()
    hole = palette_with_hole()
    with_hole = on_white(hole.convert("RGBA"))
    with_hole.paste("white", mask=Image.fromarray((np.asarray(hole) == 0).astype(np.uint8) * np.uint8(255)))
    values = np.asarray(grey())
    yield "1", "1", encode(grey().convert("1"), "PNG"), grey().convert("1").convert("RGB")
    yield "L", "L", encode(grey(), "PNG"), grey().convert("RGB")
    yield "LA", "LA", encode(clear.convert("LA"), "PNG"), on_white(clear.convert("LA").convert("RGBA"))
    yield "P", "P", encode(colour.quantize(200), "PNG"), colour.quantize(200).convert("RGB")
    yield "P with a hole", "P", encode(hole, "PNG", transparency=0), with_hole
    yield "PA", "PA", encode(clear.convert("PA"), "TIFF"), on_white(clear.convert("PA").convert("RGBA"))
    yield "RGB", "RGB", encode(colour, "PNG"), colour
    yield "RGBA", "RGBA", encode(clear, "PNG"), on_white(clear)
    yield "CMYK", "CMYK", encode(colour.convert("CMYK"), "TIFF"), colour.convert("CMYK").convert("RGB")
    yield "YCbCr", "YCbCr", encode(colour.convert("YCbCr"), "TIFF"), colour.convert("YCbCr").convert("RGB")
    yield "16-bit PNG", "I;16", encode(deep_grey(), "PNG"), grey().convert("RGB")
    yield "I", "I", encode(Image.fromarray(values.astype(np.int32)), "TIFF"), grey().convert("RGB")
    deep = Image.fromarray((values * (65535 / 255)).astype(np.int32))
    yield "I of 16 bits", "I", encode(deep, "TIFF"), grey().convert("RGB")
    yield "F", "F", encode(Image.fromarray(values.astype(np.float32)), "TIFF"), grey().convert("RGB")
    data, upright = turned_jpeg()
    yield "turned JPEG", "RGB", data, upright


MODES = {what: (mode, data, expected) for what, mode, data, expected in in_every_mode()}


@pytest.mark.parametrize("what", MODES)
def test_pictures_of_every_mode_are_seen_as_a_viewer_shows_them(what: str, qwen: ColQwenEmbedder) -> None:
    mode, data, expected = MODES[what]
    with Image.open(io.BytesIO(data)) as stored:
        if (mode, stored.mode) == ("YCbCr", "RGB"):
            pytest.skip("Pillow before 13 cannot read what it writes")
        assert stored.mode == mode
    page = dataclasses.replace(make_page("page"), image=data)
    assert_same(qwen.embed_pages([page]), qwen.embed_pages([page_of(expected)]), atol=1e-4)


def test_page_that_is_wholly_transparent_is_white_and_not_black(qwen: ColQwenEmbedder) -> None:
    # A border that is seen: of pages of one colour, all look alike to the tiny models.
    def framed(inside: Image.Image) -> Page:
        frame = Image.new("RGBA", SIZE, "grey")
        frame.paste(inside, (28, 28))
        return page_of(frame)

    inner = (140, 84)
    colours = [(0, 0, 0, 0), (255, 255, 255, 255), (0, 0, 0, 255)]
    clear, white, black = qwen.embed_pages([framed(Image.new("RGBA", inner, colour)) for colour in colours])
    assert_same([clear], [white])
    assert np.abs(clear - black).max() > 0.01


def test_page_longer_than_the_model_takes_is_widened_with_white_and_not_squeezed(qwen: ColQwenEmbedder) -> None:
    for size, padded_size in [((3, 2000), (10, 2000)), ((2000, 3), (2000, 10)), ((1, 1999), (10, 1999))]:
        image = noise(size, 8)
        padded = Image.new("RGB", padded_size, "white")
        padded.paste(image, (0, 0))
        assert_same(qwen.embed_pages([page_of(image)]), qwen.embed_pages([page_of(padded)]))


def broken_images(folder: Path) -> dict[str, Page]:
    whole = encode(noise((300, 200)), "PNG")
    (folder / "text.png").write_text("no picture")
    bomb = write_huge_png(folder / "bomb.png", 60000, 60000, rows=1)
    page = make_page("broken", document_id="report", number=7)
    return {
        "truncated": dataclasses.replace(page, image=whole[: len(whole) // 2]),
        "corrupt": dataclasses.replace(page, image=whole[:60] + b"\0" * 40 + whole[100:]),
        "empty": dataclasses.replace(page, image=b""),
        "text": dataclasses.replace(page, image_path=str(folder / "text.png")),
        "missing": dataclasses.replace(page, image_path=str(folder / "missing.png")),
        "folder": dataclasses.replace(page, image_path=str(folder)),
        "without": page,
        "bomb": dataclasses.replace(page, image_path=str(bomb)),
    }


@pytest.mark.parametrize("kind", ["truncated", "corrupt", "empty", "text", "missing", "folder", "without", "bomb"])
def test_page_whose_image_cannot_be_read_is_named(
    kind: str, qwen: ColQwenEmbedder, tmp_path: Path, alone: Callable[[str], list[MultiVector]]
) -> None:
    broken = broken_images(tmp_path)[kind]
    good = all_sizes()[:2]
    for pages in ([broken], [good[0], broken, good[1]]):
        with pytest.raises(UnreadableDocumentError, match=r"^report.pdf: the image of page 7 cannot be read \("):
            qwen.embed_pages(pages)
        with pytest.raises(UnreadableDocumentError, match="page 7"):
            list(qwen.stream_pages(iter(pages)))
    assert_same(qwen.embed_pages(good), alone("ColQwen2")[:2])


# ---- queries


@contextmanager
def embedded_tokens() -> Iterator[list[list[int]]]:
    """Record the ids of tokens that any model looks up."""
    found: list[list[int]] = []

    def note(module: Any, inputs: Any) -> None:  # noqa: ANN401 - torch types
        if isinstance(module, torch.nn.Embedding):
            found.extend(inputs[0].tolist())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()


@pytest.mark.parametrize("query", ["", "  \n\t", "\u3000"])
def test_blank_query_is_an_error(query: str, qwen: ColQwenEmbedder) -> None:
    with pytest.raises(QueryError, match="empty"):
        qwen.embed_queries(["revenue", query])


TRICKS = [
    "<|image_pad|>",
    "<|endoftext|>",
    "<|im_start|>user<|vision_start|><|image_pad|><|vision_end|>",
    "<image>",
    "<image><bos> <eos><pad>",
    "<row_1_col_1><fake_token_around_image><global-img><end_of_utterance>",
    "[CLS] and [SEP] [PAD]",
    "<|im_<|im_start|>start|>",
    "<<image>image>",
    "<|image_pad|><|image_pad|>",
]


@every_family
def test_special_tokens_in_a_query_are_read_as_text(name: str, embedders: Embedders) -> None:
    embedder = embedders(name)
    tokenizer = embedder._processor.tokenizer
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def specials(query: str) -> list[int]:
        with embedded_tokens() as tokens:
            [vectors] = embedder.embed_queries([query])
        [ids] = tokens
        assert len(vectors) == len(ids)
        return [number for number in ids if number in special]

    expected = specials("plain")  # the suffix, and what the tokenizer begins with
    for trick in TRICKS:
        assert specials(f"what is {trick} here") == expected
        assert specials(trick) == expected


@pytest.mark.parametrize("words", ["revenue ", "drift 🌊 ", "潮位計"])
def test_long_query_is_cut_with_one_warning_that_points_at_the_caller(words: str, qwen: ColQwenEmbedder) -> None:
    query = words * 5000
    tokens = len(qwen._processor.tokenizer(query)["input_ids"])
    assert tokens > 5000
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        [vectors] = qwen.embed_queries([query])
    [warning] = caught
    assert warning.category is UserWarning
    assert str(warning.message) == f"The query has {tokens} tokens; the first 512 are used."
    assert warning.filename == __file__
    extra = len(qwen.embed_queries(["x"])[0]) - 1
    # A cut within a letter of several tokens leaves that letter whole.
    assert 512 + extra - 4 <= len(vectors) <= 512 + extra + 4


def test_query_of_exactly_as_many_tokens_as_are_used_is_whole(qwen: ColQwenEmbedder) -> None:
    query = "x" * 512  # a token a letter, which no word has twice
    assert len(qwen._processor.tokenizer(query)["input_ids"]) == 512
    [one], [whole] = qwen.embed_queries(["x"]), qwen.embed_queries([query])
    assert len(whole) - len(one) == 511


@pytest.mark.parametrize(
    "query",
    [
        "¿Cuánto fue?",
        "潮汐の高さ",
        "किसने हस्ताक्षर किए",
        "🌊🌊 👩‍👩‍👧",
        "two\nlines\r\n\tand more",
        "\x00",
        "\u200b",
        "ﬁ ﷺ",
    ],
)
def test_queries_in_any_script_are_embedded(query: str, embedders: Embedders) -> None:
    for name in ("ColQwen2", "ColPali", "ColModernVBert"):
        [vectors] = embedders(name).embed_queries([query])
        assert np.isfinite(vectors).all()
        assert len(vectors) >= 10


def test_query_with_half_a_surrogate_pair_is_an_error_or_embedded(qwen: ColQwenEmbedder) -> None:
    try:
        [vectors] = qwen.embed_queries(["revenue \ud83c of"])
    except QueryError:
        return
    assert np.isfinite(vectors).all()


def test_equal_queries_have_equal_vectors(qwen: ColQwenEmbedder) -> None:
    first, *others = qwen.embed_queries(["x"] * 40)
    for other in others:
        np.testing.assert_array_equal(other, first)


# ---- memory

OUT_OF_MEMORY = """
import ctypes, logging, resource, sys
from pathlib import Path
# Memory that is given back is given back to the system, in whole pieces: so that the limit counts what is in use.
libc = ctypes.CDLL(None)
libc.mallopt(-8, 1)  # M_ARENA_MAX
libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
import dataclasses
import numpy as np
from PIL import Image
from llama_index_colqwen import DeviceMemoryError
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from tests.documents import encode
from tests.fakes import make_page

def draw(size, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return dataclasses.replace(make_page(str(seed)), image=encode(Image.fromarray(noise), "PNG"))

def embed(folder, megabytes, pages):
    embedder = ColQwenEmbedder(folder, device="cpu", batch_size=8, attn_implementation="eager")
    small = draw((120, 90), 99)
    # Also starts all threads, which need room of their own.
    expected = [embedder.embed_pages([page])[0] for page in [*pages, small]]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
    try:
        made = embedder.embed_pages(pages)
        print("made", embedder.batch_size, max(np.abs(a - b).max() for a, b in zip(made, expected)))
    except DeviceMemoryError as error:
        print("error", error)
    print("small", np.abs(embedder.embed_pages([small])[0] - expected[-1]).max())
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

logging.basicConfig(stream=sys.stdout, format="log %(message)s", force=True)
embed(sys.argv[1], 180, [draw((300, 200), seed) for seed in range(8)])
embed(sys.argv[2], 100, [draw((700, 900), 0)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold processes to a limit of memory")
def test_batch_that_does_not_fit_memory_is_halved_and_a_page_that_does_not_is_an_error(
    run_python: Callable[..., str], checkpoint: Callable[[str], Path]
) -> None:
    # Attention made "eager" takes memory that grows with the square of the tokens: 17 MB a page and copy for ColPali,
    # 75 MB for the picture alone of a page that fills ColQwen2's 768 tokens.
    printed = run_python(OUT_OF_MEMORY, checkpoint("ColPali"), checkpoint("ColQwen2"))
    lines = [line.split(maxsplit=1) for line in printed.splitlines()]
    halved = [text for kind, text in lines if kind == "log"]
    assert halved[0] == "A batch of 8 pages does not fit cpu; going on with 4."
    [made] = [text.split() for kind, text in lines if kind == "made"]
    assert int(made[0]) in {1, 2, 4}
    assert float(made[1]) < 1e-5
    [error] = [text for kind, text in lines if kind == "error"]
    assert "A page of 757 tokens does not fit the memory of cpu" in error
    assert "lower max_visual_tokens, take a smaller dtype" in error
    assert [float(text) < 1e-5 for kind, text in lines if kind == "small"] == [True, True]


# ---- threads


def test_threads_get_the_vectors_that_one_thread_gets(
    checkpoint: Callable[[str], Path], alone: Callable[[str], list[MultiVector]]
) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", batch_size=3)  # its workers start meanwhile, too
    pages, queries = all_sizes(), ["x", "annual revenue"]
    expected = [*alone("ColQwen2"), *ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu").embed_queries(queries)]

    def embed(turn: int) -> list[MultiVector]:
        if turn % 2:
            made = embedder.embed_queries(queries)
            return embedder.embed_pages(pages) + made
        return [*embedder.embed_pages(pages), *embedder.embed_queries(queries)]

    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(embed, range(8)):
            assert_same(made, expected)


def small_pages(drawn: list[int], count: int = 200) -> Iterator[Page]:
    for number in range(count):
        drawn.append(number)
        yield page_of(noise((60, 60), number), str(number))


def test_stream_reads_a_bounded_number_of_pages_ahead_and_stops_when_closed(checkpoint: Callable[[str], Path]) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", batch_size=2)
    # The batch that is out, one in reserve and as many as keep the workers busy; and pages are drawn four batches at a
    # time, to be sorted by size.
    batches = 1 + 1 + -(-embedder._num_workers // 2) + 4
    drawn: list[int] = []
    with closing(embedder.stream_pages(small_pages(drawn))) as stream:  # type: ignore[type-var]
        for yielded, _ in enumerate(stream, start=1):
            assert len(drawn) - yielded < 2 * batches
            if yielded == 20:
                break
    at_end = len(drawn)
    assert_same(embedder.embed_pages([page_of(noise((60, 60)))]), embedder.embed_pages([page_of(noise((60, 60)))]))
    assert len(drawn) == at_end < 20 + 2 * batches


def test_error_of_the_pages_given_to_a_stream_reaches_its_reader(qwen: ColQwenEmbedder) -> None:
    def failing() -> Iterator[Page]:
        yield from small_pages([], 20)
        raise KeyboardInterrupt("by hand")

    seen = 0
    with pytest.raises(KeyboardInterrupt, match="by hand"):  # noqa: PT012
        for _ in qwen.stream_pages(failing()):
            seen += 1
    assert 0 < seen <= 20
    assert len(list(qwen.stream_pages(small_pages([], 5)))) == 5


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let torch compute in three threads, also where it has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_threads_of_torch_are_as_many_as_before(checkpoint: Callable[[str], Path]) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu")
    list(embedder.stream_pages(small_pages([], 5)))
    embedder.embed_queries(["x"])
    assert torch.get_num_threads() == 3


def in_new_thread(ask: Callable[[], int]) -> int:
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.usefixtures("three_threads")
def test_embedder_loaded_in_a_thread_computes_with_as_many_threads_as_others(
    qwen: ColQwenEmbedder, checkpoint: Callable[[str], Path]
) -> None:
    list(qwen.stream_pages(small_pages([], 2)))

    def threads_of_a_forward_pass() -> int:
        found = 0

        def note(module: Any, inputs: Any) -> None:  # noqa: ANN401 - torch types
            nonlocal found
            found = max(found, torch.get_num_threads())

        hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
        try:
            ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu").embed_queries(["x"])
        finally:
            hook.remove()
        return found

    assert in_new_thread(threads_of_a_forward_pass) == 3


def test_number_of_threads_chosen_after_loading_is_kept(qwen: ColQwenEmbedder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        qwen.embed_pages([page_of(noise((60, 60)))])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# ---- forks


@needs_fork
def test_fork_computes_the_same_with_an_embedder_that_was_used_before(
    qwen: ColQwenEmbedder, alone: Callable[[str], list[MultiVector]]
) -> None:
    queries = ["who signed it?", "revenue"]
    expected = qwen.embed_queries(queries)
    qwen.embed_pages(all_sizes()[:2])
    found, pages = in_fork(lambda: (qwen.embed_queries(queries), qwen.embed_pages(all_sizes())))
    assert_same(found, expected)
    assert_same(pages, alone("ColQwen2"))
    assert_same(qwen.embed_queries(queries), expected)


@needs_fork
def test_fork_computes_while_threads_of_the_parent_have_the_model(qwen: ColQwenEmbedder) -> None:
    stopped = threading.Event()

    def embed() -> None:
        while not stopped.is_set():
            qwen.embed_queries(["who signed it?"])

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(embed) for _ in range(2)]
        try:
            replica = qwen._replicas.get()  # as if a thread had it for long
            try:
                for _ in range(3):
                    assert in_fork(lambda: len(qwen.embed_queries(["revenue"]))) == 1
            finally:
                qwen._replicas.put(replica)
        finally:
            stopped.set()
        for other in others:
            other.result()


@needs_fork
def test_fork_of_a_process_with_a_model_on_a_gpu_says_where_to_load_it(
    checkpoint: Callable[[str], Path],
) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu")
    embedder.devices = ["cuda:0"]  # by hand: tests have no GPU
    page = page_of(noise((60, 60)))
    for use in (
        lambda: embedder.embed_queries(["x"]),
        lambda: embedder.embed_pages([page]),
        lambda: list(embedder.stream_pages([page])),
        lambda: embedder.prepare_page(page).result(),
    ):
        with pytest.raises(ModelError, match="onto cuda:0 by process .* load the embedder in this process"):
            in_fork(use)


# ---- devices


def test_devices_share_the_pages(checkpoint: Callable[[str], Path], alone: Callable[[str], list[MultiVector]]) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", batch_size=2)
    # Two devices of one name are refused, and tests have no others: so the second is put there by hand.
    first = embedder._replicas.get()
    second = Replica(copy.deepcopy(first.model), "cpu")
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number, replica in enumerate((first, second)):
        replica.model.register_forward_pre_hook(lambda *_, number=number: seen.put(number))
        embedder._replicas.put(replica)
    embedder.devices = ["cpu", "cpu"]
    pages = all_sizes() * 2
    assert_same(embedder.embed_pages(pages), [*alone("ColQwen2"), *alone("ColQwen2")])
    assert sorted({seen.get() for _ in range(seen.qsize())}) == [0, 1]
    assert {page.page_id for page, _ in embedder.stream_pages(iter(all_sizes()))} == set(SIZES)
    with pytest.raises(UnreadableDocumentError, match="page 7"):
        embedder.embed_pages([*pages, make_page("broken", number=7)])
    assert_same(embedder.embed_pages(pages[:1]), alone("ColQwen2")[:1])
    assert embedder._replicas.qsize() == 2


@pytest.mark.parametrize("device", [["cpu", "cpu"], [], "cuda:99", "tpu"])
def test_devices_that_are_not_there_or_named_twice_are_refused(
    device: str | list[str], checkpoint: Callable[[str], Path]
) -> None:
    with pytest.raises(InvalidOptionError, match="device"):
        ColQwenEmbedder(checkpoint("ColQwen2"), device=device)


# ---- fingerprints


@every_family
def test_fingerprint_survives_json_and_loads_the_same_embedder(name: str, embedders: Embedders) -> None:
    options: dict[str, Any] = {"query_prefix": "Q: ", "pool_factor": 2}
    if name in DYNAMIC:
        options["max_visual_tokens"] = 64
    embedder = embedders(name, **options)
    read = EmbedderFingerprint.from_json(embedder.fingerprint.to_json())
    assert read == embedder.fingerprint
    again = ColQwenEmbedder.from_fingerprint(read)
    assert again.fingerprint == embedder.fingerprint
    assert_same(again.embed_queries(["x"]), embedder.embed_queries(["x"]))
    page = page_of(noise((300, 200)))
    assert_same(again.embed_pages([page]), embedder.embed_pages([page]))


def test_fingerprint_follows_what_changes_vectors_and_nothing_else(
    embedders: Embedders, other_weights: Path, checkpoint: Callable[[str], Path]
) -> None:
    fingerprint = embedders("ColQwen2").fingerprint
    changes: list[dict[str, Any]] = [{"query_prefix": ""}, {"max_visual_tokens": 767}, {"pool_factor": 2}]
    for options in changes:
        assert embedders("ColQwen2", **options).fingerprint != fingerprint
    same: list[dict[str, Any]] = [{"batch_size": 2}, {"dtype": "bfloat16"}, {"query_prefix": "Query: "}]
    for options in same:
        assert embedders("ColQwen2", **options).fingerprint == fingerprint
    assert ColQwenEmbedder(str(checkpoint("ColQwen2")) + "/").fingerprint == fingerprint
    other = ColQwenEmbedder(other_weights, device="cpu").fingerprint
    assert other.model == fingerprint.model
    assert other != fingerprint


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    """Build a ColQwen2 of the same name with other weights."""
    from tests.checkpoints import build_checkpoint

    name = checkpoint("ColQwen2").name
    return build_checkpoint("ColQwen2", tmp_path_factory.mktemp("other") / name, seed=1)


def found(index: ColQwenIndex) -> dict[str, float]:
    """Search, and return scores by page, best first."""
    hits = index.as_retriever(similarity_top_k=4).retrieve("Who signed it?")
    return {hit.node.node_id: float(hit.score or 0) for hit in hits}


def test_an_image_finds_the_page_it_is_of(embedders: Embedders, tmp_path: Path) -> None:
    pdf = Path(__file__).resolve().parents[3] / "examples" / "pdfs" / "harbour-annual-report.pdf"
    documents = PDFPageReader(image_dir=tmp_path / "images", ocr="never").load_data(pdf)[:3]
    embedder = embedders("ColQwen2", max_visual_tokens=200)
    with ColQwenIndex.from_documents(documents, embedder, uri=tmp_path / "p.db", show_progress=False) as index:
        retriever = index.as_retriever(score="normalized")
        for document in documents:
            best = retriever.retrieve(QueryBundle("", image_path=str(page_from_node(document).image_path)))[0]
            assert best.node.node_id == document.node_id
            assert best.score == pytest.approx(1, abs=0.01)  # every patch finds itself


def test_pickled_without_its_weights(checkpoint: Callable[[str], Path]) -> None:
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", max_visual_tokens=200, pool_factor=2)
    pickled = pickle.dumps(embedder)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert again.fingerprint == embedder.fingerprint
    [first], [second] = embedder.embed_queries(["red"]), again.embed_queries(["red"])
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_index_is_opened_with_the_model_that_made_it_and_refuses_others(
    tmp_path: Path, checkpoint: Callable[[str], Path], other_weights: Path
) -> None:
    pdfs = Path(__file__).resolve().parents[3] / "examples" / "pdfs"
    reader = PDFPageReader(image_dir=tmp_path / "images", ocr="never")
    documents = [
        *reader.load_data(pdfs / "harbour-annual-report.pdf")[:3],
        *reader.load_data(pdfs / "tidal-sensors-paper.pdf")[:1],
    ]
    embedder = ColQwenEmbedder(checkpoint("ColQwen2"), device="cpu", max_visual_tokens=200)
    uri = tmp_path / "pages.db"
    index = ColQwenIndex.from_documents(documents, embedder, uri=uri, show_progress=False)
    assert index.report.added == 4
    before = found(index)
    index.store.close()

    again = ColQwenIndex.from_existing(uri)
    assert isinstance(again.embedder, ColQwenEmbedder)
    assert again.embedder.fingerprint == embedder.fingerprint
    after = found(again)
    assert list(after) == list(before)
    np.testing.assert_allclose(list(after.values()), list(before.values()), atol=1e-4)
    assert len(after) == 4
    again.store.close()

    for options in ({"model_name": other_weights, "max_visual_tokens": 200}, {"model_name": checkpoint("ColQwen2")}):
        with pytest.raises(FingerprintMismatchError, match="ColQwen2"):
            ColQwenIndex.from_existing(uri, ColQwenEmbedder(device="cpu", **options))


# ---- pooling


def test_pooling_keeps_a_third_of_the_rows_and_nearly_all_of_the_score(
    embedders: Embedders, alone: Callable[[str], list[MultiVector]]
) -> None:
    whole, pooled = embedders("ColQwen2"), embedders("ColQwen2", pool_factor=3)
    made = pooled.embed_pages(all_sizes())
    queries = whole.embed_queries(["Which sensor drifted least, and why?", "annual revenue"])
    assert_same(pooled.embed_queries(["annual revenue"]), queries[1:])
    for few, all_of in zip(made, alone("ColQwen2"), strict=True):
        assert len(few) == len(all_of) // 3
        assert few.dtype == np.float32
        assert few.flags.c_contiguous
        np.testing.assert_allclose(np.linalg.norm(few, axis=1), 1, atol=1e-6)
        for query in queries:
            assert maxsim(query, few) > 0.75 * maxsim(query, all_of)  # random weights; trained pages have like rows
