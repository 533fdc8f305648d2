from __future__ import annotations

import asyncio
import base64
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the [server] extra is not installed")

from llama_index_colqwen import (
    ColQwenEmbedder,
    ColQwenError,
    ColQwenIndex,
    DimensionMismatchError,
    EmbedderFingerprint,
    EndpointEmbedder,
    EndpointError,
    EndpointHandler,
    EndpointUnavailableError,
    InvalidOptionError,
    MultiVector,
    MultiVectorEmbedder,
    Page,
    PDFPageReader,
    QueryError,
    UnreadableDocumentError,
    resolve_embedder,
)
from llama_index_colqwen.embedders.remote.contract import Limits
from llama_index_colqwen.late_interaction.multivectors import PageVectors
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.serving.app import Batching
from tests.bad_images import BAD_IMAGES
from tests.extras import needs_colqwen
from tests.forks import in_fork, needs_fork
from tests.services import Answer, Json, answer_with, serve, wait_for

pytestmark = needs_colqwen

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
QUERIES = ["total revenue of the third quarter?", "who signed it?"]
TWO_DIMS = EmbedderFingerprint("two", "1", 2)
ROWS = {"text": [[[1.0, 0.0]]], "image": []}


@pytest.fixture(scope="module")
def local(checkpoint: Callable[..., Path]) -> ColQwenEmbedder:
    return ColQwenEmbedder(checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def url(local: ColQwenEmbedder) -> Iterator[str]:
    with serve(local, limits=Limits(max_items=12)) as url:
        yield url


@pytest.fixture(scope="module")
def remote(url: str) -> Iterator[EndpointEmbedder]:
    with EndpointEmbedder(url) as remote:
        yield remote


@pytest.fixture(scope="module")
def pages() -> list[Page]:
    return [page_from_node(document) for document in PDFPageReader().load_data(SAMPLE)]


def float16(rows: list[list[float]]) -> dict[str, object]:
    data = np.array(rows, "<f2")
    return {"dtype": "float16", "shape": list(data.shape), "data": base64.b64encode(data.tobytes()).decode()}


def near(some: Sequence[MultiVector], others: Sequence[MultiVector], tolerance: float = 1e-3) -> bool:
    pairs = list(zip(some, others, strict=True))
    return all(one.shape == other.shape and np.abs(one - other).max() <= tolerance for one, other in pairs)


# ---- with our service


def test_vectors_are_the_local_ones(remote: EndpointEmbedder, local: ColQwenEmbedder, pages: list[Page]) -> None:
    assert isinstance(remote, MultiVectorEmbedder)
    assert (remote.dim, remote.fingerprint) == (local.dim, local.fingerprint)
    found, expected = remote.embed_pages(pages), local.embed_pages(pages)
    assert near(found, expected)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, PageVectors)
        assert isinstance(other, PageVectors)
        assert one.patch_grid == other.patch_grid is not None
        assert np.linalg.norm(one, axis=1) == pytest.approx(1, abs=1e-6)
    assert near(remote.embed_queries(QUERIES), local.embed_queries(QUERIES))
    assert remote.embed_pages([]) == remote.embed_queries([]) == []


def test_many_more_than_a_request_takes_keep_their_order(remote: EndpointEmbedder, local: ColQwenEmbedder) -> None:
    queries = [f"question {number}?" for number in range(100)]
    assert near(remote.embed_queries(queries), local.embed_queries(queries))


async def test_async_is_the_same(remote: EndpointEmbedder, local: ColQwenEmbedder, pages: list[Page]) -> None:
    found, asked = await asyncio.gather(remote.aembed_pages(pages[:2]), remote.aembed_queries(QUERIES))
    assert near(found, local.embed_pages(pages[:2]))
    assert near(asked, local.embed_queries(QUERIES))


def test_pages_stream_with_a_bounded_number_under_way(url: str, local: ColQwenEmbedder, pages: list[Page]) -> None:
    taken = 0

    def reading() -> Iterator[Page]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield replace(pages[number % len(pages)], page_id=str(number))

    with EndpointEmbedder(url, batch_size=2, concurrency=2) as remote:
        stream = remote.stream_pages(reading())
        first, vectors = next(iter(stream))
        assert (first.page_id, taken) == ("0", 5)  # a first page, and two requests of two
        assert near([vectors], local.embed_pages(pages[:1]))
        assert [page.page_id for page, _ in stream] == [str(number) for number in range(1, 20)]


