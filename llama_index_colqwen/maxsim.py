"""A query multi-vector and candidate multi-vectors -> scores.

Late interaction in numpy. Knows nothing of PDFs, Milvus or LlamaIndex.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.errors import DimensionMismatchError, InvalidOptionError
from llama_index_colqwen.pages import Candidate, MultiVector, RankedPage

__all__ = ["maxsim", "maxsim_scores", "rank"]

# One matrix product a block. 32k vectors of 128 floats are 16 MB: large enough to be one efficient product, small
# enough that ranking any number of pages takes little memory.
_BLOCK_VECTORS = 32_768


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


def maxsim_scores(query: MultiVector, pages: Sequence[MultiVector]) -> npt.NDArray[np.float32]:
    """Score many pages of any lengths in one matrix product.

    The pages' rows are laid end to end, so no padding row can win a maximum over truly negative similarities.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        pages: Each float32, shape (its num_tokens, dim).

    Returns:
        Float32, shape (len(pages),), in the order of `pages`.

    Raises:
        DimensionMismatchError: If dims differ, or the query or a page has no rows.
    """
    if query.ndim != 2 or not len(query):
        raise DimensionMismatchError(f"A query has shape (num_tokens, dim), with at least one row; got {query.shape}.")
    for page in pages:
        if page.ndim != 2 or not len(page) or page.shape[1] != query.shape[1]:
            raise DimensionMismatchError(
                f"The query has shape {query.shape} and a page {page.shape}: both need rows, and the same dim."
            )
    if not pages:
        return np.empty(0, dtype=np.float32)
    starts = np.cumsum([0, *(len(page) for page in pages[:-1])])
    # (num_query_tokens, all tokens): rows are contiguous along the pages' tokens, which makes reduceat 1.5 times as
    # fast as on the transpose.
    similarities = query @ np.concatenate(pages).T
    best = np.maximum.reduceat(similarities, starts, axis=1)
    scores: npt.NDArray[np.float32] = best.sum(axis=0, dtype=np.float32)
    return scores


def rank(query: MultiVector, candidates: Iterable[Candidate], top_k: int) -> list[RankedPage]:
    """Rank candidates by exact MaxSim, best first, equal scores by page id.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        candidates: Any number; they are consumed in blocks and not kept.
        top_k: How many to return; fewer if there are fewer candidates.

    Raises:
        DimensionMismatchError: If dims differ.
        InvalidOptionError: If `top_k` is below 1.
    """
    if top_k < 1:
        raise InvalidOptionError(f"At least one page is to be returned; got top_k={top_k}.")
    best: list[RankedPage] = []
    for block in _blocks(candidates):
        scores = maxsim_scores(query, [candidate.vectors for candidate in block])
        best.extend(RankedPage(candidate.page_id, float(score)) for candidate, score in zip(block, scores, strict=True))
        best.sort(key=lambda page: (-page.score, page.page_id))
        del best[top_k:]
    return best


def _blocks(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    block: list[Candidate] = []
    vectors = 0
    for candidate in candidates:
        block.append(candidate)
        vectors += len(candidate.vectors)
        if vectors >= _BLOCK_VECTORS:
            yield block
            block, vectors = [], 0
    if block:
        yield block
