"""What a client may ask, and what it is answered: checked requests, multi-vectors as JSON, and faults.

Shared by the handler, the service and its client. Knows nothing of models or of HTTP, but for a fault's status code.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PageVectors, PatchGrid
from llama_index_colqwen.pages import Page

__all__ = [
    "FINGERPRINT_HEADER",
    "EmbeddingRequest",
    "Encoding",
    "Fault",
    "Limits",
    "Reader",
    "Writer",
    "check_text",
    "float_lists",
    "parse_request",
    "read_image",
    "read_multi_vector",
    "read_request",
    "response_json",
    "response_object",
]

FINGERPRINT_HEADER = "colqwen-fingerprint"
"""The service's answers carry `fingerprint_digest` of its model."""

_DEFAULT_BATCH_SIZE = 4
_MAX_BATCH_SIZE = 1024

Encoding: TypeAlias = Literal["float", "base64-float16"]

# Formats that hold no scripts, name no other files, and need no external program.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
_READ = "PNG, JPEG, WebP, TIFF, GIF and BMP are read"
# To the eighth decimal: half of what float32 written out in full takes, and within 5e-9 of it.
_DECIMALS = 8


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most.

    Attributes:
        max_body_bytes: Length of a request's body; of the service only.
        max_items: Images and texts of a request, together.
        max_pixels: Width times height of an image: small files can be enormous pictures.
        max_text_characters: Length of a text. Models read about 2,000, and say nothing of the rest.
    """

    max_body_bytes: int = 32 * 2**20
    max_items: int = 128
    max_pixels: int = 50_000_000
    max_text_characters: int = 10_000

    def __post_init__(self) -> None:
        """Raise InvalidOptionError if a limit lets nothing through."""
        if wrong := [f"{name}={value}" for name, value in asdict(self).items() if value < 1]:
            raise InvalidOptionError(f"Limits are 1 or more; got {', '.join(wrong)}.")


class Fault(Exception):
    """What a client is told instead of vectors: `{"error": {"type", "message", "index"}}`.

    Attributes:
        type: A name for programs, such as "InvalidImage".
        message: A sentence for people; without paths, and without the frames of a stack.
        index: Which image, or which text, it is about; None if it is about no single one.
        status: The HTTP status code.
        retry_after: In how many seconds it is worth asking again.
    """

    def __init__(
        self, type: str, message: str, index: int | None = None, *, status: int = 422, retry_after: int | None = None
    ) -> None:
        """See the class."""
        super().__init__(message)
        self.type, self.message, self.index, self.status, self.retry_after = type, message, index, status, retry_after

    def to_object(self) -> dict[str, Any]:
        """Return the answer, ready for JSON."""
        return {"error": {"type": self.type, "message": self.message, "index": self.index}}


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    image: list[str] = Field([], description=f"Page images in base64, or as data URLs; {_READ}.")
    text: list[str] = Field([], description="Queries.")
    batch_size: int = Field(
        _DEFAULT_BATCH_SIZE,
        ge=1,
        le=_MAX_BATCH_SIZE,
        description="Items a forward pass of the bare handler. The service batches all clients' items at its own size.",
    )
    encoding: Encoding = Field(
        "float",
        description='"float": nested lists. "base64-float16": objects of dtype, shape and data (little-endian), and '
        "patch_grid for images.",
    )
    return_scores: bool = Field(True, description="Whether to score every text with every image.")


class EmbeddingRequest(_Fields):
    """A request; the fields may also be inside `inputs` or `parameters`."""

    inputs: _Fields | Annotated[list[Any], Field(max_length=0)] | Literal[""] | None = Field(
        None, description="Empty, or an object with the other fields."
    )
    parameters: _Fields | None = Field(
        None, description="The same; Hugging Face's clients send it, and its toolkit puts the parameters of URLs there."
    )


_PLACES = ("inputs", "parameters")


Writer: TypeAlias = Callable[[Sequence[MultiVector], Sequence[MultiVector]], Iterator[bytes]]
"""Of the multi-vectors of images and of texts, the JSON that answers, in parts."""

Reader: TypeAlias = Callable[[object, Limits], tuple[EmbeddingRequest, Writer]]
"""Of a body's JSON, the request, and what writes its answer; raises a fault if anything is wrong with it."""


