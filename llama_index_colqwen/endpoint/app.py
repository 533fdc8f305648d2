"""HTTP requests of many clients -> one model, and what it computes for them -> responses.

The event loop only waits: bodies are read and answers written in a few threads, the model runs in one. Knows nothing of
addresses, processes or signals (`server` does).
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json

from llama_index_colqwen import __version__
from llama_index_colqwen.embedders.base import fingerprint_digest
from llama_index_colqwen.embedders.colqwen import ColQwenEmbedder
from llama_index_colqwen.embedders.preprocessing import PreparedPage
from llama_index_colqwen.endpoint.batching import Batcher
from llama_index_colqwen.endpoint.contract import (
    FINGERPRINT_HEADER,
    EmbeddingRequest,
    Fault,
    Limits,
    parse_request,
    read_image,
    response_json,
)
from llama_index_colqwen.endpoint.handler import fault_of_item, log_fault
from llama_index_colqwen.errors import InvalidOptionError, MissingDependencyError
from llama_index_colqwen.pages import MultiVector, Page

try:
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from fastapi_offline import FastAPIOffline
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise MissingDependencyError("Serving a model needs FastAPI and prometheus-client", "server") from error

__all__ = ["Batching", "create_app"]

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
        patience: Seconds that an item waits for others at most, while the model is free and requests are coming in.
        max_queue: Images and texts that wait at most; what is beyond is answered with 503.
        body_seconds: Seconds that a request's body may take to arrive.
    """

    max_texts: int = 32
    max_pages: int | None = None
    patience: float = 0.005
    max_queue: int = 512
    body_seconds: float = 60.0


def create_app(
    embedder: ColQwenEmbedder,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    batching: Batching | None = None,
) -> FastAPI:
    """Make the service's ASGI application: `POST /`, `/health`, `/ready`, `/info`, `/metrics`, `/docs`.

    Args:
        embedder: The model.
        token: What clients must send as a bearer token, except to `/health`, `/ready` and `/docs`; None lets all in.
        limits: What a request may ask for.
        batching: How requests share the model.

    Raises:
        InvalidOptionError: If the largest request would not fit the queue.
        MissingDependencyError: If the extra `[server]` is not installed.
    """
    service = _Service(embedder, limits or Limits(), batching or Batching())
    guarded = [Depends(_guard(token))] if token else []
    app = FastAPIOffline(
        title="ColQwen endpoint",
        description="Page images and queries to multi-vectors, and their late-interaction scores.",
        version=__version__,
        redoc_url=None,
        lifespan=service.running,
    )

    @app.exception_handler(Fault)
    async def refuse(request: Request, fault: Fault) -> Response:
        log_fault(fault)
        headers = {"Retry-After": str(fault.retry_after)} if fault.retry_after else {}
        if fault.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(fault.to_object(), fault.status, headers)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        name = HTTPStatus(error.status_code).phrase.replace(" ", "")
        fault = Fault(name, f"{request.method} {request.url.path[:100]}: {error.detail}.")
        return JSONResponse(fault.to_object(), error.status_code, error.headers)

    @app.post(
        "/",
        summary="Embed images and texts, and score them",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _schema()}}}},
        responses={200: {"model": Answer}, **{status: {"model": Refusal} for status in _STATUSES}},
        dependencies=guarded,
    )
    async def embed(request: Request) -> Response:
        return await service.handle(request)

    @app.get("/health", summary="Whether the process lives")
    async def health() -> State:
        return State(status="ok")

    @app.get("/ready", summary="Whether requests are taken now", responses={503: {"model": Refusal}})
    async def ready() -> State:
        service.check_room(1)
        return State(status="ok")

    unauthorized: dict[int | str, dict[str, Any]] = {401: {"model": Refusal}} if token else {}

    @app.get("/info", summary="The model, and what a request may ask for", responses=unauthorized, dependencies=guarded)
    async def info() -> Info:
        return service.info

    @app.get(
        "/metrics",
        summary="For Prometheus",
        response_class=PlainTextResponse,
        responses=unauthorized,
        dependencies=guarded,
    )
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class Vectors(BaseModel):
    dtype: Literal["float16"]
    shape: list[int]
    data: str
    patch_grid: dict[str, int] | None = None


class Answer(BaseModel):
    image: list[list[list[float]] | Vectors]
    text: list[list[list[float]] | Vectors]
    scores: list[list[float]] | None = None


class Reason(BaseModel):
    type: str
    message: str
    index: int | None


class Refusal(BaseModel):
    error: Reason


class State(BaseModel):
    status: Literal["ok"]


class Info(BaseModel):
    model: str
    fingerprint: dict[str, Any]
    limits: dict[str, int]
    device: str
    version: str


_STATUSES = (400, 401, 408, 413, 415, 422, 500, 503)


