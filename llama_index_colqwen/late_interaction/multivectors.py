"""Multi-vectors: what they are, where a page's patches are among them, and float32 <-> int8 or float16.

Knows nothing of models, scores or Milvus.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.errors import DimensionMismatchError, InvalidOptionError

__all__ = [
    "EncodedVectors",
    "MultiVector",
    "PageVectors",
    "PatchGrid",
    "VectorDtype",
    "bytes_a_vector",
    "encode_vectors",
]

MultiVector: TypeAlias = npt.NDArray[np.float32]
"""Float32, shape (num_tokens, dim), unit rows, no padding rows."""

VectorDtype: TypeAlias = Literal["int8", "float16"]


@dataclass(frozen=True)
class PatchGrid:
    """Which rows of a page's multi-vector are its patches, and where these lie on the page.

    Rows `start` to `start + rows * columns` are the patches, line by line from the top left; the others belong to the
    prompt. The patches are equal parts of the page image.
    """

    rows: int
    columns: int
    start: int = 0


class PageVectors(np.ndarray[Any, np.dtype[np.float32]]):
    """A page's multi-vector that knows its patch grid; an array like any other.

    Arrays computed from it (slices, sums, copies) are no page's vectors any more: their `patch_grid` is None.
    """

    patch_grid: PatchGrid | None = None

    def __new__(cls, vectors: MultiVector, patch_grid: PatchGrid | None = None) -> PageVectors:
        """View `vectors` as the vectors of a page."""
        view = np.asarray(vectors, dtype=np.float32).view(cls)
        view.patch_grid = patch_grid
        return view

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[object, ...]:
        """Keep the patch grid on the way to another process."""
        return PageVectors, (np.asarray(self), self.patch_grid)


@dataclass(frozen=True)
class EncodedVectors:
    """A multi-vector as it is kept.

    Attributes:
        values: int8, float16 or float32, shape (num_tokens, dim).
        scales: Float32, shape (num_tokens,): what a row of `values` is multiplied by; None for 1.
    """

    values: npt.NDArray[Any] = field(repr=False)
    scales: npt.NDArray[np.float32] | None = field(default=None, repr=False)

    def decode(self) -> MultiVector:
        """Return the vectors; float32, shape (num_tokens, dim)."""
        vectors: MultiVector = self.values.astype(np.float32)
        return vectors if self.scales is None else vectors * self.scales[:, None]

    def to_bytes(self) -> bytes:
        """Write as bytes, little-endian: the scales, if there are any, then the values row by row."""
        scales = b"" if self.scales is None else self.scales.astype("<f4").tobytes()
        return scales + self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, dim: int, dtype: VectorDtype) -> EncodedVectors:
        """Undo `to_bytes`; the arrays are views of `data`, not copies.

        Raises:
            DimensionMismatchError: If the length does not fit the dim.
        """
        row_bytes = bytes_a_vector(dim, dtype)
        rows, rest = divmod(len(data), row_bytes)
        if rest or not rows:
            raise DimensionMismatchError(f"{len(data)} bytes do not hold whole {dtype} vectors of dim {dim}.")
        if dtype == "float16":
            return cls(np.frombuffer(data, "<f2").reshape(rows, dim))
        values = np.frombuffer(data, np.int8, offset=4 * rows).reshape(rows, dim)
        return cls(values, np.frombuffer(data, "<f4", count=rows))


def bytes_a_vector(dim: int, dtype: VectorDtype) -> int:
    """Return the size of one encoded vector."""
    return 2 * dim if dtype == "float16" else dim + 4


def encode_vectors(vectors: MultiVector, dtype: VectorDtype) -> EncodedVectors:
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
        return EncodedVectors(np.asarray(vectors, "<f2"))
    if dtype == "int8":
        scales = np.abs(vectors).max(axis=1).astype(np.float32) / np.float32(127)
        scales[scales == 0] = 1
        values = np.asarray(vectors / scales[:, None])
        return EncodedVectors(np.rint(values, out=values).astype(np.int8), np.asarray(scales))
    raise InvalidOptionError(f"vector_dtype is one of {', '.join(get_args(VectorDtype))}; got {dtype!r}.")