def test_progress_is_shown_of_what_takes_longer_than_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(method: str, body: Json) -> Answer:
        time.sleep(1.1)
        return 200, {}, {"image": [[[1.0, 0.0]]] * len(body["image"]), "text": []}

    some = [Page(f"p{number}", "d", "a.pdf", number, "", image=b"picture") for number in (1, 2)]
    fingerprint = EmbedderFingerprint("a", "1", 2)
    with answer_with(answer) as url, EndpointEmbedder(url, fingerprint=fingerprint) as slow:
        slow.embed_pages(some)
        assert "2/2" in capsys.readouterr().err
        slow.embed_pages(some, show_progress=False)
        assert capsys.readouterr().err == ""


def test_64_clients_of_6_requests_each_get_their_own_vectors(local: ColQwenEmbedder, pages: list[Page]) -> None:
    queries = [f"What is {'the ' * (number % 7)}revenue of {number}?" for number in range(128)]
    expected = dict(zip(queries, local.embed_queries(queries), strict=True))
    image = replace(pages[0], image=_small_image())
    (expected_page,) = local.embed_pages([image])

    async def client(url: str, number: int) -> int:
        asked = 0
        remote = EndpointEmbedder(url, fingerprint=local.fingerprint, max_retries=20)
        for turn in range(6):
            if (number + turn) % 64 == 0:
                (vectors,) = await remote.aembed_pages([image])
                assert near([vectors], [expected_page])
            else:
                query = queries[(number * 6 + turn) % len(queries)]
                (vectors,) = await remote.aembed_queries([query])
                assert near([vectors], [expected[query]])
            asked += 1
        await asyncio.to_thread(remote.close)
        return asked

    async def all_clients(url: str) -> list[int]:
        return await asyncio.gather(*(client(url, number) for number in range(64)))

    # A queue that may be full, too: then clients wait and ask again.
    with serve(local, limits=Limits(max_items=40), batching=Batching(max_queue=56)) as url:
        assert asyncio.run(all_clients(url)) == [6] * 64


def _small_image() -> bytes:
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.effect_noise((80, 100), 50).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_index_is_made_and_asked_without_torch(
    url: str, local: ColQwenEmbedder, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'colpali_engine', 'transformers', 'fastapi', 'uvicorn'): sys.modules[name] = None\n"
        "from llama_index_colqwen import ColQwenIndex, PDFPageReader\n"
        "from llama_index_colqwen.cli import app\n"
        "url, pdf, db = sys.argv[1:]\n"
        "app(['index', pdf, '--uri', db, '--embedder', url], standalone_mode=False)\n"
        "app(['search', 'which sensor?', '--uri', db, '--embedder', url, '-k', '1', '--json'], standalone_mode=False)\n"
        "index = ColQwenIndex.from_documents(PDFPageReader().load_data(pdf), embedder=url, uri=db)\n"
        "print(index.report.unchanged, 'unchanged')\n"
        "print(len(index.as_retriever(similarity_top_k=2).retrieve('which sensor?')), 'hits')\n"
        "index.store.close()\n"
    )
    output = run_python(code, url, SAMPLE, tmp_path / "x.db")
    assert "6 pages in" in output
    assert '"rank": 1' in output
    assert "6 unchanged" in output
    assert "2 hits" in output
    # The collection tells where its vectors came from; nobody is connected to unasked. The model itself will do, too.
    with pytest.raises(InvalidOptionError, match=f"embedder='{url}', if you trust"):
        ColQwenIndex.from_existing(tmp_path / "x.db")
    index = ColQwenIndex.from_existing(tmp_path / "x.db", embedder=local)
    assert index.as_retriever(similarity_top_k=1).retrieve("which sensor?")
    index.store.close()


