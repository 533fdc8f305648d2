"""Requests of many clients -> one model, and what it computes for them -> answers.

The event loop only waits: bodies are read and answers written in a few threads, the model runs in one. Knows nothing of
routes, tokens or addresses.
"""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pydantic_core import from_json

from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.colqwen.preprocessing import PreparedPage
from llama_index_colqwen.embedders.remote.contract import (
    Fault,
    Limits,
    Reader,
    Writer,
    read_image,
    read_request,
)
from llama_index_colqwen.errors import InvalidOptionError, MissingDependencyError
from llama_index_colqwen.late_interaction.multivectors import MultiVector
from llama_index_colqwen.pages import Page
from llama_index_colqwen.serving.batching import Batcher
from llama_index_colqwen.serving.handler import fault_of_item

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from starlette.requests import Request
except ImportError as error:
    raise MissingDependencyError("Serving a model needs FastAPI and prometheus-client", "server") from error

__all__ = ["Batching", "ClientGone", "Service"]

_T = TypeVar("_T")

_IO_THREADS = 4
_BUSY_S = (1, 60)
_BODIES = 8


@dataclass(frozen=True)
class Batching:
    """How requests share the model.

    Attributes:
        max_texts: Texts a forward pass; 1 turns batching off.
        max_pages: Pages a forward pass; by default the embedder's `batch_size`.
        max_wait: Seconds that an item waits for others at most, while the model is free and requests are coming in.
        max_queue: Images and texts that wait at most; what is beyond is answered with 503.
        body_seconds: Seconds that a request's body may take to arrive.
    """

    max_texts: int = 32
    max_pages: int | None = None
    max_wait: float = 0.005
    max_queue: int = 512
    body_seconds: float = 60.0


