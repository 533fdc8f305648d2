from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the [server] extra is not installed")

from llama_index_colqwen import (
    ColQwenEmbedder,
    DimensionMismatchError,
    EmbedderFingerprint,
    EndpointEmbedder,
    EndpointError,
    InvalidOptionError,
    MultiVector,
    Page,
    PDFPageReader,
    QueryError,
    UnreadableDocumentError,
)
from llama_index_colqwen.embedders.remote.contract import Limits
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.nodes import page_from_node
from tests.extras import needs_colqwen
from tests.forks import in_fork, needs_fork
from tests.services import Answer, Json, answer_with, serve

pytestmark = needs_colqwen

SAMPLE = Path(__file__).parents[3] / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
QUERIES = ["total revenue of the third quarter?", "who signed it?"]
TWO_DIMS = EmbedderFingerprint("two", "1", 2)


@pytest.fixture(scope="module")
def local(checkpoint: Callable[..., Path]) -> ColQwenEmbedder:
    return ColQwenEmbedder(checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def url(local: ColQwenEmbedder) -> Iterator[str]:
    with serve(local, token="s3cret", limits=Limits(max_items=40)) as url:
        yield url


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[EndpointEmbedder]:
    with EndpointEmbedder(url, "s3cret", api="pooling") as remote:
        yield remote


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return [page_from_node(document) for document in PDFPageReader().load_data(SAMPLE)[:4]]


def same(some: Sequence[MultiVector], others: Sequence[MultiVector]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(one.shape == other.shape and np.abs(one - other).max() <= 1e-6 for one, other in pairs)


# ---- with our service


def test_an_address_names_what_the_service_speaks(
    url: str, monkeypatch: pytest.MonkeyPatch, remote: EndpointEmbedder
) -> None:
    monkeypatch.setenv("COLQWEN_TOKEN", "s3cret")
    shapes = [rows.shape for rows in remote.embed_queries(QUERIES)]
    for address, speaks in ((f"{url}/pooling", "pooling"), (f"{url}/pooling/", "pooling"), (url, None)):
        with closing(cast(EndpointEmbedder, resolve_embedder(address))) as named:
            assert named.url == url
            assert named.fingerprint.options.get("api") == speaks
            assert [rows.shape for rows in named.embed_queries(QUERIES)] == shapes
    with pytest.raises(InvalidOptionError, match=f"give embedder='{url}/pooling', if you trust that address"):
        resolve_embedder(remote.fingerprint)


def test_rows_are_the_local_ones(remote: EndpointEmbedder, local: ColQwenEmbedder, pages: list[Page]) -> None:
    queries = [f"question {number}?" for number in range(70)]
    assert same(remote.embed_queries(queries), local.embed_queries(queries))
    assert same(remote.embed_pages(pages), local.embed_pages(pages))
    assert [page for page, _ in remote.stream_pages(pages)] == pages


def test_the_server_says_its_models_name_and_dim(remote: EndpointEmbedder, url: str, local: ColQwenEmbedder) -> None:
    options = {"api": "pooling", "query_prefix": ""}
    assert remote.fingerprint == EmbedderFingerprint("ColQwen2", "unknown", local.dim, options)
    assert remote.fingerprint.location == url
    with EndpointEmbedder(url, "s3cret", api="pooling", fingerprint=local.fingerprint) as told:
        assert told.fingerprint == local.fingerprint


def test_unpickled_it_asks_the_same_way(
    url: str, local: ColQwenEmbedder, monkeypatch: pytest.MonkeyPatch, remote: EndpointEmbedder
) -> None:
    monkeypatch.setenv("COLQWEN_TOKEN", "s3cret")
    with pickle.loads(pickle.dumps(remote)) as again:
        assert same(again.embed_queries(QUERIES), local.embed_queries(QUERIES))


@needs_fork
def test_fork_has_connections_of_its_own(remote: EndpointEmbedder, local: ColQwenEmbedder) -> None:
    assert same(in_fork(lambda: remote.embed_queries(QUERIES)), local.embed_queries(QUERIES))
    assert same(remote.embed_queries(QUERIES), local.embed_queries(QUERIES))


def test_what_it_refuses_is_named(remote: EndpointEmbedder, url: str, pages: list[Page]) -> None:
    broken = [pages[0], replace(pages[1], image=b"?")]
    with pytest.raises(UnreadableDocumentError, match=r"tidal-sensors-paper.pdf: the image of page 2 cannot be read"):
        remote.embed_pages(broken)
    with pytest.raises(QueryError, match="refuses the query 'wordword"):
        remote.embed_queries(["word" * 3000])
    other = EmbedderFingerprint("vidore/colpali", "1", 128)
    with EndpointEmbedder(url, "s3cret", api="pooling", fingerprint=other) as mistaken:
        with pytest.raises(EndpointError, match="'vidore/colpali' is not here; 'ColQwen2' is"):
            mistaken.embed_queries(QUERIES)
    with pytest.raises(EndpointError, match="refuses the token"):
        EndpointEmbedder(url, "wrong", api="pooling")


# ---- with servers that answer as vLLM does


def vllm(value: object, status: int = 200) -> Callable[[str, Json], Answer]:
    """Answer every item with this."""

    def answer(method: str, body: Json) -> Answer:
        if method == "GET":
            return 200, {}, {"object": "list", "data": [{"id": "vidore/colpali-v1.3-hf", "object": "model"}]}
        if status != 200:
            return status, {}, {"error": {"message": value, "type": "BadRequestError", "param": None, "code": status}}
        items = range(len(body["input"]) if "input" in body else 1)
        data = [{"index": index, "object": "pooling", "data": value} for index in items]
        return 200, {}, {"id": "pool-1", "object": "list", "created": 1, "model": "m", "data": data[::-1], "usage": {}}

    return answer


def test_queries_have_the_prefix_that_was_given_and_pages_the_prompt() -> None:
    sent: list[Json] = []

    def answer(method: str, body: Json) -> Answer:
        if body:
            sent.append(body)
        return vllm([[0.6, 0.8]])(method, body)

    with answer_with(answer) as url, EndpointEmbedder(url, api="pooling", query_prefix="Query: ") as remote:
        assert remote.fingerprint.options == {"api": "pooling", "query_prefix": "Query: "}
        (query,) = remote.embed_queries(["who?"])
        (page,) = remote.embed_pages([Page("p", "d", "a.pdf", 1, "", image=b"\x89PNG\r\n\x1a\n")])
    assert query == pytest.approx(np.array([[0.6, 0.8]]))
    assert page == pytest.approx(np.array([[0.6, 0.8]]))
    assert sent[1] == {"model": "vidore/colpali-v1.3-hf", "input": ["Query: who?"], "encoding_format": "float"}
    (message,) = sent[2]["messages"]
    image, prompt = message["content"]
    assert image["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert prompt == {"type": "text", "text": "Describe the image."}
    assert sent[2]["encoding_format"] == "base64"  # as the dim is known now


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([0.6, 0.8], EndpointError, "no multi-vectors"),
        ([[float("nan"), 0.0]], EndpointError, "finite"),
        ("%", EndpointError, "no multi-vectors"),
        (base64.b64encode(bytes(12)).decode(), EndpointError, "no multi-vectors"),
        ([[1.0, 0.0, 0.0, 0.0]], DimensionMismatchError, "dim 4, and its fingerprint says 2"),
    ],
)
def test_answers_of_another_kind_are_errors(value: object, error: type[Exception], message: str) -> None:
    with answer_with(vllm(value)) as url, EndpointEmbedder(url, api="pooling", fingerprint=TWO_DIMS) as remote:
        with pytest.raises(error, match=message):
            remote.embed_queries(["a"])


def test_a_page_that_a_server_has_no_room_for_is_named() -> None:
    with answer_with(vllm("Its context has 4096 tokens.", 400)) as url:
        with EndpointEmbedder(url, api="pooling", fingerprint=TWO_DIMS) as remote:
            with pytest.raises(UnreadableDocumentError, match=r"a.pdf: the image of page 1 .*4096 tokens"):
                remote.embed_pages([Page("p", "d", "a.pdf", 1, "", image=b"picture")])
            with pytest.raises(EndpointError, match=r"says: Its context has 4096 tokens. \(status 400\)"):
                remote.embed_queries(["a"])


def test_a_server_with_one_vector_an_item_is_refused() -> None:
    with answer_with(vllm([0.6, 0.8])) as url:
        with pytest.raises(EndpointError, match="serve a late-interaction model"):
            EndpointEmbedder(url, api="pooling")


def test_a_server_of_another_kind_is_refused() -> None:
    def several(method: str, body: Json) -> Answer:
        return 200, {}, {"data": [{"id": "a"}, {"id": "b"}]}

    with answer_with(several) as url, pytest.raises(InvalidOptionError, match=r"2 models\). Give fingerprint="):
        EndpointEmbedder(url, api="pooling")
    with answer_with(lambda method, body: (404, {}, {"detail": "Not Found"})) as url:
        with pytest.raises(InvalidOptionError, match="status 404, 0 models"):
            EndpointEmbedder(url, api="pooling")
        with pytest.raises(InvalidOptionError, match='if it is a vLLM server, api="pooling"'):
            EndpointEmbedder(url)
