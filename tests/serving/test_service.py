from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the [server] extra is not installed")

from llama_index_colqwen import ColQwenEmbedder, InvalidOptionError, MultiVector, Page, PDFPageReader
from llama_index_colqwen.embedders.colqwen.preprocessing import PreparedPage
from llama_index_colqwen.embedders.remote.contract import Limits, read_multi_vector
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.nodes import page_from_node
from llama_index_colqwen.serving import server
from llama_index_colqwen.serving.app import Batching
from llama_index_colqwen.serving.server import bind
from tests.bad_images import BAD_IMAGES
from tests.conftest import at_most
from tests.extras import needs_colqwen
from tests.services import Json, serve, wait_for

pytestmark = needs_colqwen

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
TEXTS = ["total revenue of the third quarter?", "who signed it?"]
JSON = {"Content-Type": "application/json"}


class Gated(ColQwenEmbedder):
    """The real model behind a gate; notes what it is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, device="cpu")
        self.gate = threading.Event()
        self.gate.set()
        self.texts: list[list[str]] = []
        self.pages: list[int] = []
        self.threads: set[str] = set()

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        self._pass(lambda: self.texts.append(list(queries)))
        if "poison" in queries:
            raise RuntimeError("boom in /secret/weights")
        return super().embed_queries(queries)

    def embed_prepared(self, prepared: Sequence[PreparedPage]) -> list[MultiVector]:
        self._pass(lambda: self.pages.append(len(prepared)))
        return super().embed_prepared(prepared)

    def _pass(self, note: Callable[[], None]) -> None:
        note()
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(30)

    def reset(self) -> None:
        self.texts.clear()
        self.pages.clear()


@pytest.fixture(scope="module")
def embedder(checkpoint: Callable[..., Path]) -> Gated:
    return Gated(checkpoint())


@pytest.fixture(autouse=True)
def _open_gate(embedder: Gated) -> Iterator[None]:
    embedder.reset()
    yield
    embedder.gate.set()


@pytest.fixture(scope="module")
def url(embedder: Gated) -> Iterator[str]:
    """A service with small limits."""
    limits = Limits(max_body_bytes=8_000_000, max_items=16, max_text_characters=10_000)
    with serve(embedder, limits=limits, batching=Batching(max_queue=16, body_seconds=1)) as url:
        yield url


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [page_from_node(document).read_image() for document in PDFPageReader().load_data(SAMPLE)[:3]]


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(url: str, **request: Json) -> httpx.Response:
    return httpx.post(url, json=request, timeout=60)


def is_well(url: str, embedder: ColQwenEmbedder) -> bool:
    """Whether the service is ready, and still answers the right vectors."""
    assert httpx.get(f"{url}/ready").json() == {"status": "ok"}
    answered = post(url, text=TEXTS).json()["text"]
    pairs = zip(answered, embedder.embed_queries(TEXTS), strict=True)
    return all(np.abs(np.array(one) - other).max() <= 1e-6 for one, other in pairs)


# ---- the contract


def test_answers_are_what_the_embedder_computes_here(url: str, embedder: Gated, images: list[bytes]) -> None:
    pages = embedder.embed_pages([Page(str(n), "", "x", n, "", image=data) for n, data in enumerate(images)])
    queries = embedder.embed_queries(TEXTS)
    request = {"inputs": [], "image": list(map(encode, images)), "text": TEXTS}
    for encoding, tolerance in (("float", 1e-6), ("base64-float16", 1e-3)):
        answer = post(url, **request, encoding=encoding).json()
        assert answer.keys() == {"image", "text", "scores"}
        for one, other in zip(answer["image"] + answer["text"], [*pages, *queries], strict=True):
            vectors = read_multi_vector(one)
            assert vectors.shape == other.shape
            assert np.abs(vectors - other).max() <= tolerance
        assert answer["scores"] == [[pytest.approx(maxsim(q, page), abs=1e-4) for page in pages] for q in queries]


def test_neither_images_nor_texts_nor_scores_are_needed(url: str) -> None:
    assert post(url).json() == {"image": [], "text": [], "scores": []}
    assert post(url, inputs={"return_scores": False}).json() == {"image": [], "text": []}


def test_the_service_says_what_it_is(url: str, embedder: Gated) -> None:
    assert httpx.get(f"{url}/health").json() == httpx.get(f"{url}/ready").json() == {"status": "ok"}
    for probe in ("health", "ready"):
        head = httpx.head(f"{url}/{probe}")
        assert (head.status_code, head.content) == (200, b"")
    info = httpx.get(f"{url}/info").json()
    assert info["model"] == "ColQwen2"
    assert info["fingerprint"]["revision"] == embedder.fingerprint.revision
    assert info["limits"]["max_items"] == 16
    assert embedder.fingerprint.location not in json.dumps(info)  # a path of this machine
    assert httpx.get(f"{url}/nowhere").json()["error"]["type"] == "NotFound"
    assert httpx.delete(url).status_code == 405


def test_metrics_count(url: str) -> None:
    def value(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = [
        'colqwen_requests_total{status="200"}',
        'colqwen_items_total{kind="text"}',
        "colqwen_request_seconds_count",
    ]
    before = [value(name) for name in names]
    post(url, text=TEXTS)
    assert [value(name) for name in names] == [before[0] + 1, before[1] + 2, before[2] + 1]
    assert value("colqwen_queue_items") == 0
    assert value("process_resident_memory_bytes") > 0


def test_documentation_needs_no_other_host(url: str) -> None:
    page = httpx.get(f"{url}/docs").text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith("/")
        assert httpx.get(url + address).status_code == 200
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert paths.keys() == {"/", "/pooling", "/v1/embeddings", "/v1/models", "/health", "/ready", "/info", "/metrics"}


# ---- what clients send by mistake, or on purpose


BAD_REQUESTS: list[tuple[Json, int, str]] = [
    *(({"image": [image]}, 422, type) for image, type, _ in BAD_IMAGES.values()),
    ({"text": [""]}, 422, "InvalidText"),
    ({"text": ["word " * 5000]}, 422, "TextTooLong"),
    ({"text": ["a"] * 10_000}, 400, "TooManyItems"),
    ({"batch_size": 0}, 422, "InvalidRequest"),
    ({"batch_size": -1}, 422, "InvalidRequest"),
    ({"batch_size": "x"}, 422, "InvalidRequest"),
    ({"questions": []}, 422, "InvalidRequest"),
    ([], 422, "InvalidRequest"),
]


@pytest.mark.parametrize(("request_", "status", "type"), BAD_REQUESTS)
def test_bad_requests_have_a_status_and_a_reason(url: str, request_: Json, status: int, type: str) -> None:
    response = httpx.post(url, json=request_)
    assert (response.status_code, response.json()["error"]["type"]) == (status, type)


BAD_BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b"", JSON, 400, "InvalidJson"),
    (b"{'text': []}", JSON, 400, "InvalidJson"),
    (b'{"text": ["\xff"]}', JSON, 400, "InvalidJson"),
    (b'{"text": ["\\ud800"]}', JSON, 400, "InvalidJson"),
    (b"[" * 100_000, JSON, 400, "InvalidJson"),
    (b'{"batch_size": 1' + b"0" * 10_000 + b"}", JSON, 400, "InvalidJson"),
    (b'{"text": []}', {"Content-Type": "text/plain"}, 415, "UnsupportedMediaType"),
    (b'{"text": []}', {"Content-Type": "multipart/form-data"}, 415, "UnsupportedMediaType"),
    (b'{"text": []}', {}, 415, "UnsupportedMediaType"),
    (b'{"text": []}', {**JSON, "Content-Encoding": "gzip"}, 415, "UnsupportedMediaType"),
    (b" " * 8_000_001, JSON, 413, "BodyTooLarge"),
]


@pytest.mark.parametrize(("content", "headers", "status", "type"), BAD_BODIES)
def test_bad_bodies_have_a_status_and_a_reason(
    url: str, content: bytes, headers: dict[str, str], status: int, type: str
) -> None:
    response = httpx.post(url, content=content, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (status, type)


def test_a_byte_order_mark_is_no_mistake(url: str) -> None:
    response = httpx.post(url, content=b"\xef\xbb\xbf" + json.dumps({"text": TEXTS}).encode(), headers=JSON)
    assert len(response.json()["text"]) == 2


ODD_SHAPES = [(1, 1), (10, 3000), (3000, 10)]


@pytest.mark.parametrize("size", ODD_SHAPES)
def test_odd_shapes_have_vectors(url: str, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    (vectors,) = post(url, image=[encode(buffer.getvalue())]).json()["image"]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_of_a_quarter_of_a_gigabyte_is_refused_and_not_kept(url: str, embedder: Gated, declared: bool) -> None:
    size, chunk = 2**28, b" " * 2**20

    def body() -> Iterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk

    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = memory_peak_mb()
    headers = {**JSON, "Content-Length": str(size)} if declared else JSON
    response = httpx.post(url, content=body(), headers=headers, timeout=60)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "BodyTooLarge")
    assert memory_peak_mb() - before < 100
    assert is_well(url, embedder)


def memory_peak_mb() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1024


def test_a_body_that_drips_is_given_up(url: str, embedder: Gated) -> None:
    started = time.monotonic()
    with connect(url) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        for _ in range(5):
            time.sleep(0.1)
            slow.sendall(b" ")
        assert b" 408 " in slow.recv(1000)
    assert time.monotonic() - started < 5
    assert is_well(url, embedder)


def test_a_head_that_drips_is_given_up(url: str, embedder: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEAD_S", 0.5)
    with connect(url) as silent, connect(url) as slow, connect(url) as second:
        slow.sendall(b"POST / HTTP/1.1\r\nHo")
        # One that has been answered once has no more patience to expect.
        second.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b'"ok"' not in answer:
            answer += second.recv(1000)
        second.sendall(b"GET /hea")
        time.sleep(0.2)
        slow.sendall(b"st: x\r\n")
        for connection in (silent, slow, second):
            assert connection.recv(1000) == b""
    assert is_well(url, embedder)


def test_a_head_without_end_is_refused(url: str, embedder: Gated) -> None:
    with connect(url) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000)
        assert b" 400 " in endless.recv(1000)
    with connect(url) as nonsense:
        nonsense.sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        assert b" 400 " in nonsense.recv(1000)
    assert is_well(url, embedder)


def test_after_all_of_that_the_service_is_well(url: str, embedder: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all of it once more, since the tests above may have met another service, in another process."""
    before = failures(url)
    for request, *_ in BAD_REQUESTS:
        httpx.post(url, json=request)
    for content, headers, *_ in BAD_BODIES:
        httpx.post(url, content=content, headers=headers)
    for size in ODD_SHAPES:
        test_odd_shapes_have_vectors(url, size)
    test_a_body_that_drips_is_given_up(url, embedder)
    test_a_head_that_drips_is_given_up(url, embedder, monkeypatch)
    test_a_head_without_end_is_refused(url, embedder)
    assert is_well(url, embedder)
    assert waiting(url) == 0
    assert failures(url) == before


