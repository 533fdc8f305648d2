"""Two rankings of pages -> one: by ranks, or by scores.

Knows nothing of how pages were ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llama_index_colqwen.late_interaction.maxsim import RankedPage

__all__ = ["fuse_by_rank", "fuse_by_score", "highest_rank_score"]

_RANK_CONSTANT = 60


def fuse_by_rank(*rankings: Sequence[RankedPage]) -> list[RankedPage]:
    """Add up 1 / (60 + rank) over rankings, best first: reciprocal rank fusion (Cormack et al. 2009)."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, page in enumerate(ranking, start=1):
            scores[page.page_id] = scores.get(page.page_id, 0.0) + 1 / (_RANK_CONSTANT + rank)
    return _in_order(scores)


def highest_rank_score(num_rankings: int) -> float:
    """Return what `fuse_by_rank` gives a page that is first in all rankings."""
    return num_rankings / (_RANK_CONSTANT + 1)


def fuse_by_score(maxsim: Sequence[RankedPage], texts: Sequence[RankedPage], text_weight: float) -> list[RankedPage]:
    """Add up two scores of pages, each made to lie in [0, 1], best first.

    Args:
        maxsim: Pages by MaxSim, best first: of their scores, the lowest becomes 0 and the highest 1.
        texts: Pages by BM25, best first: of their scores, the highest becomes 1, and 0 stays 0.
        text_weight: How much BM25 counts, in [0, 1]; MaxSim counts the rest.
    """
    scores: dict[str, float] = {}
    for ranking, lowest, weight in (
        (maxsim, maxsim[-1].score if maxsim else 0.0, 1 - text_weight),
        (texts, 0.0, text_weight),
    ):
        span = ranking[0].score - lowest if ranking else 0.0
        for page in ranking:
            scores.setdefault(page.page_id, 0.0)
            scores[page.page_id] += weight * ((page.score - lowest) / span if span > 0 else 1.0)
    return _in_order(scores)


def _in_order(scores: Mapping[str, float]) -> list[RankedPage]:
    return [
        RankedPage(page_id, score) for page_id, score in sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    ]
