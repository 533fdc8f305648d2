"""Page <-> node, and word boxes packed into metadata."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)

from llama_index_colqwen import PDFPageReader, word_boxes
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.nodes import (
    HIDDEN_METADATA,
    caption,
    excerpt,
    make_page_id,
    node_from_page,
    page_from_node,
    with_image_on_disk,
)
from llama_index_colqwen.pages import WordBox, pack_boxes, unpack_boxes
from tests.documents import encode, quadrants, walk, write_text_pdf

PICTURE = encode(quadrants(), "PNG")


def inline_node(text: str = "some text", image: bytes = PICTURE, **metadata: Any) -> ImageNode:  # noqa: ANN401
    return ImageNode(id_="n1", text=text, image=base64.b64encode(image).decode(), metadata=metadata)


@pytest.fixture
def document(tmp_path: Path) -> Document:
    path = write_text_pdf(tmp_path / "x.pdf", "first page", "Grand total 42")
    reader = PDFPageReader(ocr="never", max_pixels=10_000, image_dir=tmp_path / "images")
    return reader.load_data(path, extra_info={"team": "finance"})[1]


def test_page_ids_sort_in_page_order() -> None:
    numbers = [1, 2, 9, 10, 11, 99, 100, 12_345]
    ids = [make_page_id("d" * 64, number) for number in numbers]
    assert sorted(ids) == ids and len(set(ids)) == len(ids)
    assert ids[0] == "d" * 64 + "-p00001"


def test_page_takes_its_identity_from_the_readers_document(document: Document) -> None:
    page = page_from_node(document)
    assert page.page_id == document.node_id
    assert page.document_id == document.metadata["document_id"]
    assert (page.file_name, page.page_number, page.text) == ("x.pdf", 2, "Grand total 42")
    assert page.image is None and Path(page.image_path or "").is_file()
    assert page.metadata["team"] == "finance"


def test_stored_page_becomes_the_node_it_was(document: Document) -> None:
    node = node_from_page(page_from_node(document))
    metadata = {key: value for key, value in document.metadata.items() if key != "word_boxes"}
    assert (node.node_id, node.text, node.metadata) == (document.node_id, "Grand total 42", metadata)
    assert isinstance(document, ImageDocument)
    assert node.image_path == document.image_path and node.image_mimetype == "image/jpeg"
    assert [word.text for word in word_boxes(node)] == ["Grand", "total", "42"]
    assert word_boxes(node) == word_boxes(document)
    assert node.get_content(MetadataMode.LLM) == document.get_content(MetadataMode.LLM)
    assert node.get_content(MetadataMode.EMBED) == document.get_content(MetadataMode.EMBED)
    assert page_from_node(node).revision == page_from_node(document).revision
    assert node.class_name() == "ImageNode"  # what LlamaIndex's stores know to read


def test_page_survives_json(document: Document) -> None:
    page = page_from_node(document)
    assert json.loads(json.dumps(page.node)) == page.node


def test_page_of_the_returned_node_is_the_same_page(document: Document) -> None:
    page = page_from_node(document)
    again = page_from_node(node_from_page(page))
    assert again == page and again.revision == page.revision


def test_what_a_node_of_the_users_own_carries_is_found_again() -> None:
    node = inline_node(section="A", secret="s")
    node.excluded_llm_metadata_keys, node.excluded_embed_metadata_keys = ["secret"], ["section"]
    node.metadata_template, node.metadata_separator = "{key}={value}", " | "
    node.text_template = "[{metadata_str}] {content}"
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="source", metadata={"a": 1})
    found = node_from_page(page_from_node(node))
    assert found.get_content(MetadataMode.ALL) == "[section=A | secret=s] some text"
    assert found.get_content(MetadataMode.LLM) == "[section=A] some text"
    assert found.get_content(MetadataMode.EMBED) == "[secret=s] some text"
    assert found.ref_doc_id == "source"
    assert found.relationships == node.relationships


def test_node_changed_in_place_leaves_the_stored_page_alone() -> None:
    page = page_from_node(inline_node(section="A", tags=["x"]))
    before = json.dumps(page.node)
    node = node_from_page(page)
    node.metadata["section"] = "changed"
    node.metadata["tags"].append("changed")
    node.excluded_llm_metadata_keys.append("changed")
    node.set_content("changed")
    assert json.dumps(page.node) == before
    assert node_from_page(page).metadata == {"section": "A", "tags": ["x"]}


def test_inline_image_is_held_by_the_page_and_not_by_its_stored_node() -> None:
    page = page_from_node(inline_node())
    assert page.image == PICTURE and page.image_path is None
    assert page.open_image().size == (64, 48)
    assert not page.node.get("image")


def test_node_without_page_metadata_gets_sensible_ones() -> None:
    page = page_from_node(inline_node())
    assert (page.page_id, page.document_id, page.file_name, page.page_number) == ("n1", "n1", "n1", 1)


def test_document_of_a_node_is_its_source() -> None:
    node = inline_node()
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="report")
    assert page_from_node(node).document_id == "report"


def test_content_hash_follows_image_and_text_and_revision_also_metadata() -> None:
    base = page_from_node(inline_node(a=1))
    same = page_from_node(inline_node(a=1))
    text = page_from_node(inline_node("other text", a=1))
    image = page_from_node(inline_node(image=encode(quadrants((10, 10)), "PNG"), a=1))
    metadata = page_from_node(inline_node(a=2))
    assert same.content_hash == base.content_hash and same.revision == base.revision
    assert len({base.content_hash, text.content_hash, image.content_hash}) == 3
    assert metadata.content_hash == base.content_hash
    assert len({base.revision, text.revision, image.revision, metadata.revision}) == 4


def test_same_image_inline_and_on_disk_has_one_content_hash(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PICTURE)
    on_disk = page_from_node(ImageNode(id_="n1", text="some text", image_path=str(tmp_path / "x.png")))
    assert on_disk.content_hash == page_from_node(inline_node()).content_hash
    assert on_disk.file_name == "x.png"


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(TextNode(id_="n1", text="words"), id="text-node"),
        pytest.param(Document(id_="n1", text="words"), id="text-document"),
        pytest.param(ImageNode(id_="n1", text="words"), id="image-node-without-image"),
        pytest.param(ImageNode(id_="n1", image_url="https://example.org/x.png"), id="url-only"),
    ],
)
def test_node_without_an_image_here_is_refused_by_name(node: BaseNode) -> None:
    with pytest.raises(InvalidOptionError, match="'n1' has no page image.*PDFPageReader"):
        page_from_node(node)


@pytest.mark.parametrize("number", [0, -1, "2", 1.5, True])
def test_page_number_that_is_none_is_refused(number: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidOptionError, match="'n1' has page_number"):
        page_from_node(inline_node(page_number=number))


def test_image_file_that_is_gone_is_file_not_found(document: Document) -> None:
    assert isinstance(document, ImageDocument)
    Path(document.image_path or "").unlink()
    with pytest.raises(FileNotFoundError):
        page_from_node(document)


def test_inline_image_moves_to_disk_with_page_and_node_pointing_there(tmp_path: Path) -> None:
    page = page_from_node(ImageNode(text="t", image=base64.b64encode(PICTURE).decode(), image_mimetype="image/png"))
    moved = with_image_on_disk(page, tmp_path)
    assert moved.image is None
    assert [str(path) for path in walk(tmp_path)] == [moved.image_path]
    assert Path(moved.image_path or "").read_bytes() == PICTURE
    assert node_from_page(moved).image_path == moved.image_path
    assert (moved.image_path or "").endswith(".png")
    assert moved.content_hash == page_from_node(node_from_page(moved)).content_hash == page.content_hash
    assert with_image_on_disk(moved, tmp_path / "other") is moved


def test_hidden_metadata_hides_all_but_name_and_label(document: Document) -> None:
    assert set(document.metadata) - set(HIDDEN_METADATA) == {"team", "file_name", "page_label"}


fractions = st.floats(0, 1)
words = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1).filter(lambda word: len(word.split()) == 1)


@pytest.mark.slow
@given(st.lists(st.builds(WordBox, words, fractions, fractions, fractions, fractions)))
def test_unpacked_boxes_are_the_packed_ones_to_a_65535th(boxes: list[WordBox]) -> None:
    text = "\n".join(box.text for box in boxes)
    for found, box in zip(unpack_boxes(text, pack_boxes(boxes)), boxes, strict=True):
        assert found.text == box.text
        assert [found.left, found.top, found.right, found.bottom] == pytest.approx(
            [box.left, box.top, box.right, box.bottom], abs=0.5001 / 65535
        )


def test_boxes_beyond_the_page_are_clipped_to_it() -> None:
    assert unpack_boxes("x", pack_boxes([WordBox("x", -0.5, 0, 1.5, 1)])) == [WordBox("x", 0, 0, 1, 1)]


def test_packed_boxes_take_8_bytes_a_word() -> None:
    assert len(base64.b64decode(pack_boxes([WordBox("x", 0, 0, 1, 1)] * 100))) == 800


def test_text_that_was_changed_afterwards_is_noticed() -> None:
    packed = pack_boxes([WordBox("two", 0, 0, 0.4, 1), WordBox("words", 0.5, 0, 1, 1)])
    with pytest.raises(ValueError, match="3 words but 2 boxes"):
        unpack_boxes("three words now", packed)


def test_a_caption_names_file_and_page(document: Document) -> None:
    assert caption(document) == "x.pdf, page 2"
    assert caption(TextNode(text="x", metadata={"file_name": "a.png", "page_number": 3})) == "a.png, page 3"
    assert caption(TextNode(id_="n1", text="x")) == "n1"


def test_node_without_boxes_has_none() -> None:
    assert word_boxes(inline_node()) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two words", "two words"),
        ("two words more", "two words ..."),
        ("two wordsand", "two ..."),
        ("x" * 12, "xxxxxxxxx ..."),
    ],
)
def test_an_excerpt_is_whole_words_where_there_are_any(text: str, shown: str) -> None:
    assert excerpt(text, 9) == shown
