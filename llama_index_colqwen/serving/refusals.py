"""What the routes have in common: how faults are answered, and how both are described."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from llama_index_colqwen.embedders.remote.contract import Fault

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["REFUSALS", "Refusal", "refusal", "request_body"]


class Reason(BaseModel):
    type: str
    message: str
    index: int | None
    param: None = None
    code: int | None = None


class Refusal(BaseModel):
    """What is answered instead of vectors."""

    error: Reason


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal} for status in (400, 401, 408, 413, 415, 422, 500, 503)
}


def refusal(request: Request, fault: Fault) -> dict[str, Any]:
    """Say what is wrong; with the fields that OpenAI's clients read, to those who ask as they do."""
    answer = fault.to_object()
    if request.url.path == "/pooling" or request.url.path.startswith("/v1/"):
        answer["error"] |= {"param": None, "code": fault.status}
    return answer


def request_body(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a body that the route reads by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