@pytest.mark.parametrize("name", ["not an image", "truncated PNG", "bomb of 200 megapixels", "animated GIF"])
def test_a_page_that_is_no_picture_is_named(remote: EndpointEmbedder, pages: list[Page], name: str) -> None:
    image = base64.b64decode(BAD_IMAGES[name][0])
    bad = replace(pages[1], file_name="bad.pdf", page_number=7, image=image)
    with pytest.raises(UnreadableDocumentError, match=r"^bad.pdf: the image of page 7 cannot be read \(image 1 "):
        remote.embed_pages([pages[0], bad, pages[2]])


def test_a_page_without_its_image_is_named(remote: EndpointEmbedder, pages: list[Page], tmp_path: Path) -> None:
    for gone in (replace(pages[0], image=None), replace(pages[0], image=None, image_path=str(tmp_path / "gone.jpg"))):
        with pytest.raises(UnreadableDocumentError, match=r"tidal-sensors-paper.pdf: the image of page 1"):
            remote.embed_pages([gone])


def test_no_page_is_blamed_for_a_request_that_is_too_large(local: ColQwenEmbedder, pages: list[Page]) -> None:
    with serve(local, limits=Limits(max_body_bytes=1_000_000)) as url:
        with EndpointEmbedder(url, fingerprint=local.fingerprint) as unaware:
            with pytest.raises(EndpointError, match="refuses 4 pages at once: The body is too large.*Lower batch_size"):
                unaware.embed_pages(pages[:4])
        with EndpointEmbedder(url) as aware:
            assert near(aware.embed_pages(pages[:4]), local.embed_pages(pages[:4]))
            large = replace(pages[1], image=b"\xff" * 1_000_000)
            with pytest.raises(UnreadableDocumentError, match="image of page 2 cannot be read .*body is too large"):
                aware.embed_pages([pages[0], large])


def test_queries_that_say_nothing_or_too_much(remote: EndpointEmbedder) -> None:
    with pytest.raises(QueryError, match="empty"):
        remote.embed_queries(["a", " "])
    with pytest.raises(QueryError, match=r"'word word .*25000 characters; at most 10000"):
        remote.embed_queries(["a", "word " * 5000])
    # Special tokens and half a letter are text.
    assert len(remote.embed_queries(["<|image_pad|> \ud800"])) == 1