class _Metrics:
    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("colqwen_requests", "Requests answered.", ["status"], registry=self.registry)
        self.gone = Counter("colqwen_clients_gone", "Clients that did not wait.", registry=self.registry)
        self.items = Counter("colqwen_items", "Images and texts embedded.", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "colqwen_request_seconds",
            "From a request's head to its answer.",
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )
        self.batch = Histogram(
            "colqwen_batch_items", "Items a batch.", ["kind"], registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.model = Counter("colqwen_model_seconds", "Time in the model.", ["kind"], registry=self.registry)
        Gauge("colqwen_queue_items", "Images and texts not yet answered.", registry=self.registry).set_function(waiting)

    def observe(self, kind: str, items: int, seconds: float) -> None:
        self.items.labels(kind).inc(items)
        self.batch.labels(kind).observe(items)
        self.model.labels(kind).inc(seconds)


class Service:
    """The model, and what waits for it; all but `_read` and `_write` runs on the event loop.

    Attributes:
        metrics: What happened so far.

    Args:
        embedder: The model.
        limits: What a request may ask for.
        batching: How requests share the model.

    Raises:
        InvalidOptionError: If the largest request would not fit the queue.
    """

    def __init__(self, embedder: ColQwenEmbedder, limits: Limits, batching: Batching) -> None:
        """See the class."""
        if batching.max_queue < limits.max_items:
            raise InvalidOptionError(
                f"max_queue ({batching.max_queue}) is at least what a request may hold ({limits.max_items} items)."
            )
        self._embedder, self._limits, self._batching = embedder, limits, batching
        self.metrics = _Metrics(lambda: self._items)
        self._items = 0  # admitted and not yet answered
        self._bytes = 0  # of bodies
        self._coming = 0  # requests whose items are not in a queue yet
        self._preparing = 0
        self._seconds_an_item = 0.0  # of late

    @asynccontextmanager
    async def running(self, app: object) -> AsyncIterator[None]:
        """Hold the threads and the batchers; uvicorn leaves the block when all requests are answered."""
        max_pages = self._batching.max_pages or self._embedder.batch_size
        turns = asyncio.Lock()
        # Pages that are decoded and not yet embedded: a batch in the model, and one or two behind it.
        self._room = asyncio.Semaphore(3 * max_pages)
        with ThreadPoolExecutor(_IO_THREADS, "colqwen-io") as self._io, ThreadPoolExecutor(1, "colqwen-model") as model:
            self._texts: Batcher[str, MultiVector] = Batcher(
                self._embedder.embed_queries,
                model,
                turns,
                most=self._batching.max_texts,
                max_wait=self._batching.max_wait,
                expecting=lambda: self._coming > 0,
                observe=partial(self._observe, "text"),
            )
            self._pages: Batcher[PreparedPage, MultiVector] = Batcher(
                self._embedder.embed_prepared,
                model,
                turns,
                most=max_pages,
                max_wait=self._batching.max_wait,
                expecting=lambda: self._coming + self._preparing > 0,
                observe=partial(self._observe, "image"),
            )
            workers = [asyncio.create_task(batcher.work()) for batcher in (self._texts, self._pages)]
            try:
                yield
            finally:
                for worker in workers:
                    worker.cancel()
                    with suppress(asyncio.CancelledError):
                        await worker

    async def handle(self, request: Request, read: Reader = read_request) -> bytes:
        """Return the JSON that answers a request.

        Args:
            request: What came in.
            read: What its route takes and answers.

        Raises:
            Fault: If it is refused, or fails.
            ClientGone: If the client leaves before.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        status = 500
        try:
            self.check_room(1)  # the body of what has no room is not read
            with self._counting_bytes() as count, self._announced() as arrived:
                body = await self._receive(request, count)
                queries, pages, write = await loop.run_in_executor(self._io, self._read, body, read)
                del body
                with self._admitted(len(pages) + len(queries)):
                    images, texts = await self._unless_gone(request, self._embed(queries, pages, arrived))
                content = await loop.run_in_executor(self._io, self._write, write, images, texts)
            status = 200
            return content
        except Fault as fault:
            status = fault.status
            raise
        except ClientGone:
            status = 499
            self.metrics.gone.inc()
            raise
        except Exception as error:
            raise Fault("InternalError", "The request failed; the service's log says why.", status=500) from error
        finally:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(loop.time() - started)

    def check_room(self, items: int) -> None:
        """Raise a fault if so many more items have no room in the queue."""
        if self._items + items > self._batching.max_queue:
            raise self._busy(f"{self._items} images and texts are waiting")

    # ---- requests

    @contextmanager
    def _announced(self) -> Iterator[Callable[[], None]]:
        """Let the batchers know that items are coming, until they have them."""
        self._coming += 1
        here = True

        def arrived() -> None:
            nonlocal here
            if here:
                here = False
                self._coming -= 1
                self._texts.notice()
                self._pages.notice()

        try:
            yield arrived
        finally:
            arrived()

    @contextmanager
    def _counting_bytes(self) -> Iterator[Callable[[int], None]]:
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            self._bytes += size

        try:
            yield count
        finally:
            self._bytes -= counted

    @contextmanager
    def _admitted(self, items: int) -> Iterator[None]:
        self.check_room(items)
        self._items += items
        try:
            yield
        finally:
            self._items -= items

    def _observe(self, kind: str, items: int, seconds: float) -> None:
        self.metrics.observe(kind, items, seconds)
        # How fast the queue moves, so that those who are turned away know when to come back.
        self._seconds_an_item += 0.2 * (seconds / items - self._seconds_an_item)

    def _busy(self, why: str) -> Fault:
        seconds = math.ceil(self._items * self._seconds_an_item)
        return Fault(
            "Overloaded",
            f"The service is busy: {why}. Try again later.",
            status=503,
            retry_after=min(max(seconds, _BUSY_S[0]), _BUSY_S[1]),
        )

    async def _receive(self, request: Request, count: Callable[[int], None]) -> bytes:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "identity").lower()
        if content_type != "application/json" or encoding != "identity":
            raise Fault("UnsupportedMediaType", "Send `Content-Type: application/json`, not compressed.", status=415)
        try:
            return await asyncio.wait_for(self._receive_all(request, count), self._batching.body_seconds)
        except asyncio.TimeoutError:
            raise Fault(
                "RequestTimeout", f"The body did not arrive within {self._batching.body_seconds:g} s.", status=408
            ) from None

    async def _receive_all(self, request: Request, count: Callable[[int], None]) -> bytes:
        declared = request.headers.get("content-length", "")
        self._check_size(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            count(len(chunk))
            body += chunk
            self._check_size(len(body))
            if self._bytes > _BODIES * self._limits.max_body_bytes:
                raise self._busy(f"{self._bytes >> 20} MB of requests are waiting")
            if not message.get("more_body", False):
                return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body_bytes:
            raise Fault(
                "BodyTooLarge",
                f"The body is too large: at most {self._limits.max_body_bytes} bytes a request, so split it.",
                status=413,
            )

    def _read(self, body: bytes, read: Reader) -> tuple[list[str], list[Page], Writer]:
        try:
            data = from_json(body.removeprefix(codecs.BOM_UTF8))
        except ValueError as error:
            raise Fault("InvalidJson", f"The body is not JSON: {error}.", status=400) from None
        request, write = read(data, self._limits)
        return request.text, [read_image(image, n, self._limits) for n, image in enumerate(request.image)], write

    def _write(self, write: Writer, images: Sequence[MultiVector], texts: Sequence[MultiVector]) -> bytes:
        return b"".join(write(images, texts))

    async def _unless_gone(self, request: Request, work: Awaitable[_T]) -> _T:
        """Wait for the work; drop it if the client leaves first."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_until_disconnect(request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ClientGone
        finally:
            working.cancel()
            leaving.cancel()

    # ---- the model

    async def _embed(
        self, texts: Sequence[str], pages: Sequence[Page], arrived: Callable[[], None]
    ) -> tuple[list[MultiVector], list[MultiVector]]:
        embedding = [asyncio.ensure_future(self._page(page, index)) for index, page in enumerate(pages)]
        embedding += [asyncio.ensure_future(self._text(text, index)) for index, text in enumerate(texts)]
        # They begin when the loop comes to them, before the batchers hear of it.
        asyncio.get_running_loop().call_soon(arrived)
        try:
            if embedding:
                await asyncio.wait(embedding, return_when=asyncio.FIRST_EXCEPTION)
            vectors = [future.result() for future in embedding if future.done()]
        finally:
            for future in embedding:
                # One error is enough; asyncio would complain that nobody asked for the others.
                if not future.cancel() and not future.cancelled():
                    future.exception()
        return vectors[: len(pages)], vectors[len(pages) :]

    async def _page(self, page: Page, index: int) -> MultiVector:
        try:
            prepared = await self._prepare(page)
            try:
                return await self._pages.put(prepared)
            finally:
                self._room.release()
        except Exception as error:
            raise fault_of_item(error, "image", index) from error

    async def _prepare(self, page: Page) -> PreparedPage:
        """Take room for a page, which the caller gives back, and decode it."""
        self._preparing += 1
        try:
            await self._room.acquire()
            try:
                return await asyncio.wrap_future(self._embedder.prepare_page(page))
            except BaseException:
                self._room.release()
                raise
        finally:
            self._preparing -= 1

    async def _text(self, text: str, index: int) -> MultiVector:
        try:
            return await self._texts.put(text)
        except Exception as error:
            raise fault_of_item(error, "text", index) from error


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
