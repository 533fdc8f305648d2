from __future__ import annotations

import base64
import io
import json
import logging
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, EndpointHandler, MultiVector, Page, PDFPageReader
from llama_index_colqwen.embedders.colqwen.preprocessing import PreparedPage
from llama_index_colqwen.embedders.remote.contract import Limits, read_multi_vector
from llama_index_colqwen.errors import DeviceMemoryError, InvalidOptionError
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.nodes import page_from_node
from tests.bad_images import BAD_IMAGES
from tests.checkpoints import keep_in_cache
from tests.extras import needs_colqwen
from tests.forks import in_fork, needs_fork
from tests.services import Json

pytestmark = needs_colqwen


ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
TEXTS = ["total revenue of the third quarter?", "who signed it?"]


@pytest.fixture(scope="module")
def handler(checkpoint: Callable[..., Path]) -> EndpointHandler:
    return EndpointHandler(str(checkpoint()), limits=Limits(max_items=40))


@pytest.fixture(scope="module")
def local(checkpoint: Callable[..., Path]) -> ColQwenEmbedder:
    return ColQwenEmbedder(checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [page_from_node(document).read_image() for document in PDFPageReader().load_data(SAMPLE)[:3]]


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_pages(images: Sequence[bytes]) -> list[Page]:
    return [Page(str(number), "", "x", number, "", image=data) for number, data in enumerate(images, 1)]


def close_to(answered: Sequence[Any], expected: Sequence[MultiVector], tolerance: float) -> bool:
    assert len(answered) == len(expected)
    for one, other in zip(answered, expected, strict=True):
        assert np.shape(one) == other.shape
    return all(
        np.abs(np.asarray(one) - other).max() <= tolerance for one, other in zip(answered, expected, strict=True)
    )


def test_images_and_texts_come_back_as_the_embedders_vectors_and_maxsim_scores(
    handler: EndpointHandler, local: ColQwenEmbedder, images: list[bytes]
) -> None:
    answer = json.loads(json.dumps(handler({"inputs": [], "image": list(map(encode, images)), "text": TEXTS})))
    assert answer.keys() == {"image", "text", "scores"}
    pages, queries = local.embed_pages(as_pages(images)), local.embed_queries(TEXTS)
    assert close_to(answer["image"], pages, 1e-6)
    assert close_to(answer["text"], queries, 1e-6)
    assert answer["scores"] == [[pytest.approx(maxsim(query, page), abs=1e-4) for page in pages] for query in queries]


def test_scores_are_the_retrievers(
    handler: EndpointHandler, local: ColQwenEmbedder, images: list[bytes], tmp_path: Path
) -> None:
    documents = PDFPageReader(image_dir=tmp_path / "images").load_data(SAMPLE)[:3]
    scores = handler({"image": list(map(encode, images)), "text": TEXTS[:1]})["scores"][0]
    index = ColQwenIndex.from_documents(documents, embedder=local, uri=tmp_path / "x.db", vector_dtype="float16")
    hits = index.as_retriever(similarity_top_k=3).retrieve(TEXTS[0])
    index.store.close()
    found = {hit.metadata["page_number"]: hit.score for hit in hits}
    # what is kept is rounded to float16
    assert scores == [pytest.approx(found[number], abs=2e-3) for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("data", "lengths"),
    [
        ({}, (0, 0, [])),
        ({"inputs": []}, (0, 0, [])),
        ({"inputs": "", "image": [], "text": []}, (0, 0, [])),
        ({"text": TEXTS}, (0, 2, [[], []])),
        ({"inputs": {"text": TEXTS, "batch_size": 1}}, (0, 2, [[], []])),
        ({"inputs": {"text": TEXTS}, "return_scores": False}, (0, 2, None)),
        ({"inputs": [], "text": TEXTS, "parameters": {}}, (0, 2, [[], []])),
        ({"inputs": {"text": TEXTS}, "parameters": {"return_scores": False}}, (0, 2, None)),
        ({"inputs": {"text": TEXTS}, "parameters": None}, (0, 2, [[], []])),
    ],
)
def test_everything_is_optional_and_may_be_inside_inputs(
    handler: EndpointHandler, data: dict[str, Any], lengths: tuple[int, int, Any]
) -> None:
    answer = handler(data)
    assert (len(answer["image"]), len(answer["text"]), answer.get("scores")) == lengths


def test_only_images_and_data_urls(handler: EndpointHandler, images: list[bytes]) -> None:
    plain = handler({"image": [encode(images[0])]})
    url = "data:image/jpeg;base64," + base64.encodebytes(images[0]).decode()  # with line ends
    assert handler({"inputs": {"image": [url]}}) == plain
    url_safe = base64.urlsafe_b64encode(images[0]).decode()
    assert url_safe != encode(images[0])
    for length in (0, 1, 2):  # so that one, two and no signs of padding are left out; what is behind a JPEG is not read
        unpadded = base64.urlsafe_b64encode(images[0] + bytes(length)).decode().rstrip("=")
        assert handler({"image": [unpadded]}) == plain
    assert plain["scores"] == []


def test_float16_is_several_times_smaller_and_within_a_thousandth(
    handler: EndpointHandler, local: ColQwenEmbedder, images: list[bytes]
) -> None:
    request = {"image": [encode(images[0])], "text": TEXTS[:1]}
    floats, compact = handler(request), handler({**request, "encoding": "base64-float16"})
    assert len(json.dumps(floats)) > 4 * len(json.dumps(compact))
    assert compact["image"][0]["dtype"] == "float16"
    assert compact["scores"] == floats["scores"]
    (page,), (query,) = local.embed_pages(as_pages(images[:1])), local.embed_queries(TEXTS[:1])
    assert close_to([read_multi_vector(compact["image"][0])], [page], 1e-3)
    assert close_to([read_multi_vector(compact["text"][0])], [query], 1e-3)
    assert getattr(read_multi_vector(compact["image"][0]), "patch_grid", None) == page.patch_grid  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "type", "message", "index"),
    [
        ([], "InvalidRequest", "JSON object", None),
        ({"image": "abc"}, "InvalidRequest", "`image`: should be a valid list", None),
        ({"image": [1]}, "InvalidRequest", "image 0: should be a string", 0),
        ({"text": ["a", None]}, "InvalidRequest", "text 1: should be a string", 1),
        ({"text": ["a", ""]}, "InvalidText", "text 1 is empty", 1),
        ({"text": [" \n"]}, "InvalidText", "text 0 is empty", 0),
        ({"text": ["word " * 5000]}, "TextTooLong", "25000 characters; at most 10000", 0),
        ({"text": ["a"] * 10_000}, "TooManyItems", "10000 images and texts; at most 40", None),
        ({"batch_size": 0}, "InvalidRequest", "`batch_size`", None),
        ({"batch_size": -1}, "InvalidRequest", "`batch_size`", None),
        ({"batch_size": "x"}, "InvalidRequest", "`batch_size`", None),
        ({"batch_size": 10**30}, "InvalidRequest", "`batch_size`", None),
        ({"encoding": "int4"}, "InvalidRequest", "`encoding`: should be 'float' or 'base64-float16'", None),
        ({"images": []}, "InvalidRequest", "no field 'images'; there are image, text", None),
        ({"inputs": {"images": []}}, "InvalidRequest", "no field 'images'", None),
        ({"inputs": "a question"}, "InvalidRequest", "`inputs`: it is empty, or an object", None),
        ({"inputs": ["a question"]}, "InvalidRequest", "`inputs`: it is empty, or an object", None),
        ({"inputs": {"text": []}, "text": []}, "InvalidRequest", "`text` is there twice", None),
        ({"inputs": {"text": []}, "parameters": {"text": []}}, "InvalidRequest", "`text` is there twice", None),
        ({"parameters": {"wait": True}}, "InvalidRequest", "no field 'wait'", None),
        ({"parameters": []}, "InvalidRequest", "`parameters`: it is empty, or an object", None),
        ({"parameters": {"text": [3]}}, "InvalidRequest", "text 0: should be a string", 0),
        ({"inputs": {"text": [3]}}, "InvalidRequest", "text 0: should be a string", 0),
        *((({"image": [image]}), type, message, 0) for image, type, message in BAD_IMAGES.values()),
    ],
)
def test_bad_requests_are_answered_with_what_is_wrong(
    handler: EndpointHandler, data: Json, type: str, message: str, index: int | None
) -> None:
    error = handler(data)["error"]
    assert (error["type"], error["index"]) == (type, index)
    assert message in error["message"]


