"""Float32 multi-vectors <-> bytes, and bytes <-> text chunks that fit a VARCHAR field.

Knows nothing of pages or Milvus, but for the length of a field.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np

from llama_index_colqwen.errors import DimensionMismatchError, InvalidOptionError
from llama_index_colqwen.pages import MultiVector

__all__ = ["VectorDtype", "decode_vectors", "encode_vectors", "join_chunks", "split_chunks"]

VectorDtype: TypeAlias = Literal["int8", "float16"]

CHUNK_CHARACTERS = 65_532
"""The largest multiple of 4 (whole base64 groups) within Milvus's VARCHAR limit of 65,535 bytes."""


def encode_vectors(vectors: MultiVector, dtype: VectorDtype) -> bytes:
    """Encode a multi-vector: `int8` with one float32 scale a vector, or `float16`.

    int8 takes dim + 4 bytes a vector and moves an inner product of unit vectors by about 0.002; float16 takes 2 * dim
    bytes and moves it by about 0.0002.

    Args:
        vectors: Float32, shape (num_tokens, dim), at least one row.
        dtype: What to keep.

    Raises:
        DimensionMismatchError: If `vectors` is not a table with at least one row.
        InvalidOptionError: If `dtype` is neither.
    """
    if vectors.ndim != 2 or not len(vectors):
        raise DimensionMismatchError(
            f"A multi-vector has shape (num_tokens, dim) with at least one row; got shape {vectors.shape}."
        )
    if dtype == "float16":
        return bytes(vectors.astype("<f2").tobytes())
    if dtype == "int8":
        scales = np.abs(vectors).max(axis=1) / 127
        scales[scales == 0] = 1
        rounded = np.rint(vectors / scales[:, None]).astype(np.int8)
        return bytes(scales.astype("<f4").tobytes() + rounded.tobytes())
    raise InvalidOptionError(f"vector_dtype is one of {', '.join(get_args(VectorDtype))}; got {dtype!r}.")


def decode_vectors(data: bytes, dim: int, dtype: VectorDtype) -> MultiVector:
    """Undo `encode_vectors`; float32, shape (num_tokens, dim).

    Raises:
        DimensionMismatchError: If the length does not fit the dim.
    """
    row_bytes = 2 * dim if dtype == "float16" else dim + 4
    rows, rest = divmod(len(data), row_bytes)
    if rest or not rows:
        raise DimensionMismatchError(f"{len(data)} bytes do not hold whole {dtype} vectors of dim {dim}.")
    if dtype == "float16":
        return np.frombuffer(data, "<f2").reshape(rows, dim).astype(np.float32)
    scales = np.frombuffer(data, "<f4", count=rows)
    vectors: MultiVector = np.frombuffer(data, np.int8, offset=4 * rows).reshape(rows, dim) * scales[:, None]
    return vectors


def split_chunks(data: bytes) -> list[str]:
    """Write bytes as base64 in chunks of at most 65,535 characters."""
    text = base64.b64encode(data).decode("ascii")
    return [text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS)]


def join_chunks(chunks: Sequence[str]) -> bytes:
    """Undo `split_chunks`."""
    return base64.b64decode("".join(chunks))
