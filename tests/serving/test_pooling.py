"""What clients of vLLM and OpenAI send, and are answered."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("fastapi", reason="the [server] extra is not installed")

from llama_index_colqwen import ColQwenEmbedder, ColQwenIndex, MultiVector, PDFPageReader
from llama_index_colqwen.embedders.remote.contract import Limits
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.nodes import page_from_node
from tests.extras import needs_colqwen
from tests.services import Json, serve

pytestmark = needs_colqwen

SAMPLE = Path(__file__).parents[2] / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
QUERIES = ["total revenue of the third quarter?", "who signed it?"]
MODEL = "ColQwen2"


@pytest.fixture(scope="module")
def embedder(checkpoint: Callable[..., Path]) -> ColQwenEmbedder:
    return ColQwenEmbedder(checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def url(embedder: ColQwenEmbedder) -> Iterator[str]:
    with serve(embedder, limits=Limits(max_items=4, max_text_characters=100)) as url:
        yield url


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [page_from_node(document).read_image() for document in PDFPageReader().load_data(SAMPLE)[:3]]


def ask(url: str, request: Json, path: str = "/pooling", **headers: str) -> httpx.Response:
    return httpx.post(url + path, json=request, headers=headers, timeout=60)


def page(image: bytes, *texts: str) -> Json:
    """A page as vLLM's examples and mteb send it."""
    address = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    parts: list[Json] = [{"type": "image_url", "image_url": {"url": address}}]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": parts + [{"type": "text", "text": text} for text in texts]}],
    }


def rows(response: httpx.Response, dim: int) -> list[npt.NDArray[np.float32]]:
    """Read an answer with nothing of ours."""
    assert response.status_code == 200, response.text
    found = []
    for item in response.json()["data"]:
        data = item["data"]
        flat = np.frombuffer(base64.b64decode(data), "<f4") if isinstance(data, str) else np.array(data, np.float32)
        found.append(flat.reshape(-1, dim))
    return found


def same(some: Sequence[npt.NDArray[np.float32]], others: Sequence[MultiVector], tolerance: float = 1e-6) -> bool:
    pairs = zip(some, others, strict=True)
    return all(one.shape == other.shape and np.abs(one - other).max() <= tolerance for one, other in pairs)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_rows_are_the_embedders_own(
    url: str, embedder: ColQwenEmbedder, images: list[bytes], encoding: dict[str, str]
) -> None:
    pages = embedder.embed_pages([page_from_node(document) for document in PDFPageReader().load_data(SAMPLE)[:3]])
    queries = embedder.embed_queries(QUERIES)
    asked = ask(url, {"model": MODEL, "input": QUERIES, **encoding})
    assert same(rows(asked, embedder.dim), queries)
    answer = asked.json()
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(0, "pooling"), (1, "pooling")]
    count = sum(map(len, queries))
    assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
    found = [rows(ask(url, {**page(image), **encoding}), embedder.dim)[0] for image in images]
    assert same(found, pages)


def test_a_query_is_a_query_however_it_is_sent(url: str, embedder: ColQwenEmbedder) -> None:
    expected = embedder.embed_queries(QUERIES[:1])
    text = {"type": "text", "text": QUERIES[0]}
    for request in (
        {"input": QUERIES[0]},
        {"input": QUERIES[:1], "model": None, "user": None, "dimensions": None, "task": "token_embed"},
        {"messages": [{"role": "user", "content": QUERIES[0]}]},
        {"messages": [{"role": "user", "content": [text]}]},
    ):
        assert same(rows(ask(url, request), embedder.dim), expected)


def test_text_beside_a_page_changes_nothing(url: str, embedder: ColQwenEmbedder, images: list[bytes]) -> None:
    plain = rows(ask(url, page(images[0])), embedder.dim)
    assert same(rows(ask(url, page(images[0], "Describe the image.")), embedder.dim), plain)


def test_scores_are_the_retrievers(url: str, embedder: ColQwenEmbedder, images: list[bytes], tmp_path: Path) -> None:
    """What mteb's client for such servers does: the model's name, a page or query a request, and MaxSim."""
    assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == [MODEL]
    documents = PDFPageReader().load_data(SAMPLE)[:3]
    index = ColQwenIndex.from_documents(documents, embedder=embedder, uri=str(tmp_path / "pages.db"))
    retriever = index.as_retriever(similarity_top_k=3)
    pages = [rows(ask(url, page(image)), embedder.dim)[0] for image in images]
    for query in QUERIES:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": query}]}]}
        (vectors,) = rows(ask(url, asked), embedder.dim)
        scores = {number: maxsim(vectors, one) for number, one in enumerate(pages, start=1)}
        found = {hit.metadata["page_number"]: hit.score for hit in retriever.retrieve(query)}
        # The store keeps vectors in 8 bits.
        assert found == {number: pytest.approx(score, rel=5e-3) for number, score in scores.items()}
        assert sorted(scores, key=lambda number: -scores[number]) == list(found)
    index.store.close()


