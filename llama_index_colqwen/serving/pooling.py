"""Routes for clients of vLLM and OpenAI: `/pooling`, `/v1/embeddings`, `/v1/models`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from llama_index_colqwen.embedders.remote.pooling import Pooling, PoolingRequest
from llama_index_colqwen.errors import MissingDependencyError
from llama_index_colqwen.serving.refusals import REFUSALS, Refusal, request_body

try:
    from fastapi import APIRouter, Request, Response

    from llama_index_colqwen.serving.service import Service
except ImportError as error:
    raise MissingDependencyError("Serving a model needs FastAPI and prometheus-client", "server") from error

__all__ = ["pooling_routes"]


def pooling_routes(service: Service, model: str, headers: Mapping[str, str], guarded: Sequence[Any]) -> APIRouter:
    """Make the routes; queue, limits and batches are the service's.

    Args:
        service: What answers.
        model: The name that requests may give.
        headers: Sent with vectors.
        guarded: What a request has to pass.
    """
    router = APIRouter()

    def add(path: str, summary: str, route: Pooling, answer: type[BaseModel]) -> None:
        @router.post(
            path,
            name=route.item,
            summary=summary,
            openapi_extra=request_body(PoolingRequest.model_json_schema()),
            responses={200: {"model": answer}, 404: {"model": Refusal}, **REFUSALS},
            dependencies=guarded,
        )
        async def pool(request: Request) -> Response:
            content = await service.handle(request, route)
            return Response(content, media_type="application/json", headers=headers)

    add("/pooling", "Embed queries, or a page image, as a vLLM server is asked to", Pooling(model), Pooled)
    embeddings = Pooling(model, item="embedding", key="embedding")
    add("/v1/embeddings", "The same for OpenAI's clients: an `embedding` is a multi-vector", embeddings, Embedded)

    # Without a token, as mteb asks for it without one: it says the model's name and no more.
    @router.get("/v1/models", summary="The model's name")
    async def models() -> Models:
        return Models(object="list", data=[Model(id=model, object="model", created=0, owned_by="colqwen")])

    return router


class _Item(BaseModel):
    index: int


class PooledItem(_Item):
    object: Literal["pooling"]
    data: list[list[float]] | str


class EmbeddedItem(_Item):
    object: Literal["embedding"]
    embedding: list[list[float]] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class _Answer(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: Usage


class Pooled(_Answer):
    data: list[PooledItem]


class Embedded(_Answer):
    data: list[EmbeddedItem]


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]