def test_the_token_is_an_argument_or_in_the_environment(
    local: ColQwenEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLQWEN_TOKEN", raising=False)
    with serve(local, token="s3cret") as url:
        for token in (None, "wrong"):
            with pytest.raises(EndpointError, match="refuses the token .*401.*COLQWEN_TOKEN"):
                EndpointEmbedder(url, token)
        with EndpointEmbedder(url, "s3cret") as remote:
            assert len(remote.embed_queries(QUERIES)) == 2
        monkeypatch.setenv("COLQWEN_TOKEN", "s3cret")
        resolved = resolve_embedder(url)
        assert isinstance(resolved, EndpointEmbedder)
        assert len(resolved.embed_queries(QUERIES)) == 2
        resolved.close()
        assert "s3cret" not in resolved.fingerprint.to_json()
        # The answer to a large request comes, too, and it is not tried again.
        with EndpointEmbedder(url, "wrong", fingerprint=local.fingerprint) as stranger:
            page = Page("1", "", "x.pdf", 1, "", image=b"\xff" * 3_000_000)
            with pytest.raises(EndpointError, match="refuses the token"):
                stranger.embed_pages([page])


def test_pickled_without_its_token(local: ColQwenEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(local, token="a-secret") as url:
        with EndpointEmbedder(url, "a-secret", batch_size=2) as embedder:
            pickled = pickle.dumps(embedder)
            assert b"a-secret" not in pickled
            monkeypatch.setenv("COLQWEN_TOKEN", "a-secret")
            with pickle.loads(pickled) as again:
                assert (again.fingerprint, again.batch_size) == (embedder.fingerprint, 2)
                np.testing.assert_array_equal(again.embed_queries(["red"])[0], embedder.embed_queries(["red"])[0])


def test_another_model_at_the_same_address_is_noticed(checkpoint: Callable[..., Path], local: ColQwenEmbedder) -> None:
    with serve(local) as url:
        remote = EndpointEmbedder(url)
        remote.embed_queries(QUERIES)
        port = int(url.rpartition(":")[2])
    other = ColQwenEmbedder(checkpoint(adapter=True), device="cpu")
    with serve(other, port=port):
        with pytest.raises(EndpointError, match="another model"):
            remote.embed_queries(QUERIES)
    remote.close()


async def test_cancelling_leaves_the_service_alone(local: ColQwenEmbedder) -> None:
    gate, seen = threading.Event(), []

    class Gated(ColQwenEmbedder):
        def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
            seen.append(list(queries))
            assert gate.wait(30)
            return super().embed_queries(queries)

    gated = Gated(local.model_name, device="cpu")
    with serve(gated) as url, EndpointEmbedder(url) as remote:
        tasks = [asyncio.create_task(remote.aembed_queries(["first"]))]
        await asyncio.to_thread(wait_for, lambda: seen)
        tasks.append(asyncio.create_task(remote.aembed_queries(["second"])))
        await asyncio.sleep(0.3)
        tasks[1].cancel()
        await asyncio.sleep(0.3)
        gate.set()
        assert len(await tasks[0]) == 1
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
    assert seen == [["first"]]


# ---- with the bare handler


def test_a_hugging_face_endpoint_needs_a_fingerprint(
    checkpoint: Callable[..., Path], local: ColQwenEmbedder, pages: list[Page]
) -> None:
    handler = EndpointHandler(str(checkpoint()))

    def answer(method: str, body: Json) -> Answer:
        return (200, {}, handler(body)) if method == "POST" else (404, {}, {"error": "no such path"})

    with answer_with(answer) as url:
        with pytest.raises(InvalidOptionError, match=r"/info .*404.* give fingerprint=EmbedderFingerprint"):
            EndpointEmbedder(url)
        with EndpointEmbedder(url, fingerprint=replace(local.fingerprint, location="")) as remote:
            assert near(remote.embed_pages(pages[:2]), local.embed_pages(pages[:2]))
            assert near(remote.embed_queries(QUERIES), local.embed_queries(QUERIES))
            # It answers faults with 200.
            with pytest.raises(UnreadableDocumentError, match="page 2 cannot be read"):
                remote.embed_pages([pages[0], replace(pages[1], image=b"?")])
        with EndpointEmbedder(url, fingerprint=TWO_DIMS) as mistaken:
            with pytest.raises(DimensionMismatchError, match="dim 128, and its fingerprint says 2"):
                mistaken.embed_queries(QUERIES)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": "CUDA out of memory"}, "CUDA out of memory"),
        ({"error": {"type": "ModelFailed", "message": "The model failed", "index": 0}}, "The model failed"),
        ({"vectors": []}, "no multi-vectors under 'text'"),
        ({"text": [[0.1, 0.2]]}, "no multi-vectors"),
        ({"text": [[["a"]]]}, "no multi-vectors"),
        ({"text": [[[0.0, 0.0]]]}, "all its rows are zero"),
        ({"text": [[[float("nan"), 0.0]]]}, "finite"),
        ({"text": [[[1e39, 0.0]]]}, "finite"),
        ({"text": [float16([[np.inf, 0.0]])]}, "finite"),
        ({"text": [float16([[0.0, 0.0]])]}, "all its rows are zero"),
        ({"text": [{**float16([[1.0, 0.0]]), "dtype": "float32"}]}, "dtype is float16"),
        ({"text": [{**float16([[1.0, 0.0]]), "shape": [2, 2]}]}, "no multi-vectors"),
        ({"text": [{**float16([[1.0, 0.0]]), "data": "%"}]}, "no multi-vectors"),
        ({"text": [{**float16([[1.0, 0.0]]), "patch_grid": {"rows": 2, "columns": 1}}]}, "does not fit 1 rows"),
        ({"text": [{**float16([[1.0, 0.0]]), "patch_grid": {"rows": "1", "columns": 1}}]}, "whole numbers"),
        ({"text": []}, "0 multi-vectors for 1"),
        ([1, 2], r"\[1, 2\]"),
    ],
)
def test_answers_of_another_kind_are_errors(value: object, message: str) -> None:
    with answer_with(lambda method, body: (200, {}, value)) as url:
        with EndpointEmbedder(url, fingerprint=TWO_DIMS) as remote:
            with pytest.raises(EndpointError, match=message):
                remote.embed_queries(["a"])


