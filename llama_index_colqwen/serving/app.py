"""Routes -> what the service says, with a token before and a description beside them.

Knows nothing of addresses, processes or signals (`server` does), or of how requests share the model (`service` does).
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel

from llama_index_colqwen import __version__
from llama_index_colqwen.addresses import check_token
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.remote.contract import FINGERPRINT_HEADER, EmbeddingRequest, Fault, Limits
from llama_index_colqwen.errors import MissingDependencyError
from llama_index_colqwen.fingerprint import fingerprint_digest
from llama_index_colqwen.serving.handler import log_fault

try:
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.responses import JSONResponse, PlainTextResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from fastapi_offline import FastAPIOffline
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.exceptions import HTTPException

    from llama_index_colqwen.serving.pooling import pooling_routes
    from llama_index_colqwen.serving.refusals import REFUSALS, Refusal, refusal, request_body
    from llama_index_colqwen.serving.service import Batching, ClientGone, Service
except ImportError as error:
    raise MissingDependencyError("Serving a model needs FastAPI and prometheus-client", "server") from error

__all__ = ["Batching", "create_app"]


def create_app(
    embedder: ColQwenEmbedder,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    batching: Batching | None = None,
) -> FastAPI:
    """Make the service's ASGI application: `POST /`, `/health`, `/ready`, `/info`, `/metrics`, `/docs`.

    And what clients of vLLM and OpenAI ask for: `POST /pooling`, `POST /v1/embeddings`, `/v1/models`.

    Args:
        embedder: The model.
        token: What clients must send as a bearer token, except to `/health`, `/ready`, `/v1/models` and `/docs`; None
            lets all in.
        limits: What a request may ask for.
        batching: How requests share the model.

    Raises:
        InvalidOptionError: If the largest request would not fit the queue, or no client could send the token.
        MissingDependencyError: If the extra `[server]` is not installed.
    """
    check_token("token", token or "")
    limits = limits or Limits()
    service = Service(embedder, limits, batching or Batching())
    # A folder's path is private to this machine, and does not change what vectors mean.
    fingerprint = replace(embedder.fingerprint, location="")
    info = Info(
        model=fingerprint.model,
        fingerprint={**asdict(fingerprint), "options": dict(fingerprint.options)},
        limits=asdict(limits),
        device=embedder.devices[0],
        version=__version__,
    )
    headers = {FINGERPRINT_HEADER: fingerprint_digest(fingerprint)}
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
        return JSONResponse(refusal(request, fault), fault.status, headers)

    @app.exception_handler(ClientGone)
    async def forget(request: Request, error: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        name = HTTPStatus(error.status_code).phrase.replace(" ", "")
        fault = Fault(name, f"{request.method} {request.url.path[:100]}: {error.detail}.", status=error.status_code)
        return JSONResponse(refusal(request, fault), error.status_code, error.headers)

    @app.post(
        "/",
        summary="Embed images and texts, and score them",
        openapi_extra=request_body(_schema()),
        responses={200: {"model": Answer}, **REFUSALS},
        dependencies=guarded,
    )
    async def embed(request: Request) -> Response:
        return Response(await service.handle(request), media_type="application/json", headers=headers)

    app.include_router(pooling_routes(service, info.model, headers, guarded))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", summary="Whether the process lives")
    async def health() -> State:
        return State(status="ok")

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", summary="Whether requests are taken now", responses={503: {"model": Refusal}})
    async def ready() -> State:
        service.check_room(1)
        return State(status="ok")

    unauthorized: dict[int | str, dict[str, Any]] = {401: {"model": Refusal}} if token else {}

    @app.get("/info", summary="The model, and what a request may ask for", responses=unauthorized, dependencies=guarded)
    async def describe() -> Info:
        return info

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


class State(BaseModel):
    status: Literal["ok"]


class Info(BaseModel):
    model: str
    fingerprint: dict[str, Any]
    limits: dict[str, int]
    device: str
    version: str


def _schema() -> dict[str, Any]:
    """Describe a request without references, which would point to nowhere in the page's document."""
    schema = EmbeddingRequest.model_json_schema()
    fields = schema.pop("$defs")["_Fields"]
    schema["properties"]["inputs"]["anyOf"][0] = schema["properties"]["parameters"]["anyOf"][0] = fields
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
