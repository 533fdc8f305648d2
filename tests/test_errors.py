"""What is wrong with arguments is always an error of ours, and the builtin that one would expect."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_colqwen import (
    ColQwenError,
    ColQwenIndex,
    DocumentNotFoundError,
    EmbedderFingerprint,
    EndpointEmbedder,
    LexicalEmbedder,
    MilvusPageStore,
    ModelError,
    Page,
    PDFPageReader,
    UnreadableDocumentError,
    resolve_embedder,
    word_boxes,
)
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.testing import FakeEmbedder
from tests.test_index import make_document, picture


class Colour(str, Enum):
    red = "red"


class Numberless(FakeEmbedder):
    def __init__(self) -> None:
        super().__init__()
        self.fingerprint = "numberless-1"  # type: ignore[assignment]


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "an option of the reader": (lambda: PDFPageReader(ocr="yes"), ValueError, "option ocr.*got 'yes'"),  # type: ignore[arg-type]
    "no such option": (lambda: PDFPageReader(ocrr="auto"), ValueError, "option ocrr"),  # type: ignore[call-arg]
    "too few pixels": (lambda: PDFPageReader(max_pixels=0), ValueError, "option max_pixels.*got 0"),
    "an option set later": (lambda: setattr(PDFPageReader(), "renderer", "mupdf"), ValueError, "option renderer"),
    "a source that is none": (lambda: PDFPageReader().load_data(5), ValueError, "got int"),  # type: ignore[arg-type]
    "no file": (lambda: PDFPageReader().load_data("nothing.pdf"), FileNotFoundError, "no such file"),
    "a fingerprint without a model": (lambda: EmbedderFingerprint("", "1", 4), ValueError, "model"),
    "a fingerprint's dim": (lambda: EmbedderFingerprint("a", "1", "4"), ValueError, "dim"),  # type: ignore[arg-type]
    "a fingerprint's options": (lambda: EmbedderFingerprint("a", "1", 4, {"x": {1}}), ValueError, "'x'"),  # type: ignore[dict-item]
    "a fingerprint's number": (lambda: EmbedderFingerprint("a", "1", 4, {"x": float("nan")}), ValueError, "'x': nan"),
    "no fingerprint": (lambda: EmbedderFingerprint.from_json("[1]"), ValueError, "no embedder's fingerprint"),
    "half a fingerprint": (lambda: EmbedderFingerprint.from_json('{"model": "a"}'), ValueError, "fingerprint"),
    "an embedder's fingerprint": (lambda: resolve_embedder(Numberless()), ValueError, "Numberless.*'numberless-1'"),
    "an embedder": (lambda: resolve_embedder(5), ValueError, "no embedder 'int'"),  # type: ignore[arg-type]
    "a language": (lambda: LexicalEmbedder("xx"), ValueError, "language 'xx'"),
    "a query": (lambda: LexicalEmbedder().embed_queries([5]), ValueError, "got int"),  # type: ignore[list-item]
    "an address": (lambda: EndpointEmbedder(5), ValueError, "got 5"),  # type: ignore[arg-type]
    "half an address": (lambda: EndpointEmbedder("http://[::1"), ValueError, "::1"),
    "a collection's name": (lambda: MilvusPageStore(collection_name=5), ValueError, "got 5"),  # type: ignore[arg-type]
    "a size": (lambda: MilvusPageStore(cache_bytes="1 GB"), ValueError, "cache_bytes"),  # type: ignore[arg-type]
    "a number of vectors": (lambda: MilvusPageStore(candidate_vectors=0), ValueError, "candidate_vectors"),
    "a page without an image": (lambda: Page("p", "d", "a.pdf", 3, "").read_image(), ValueError, "page 3 of a.pdf"),
    "an image that is gone": (
        lambda: Page("p", "d", "a.pdf", 3, "", image_path="/nowhere.png").open_image(),
        FileNotFoundError,
        r"page 3 of a.pdf \(p\) is gone: there is no /nowhere.png",
    ),
    "an image that is none": (
        lambda: Page("p", "d", "a.pdf", 3, "", image=b"text").open_image(),
        ValueError,
        "page 3 of a.pdf.*no image",
    ),
    "a folder for an image": (
        lambda: Page("p", "d", "a.pdf", 3, "", image_path="/").read_image(),
        ValueError,
        "page 3 of a.pdf.*cannot be read",
    ),
    "a node": (lambda: page_from_node("a.pdf"), ValueError, "got str"),  # type: ignore[arg-type]
    "a node without an image": (lambda: page_from_node(TextNode(id_="t", text="x")), ValueError, "'t' has no page"),
    "base64": (lambda: page_from_node(ImageNode(id_="i", image="abcde")), ValueError, "'i' is not base64"),
    "word boxes of another text": (
        lambda: word_boxes(ImageNode(text="two words", metadata={"word_boxes": "AAAAAAAAAAA="})),
        ValueError,
        "2 words but 1 boxes",
    ),
    "no word boxes": (
        lambda: word_boxes(ImageNode(text="two words", metadata={"word_boxes": "AAAA"})),
        ValueError,
        "no packed word boxes",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_our_errors_and_the_builtins(mistake: str) -> None:
    make, builtin, message = MISTAKES[mistake]
    with pytest.raises(ColQwenError, match=message) as raised:
        make()
    assert isinstance(raised.value, builtin)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ColQwenError, match="option password") as raised:
        PDFPageReader(password=b"secret\xff")  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)


@pytest.fixture
def index(tmp_path: Path) -> ColQwenIndex:
    return ColQwenIndex(MilvusPageStore(tmp_path / "errors.db"), FakeEmbedder())


def test_mistakes_with_an_index_are_our_errors(index: ColQwenIndex, tmp_path: Path) -> None:
    gone = make_document(tmp_path, 1)
    Path(str(gone.image_path)).unlink()
    with pytest.raises(DocumentNotFoundError, match="'d-p00001' is gone"):
        index.insert(gone)
    with pytest.raises(ColQwenError, match="documents are.*got NoneType"):
        index.insert_nodes(None)  # type: ignore[arg-type]
    with pytest.raises(ColQwenError, match="got dict"):
        index.as_retriever(filters={"file_name": "a.pdf"})  # type: ignore[arg-type]
    with pytest.raises(ColQwenError, match="got MetadataFilter"):
        index.as_retriever(filters=MetadataFilter(key="file_name", value="a.pdf"))  # type: ignore[arg-type]
    with pytest.raises(ColQwenError, match="no table of numbers"):
        index.store.add([Page("p", "d", "a.pdf", 1, "")], [[[1.0], [1.0, 2.0]]])  # type: ignore[list-item]
    with pytest.raises(ColQwenError, match="response_mode is one of.*got 'short'"):
        index.as_query_engine(response_mode="short")
    assert index.store.count() == 0
    index.close()


def test_an_embedder_that_loses_a_page_is_found_out(tmp_path: Path) -> None:
    class Forgetful(FakeEmbedder):
        def embed_pages(self, pages: Any) -> list[MultiVector]:  # noqa: ANN401
            return super().embed_pages(pages)[1:]

    with ColQwenIndex(MilvusPageStore(tmp_path / "x.db"), Forgetful()) as index:
        with pytest.raises(ModelError, match="gave 1 multi-vectors for 2 pages"):
            index.insert_nodes([make_document(tmp_path, 1), make_document(tmp_path, 2)])


def test_embedders_may_give_lists(index: ColQwenIndex, tmp_path: Path) -> None:
    class Listing(FakeEmbedder):
        def embed_pages(self, pages: Any) -> Any:  # noqa: ANN401
            return [vectors.tolist() for vectors in super().embed_pages(pages)]

        def embed_queries(self, queries: Any) -> Any:  # noqa: ANN401
            return [vectors.tolist() for vectors in super().embed_queries(queries)]

    index.embedder = Listing()
    index.insert_nodes([make_document(tmp_path, 1), make_document(tmp_path, 2)])
    [hit, other] = index.as_retriever().retrieve("text 2")
    assert (hit.metadata["page_number"], round(hit.get_score(), 1)) == (2, 2.0)
    assert other.get_score() < 2
    index.close()


# ---- metadata: what JSON lacks

SHOWN: list[tuple[Any, Any]] = [
    (date(2026, 11, 25), "2026-11-25"),
    (datetime(2026, 11, 25, 18, 5, tzinfo=timezone.utc), "2026-11-25 18:05:00+00:00"),
    (Decimal("1.50"), "1.50"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (Path("reports/a.pdf"), "reports/a.pdf"),
    (np.float64(1.5), 1.5),
    (np.int32(3), 3),
    (np.bool_(True), True),
    (Colour.red, "red"),
    ((1, date(2026, 1, 2)), [1, "2026-01-02"]),
    ({"signed": date(2026, 1, 2)}, {"signed": "2026-01-02"}),
]


@pytest.mark.parametrize(("value", "kept"), SHOWN, ids=[type(value).__name__ for value, _ in SHOWN])
def test_metadata_that_json_lacks_is_kept_as_llama_index_would_show_it(
    index: ColQwenIndex, tmp_path: Path, value: object, kept: object
) -> None:
    document = make_document(tmp_path, 1, about=value)
    index.insert(document)
    [hit] = index.as_retriever().retrieve("text 1")
    assert hit.metadata["about"] == kept
    assert type(hit.metadata["about"]) is type(kept)
    if isinstance(kept, str) and not isinstance(value, Enum):
        assert f"about: {kept}" in document.get_metadata_str()
    # The same again is nothing new.
    index.insert(make_document(tmp_path, 1, about=value))
    assert index.report.unchanged == 1
    if isinstance(kept, (str, float, int)) and not isinstance(kept, bool):  # LlamaIndex has no filter for these
        only = MetadataFilters(filters=[MetadataFilter(key="about", value=kept)])
        assert index.store.count(only) == 1
    index.close()


def test_half_a_letter_in_metadata_is_a_replacement_character(index: ColQwenIndex, tmp_path: Path) -> None:
    about = {"half": "\ud83d of a pair", "pair": "\ud83d\ude00", "r\udce9sum\udce9": ["\udce9"]}
    index.insert(make_document(tmp_path, 1, about=about))
    [hit] = index.as_retriever().retrieve("text 1")
    assert hit.metadata["about"] == {"half": "\ufffd of a pair", "pair": "\U0001f600", "r\ufffdsum\ufffd": ["\ufffd"]}
    index.insert(make_document(tmp_path, 1, about=about))
    assert index.report.unchanged == 1
    index.close()


UNKEEPABLE = [float("nan"), float("inf"), 2**63, b"bytes", {1, 2}, object(), np.eye(2), {1: "a"}, [{"deep": {1}}]]


@pytest.mark.parametrize("value", UNKEEPABLE, ids=lambda value: type(value).__name__)
def test_metadata_that_cannot_be_kept_is_refused_by_page_and_key(tmp_path: Path, value: object) -> None:
    with pytest.raises(ColQwenError, match="document 'd-p00001', key 'about', cannot be kept") as raised:
        page_from_node(make_document(tmp_path, 1, about=value))
    assert isinstance(raised.value, ValueError)


def test_a_page_whose_picture_is_none_is_unreadable(tmp_path: Path) -> None:
    page = page_from_node(make_document(tmp_path, 1))
    Path(str(page.image_path)).write_bytes(picture()[:20])
    with pytest.raises(UnreadableDocumentError, match="page 1 of d.pdf"):
        page.open_image()
