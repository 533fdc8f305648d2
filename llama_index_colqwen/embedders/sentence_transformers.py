"""Page images and queries -> multi-vectors, by any late-interaction model of sentence-transformers that sees images.

Prompts, templates, token masks and image sizes are the library's and the checkpoint's. Knows nothing of Milvus or
LlamaIndex.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_index_colqwen.concurrency import Lock, after_fork
from llama_index_colqwen.embedders.colqwen.preprocessing import page_image
from llama_index_colqwen.embedders.devices import (
    Dtype,
    begin_after_fork,
    check_process,
    choose_devices,
    choose_dtype,
    dtype_name,
    require_torch,
)
from llama_index_colqwen.embedders.hub import Checkpoint, locate, one_line
from llama_index_colqwen.errors import (
    IncompleteWeightsError,
    InvalidOptionError,
    MissingDependencyError,
    ModelError,
    QueryError,
    check_count,
)
from llama_index_colqwen.fingerprint import EmbedderFingerprint
from llama_index_colqwen.late_interaction.multivectors import MultiVector, PageVectors
from llama_index_colqwen.late_interaction.pooling import pool_tokens
from llama_index_colqwen.pages import Page

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder

__all__ = ["SentenceTransformersEmbedder"]

_EXTRA = "sentence-transformers"


class SentenceTransformersEmbedder:
    """Embed page images with a `sentence_transformers.MultiVectorEncoder`; code of its checkpoint is never run.

    Safe for many threads. In a process that is forked off, a model on the CPU computes with one thread, and one on a
    GPU is an error: load the embedder there, after the fork. Pages have no patch grid.

    Args:
        model_name: A hub id or a folder.
        device: Such as "cpu" or "cuda:1"; by default the first GPU, else MPS, else the CPU.
        dtype: "auto" is bfloat16 where the device computes in it, else float16; float32 on the CPU.
        batch_size: Pages or queries embedded at once.
        pool_factor: Keep a page's vectors divided by this, by clustering (see `pooling`); 1 keeps all.
        revision: Branch, tag or commit on the hub.

    Raises:
        MissingDependencyError: If the extra `[sentence-transformers]` is not installed.
        ModelNotFoundError: If there is no such model here or on the hub, or the hub cannot be reached.
        IncompleteWeightsError: If it lacks weights.
        ModelError: If it cannot be loaded for another reason.
        InvalidOptionError: If an argument means nothing, or the model does not see images.
    """

    def __init__(
        self,
        model_name: str | Path,
        device: str | None = None,
        dtype: Dtype = "auto",
        batch_size: int = 4,
        pool_factor: int = 1,
        revision: str | None = None,
    ) -> None:
        """Load the model; see the class for the arguments."""
        check_count("batch_size", batch_size)
        check_count("pool_factor", pool_factor)
        require_torch(_EXTRA)
        self.model_name, self.batch_size, self.pool_factor = str(model_name), batch_size, pool_factor
        self._made_with: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "batch_size": batch_size,
            "pool_factor": pool_factor,
            "revision": revision,
        }
        (self.device,) = choose_devices(device)
        self.dtype = choose_dtype(dtype, self.device)
        # Held at a fork, which so waits for a batch: its tokenizer has locks that nobody would open in the child.
        self._lock = Lock(hold=True)
        self._process = os.getpid()
        after_fork(self._begin_after_fork)
        _import()
        checkpoint = locate(self.model_name, revision)
        self._model = _load(checkpoint, self.device, self.dtype)
        self.dim = int(self.embed_queries(["dim"])[0].shape[1])
        self.fingerprint = checkpoint.fingerprint(
            "MultiVectorEncoder", checkpoint.revision, self.dim, {"library": _EXTRA, "pool_factor": pool_factor}
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what the embedder was made with, not its weights: unpickled, it loads the model."""
        return partial(type(self), self.model_name, **self._made_with), ()

    @classmethod
    def from_fingerprint(cls, fingerprint: EmbedderFingerprint) -> SentenceTransformersEmbedder:
        """Load the embedder that a fingerprint describes, at the same revision."""
        pool_factor = int(fingerprint.options["pool_factor"] or 1)
        if fingerprint.location:
            return cls(fingerprint.location, pool_factor=pool_factor)
        return cls(fingerprint.model, pool_factor=pool_factor, revision=fingerprint.revision)

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        """Embed page images: `PageVectors`, a row a token of the image and of the template, fewer with `pool_factor`.

        Raises:
            UnreadableDocumentError: If a page's image is gone or cannot be decoded.
        """
        vectors: list[MultiVector] = []
        for start in range(0, len(pages), self.batch_size):
            # Decoded a batch at a time: a report's pages together would not fit in memory.
            images = [page_image(page) for page in pages[start : start + self.batch_size]]
            vectors += self._encode(self._model.encode_document, images)
        return [PageVectors(pool_tokens(rows, self.pool_factor)) for rows in vectors]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        """Embed queries: shape (tokens with the model's own before and after, dim).

        Raises:
            QueryError: If a query is blank.
        """
        if not all(isinstance(query, str) and query.strip() for query in queries):
            raise QueryError("The query is empty.")
        return self._encode(self._model.encode_query, list(queries))

    def _begin_after_fork(self) -> None:
        begin_after_fork()

    def _encode(self, encode: Callable[..., Any], inputs: Sequence[Any]) -> list[MultiVector]:
        check_process(self._process, [self.device], self.model_name)
        with self._lock:
            found = encode(inputs, batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True)
        # Made exact: in half precision, the library's rows are unit to within a percent.
        vectors = [rows.astype(np.float32) for rows in found]
        norms = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in vectors]
        if not all(np.all(np.isfinite(norm) & (norm > 0)) for norm in norms):
            raise ModelError(
                f"{self.model_name} overflows in {dtype_name(self.dtype)}: take dtype='bfloat16' or 'float32'."
            )
        return [rows / norm for rows, norm in zip(vectors, norms, strict=True)]


def _import() -> tuple[type[MultiVectorEncoder], type]:
    try:
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.base.modules import Dense
    except ImportError as error:
        need = "SentenceTransformersEmbedder needs sentence-transformers 6 or later"
        raise MissingDependencyError(need, _EXTRA) from error
    return MultiVectorEncoder, Dense


def _load(checkpoint: Checkpoint, device: str, dtype: torch.dtype) -> MultiVectorEncoder:
    encoder, dense = _import()
    name = checkpoint.name
    try:
        model = encoder(
            str(checkpoint.folder),
            device=device,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"dtype": dtype},
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{name} cannot be loaded: {one_line(error)}") from error
    if not model.supports("image"):
        raise InvalidOptionError(f"{name} does not see images: give a model for visual document retrieval.")
    # The library draws what a checkpoint lacks at random and goes on: weights of the backbone (transformers marks what
    # it read), and the whole projection of a model that was never trained for late interaction.
    backbone: Any = model.transformers_model
    missing = [key for key, weight in backbone.named_parameters() if not getattr(weight, "_is_hf_initialized", False)]
    if any(isinstance(module, dense) for module in model):
        modules = checkpoint.folder / "modules.json"
        missing += [] if modules.is_file() and "Dense" in modules.read_text("utf-8") else ["the projection"]
    if missing:
        raise IncompleteWeightsError(
            f"{name} lacks {len(missing)} of its weights ({', '.join(missing[:3])}): it would rank pages at random. "
            "Fetch it again, or give a model that was trained for late interaction."
        )
    return model
