from __future__ import annotations

import numpy as np
import pytest

from llama_index_colqwen import DimensionMismatchError, InvalidOptionError
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, VectorDtype, encode_vectors
from llama_index_colqwen.store.schema import join_chunks, split_chunks
from tests.fakes import unit_rows


@pytest.mark.parametrize(("dtype", "row_bytes", "tolerance"), [("int8", 132, 0.002), ("float16", 256, 0.0003)])
def test_inner_products_survive_within_the_documented_tolerance(
    dtype: VectorDtype, row_bytes: int, tolerance: float
) -> None:
    vectors, queries = unit_rows(0, 1030, dim=128), unit_rows(1, 25, dim=128)
    data = encode_vectors(vectors, dtype).to_bytes()
    decoded = EncodedVectors.from_bytes(data, 128, dtype).decode()
    assert len(data) == 1030 * row_bytes
    assert decoded.dtype == np.float32
    errors = queries @ decoded.T - queries @ vectors.T
    assert np.sqrt((errors**2).mean()) < tolerance


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_zero_row_stays_zero(dtype: VectorDtype) -> None:
    vectors = np.zeros((2, 4), dtype=np.float32)
    np.testing.assert_array_equal(encode_vectors(vectors, dtype).decode(), vectors)


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 2, 4)])
def test_what_is_no_multi_vector_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DimensionMismatchError, match="num_tokens"):
        encode_vectors(np.zeros(shape, dtype=np.float32), "int8")


def test_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(InvalidOptionError, match="int8, float16; got 'bfloat16'"):
        encode_vectors(unit_rows(0, 1), "bfloat16")  # type: ignore[arg-type]


def test_bytes_of_another_dim_are_refused() -> None:
    with pytest.raises(DimensionMismatchError, match="dim 7"):
        EncodedVectors.from_bytes(encode_vectors(unit_rows(0, 3), "int8").to_bytes(), 7, "int8")


@pytest.mark.parametrize("size", [0, 1, 49_148, 49_149, 49_150, 200_000])
def test_chunks_fit_a_field_and_join_to_the_same_bytes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    chunks = split_chunks(data)
    assert all(len(chunk) <= 65_535 for chunk in chunks)
    assert join_chunks(chunks) == data
