from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from llama_index.core.schema import ImageNode, NodeWithScore, TextNode
from PIL import Image

from llama_index_colqwen import DocumentNotFoundError, InvalidOptionError, ResizeForLLM, UnreadableDocumentError
from llama_index_colqwen.resize import image_for_llm


def resize(node: TextNode, max_pixels: int = 10_000) -> TextNode:
    (found,) = ResizeForLLM(max_pixels).postprocess_nodes([NodeWithScore(node=node, score=0.5)])
    assert found.score == 0.5
    assert isinstance(found.node, TextNode)
    return found.node


def picture(path: Path, size: tuple[int, int], exif: Image.Exif | None = None) -> ImageNode:
    Image.new("RGB", size, "navy").save(path, exif=exif or Image.Exif())
    return ImageNode(id_="a", text="words", image_path=str(path), metadata={"page_label": "7"})


def shown(node: TextNode) -> Image.Image:
    assert isinstance(node, ImageNode)
    return Image.open(io.BytesIO(base64.b64decode(node.image or "")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
def test_image_has_the_pixels_that_were_asked_for_and_the_shape_it_had(tmp_path: Path, suffix: str) -> None:
    node = picture(tmp_path / f"page.{suffix}", (400, 100))
    resized = resize(node)
    assert shown(resized).size == (200, 50)
    assert shown(resized).format == "JPEG"
    assert isinstance(resized, ImageNode)
    assert (resized.image_mimetype, resized.image_path) == ("image/jpeg", node.image_path)
    assert (resized.node_id, resized.text, resized.metadata) == (node.node_id, node.text, node.metadata)


def test_the_node_that_was_found_is_not_changed(tmp_path: Path) -> None:
    node = picture(tmp_path / "page.jpg", (400, 100))
    resize(node)
    assert node.image is None


def test_inline_image_is_resized(tmp_path: Path) -> None:
    picture(tmp_path / "page.png", (400, 100))
    inline = base64.b64encode((tmp_path / "page.png").read_bytes()).decode()
    assert shown(resize(ImageNode(image=inline, image_mimetype="image/png"))).size == (200, 50)


def test_picture_is_turned_as_a_viewer_shows_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shown(resize(picture(tmp_path / "page.jpg", (400, 100), exif=exif))).size == (50, 200)


def test_what_is_small_enough_or_has_no_image_passes_as_it_is(tmp_path: Path) -> None:
    for node in (picture(tmp_path / "page.jpg", (100, 100)), TextNode(text="words")):
        assert resize(node) is node


def test_image_that_cannot_be_read_is_an_error_that_names_the_page(tmp_path: Path) -> None:
    node = picture(tmp_path / "page.png", (400, 100))
    data = (tmp_path / "page.png").read_bytes()
    (tmp_path / "page.png").write_bytes(data[:-60])
    with pytest.raises(UnreadableDocumentError, match="'a'"):
        resize(node)
    (tmp_path / "page.png").unlink()
    with pytest.raises(DocumentNotFoundError, match="'a'"):
        resize(node)


@pytest.mark.parametrize("max_pixels", [0, -1, 1.5, True, "many"])
def test_no_number_of_pixels_is_refused(max_pixels: int) -> None:
    with pytest.raises(InvalidOptionError, match="max_pixels"):
        ResizeForLLM(max_pixels)


def test_it_is_made_again_from_what_llama_index_serialises() -> None:
    made = ResizeForLLM.from_dict(ResizeForLLM(123).to_dict())
    assert made.max_pixels == 123


@pytest.mark.parametrize(("suffix", "mimetype"), [("jpg", "image/jpeg"), ("png", "image/png"), ("tiff", "image/jpeg")])
def test_image_for_a_model_is_of_a_type_that_all_take_and_no_larger_than_asked(
    tmp_path: Path, suffix: str, mimetype: str
) -> None:
    node = picture(tmp_path / f"page.{suffix}", (400, 100))
    for max_pixels, kind, size in ((100_000, mimetype, (400, 100)), (10_000, "image/jpeg", (200, 50))):
        image = image_for_llm(node, max_pixels)
        assert image is not None
        assert image.mimetype == kind
        with Image.open(io.BytesIO(image.data)) as opened:
            assert (opened.size, Image.MIME[opened.format or ""]) == (size, kind)
    assert image_for_llm(TextNode(text="words")) is None
    assert image_for_llm(ImageNode(text="words")) is None