def test_rows_of_padding_are_left_out_and_rows_made_unit() -> None:
    answer = {"text": [[[0.0, 0.0], [3.0, 4.0]]]}
    with answer_with(lambda method, body: (200, {}, answer)) as url:
        with EndpointEmbedder(url, fingerprint=TWO_DIMS) as remote:
            assert remote.embed_queries(["a"])[0] == pytest.approx(np.array([[0.6, 0.8]]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_of_any_length_are_made_unit(scale: float) -> None:
    answer = {"text": [[[3.0 * scale, 4.0 * scale]]]}
    with answer_with(lambda method, body: (200, {}, answer)) as url:
        with EndpointEmbedder(url, fingerprint=TWO_DIMS) as remote:
            (vectors,) = remote.embed_queries(["a"])
    assert vectors.dtype == np.float32
    assert vectors == pytest.approx(np.array([[0.6, 0.8]]))


# ---- trouble


def asked(answers: Sequence[Answer | None], **options: Json) -> tuple[list[MultiVector] | Exception, int, float]:
    """Ask a server that gives these answers, the last for ever; returns what came of it, tries, and seconds."""
    tries = 0

    def answer(method: str, body: Json) -> Answer | None:
        nonlocal tries
        tries += 1
        return answers[min(tries, len(answers)) - 1]

    started = time.monotonic()
    with answer_with(answer) as url, EndpointEmbedder(url, fingerprint=TWO_DIMS, **options) as remote:
        try:
            result: list[MultiVector] | Exception = remote.embed_queries(["a"])
        except Exception as error:
            result = error
    return result, tries, time.monotonic() - started


@pytest.mark.parametrize("trouble", [(429, {}, {}), (502, {}, {}), (503, {}, {}), (504, {}, "gateway"), None])
def test_trouble_that_passes_is_waited_for(trouble: Answer | None) -> None:
    result, tries, _ = asked([trouble, trouble, (200, {}, ROWS)])
    assert isinstance(result, list)
    assert tries == 3


def test_it_waits_as_long_as_the_service_says() -> None:
    result, tries, seconds = asked([(503, {"Retry-After": "1"}, {}), (200, {}, ROWS)])
    assert isinstance(result, list)
    assert tries == 2
    assert 1 <= seconds < 5
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    result, tries, seconds = asked([(503, {"Retry-After": past}, {})] * 4 + [(200, {}, ROWS)])
    assert (tries, isinstance(result, list)) == (5, True)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 415, 422, 500])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    result, tries, _ = asked([(status, {}, {"error": "no"})])
    assert isinstance(result, EndpointError)
    assert not isinstance(result, EndpointUnavailableError)
    assert str(status) in str(result)
    assert tries == 1


def test_it_gives_up_in_the_end() -> None:
    result, tries, _ = asked([(503, {}, {})], max_retries=2)
    assert isinstance(result, EndpointUnavailableError)
    assert isinstance(result, ConnectionError)
    assert "status 503) (3 tries): try again later" in str(result)
    assert tries == 3
    with pytest.raises(EndpointUnavailableError, match="http://127.0.0.1:9 cannot be reached"):
        EndpointEmbedder("http://127.0.0.1:9", max_retries=0)


def test_an_answer_that_does_not_come_is_not_asked_for_twice() -> None:
    tries = 0

    def answer(method: str, body: Json) -> Answer:
        nonlocal tries
        tries += 1
        time.sleep(1)
        return 200, {}, ROWS

    with answer_with(answer) as url, EndpointEmbedder(url, fingerprint=TWO_DIMS, timeout=0.2) as remote:
        with pytest.raises(EndpointError, match="did not answer within 0.2 s"):
            remote.embed_queries(["a"])
    assert tries == 1


def test_only_the_request_that_failed_is_sent_again() -> None:
    """What was answered is not asked for a second time."""
    seen: list[str] = []
    lock = threading.Lock()

    def answer(method: str, body: Json) -> Answer:
        with lock:
            first = body["text"][0] == "0" and "0" not in seen
            seen.extend(body["text"])
        return (503, {"Retry-After": "0"}, {}) if first else (200, {}, {"text": [[[1.0, 0.0]]] * len(body["text"])})

    with answer_with(answer) as url, EndpointEmbedder(url, fingerprint=TWO_DIMS) as remote:
        assert len(remote.embed_queries([str(number) for number in range(100)])) == 100
    assert sorted(map(int, seen)) == sorted([*range(32), *range(100)])