def test_openais_client_reads_vectors_and_refusals(embedder: ColQwenEmbedder) -> None:
    openai = pytest.importorskip("openai")
    expected = embedder.embed_queries(QUERIES)
    with serve(embedder, token="s3cret") as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0)
        lists = client.embeddings.create(model=MODEL, input=QUERIES, encoding_format="float")
        assert same([np.array(item.embedding, np.float32) for item in lists.data], expected)
        flat = client.embeddings.create(model=MODEL, input=QUERIES)  # base64, which it reads itself
        assert same([np.array(item.embedding, np.float32).reshape(-1, embedder.dim) for item in flat.data], expected)
        with pytest.raises(openai.NotFoundError, match="'other' is not here; 'ColQwen2' is") as refused:
            client.embeddings.create(model="other", input=QUERIES)
        assert (refused.value.type, refused.value.code) == ("ModelNotFound", 404)
        with pytest.raises(openai.AuthenticationError, match="The token is wrong"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).embeddings.create(
                model=MODEL, input=QUERIES
            )
        client.close()
        assert httpx.get(f"{url}/v1/models").status_code == 200  # mteb asks for it without the token
        assert ask(url, {"input": "a"}).status_code == 401


BAD: list[tuple[Json, int, str, str]] = [
    ({"model": "vidore/colpali", "input": "a"}, 404, "ModelNotFound", "'vidore/colpali' is not here; 'ColQwen2' is."),
    ({"input": "a", "encoding_format": "bytes"}, 422, "InvalidRequest", "`encoding_format`: should be 'float' or"),
    ({"input": "a", "embed_dtype": "fp8_e4m3"}, 422, "InvalidRequest", "`embed_dtype`: should be 'float32'"),
    ({"input": "a", "task": "classify"}, 422, "InvalidRequest", "`task`: should be 'token_embed'"),
    ({"input": "a", "dimensions": 64}, 422, "InvalidRequest", "no field 'dimensions' here; there are model, input"),
    ({"input": ["a"] * 5}, 400, "TooManyItems", "5 images and texts; at most 4 a request, so split it."),
    ({"input": ["a", " "]}, 422, "InvalidText", "text 1 is empty."),
    ({"input": ["a" * 101]}, 422, "TextTooLong", "at most 100"),
    ({"input": [1, 2, 3]}, 422, "InvalidRequest", "numbers of tokens are not read"),
    ({}, 422, "InvalidRequest", "either `input`, texts, or `messages`"),
    ({"input": "a", "messages": []}, 422, "InvalidRequest", "either `input`, texts, or `messages`"),
    ({"messages": []}, 422, "InvalidRequest", "`messages` is one message"),
    ({"messages": [{"role": "system", "content": "a"}]}, 422, "InvalidRequest", "`messages` is one message"),
    ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 422, "InvalidRequest", "one message"),
    ({"messages": [{"role": "user", "content": []}]}, 422, "InvalidText", "text 0 is empty."),
    (page(b"no picture"), 422, "InvalidImage", "image 0 is not a picture"),
    ([], 422, "InvalidRequest", "A request is a JSON object with `input` or `messages`."),
]


@pytest.mark.parametrize("path", ["/pooling", "/v1/embeddings"])
def test_bad_requests_are_answered_as_openais_clients_read(url: str, path: str) -> None:
    for request, status, type, message in BAD:
        response = ask(url, request, path)
        error = response.json()["error"]
        assert (response.status_code, error["type"], error["code"], error["param"]) == (status, type, status, None)
        assert message in error["message"]


def test_a_message_holds_one_page_and_no_address(url: str, images: list[bytes]) -> None:
    two = page(images[0])
    two["messages"][0]["content"] *= 2
    assert "one page image; got 2" in ask(url, two).json()["error"]["message"]
    address = page(images[0])
    address["messages"][0]["content"][0]["image_url"]["url"] = "http://127.0.0.1:1/a.png"
    assert "addresses and paths are never opened" in ask(url, address).json()["error"]["message"]
