"""A chat model's endpoint on loopback, as OpenAI's: it answers as a test says, and keeps what it was sent."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image


@dataclass
class ChatEndpoint:
    """What an endpoint answers, and what it was sent.

    Attributes:
        answer: In the pieces in which it is streamed.
        status: What it answers with; not 200: with `refusal`.
        refusal: The sentence of an error.
        raw: In place of an answer, these bytes.
        wait: Waits for this first.
        pause: Waits for this after the first piece.
    """

    answer: Sequence[str] = ("The salt-spray ", "test [report.pdf, page 1].")
    status: int = 200
    refusal: str = ""
    raw: bytes | None = None
    wait: threading.Event | None = None
    pause: threading.Event | None = None
    url: str = ""
    requests: list[tuple[str, Mapping[str, str], Any]] = field(default_factory=list)

    def parts(self) -> list[dict[str, Any]]:
        """Return the parts of all messages of the one request, in order; a plain text is one part."""
        [(_, _, body)] = self.requests
        return [
            part
            for message in body["messages"]
            for part in (
                message["content"]
                if isinstance(message["content"], list)
                else [{"type": "text", "text": message["content"]}]
            )
        ]

    def words(self) -> str:
        """Return all text that was sent."""
        return "\n".join(part["text"] for part in self.parts() if part["type"] == "text")

    def image_sizes(self) -> list[tuple[int, int]]:
        """Return width and height of the images that were sent."""
        return [image_size(part) for part in self.parts() if part["type"] == "image_url"]


def image_size(part: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height of an image part, which is a data URL of a JPEG."""
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        assert image.format == "JPEG"
        return image.width, image.height


@contextmanager
def chat_endpoint() -> Iterator[ChatEndpoint]:
    """Run an endpoint in a thread of this process."""
    endpoint = ChatEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            endpoint.requests.append((self.path, dict(self.headers), body))
            if endpoint.wait is not None:
                endpoint.wait.wait(30)
            streamed = bool(body.get("stream"))
            if endpoint.raw is not None:
                content, kind = endpoint.raw, "text/html; charset=utf-8"
            elif endpoint.status != 200:
                content, kind = json.dumps({"error": {"message": endpoint.refusal}}).encode(), "application/json"
            elif streamed:
                content, kind = b"".join(map(_event, endpoint.answer)) + b"data: [DONE]\n\n", "text/event-stream"
            else:
                content, kind = json.dumps(_completion("".join(endpoint.answer))).encode(), "application/json"
            self.send_response(endpoint.status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            sent = 0
            if endpoint.pause is not None:
                sent = self.wfile.write(_event(endpoint.answer[0]))
                endpoint.pause.wait(30)
            self.wfile.write(content[sent:])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        if endpoint.wait is not None:
            endpoint.wait.set()
        server.shutdown()
        server.server_close()
        thread.join()


_COMMON = {"id": "chat-1", "created": 0, "model": "seer"}


def _event(piece: str) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}
    chunk = {**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _completion(answer: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
    return {**_COMMON, "object": "chat.completion", "choices": [choice]}