def failures(url: str) -> float:
    """How many answers were the service's own faults."""
    found = re.search(r'^colqwen_requests_total{status="500"} (\S+)$', httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def connect(url: str) -> socket.socket:
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port or 80))
    connection.settimeout(20)
    return connection


# ---- the token


def test_without_the_token_only_probes_are_answered(embedder: Gated) -> None:
    with serve(embedder, token="s3cret") as url:
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/ready").status_code == 200
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic czM="}):
            for response in (
                httpx.post(url, json={"text": TEXTS}, headers=headers),
                httpx.get(f"{url}/info", headers=headers),
                httpx.get(f"{url}/metrics", headers=headers),
            ):
                assert (response.status_code, response.json()["error"]["type"]) == (401, "Unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        garbled = httpx.post(url, json={}, headers={b"Authorization": b"Bearer \xe9"})
        assert garbled.status_code == 401
        # The answer comes although the body was not read.
        large = httpx.post(url, content=b" " * 20_000_000, headers=JSON)
        assert large.status_code == 401
        assert embedder.texts == []
        authorized = httpx.post(url, json={"text": TEXTS}, headers={"Authorization": "Bearer s3cret"})
        assert len(authorized.json()["text"]) == 2


def test_other_machines_can_connect_only_where_a_token_is_asked() -> None:
    with pytest.raises(InvalidOptionError, match="COLQWEN_TOKEN"):
        bind("0.0.0.0", 0, token=None)
    for host, token in (("127.0.0.1", None), ("localhost", None), ("0.0.0.0", "s3cret")):
        bind(host, 0, token=token).close()


def test_a_queue_smaller_than_a_request_is_refused(embedder: Gated) -> None:
    from llama_index_colqwen.serving.app import create_app

    with pytest.raises(InvalidOptionError, match="max_queue"):
        create_app(embedder, batching=Batching(max_queue=10))


def test_a_token_that_no_client_could_send_is_refused(embedder: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_index_colqwen.serving.app import create_app
    from tests.cli.commands import run

    with pytest.raises(InvalidOptionError, match="printable ASCII"):
        create_app(embedder, token="caf\u00e9")
    monkeypatch.setenv("COLQWEN_TOKEN", "caf\u00e9")
    result = run("serve", "nowhere/at/all", "--port", "0")  # before the model is looked for
    assert (result.exit_code, "COLQWEN_TOKEN cannot be sent" in result.output) == (1, True)


# ---- many clients


def test_requests_that_wait_are_the_models_next_batch(url: str, embedder: Gated) -> None:
    embedder.gate.clear()
    with ThreadPoolExecutor(16) as clients:
        first = clients.submit(post, url, text=["first"])
        wait_for(lambda: embedder.texts)
        others = [clients.submit(post, url, text=[f"text {n}"]) for n in range(12)]
        wait_for(lambda: waiting(url) == 13)
        embedder.gate.set()
        assert first.result().status_code == 200
        answers = [other.result().json()["text"] for other in others]
    assert [len(batch) for batch in embedder.texts] == [1, 12]
    expected = embedder.embed_queries([f"text {n}" for n in range(12)])
    assert all(np.abs(np.array(one) - other).max() < 1e-6 for (one,), other in zip(answers, expected, strict=True))


def waiting(url: str) -> float:
    found = re.search(r"^colqwen_queue_items (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_pages_and_questions_take_turns(url: str, embedder: Gated, images: list[bytes]) -> None:
    embedder.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        pages = clients.submit(post, url, image=[encode(images[0])] * 9)
        wait_for(lambda: embedder.pages)
        question = clients.submit(post, url, text=["total?"])
        wait_for(lambda: waiting(url) == 10)
        embedder.gate.set()
        assert question.result().status_code == 200
        seen = len(embedder.pages)
        assert pages.result().status_code == 200
    # the question did not wait for all the pages
    assert seen < len(embedder.pages)
    assert sum(embedder.pages) == 9
    assert max(embedder.pages) <= embedder.batch_size
    assert embedder.threads - {"MainThread"} == {"colqwen-model_0"}


def test_one_clients_poison_is_not_anothers(url: str, embedder: Gated, caplog: pytest.LogCaptureFixture) -> None:
    embedder.gate.clear()
    with ThreadPoolExecutor(8) as clients:
        clients.submit(post, url, text=["first"])
        wait_for(lambda: embedder.texts)
        requests = [clients.submit(post, url, text=[text]) for text in ("a", "poison", "b", "c")]
        requests.append(clients.submit(post, url, text=["d", "poison"]))
        wait_for(lambda: waiting(url) == 7)
        embedder.gate.set()
        answers = [request.result() for request in requests]
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200, 500]
    assert [answer.json()["error"]["index"] for answer in (answers[1], answers[4])] == [0, 1]
    assert answers[1].json()["error"]["type"] == "ModelFailed"
    assert "secret" not in answers[1].text
    assert "boom in /secret/weights" in caplog.text
    assert is_well(url, embedder)


def test_a_full_queue_says_when_to_come_back(url: str, embedder: Gated) -> None:
    embedder.gate.clear()
    with ThreadPoolExecutor(2) as clients:
        held = clients.submit(post, url, text=["held"] * 10)
        wait_for(lambda: embedder.texts)
        response = post(url, text=["a"] * 7)
        assert (response.status_code, response.json()["error"]["type"]) == (503, "Overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        more = clients.submit(post, url, text=["held"] * 6)
        wait_for(lambda: waiting(url) == 16)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
        embedder.gate.set()
        assert held.result().status_code == more.result().status_code == 200
    assert is_well(url, embedder)


def test_too_many_bytes_at_once_are_turned_away(embedder: Gated) -> None:
    limits = Limits(max_body_bytes=10_000)
    texts = {"text": ["total " * 150] * 10}
    with serve(embedder, limits=limits) as url, ThreadPoolExecutor(10) as clients:
        embedder.gate.clear()
        held = [clients.submit(post, url, **texts) for _ in range(8)]
        wait_for(lambda: waiting(url) == 80)
        assert post(url, **texts).status_code == 503
        embedder.gate.set()
        assert all(request.result().status_code == 200 for request in held)


def gone(url: str) -> float:
    found = re.search(r"^colqwen_clients_gone_total (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


async def test_who_leaves_is_dropped_from_the_batch(url: str, embedder: Gated) -> None:
    before = gone(url)
    embedder.gate.clear()
    async with httpx.AsyncClient(timeout=60) as client:
        tasks = [asyncio.create_task(client.post(url, json={"text": ["first"]}))]
        await asyncio.to_thread(wait_for, lambda: embedder.texts)
        tasks += [asyncio.create_task(client.post(url, json={"text": [name]})) for name in ("stays", "leaves", "goes")]
        await asyncio.to_thread(wait_for, lambda: waiting(url) == 4)
        for task in tasks[2:]:
            task.cancel()
        await asyncio.to_thread(wait_for, lambda: waiting(url) == 2)
        embedder.gate.set()
        assert [(await task).status_code for task in tasks[:2]] == [200, 200]
    assert embedder.texts == [["first"], ["stays"]]
    assert gone(url) == before + 2


async def test_the_loop_is_never_blocked(url: str, embedder: Gated, images: list[bytes]) -> None:
    embedder.gate.clear()
    slowest = stalled = 0.0

    async def watch_the_machine() -> None:
        nonlocal stalled
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.01)
            stalled = max(stalled, time.monotonic() - started)

    async with httpx.AsyncClient(timeout=60) as client:
        watching = asyncio.create_task(watch_the_machine())
        request = {"image": [encode(images[0])] * 8, "text": TEXTS}
        task = asyncio.create_task(client.post(url, json=request))
        for turn in range(40):
            started = time.monotonic()
            assert (await client.get(f"{url}/health")).status_code == 200
            slowest = max(slowest, time.monotonic() - started)
            await asyncio.sleep(0.01)
            if turn == 20:
                embedder.gate.set()
        assert (await task).status_code == 200
        watching.cancel()
    assert slowest - stalled < 1  # this loop has nothing to do: what stops it is a busy machine


def test_what_has_begun_is_answered_before_it_stops(embedder: Gated) -> None:
    with ThreadPoolExecutor(1) as clients:
        with serve(embedder) as url:
            embedder.gate.clear()
            request = clients.submit(post, url, text=TEXTS)
            wait_for(lambda: embedder.texts)
            threading.Timer(0.5, embedder.gate.set).start()
        assert len(request.result().json()["text"]) == 2
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


# ---- the command


def test_serve_command_drains_on_sigterm(checkpoint: Callable[..., Path], images: list[bytes]) -> None:
    command = [sys.executable, "-m", "llama_index_colqwen.cli", "serve", str(checkpoint()), "--port", "0"]
    environment = {**os.environ, "COLQWEN_TOKEN": "s3cret"}
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process,
        at_most(120, process),
    ):
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "startup complete" in line:
                break
        (url,) = re.findall(r"http://127.0.0.1:\d+", "".join(lines))
        # It listens a moment after it said so.
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as patient:
            assert patient.post(url, json={}).status_code == 401
        with ThreadPoolExecutor(1) as clients:
            headers = {"Authorization": "Bearer s3cret"}
            request = clients.submit(
                httpx.post, url, json={"image": [encode(images[0])] * 16}, headers=headers, timeout=60
            )
            metrics = f"{url}/metrics"
            wait_for(lambda: re.search(r"colqwen_queue_items [1-9]", httpx.get(metrics, headers=headers).text))
            process.send_signal(signal.SIGTERM)
            assert len(request.result().json()["image"]) == 16
        rest = process.stderr.read()
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "COLQWEN_TOKEN"),
        (["nowhere/at/all"], "There is no folder 'nowhere/at/all'"),
        (["--max-queue", "3"], "max_queue"),
    ],
)
def test_serve_command_says_what_is_wrong(
    arguments: list[str], message: str, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.commands import run

    monkeypatch.delenv("COLQWEN_TOKEN", raising=False)
    model = [] if arguments[0] == "nowhere/at/all" else [checkpoint()]
    result = run("serve", *model, *arguments, "--port", "0")
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


# ---- fuzzing, and the example


def test_schemathesis_finds_no_server_error(url: str, embedder: Gated, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [
        program,
        "run",
        f"{url}/openapi.json",
        "--checks",
        f"{checks},negative_data_rejection,unsupported_method",
    ]
    command += ["--max-examples", "50", "--seed", "1", "--generation-database", "none"]
    command += ["--exclude-path", "/v1/embeddings"]  # read as /pooling is
    # It leaves what it found in a folder of where it is run.
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert is_well(url, embedder)


def test_query_example_prints_the_services_scores(embedder: Gated) -> None:
    pytest.importorskip("pdf2image", reason="the [poppler] extra is not installed")
    with serve(embedder, token="s3cret") as url:
        command = [sys.executable, str(ROOT / "examples" / "endpoint" / "query.py"), str(SAMPLE), *TEXTS, "--url", url]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLQWEN_TOKEN": "s3cret"}
        )
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"^page (\d+): (\S+) (\S+)$", done.stdout, re.MULTILINE)
        assert [int(number) for number, *_ in lines] == list(range(1, len(lines) + 1))
        assert len(lines) == 6
        refused = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLQWEN_TOKEN": "wrong"}
        )
    assert refused.returncode == 1
    assert "The token is wrong" in refused.stderr

    from pdf2image import convert_from_path

    names: dict[str, Any] = __import__("runpy").run_path(str(ROOT / "examples" / "endpoint" / "query.py"))
    images = [base64.b64decode(names["to_base64"](page)) for page in convert_from_path(SAMPLE, dpi=150)]
    pages = embedder.embed_pages([Page(str(n), "", "x", n, "", image=data) for n, data in enumerate(images)])
    queries = embedder.embed_queries(TEXTS)
    for (_, *printed), page in zip(lines, pages, strict=True):
        assert [float(score) for score in printed] == [pytest.approx(maxsim(q, page), abs=2e-3) for q in queries]
