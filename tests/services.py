"""Real services on loopback: the package's own, and small ones that answer as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil

from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.remote.contract import Limits

if TYPE_CHECKING:
    from llama_index_colqwen.serving.app import Batching

Json: TypeAlias = Any
"""What JSON may be; tests know what it is."""

Answer: TypeAlias = tuple[int, Mapping[str, str], Json]
"""Status, headers and body."""


@contextmanager
def serve(
    embedder: ColQwenEmbedder,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    batching: Batching | None = None,
    port: int = 0,
) -> Iterator[str]:
    """Run the service in a thread of this process; leaving the block drains and stops it."""
    # Imported here: other tests use this module without the extra [server].
    from llama_index_colqwen.serving.app import create_app

    with run_app(create_app(embedder, token=token, limits=limits, batching=batching), port) as address:
        yield address


@contextmanager
def run_app(app: object, port: int = 0) -> Iterator[str]:
    """Run an ASGI application on loopback in a thread of this process; leaving the block drains and stops it."""
    from llama_index_colqwen.serving.server import bind, make_server

    taken = bind("127.0.0.1", port, token=None)
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        taken.close()
    assert not thread.is_alive()


@contextmanager
def answer_with(answer: Callable[[str, Json], Answer | None]) -> Iterator[str]:
    """Run a server whose answers a function gives, of method and JSON body; None is a broken connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            answered = answer(self.command, json.loads(body) if body else None)
            if answered is None:
                self.close_connection = True
                return
            status, headers, value = answered
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def has_ended(pid: int) -> bool:
    """Whether a process is there no more, or only as what its parent has not asked for."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