def _schema() -> dict[str, Any]:
    """Describe a request without references, which would point to nowhere in the page's document."""
    schema = EmbeddingRequest.model_json_schema()
    fields = schema.pop("$defs")["_Fields"]
    schema["properties"]["inputs"]["anyOf"][0] = fields
    return schema


def _guard(token: str) -> Callable[..., Awaitable[None]]:
    expected = token.encode()
    bearer = HTTPBearer(auto_error=False)

    async def check(credentials: HTTPAuthorizationCredentials | None = Depends(bearer)) -> None:  # noqa: B008
        if credentials is None:
            raise Fault("Unauthorized", "Send the token: `Authorization: Bearer <token>`.", status=401)
        if not hmac.compare_digest(credentials.credentials.encode(), expected):
            raise Fault("Unauthorized", "The token is wrong.", status=401)

    return check


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

    def observer(self, kind: str) -> Callable[[int, float], None]:
        def observe(items: int, seconds: float) -> None:
            self.items.labels(kind).inc(items)
            self.batch.labels(kind).observe(items)
            self.model.labels(kind).inc(seconds)

        return observe


class _Service:
    """The model, and what waits for it; all but `_read` and `_write` runs on the event loop."""

    def __init__(self, embedder: ColQwenEmbedder, limits: Limits, batching: Batching) -> None:
        if batching.max_queue < limits.max_items:
            raise InvalidOptionError(
                f"max_queue ({batching.max_queue}) is at least what a request may hold ({limits.max_items} items)."
            )
        self._embedder, self._limits, self._batching = embedder, limits, batching
        # A folder's path is nobody's business but this machine's, and does not change what vectors mean.
        fingerprint = replace(embedder.fingerprint, location="")
        self._digest = fingerprint_digest(fingerprint)
        self.info = Info(
            model=fingerprint.model,
            fingerprint={**asdict(fingerprint), "options": dict(fingerprint.options)},
            limits=asdict(limits),
            device=embedder.devices[0],
            version=__version__,
        )
        self.metrics = _Metrics(lambda: self._items)
        self._items = 0  # admitted and not yet answered
        self._bytes = 0  # of bodies
        self._coming = 0  # requests whose items are not in a queue yet
        self._preparing = 0
        self._seconds_an_item = 1.0

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
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
                patience=self._batching.patience,
                expecting=lambda: self._coming > 0,
                observe=self.metrics.observer("text"),
            )
            self._pages: Batcher[PreparedPage, MultiVector] = Batcher(
                self._embedder.embed_prepared,
                model,
                turns,
                most=max_pages,
                patience=self._batching.patience,
                expecting=lambda: self._coming + self._preparing > 0,
                observe=self.metrics.observer("image"),
            )
            workers = [asyncio.create_task(batcher.work()) for batcher in (self._texts, self._pages)]
            try:
                yield
            finally:
                for worker in workers:
                    worker.cancel()
                    with suppress(asyncio.CancelledError):
                        await worker

    async def handle(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            Fault: If it is refused, or fails.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        status = 500
        try:
            with self._counting_bytes() as count, self._announced() as arrived:
                body = await self._receive(request, count)
                parsed, pages = await loop.run_in_executor(self._io, self._read, body)
                del body
                with self._admitted(len(pages) + len(parsed.text)):
                    images, texts = await self._unless_gone(request, self._embed(parsed.text, pages, arrived))
                content = await loop.run_in_executor(self._io, self._write, parsed, images, texts)
            status = 200
            return Response(content, media_type="application/json", headers={FINGERPRINT_HEADER: self._digest})
        except Fault as fault:
            status = fault.status
            raise
        except _ClientGone:
            status = 499
            self.metrics.gone.inc()
            return Response(status_code=499)  # nobody reads it
        except asyncio.CancelledError:
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
        loop = asyncio.get_running_loop()
        before, started = self._items, loop.time()
        self._items += items
        try:
            yield
            if items:
                # How fast the queue moves, so that those who are turned away know when to come back.
                self._seconds_an_item += 0.2 * ((loop.time() - started) / (before + items) - self._seconds_an_item)
        finally:
            self._items -= items

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
                raise _ClientGone
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

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, list[Page]]:
        try:
            data = from_json(body)
        except ValueError as error:
            raise Fault("InvalidJson", f"The body is not JSON: {error}.", status=400) from None
        request = parse_request(data, self._limits)
        pages = [read_image(image, index, self._limits) for index, image in enumerate(request.image)]
        return request.model_copy(update={"image": []}), pages

    def _write(self, request: EmbeddingRequest, images: Sequence[MultiVector], texts: Sequence[MultiVector]) -> bytes:
        return b"".join(response_json(request, images, texts))

    async def _unless_gone(self, request: Request, work: Awaitable[_T]) -> _T:
        """Wait for the work; drop it if the client leaves first."""
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_until_disconnect(request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise _ClientGone
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


class _ClientGone(Exception):
    pass


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