def parse_request(data: object, limits: Limits) -> EmbeddingRequest:
    """Check everything about a request but what its images hold; fields inside others are put at the top level.

    Raises:
        Fault: If anything is wrong with it.
    """
    if not isinstance(data, Mapping):
        raise Fault("InvalidRequest", "A request is a JSON object with lists `image` and `text`.")
    request = _validate(data, limits)
    given = request.model_fields_set - set(_PLACES)
    fields: dict[str, Any] = dict.fromkeys(_PLACES)
    for place in _PLACES:
        inside = getattr(request, place)
        if not isinstance(inside, _Fields):
            continue
        if twice := given & inside.model_fields_set:
            raise Fault(
                "InvalidRequest", f"`{min(twice)}` is there twice: give it once, beside `{place}` or inside it."
            )
        given |= inside.model_fields_set
        fields |= {name: getattr(inside, name) for name in inside.model_fields_set}
    request = request.model_copy(update=fields)
    _check_count(len(request.image) + len(request.text), limits)
    for index, text in enumerate(request.text):
        check_text(text, index, limits)
    return request


def check_text(text: str, index: int, limits: Limits) -> None:
    """Raise a fault if a text says nothing, or is too long."""
    if not text.strip():
        raise Fault("InvalidText", f"text {index} is empty.", index)
    if len(text) > limits.max_text_characters:
        raise Fault(
            "TextTooLong",
            f"text {index} has {len(text)} characters; at most {limits.max_text_characters} are read.",
            index,
        )


def read_image(text: str, index: int, limits: Limits) -> Page:
    """Return an image as a page, once its head shows that it is a picture of a size that may be decoded.

    Raises:
        Fault: If it is not base64, not a picture, several pictures, or too large.
    """
    data = _decode_base64(text, index)
    try:
        # Opening reads the head alone.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            # Telephones put a small second picture behind the photograph; that is MPO.
            several = image.format != "MPO" and getattr(image, "is_animated", False)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Fault("ImageTooLarge", f"image {index} is too large: {_at_most(limits)}", index) from None
    except Exception as error:  # whatever a decoder raises over what is not its format
        raise Fault("InvalidImage", f"image {index} is not a picture that is read: {_READ}.", index) from error
    if pixels > limits.max_pixels:
        raise Fault("ImageTooLarge", f"image {index} has {pixels / 1e6:.0f} megapixels: {_at_most(limits)}", index)
    if several:
        raise Fault("InvalidImage", f"image {index} holds several pictures: send each as an image of its own.", index)
    return Page(f"image-{index}", "", f"image {index}", index + 1, "", image=data)


def response_object(
    request: EmbeddingRequest, images: Sequence[MultiVector], texts: Sequence[MultiVector]
) -> dict[str, Any]:
    """Answer a request: a multi-vector an `image` and a `text`; `scores`, a row a text and a column an image."""
    write = _compact if request.encoding == "base64-float16" else float_lists
    answer: dict[str, Any] = {"image": list(map(write, images)), "text": list(map(write, texts))}
    if request.return_scores:
        answer["scores"] = _scores(images, texts)
    return answer


def response_json(
    request: EmbeddingRequest, images: Sequence[MultiVector], texts: Sequence[MultiVector]
) -> Iterator[bytes]:
    """Write what `response_object` returns as JSON, in parts: Python runs nothing else while one is written."""
    write = _compact if request.encoding == "base64-float16" else float_lists
    for opening, vectors in ((b'{"image":[', images), (b'],"text":[', texts)):
        yield opening
        for position, multi_vector in enumerate(vectors):
            yield (b"," if position else b"") + to_json(write(multi_vector))
    yield b'],"scores":' + to_json(_scores(images, texts)) + b"}" if request.return_scores else b"]}"


