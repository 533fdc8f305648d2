"""Base64 images and texts -> multi-vectors and scores: the Hugging Face custom-handler contract.

Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from llama_index_colqwen.concurrency import gather, look_ahead
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.remote.contract import (
    EmbeddingRequest,
    Fault,
    Limits,
    parse_request,
    read_image,
    response_object,
)
from llama_index_colqwen.errors import DeviceMemoryError, ModelError, QueryError, UnreadableDocumentError
from llama_index_colqwen.late_interaction.multivectors import MultiVector

__all__ = ["EndpointHandler", "fault_of_item", "log_fault", "run_each"]

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_DEFAULT_MODEL = "vidore/colqwen2-v1.0"
_MAX_FORWARD = 32
"""Items a forward pass at most, whatever `batch_size` asks for."""


class EndpointHandler:
    """ColQwen2 as a Hugging Face custom handler: put `handler.py` of `examples/endpoint` into the model's repository.

    On CUDA where there is a GPU, else on the CPU; page images are scaled to at most 768 visual tokens.

    Args:
        path: The model's folder, which Hugging Face gives; or a hub id. Empty for vidore/colqwen2-v1.0.
        limits: What a request may ask for.
        options: `ColQwenEmbedder`'s, such as `dtype` or `max_visual_tokens`.

    Raises:
        ModelError: If the model cannot be loaded.
        MissingDependencyError: If the extra `[colqwen]` is not installed.
    """

    def __init__(self, path: str = "", limits: Limits | None = None, **options: Any) -> None:  # noqa: ANN401
        """Load the model; see the class."""
        self.limits = limits or Limits()
        self.embedder = ColQwenEmbedder(path or _DEFAULT_MODEL, **{"batch_size": _MAX_FORWARD, **options})

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Embed images and texts, and score them.

        Args:
            data: `image`, base64 strings or data URLs; `text`, strings; `batch_size`, items a forward pass (4);
                `encoding`, "float" or "base64-float16"; `return_scores`. All are optional, and may be inside `inputs`.

        Returns:
            `image` and `text`: a multi-vector an item, num_tokens lists of dim floats each, unit rows, no padding (with
            "base64-float16" an object of `dtype`, `shape`, `data`, and for images the `patch_grid`).
            `scores`: a row a text, a column an image, by MaxSim. Or, if anything is wrong with any item, only
            `error`: `type`, `message`, and the `index` of the image or text that it is about.
        """
        try:
            return self._answer(parse_request(data, self.limits))
        except Fault as fault:
            log_fault(fault)
            return fault.to_object()
        except Exception:
            _log.exception("A request failed.")
            return Fault("InternalError", "The request failed; the endpoint's log says why.").to_object()

    def _answer(self, request: EmbeddingRequest) -> dict[str, Any]:
        pages = [read_image(image, index, self.limits) for index, image in enumerate(request.image)]
        images: list[MultiVector] = []
        # The next batch is decoded while the model has this one.
        preparing = ([self.embedder.prepare_page(page) for page in some] for some in gather(pages, request.batch_size))
        for futures in look_ahead(preparing, 1):
            prepared = []
            for index, future in enumerate(futures, start=len(images)):
                try:
                    prepared.append(future.result())
                except Exception as error:
                    raise fault_of_item(error, "image", index) from error
            images += _all_or_fault(self.embedder.embed_prepared, prepared, "image", len(images))
        texts: list[MultiVector] = []
        for some in gather(request.text, request.batch_size):
            texts += _all_or_fault(self.embedder.embed_queries, some, "text", len(texts))
        return response_object(request, images, texts)


def log_fault(fault: Fault) -> None:
    """Log what a client is told and what it is not told: the cause, with its stack if the client is not to blame."""
    if fault.status == 500:
        _log.error("A request failed: %s", fault, exc_info=fault.__cause__)
    else:
        _log.warning("A request was refused: %s (%r)", fault, fault.__cause__ or fault.type)


def run_each(run: Callable[[list[_Item]], Sequence[_Result]], items: list[_Item]) -> list[_Result | Exception]:
    """Run items together; where that fails one by one, so that only those fail that cannot be helped.

    Returns:
        For each item its result, or the error that it fails with.
    """
    try:
        results = list(run(items))
        if len(results) != len(items):
            raise ModelError(f"The model gave {len(results)} results for {len(items)} items.")
        return [*results]
    except Exception as error:
        if len(items) == 1:
            return [error]
    return [result for item in items for result in run_each(run, [item])]


def fault_of_item(error: BaseException, kind: str, index: int) -> Fault:
    """Say what went wrong with an item, without what may name paths: the error itself belongs into the log."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, UnreadableDocumentError):
        return Fault("InvalidImage", f"{kind} {index} cannot be decoded: it is truncated or corrupt.", index)
    if isinstance(error, QueryError):
        return Fault("InvalidText", f"{kind} {index} holds nothing that the model can read.", index)
    if isinstance(error, DeviceMemoryError):
        return Fault("OutOfMemory", f"{kind} {index} does not fit the device's memory.", index, status=500)
    return Fault("ModelFailed", f"The model failed over {kind} {index}; the log says why.", index, status=500)


def _all_or_fault(
    run: Callable[[list[_Item]], list[MultiVector]], items: Sequence[_Item], kind: str, start: int
) -> list[MultiVector]:
    vectors: list[MultiVector] = []
    results: list[MultiVector | Exception] = run_each(run, list(items))
    for index, result in enumerate(results, start):
        if isinstance(result, Exception):
            raise fault_of_item(result, kind, index) from result
        vectors.append(result)
    return vectors
