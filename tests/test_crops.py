from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.schema import ImageDocument, NodeWithScore, QueryBundle
from PIL import Image

from llama_index_colqwen import ColQwenIndex, CropRegions, InvalidOptionError, WordBox
from llama_index_colqwen.pages import pack_boxes
from tests.recording_llm import SeeingLLM


def page_with_red_word() -> ImageDocument:
    """Make a page of 400 x 520 pixels whose word `harbour` stands in a red box."""
    picture = Image.new("RGB", (400, 520), "white")
    picture.paste("red", (40, 52, 120, 72))
    data = io.BytesIO()
    picture.save(data, "PNG")
    boxes = [WordBox("harbour", 0.1, 0.1, 0.3, 0.1385), WordBox("crane", 0.6, 0.8, 0.7, 0.83)]
    return ImageDocument(
        id_="page",
        text="harbour crane",
        image=data.getvalue(),
        image_mimetype="image/png",
        metadata={"file_name": "report.pdf", "page_label": "iv", "page_number": 4, "word_boxes": pack_boxes(boxes)},
    )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ColQwenIndex]:
    document = page_with_red_word()
    with ColQwenIndex.from_documents([document], uri=tmp_path / "pages.db", show_progress=False) as made:
        yield made


def shown(block: ImageBlock) -> Image.Image:
    return Image.open(block.resolve_image())  # type: ignore[arg-type]  # bytes in memory, declared as any file


def test_a_model_is_shown_the_part_that_matches_after_its_page(index: ColQwenIndex) -> None:
    llm = SeeingLLM()
    response = index.as_query_engine(llm, crops=True).query("harbour")
    [page, crop] = llm.images()
    assert shown(page).size == (400, 520)
    picture = shown(crop).convert("RGB")
    assert (picture.width, picture.height) == pytest.approx((88, 30), abs=3)  # the word's box and the margin
    red, green, blue = picture.getpixel((44, 15))  # type: ignore[misc]
    assert (red > 240, green < 15, blue < 15) == (True, True, True)
    assert "Two pictures: the page, and enlarged" in llm.words()
    [source] = response.source_nodes
    [region] = source.metadata["regions"]
    assert (region["left"], region["top"], region["text"]) == (
        pytest.approx(0.1, abs=1e-4),
        pytest.approx(0.1, abs=1e-4),
        "harbour",
    )
    assert "regions" not in llm.words()


def test_a_page_and_its_crop_are_sent_together_in_a_small_context(index: ColQwenIndex) -> None:
    index.insert(page_with_red_word().model_copy(update={"id_": "other"}))
    llm = SeeingLLM(context_window=3000)
    index.as_query_engine(llm, crops=True).query("harbour")
    assert [len(llm.images(call)) for call in range(len(llm.calls))] == [2, 2]


def test_a_crop_has_no_more_pixels_than_a_model_is_to_be_given(index: ColQwenIndex) -> None:
    llm = SeeingLLM()
    index.as_query_engine(llm, crops=True, llm_max_pixels=1000).query("harbour")
    sizes = [shown(block).size for block in llm.images()]
    assert len(sizes) == 2
    assert all(700 < width * height <= 1000 for width, height in sizes)


def test_what_has_no_part_that_matches_stays_as_it_is(index: ColQwenIndex) -> None:
    llm = SeeingLLM()
    index.as_query_engine(llm, crops=True).query("zebra")  # not on the page
    assert len(llm.images()) == 1


def test_pages_stay_as_they_are_for_a_question_with_an_image(index: ColQwenIndex) -> None:
    hits: list[NodeWithScore] = [*index.as_retriever().retrieve("harbour")]
    crops = CropRegions(index.embedder, index.store)
    assert crops.postprocess_nodes(hits, QueryBundle("harbour", image_path="like-this.png")) == hits
    assert crops.postprocess_nodes(hits, QueryBundle("harbour")) != hits
    assert "regions" not in hits[0].metadata


def test_a_page_that_was_deleted_since_keeps_its_place_without_a_crop(
    index: ColQwenIndex, caplog: pytest.LogCaptureFixture
) -> None:
    hits: list[NodeWithScore] = [*index.as_retriever().retrieve("harbour")]
    index.delete_nodes(["page"])
    assert CropRegions(index.embedder, index.store).postprocess_nodes(hits, QueryBundle("harbour")) == hits
    assert "No crop of report.pdf, page iv" in caplog.text


def test_a_page_whose_image_is_gone_goes_as_text_without_a_crop(index: ColQwenIndex) -> None:
    [node] = index.nodes()
    index.insert(page_with_red_word().model_copy(update={"id_": "other"}))
    Path(node.image_path or "").unlink()
    llm = SeeingLLM()
    index.as_query_engine(llm, crops=True).query("harbour")
    assert len(llm.images()) == 2  # the other page, and its crop


def test_crops_of_a_model_that_sees_nothing_are_refused(index: ColQwenIndex) -> None:
    with pytest.raises(InvalidOptionError, match="crops=True"):
        index.as_query_engine(SeeingLLM(), crops=True, multimodal=False)