@pytest.mark.parametrize("size", [(1, 1), (10, 3000), (3000, 10)])
def test_odd_shapes_have_vectors(handler: EndpointHandler, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    (vectors,) = handler({"image": [encode(buffer.getvalue())]})["image"]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_good_image_after_a_bad_one_is_not_answered_with_anothers_vectors(
    handler: EndpointHandler, images: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    whole = encode(images[0])
    answer = handler({"image": [whole, encode(images[1][:2000]), whole], "batch_size": 1})
    assert answer == {
        "error": {
            "type": "InvalidImage",
            "message": "image 1 cannot be decoded: it is truncated or corrupt.",
            "index": 1,
        }
    }
    assert "truncated" in caplog.text


class Failing(EndpointHandler):
    """Its model fails over the third page of a request, and over one text."""

    def __init__(self, path: str, error: Exception) -> None:
        super().__init__(path)
        self.batches: list[int] = []
        embed_prepared, embed_queries = self.embedder.embed_prepared, self.embedder.embed_queries

        def pages(prepared: Sequence[PreparedPage]) -> list[MultiVector]:
            self.batches.append(len(prepared))
            if any(page.patch_grid.rows == 1 for page in prepared):
                raise error
            return embed_prepared(prepared)

        def embed(queries: Sequence[str]) -> list[MultiVector]:
            self.batches.append(len(queries))
            if "poison" in queries:
                raise error
            return embed_queries(queries)

        self.embedder.embed_prepared = pages  # type: ignore[method-assign]
        self.embedder.embed_queries = embed  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("error", "type"),
    [
        (RuntimeError("boom in /secret/weights"), "ModelFailed"),
        (DeviceMemoryError("/secret/weights does not fit"), "OutOfMemory"),
    ],
)
def test_what_fails_the_model_is_named_and_its_cause_logged_not_told(
    checkpoint: Callable[..., Path],
    images: list[bytes],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    type: str,
) -> None:
    handler = Failing(str(checkpoint()), error)
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 28)).save(buffer, "PNG")  # a page of one line of patches
    good, bad = encode(images[0]), encode(buffer.getvalue())
    with caplog.at_level(logging.ERROR):
        answer = handler({"image": [good, good, bad, good]})
    assert (answer["error"]["type"], answer["error"]["index"]) == (type, 2)
    assert "secret" not in json.dumps(answer)
    assert "/secret/weights" in caplog.text
    assert "Traceback" in caplog.text
    answer = handler({"text": ["a", "b", "poison"]})
    assert (answer["error"]["type"], answer["error"]["index"]) == (type, 2)
    assert "secret" not in json.dumps(answer)