def float_lists(vectors: MultiVector) -> list[list[float]]:
    """Return rows for JSON, in as many digits as float32 has."""
    rounded: list[list[float]] = np.round(vectors.astype(np.float64), _DECIMALS).tolist()
    return rounded


def read_request(data: object, limits: Limits) -> tuple[EmbeddingRequest, Writer]:
    """Read a request of ours; what writes the answer does not hold the images."""
    request = parse_request(data, limits)
    return request, partial(response_json, request.model_copy(update={"image": []}))


def read_multi_vector(value: object) -> MultiVector:
    """Read a multi-vector of an answer, of any encoding; float32, with its patch grid if it came with one.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, Mapping):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is the error
            return _finite(np.asarray(value, dtype=np.float32))
    if value.get("dtype") != "float16":
        raise ValueError(f"dtype is float16; got {value.get('dtype')!r}")
    rows = np.frombuffer(base64.b64decode(value["data"]), "<f2").reshape(value["shape"])
    vectors = _finite(rows.astype(np.float32))
    grid = value.get("patch_grid")
    return PageVectors(vectors, _grid(grid, len(vectors))) if grid else vectors


def _grid(value: Mapping[str, Any], rows: int) -> PatchGrid:
    grid = PatchGrid(**value)
    numbers = (grid.rows, grid.columns, grid.start)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a patch grid has whole numbers; got {grid}")
    if grid.start + grid.rows * grid.columns > rows:
        raise ValueError(f"{grid} does not fit {rows} rows")
    return grid


def _finite(vectors: npt.NDArray[np.float32]) -> MultiVector:
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
        raise ValueError(f"a multi-vector is a table of finite numbers; got shape {vectors.shape}")
    return vectors


def _validate(data: Mapping[Any, Any], limits: Limits) -> EmbeddingRequest:
    try:
        return EmbeddingRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [part for part in first["loc"] if part not in (*_PLACES, "_Fields")]
    index = where[1] if len(where) > 1 and where[0] in ("image", "text") and isinstance(where[1], int) else None
    place = first["loc"][0]
    if not where or place == "inputs" and first["loc"][1:2] != ("_Fields",):
        name = str(place)
        reason = "it is empty, or an object with `image` and `text`"
    elif first["type"] == "extra_forbidden":
        name = str(where[0])[:50]
        known = ", ".join(EmbeddingRequest.model_fields)
        raise Fault("InvalidRequest", f"There is no field {name!r}; there are {known}.")
    else:
        name, reason = str(where[0]), first["msg"].removeprefix("Input ").replace("valid string", "string")
    subject = f"`{name}`" if index is None else f"{name} {index}"
    raise Fault("InvalidRequest", f"{subject}: {reason}.", index)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_items:
        raise Fault(
            "TooManyItems", f"{count} images and texts; at most {limits.max_items} a request, so split it.", status=400
        )


def _decode_base64(text: str, index: int) -> bytes:
    encoded = text
    if encoded[:5].lower() == "data:":
        head, comma, encoded = encoded.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Fault("InvalidImage", f"image {index} is a data URL without base64.", index)
    # As URLs have it, and without its padding, is base64 too.
    encoded = "".join(encoded.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Fault(
            "InvalidImage", f"image {index} is not base64 (addresses and paths are never opened).", index
        ) from None
    if not data:
        raise Fault("InvalidImage", f"image {index} is empty.", index)
    return data


def _at_most(limits: Limits) -> str:
    return f"at most {limits.max_pixels / 1e6:g} megapixels are decoded, so scale it down first."


def _compact(vectors: MultiVector) -> dict[str, Any]:
    written = {
        "dtype": "float16",
        "shape": list(vectors.shape),
        "data": base64.b64encode(vectors.astype("<f2").tobytes()).decode("ascii"),
    }
    grid = getattr(vectors, "patch_grid", None)
    return written if grid is None else {**written, "patch_grid": asdict(grid)}


def _scores(images: Sequence[MultiVector], texts: Sequence[MultiVector]) -> list[list[float]]:
    return [maxsim_scores(text, images).tolist() for text in texts]