def test_requests_are_few_at_a_time_and_not_large() -> None:
    under_way, most, sizes = 0, 0, []
    lock = threading.Lock()

    def answer(method: str, body: Json) -> Answer:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            sizes.append(len(body["image"]))
        time.sleep(0.05)
        with lock:
            under_way -= 1
        return 200, {}, {"image": [[[1.0, 0.0]]] * len(body["image"])}

    pages = [Page(str(n), "", "x", n, "", image=b"\0" * (2_000_000 if n == 3 else 10)) for n in range(1, 30)]
    with answer_with(answer) as url, EndpointEmbedder(url, fingerprint=TWO_DIMS, concurrency=3) as remote:
        assert len(remote.embed_pages(pages)) == 29
    assert most == 3
    assert sum(sizes) == 29
    assert max(sizes) == 4


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://example.com", {}, "http:// or https://"),
        ("https://", {}, "http:// or https://"),
        ("https://user:secret@example.com", {}, "token="),
        ("https://example.com/?key=secret", {}, "token="),
        ("https://example.com", {"batch_size": 0}, "batch_size"),
        ("https://example.com", {"concurrency": 0}, "concurrency"),
        ("https://example.com", {"timeout": 0}, "timeout"),
        ("https://example.com", {"max_retries": -1}, "max_retries"),
        ("https://example.com", {"api": "openai"}, "api is"),
        ("https://example.com", {"query_prefix": "Query: "}, "query_prefix is for"),
    ],
)
def test_options_that_mean_nothing_are_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=message):
        EndpointEmbedder(url, **options)


def loops() -> set[threading.Thread]:
    """Return the threads of clients that are open."""
    return {thread for thread in threading.enumerate() if thread.name == "colqwen-loop"}


def test_it_opens_again_after_closing(url: str) -> None:
    before = loops()
    remote = EndpointEmbedder(url)
    [own] = loops() - before
    remote.close()
    assert not own.is_alive()
    assert len(remote.embed_queries(QUERIES)) == 2
    remote.close()


# ---- forks


@needs_fork
def test_fork_has_connections_of_its_own(remote: EndpointEmbedder, local: ColQwenEmbedder, pages: list[Page]) -> None:
    expected = local.embed_queries(QUERIES)
    assert near(remote.embed_queries(QUERIES), expected)
    assert near(in_fork(lambda: remote.embed_queries(QUERIES)), expected)
    assert near(in_fork(lambda: remote.embed_pages(pages[:1])), local.embed_pages(pages[:1]))
    assert near(in_fork(lambda: asyncio.run(remote.aembed_queries(QUERIES))), expected)
    assert near(remote.embed_queries(QUERIES), expected)


@needs_fork
def test_fork_asks_while_the_parent_waits_for_an_answer() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(method: str, body: Json) -> Answer:
        if body["text"] == ["slow"]:
            asked.set()
            go_on.wait()
        return 200, {}, ROWS

    with (
        answer_with(answer) as url,
        EndpointEmbedder(url, fingerprint=TWO_DIMS, concurrency=1) as remote,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(remote.embed_queries, ["slow"])
        try:
            asked.wait()
            (vectors,) = in_fork(lambda: remote.embed_queries(["quick"]))
            assert vectors.tolist() == [[1.0, 0.0]]
            assert in_fork(lambda: remote.close()) is None
        finally:
            go_on.set()
        assert len(waiting.result()) == 1


@needs_fork
def test_going_on_in_a_fork_with_what_the_parent_asked_for_is_an_error(
    remote: EndpointEmbedder, pages: list[Page]
) -> None:
    stream = remote.stream_pages(pages[:3])
    assert next(stream)[0] == pages[0]
    with pytest.raises(ColQwenError, match="began in process"):
        in_fork(lambda: len(list(stream)))
    assert [page for page, _ in stream] == pages[1:3]