def test_batch_size_is_the_items_of_a_forward_pass(checkpoint: Callable[..., Path], images: list[bytes]) -> None:
    handler = Failing(str(checkpoint()), RuntimeError())
    handler({"image": [encode(images[0])] * 3, "text": ["a"] * 5, "batch_size": 2})
    assert handler.batches == [2, 1, 2, 2, 1]
    handler.batches.clear()
    handler({"text": ["a"] * 5})
    assert handler.batches == [4, 1]


def test_what_nobody_thought_of_is_an_error_too(handler: EndpointHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "limits", None)
    assert handler({"text": ["a"]})["error"]["type"] == "InternalError"


def test_handler_of_the_example_serves_the_published_model(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(tmp_path / "hub", "vidore/colqwen2-v1.0", checkpoint(adapter=True))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = runpy.run_path(str(ROOT / "examples" / "endpoint" / "handler.py"))["EndpointHandler"]
    handler = found()
    assert handler.embedder.fingerprint.model == "vidore/colqwen2-v1.0"
    assert handler.embedder.max_visual_tokens == 768
    assert found(str(checkpoint()), max_visual_tokens=100).embedder.max_visual_tokens == 100
    assert len(handler({"text": ["total revenue?"]})["text"]) == 1


@needs_fork
def test_fork_answers_what_the_parent_answers(handler: EndpointHandler, images: list[bytes]) -> None:
    request = {"image": [encode(images[0])], "text": TEXTS}
    expected = handler(request)
    answer = in_fork(lambda: handler(request))
    for kind in ("image", "text"):
        assert close_to(answer[kind], [np.array(vectors) for vectors in expected[kind]], 1e-6)


def test_limits_that_let_nothing_through_are_refused() -> None:
    with pytest.raises(InvalidOptionError, match="max_items=0"):
        Limits(max_items=0)
