"""A query multi-vector and candidate multi-vectors -> scores.

Late interaction in numpy. Knows nothing of PDFs, Milvus or LlamaIndex.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.concurrency import gather
from llama_index_colqwen.errors import DimensionMismatchError, check_count
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, MultiVector, PatchGrid

__all__ = ["Candidate", "RankedPage", "Scorer", "as_encoded", "maxsim", "maxsim_scores", "rank"]

# One matrix product a block. 4k float32 vectors of 128 dims are 2 MB, and stay in the processor's cache between being
# cast and being multiplied: 100 pages of 865 int8 vectors take 15 ms of one core, and 25 in blocks of 16k.
# (torch's int8 product is faster on processors with instructions for it, and took twelve times as long on one without.)
_BLOCK_ROWS = 4096
_RANK_PAGES = 256


@dataclass(frozen=True)
class Candidate:
    """A page put forward by the store, with all its vectors and, where the embedder knew it, its patch grid."""

    page_id: str
    encoded: EncodedVectors = field(repr=False)
    patch_grid: PatchGrid | None = None

    @property
    def vectors(self) -> MultiVector:
        """The page's multi-vector, decoded."""
        return self.encoded.decode()


@dataclass(frozen=True)
class RankedPage:
    """A page and its score; higher is better."""

    page_id: str
    score: float


def maxsim(query: MultiVector, page: MultiVector) -> float:
    """Score a page for a query by late interaction (ColBERT, Khattab & Zaharia 2020, eq. 3).

    Args:
        query: Float32, shape (num_query_tokens, dim), unit rows, no padding rows.
        page: Float32, shape (num_page_tokens, dim), unit rows, no padding rows.

    Returns:
        Sum over query tokens of the largest inner product with any page token; in [-n, n] for n query tokens.

    Raises:
        DimensionMismatchError: If the two dims differ, or either has no rows.

    >>> maxsim(np.eye(2, dtype=np.float32), np.array([[1.0, 0.0]], dtype=np.float32))
    1.0
    """
    return float(maxsim_scores(query, [page])[0])


def maxsim_scores(query: MultiVector, pages: Sequence[MultiVector | EncodedVectors]) -> npt.NDArray[np.float32]:
    """Score many pages of any lengths, in matrix products of some thousand rows.

    The pages' rows are laid end to end, so no padding row can win a maximum over truly negative similarities. Encoded
    pages are multiplied as they are, and their scales applied to the products.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        pages: Each float32, shape (its num_tokens, dim), or encoded.

    Returns:
        Float32, shape (len(pages),), in the order of `pages`.

    Raises:
        DimensionMismatchError: If dims differ, or the query or a page has no rows.
    """
    encoded = as_encoded(query, pages)
    scores = np.empty(len(encoded), dtype=np.float32)
    rows = np.empty((0, query.shape[1]), dtype=np.float32)
    products = np.empty(0, dtype=np.float32)
    done = 0
    for block in _blocks(encoded):
        starts = np.cumsum([0, *(len(page.values) for page in block)])
        total = int(starts[-1])
        if len(rows) < total:
            rows, products = np.empty((total, query.shape[1]), np.float32), np.empty(len(query) * total, np.float32)
        for page, start in zip(block, starts, strict=False):
            rows[start : start + len(page.values)] = page.values  # cast on the way
        # (num_query_tokens, all tokens): rows are contiguous along the pages' tokens, which makes reduceat 1.5 times as
        # fast as on the transpose.
        similarities = products[: len(query) * total].reshape(len(query), total)
        np.matmul(query, rows[:total].T, out=similarities)
        scales = [page.scales for page in block if page.scales is not None]
        if len(scales) == len(block):
            similarities *= np.concatenate(scales)
        else:
            for page, start in zip(block, starts, strict=False):
                if page.scales is not None:
                    similarities[:, start : start + len(page.scales)] *= page.scales
        best = np.maximum.reduceat(similarities, starts[:-1], axis=1)
        scores[done : done + len(block)] = best.sum(axis=0, dtype=np.float32)
        done += len(block)
    return scores


def as_encoded(query: MultiVector, pages: Sequence[MultiVector | EncodedVectors]) -> list[EncodedVectors]:
    """Return pages as they are kept, and check that a query can be compared with them.

    Raises:
        DimensionMismatchError: If dims differ, or the query or a page has no rows.
    """
    if query.ndim != 2 or not len(query):
        raise DimensionMismatchError(f"A query has shape (num_tokens, dim), with at least one row; got {query.shape}.")
    encoded = [page if isinstance(page, EncodedVectors) else EncodedVectors(page) for page in pages]
    for page in encoded:
        if page.values.ndim != 2 or not len(page.values) or page.values.shape[1] != query.shape[1]:
            raise DimensionMismatchError(
                f"The query has shape {query.shape} and a page {page.values.shape}: both need rows, and the same dim."
            )
    return encoded


Scorer: TypeAlias = Callable[[MultiVector, Sequence[MultiVector | EncodedVectors]], npt.NDArray[np.float32]]
"""What scores as `maxsim_scores` does."""


def rank(
    query: MultiVector, candidates: Iterable[Candidate], top_k: int, scorer: Scorer = maxsim_scores
) -> list[RankedPage]:
    """Rank candidates by exact MaxSim, best first, equal scores by page id.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        candidates: Any number; they are consumed some at a time and not kept.
        top_k: How many to return; fewer if there are fewer candidates.
        scorer: What computes the scores.

    Raises:
        DimensionMismatchError: If dims differ.
        InvalidOptionError: If `top_k` is below 1.
    """
    check_count("top_k", top_k)
    best: list[RankedPage] = []
    for some in gather(candidates, _RANK_PAGES):
        scores = scorer(query, [candidate.encoded for candidate in some])
        best.extend(RankedPage(candidate.page_id, float(score)) for candidate, score in zip(some, scores, strict=True))
        best.sort(key=lambda page: (-page.score, page.page_id))
        del best[top_k:]
    return best


def _blocks(pages: Iterable[EncodedVectors]) -> Iterator[list[EncodedVectors]]:
    block: list[EncodedVectors] = []
    rows = 0
    for page in pages:
        if block and rows + len(page.values) > _BLOCK_ROWS:
            yield block
            block, rows = [], 0
        block.append(page)
        rows += len(page.values)
    if block:
        yield block
