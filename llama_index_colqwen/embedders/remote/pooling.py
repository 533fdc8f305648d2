"""Requests as vLLM's `/pooling` and OpenAI's `/v1/embeddings` take them -> ours, and multi-vectors -> their answers.

Shared by the service and its client. Knows nothing of models or of HTTP, but for a fault's status code.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from llama_index_colqwen.embedders.remote.contract import (
    EmbeddingRequest,
    Fault,
    Limits,
    Writer,
    float_lists,
    parse_request,
    read_multi_vector,
)
from llama_index_colqwen.late_interaction.multivectors import MultiVector

__all__ = ["Pooling", "PoolingRequest", "page_message", "read_pooled"]

_MESSAGE = (
    '`messages` is one message, {"role": "user", "content"}; its content is a text, or a list of {"type": "text", '
    '"text"} and one {"type": "image_url", "image_url": {"url"}}.'
)


class PoolingRequest(BaseModel):
    """A request; fields that are null count as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field("", description="The model's name, as /v1/models says it; empty for whatever is there.")
    input: Any = Field(None, description="A query, or a list of them; the model's own query prefix is put before each.")
    messages: Any = Field(
        None,
        description="Instead of `input`: one message of the user, with a page image as a data URL, or a query. Text "
        "beside an image is not read: a page is embedded with the prompt that its model was trained with.",
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description='"float": nested lists. "base64": float32, little-endian, rows one after another.'
    )
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "native"
    task: Literal["token_embed"] = "token_embed"
    user: str = Field("", description="Not read, as `request_id`.")
    request_id: str = ""


@dataclass(frozen=True)
class Pooling:
    """One of the routes that take such requests.

    Attributes:
        model: The model's name.
        item: What answers call an item.
        key: Where an item of an answer has its vectors.
    """

    model: str
    item: str = "pooling"
    key: str = "data"

    def __call__(self, data: object, limits: Limits) -> tuple[EmbeddingRequest, Writer]:
        """Read a request; texts are queries.

        Raises:
            Fault: If anything is wrong with it, but for what its image holds.
        """
        request = _validate(data)
        if request.model not in ("", self.model):
            raise Fault("ModelNotFound", f"{request.model[:100]!r} is not here; {self.model!r} is.", status=404)
        if (request.input is None) == (request.messages is None):
            raise Fault("InvalidRequest", "Give either `input`, texts, or `messages`, one with a page image.")
        images, texts = _conversation(request.messages) if request.input is None else ([], _texts(request.input))
        parsed = parse_request({"image": images, "text": texts, "return_scores": False}, limits)
        return parsed, _Answer(self, request.encoding_format)


@dataclass(frozen=True)
class _Answer:
    route: Pooling
    encoding: str
    id: str = field(default_factory=lambda: f"pool-{uuid.uuid4().hex}")

    def __call__(self, images: Sequence[MultiVector], texts: Sequence[MultiVector]) -> Iterator[bytes]:
        """Write the answer in parts, an item each; `usage` counts vectors."""
        items = [*images, *texts]
        head = {"id": self.id, "object": "list", "created": int(time.time()), "model": self.route.model}
        yield to_json(head)[:-1] + b',"data":['
        for index, vectors in enumerate(items):
            written = float_lists(vectors) if self.encoding == "float" else _base64(vectors)
            item = {"index": index, "object": self.route.item, self.route.key: written}
            yield (b"," if index else b"") + to_json(item)
        count = sum(map(len, items))
        yield b'],"usage":' + to_json({"prompt_tokens": count, "total_tokens": count}) + b"}"


def page_message(image: str) -> list[dict[str, Any]]:
    """Return the `messages` that ask for a page: its image in base64, with the prompt that vLLM's own examples give."""
    url = {"type": "image_url", "image_url": {"url": f"data:image/{_kind(image)};base64,{image}"}}
    return [{"role": "user", "content": [url, {"type": "text", "text": "Describe the image."}]}]


def read_pooled(value: object, dim: int) -> MultiVector:
    """Read the multi-vector of an answer's item, of either encoding; float32.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, str):
        value = np.frombuffer(base64.b64decode(value), "<f4").reshape(-1, dim).copy()  # the bytes cannot be written to
    return read_multi_vector(value)


def _base64(vectors: MultiVector) -> str:
    return base64.b64encode(vectors.astype("<f4").tobytes()).decode("ascii")


def _kind(image: str) -> str:
    """Tell a picture's format by how its base64 begins; servers look at the bytes."""
    for head, kind in (("iVBOR", "png"), ("UklGR", "webp"), ("R0lGO", "gif")):
        if image.startswith(head):
            return kind
    return "jpeg"


def _validate(data: object) -> PoolingRequest:
    if not isinstance(data, Mapping):
        raise Fault("InvalidRequest", "A request is a JSON object with `input` or `messages`.")
    try:
        return PoolingRequest.model_validate({name: value for name, value in data.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(first["loc"][0])[:50]
    if first["type"] == "extra_forbidden":
        known = ", ".join(PoolingRequest.model_fields)
        raise Fault("InvalidRequest", f"There is no field {name!r} here; there are {known}.")
    raise Fault("InvalidRequest", f"`{name}`: {first['msg'].removeprefix('Input ').replace('valid string', 'string')}.")


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Fault("InvalidRequest", "`input` is a text or a list of texts; numbers of tokens are not read.")
    return texts


def _conversation(messages: object) -> tuple[list[str], list[str]]:
    """Return the image of a message, or its text if it has none."""
    match messages:
        case [{"role": "user", "content": str(text)}]:
            return [], [text]
        case [{"role": "user", "content": [*parts]}]:
            pass
        case _:
            raise Fault("InvalidRequest", _MESSAGE)
    images: list[str] = []
    texts: list[str] = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                images.append(url)
            case _:
                raise Fault("InvalidRequest", _MESSAGE)
    if len(images) > 1:
        raise Fault("InvalidRequest", f"A message holds one page image; got {len(images)}: send a request for each.")
    return (images, []) if images else ([], ["\n".join(texts)])
