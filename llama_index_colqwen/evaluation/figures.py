"""Rankings, and which pages are right -> measures, with intervals.

Knows nothing of indexes or questions' words. The measures are trec_eval's, computed by pytrec_eval, as mteb's are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_index_colqwen.errors import InvalidOptionError, MissingDependencyError

try:
    from pytrec_eval import RelevanceEvaluator
except ImportError as error:
    raise MissingDependencyError("Evaluation needs pytrec_eval", "evaluate") from error

__all__ = ["MEASURES", "Figure", "Values", "measure", "split_measure", "summarise"]

MEASURES = ("hit@1", "hit@5", "ndcg@5", "recall@5")
"""What is measured by default."""

Values = dict[str, dict[str, float]]
"""Measure -> question id -> value."""

_TREC = {"hit": "success", "ndcg": "ndcg_cut", "recall": "recall"}
_MOST = 1000
_RESAMPLES = 2_000


@dataclass(frozen=True)
class Figure:
    """A mean over questions, and the ends of its 95% bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write as `.853 [.70, .97]`, three digits of the mean and two of the ends."""
        return f"{_short(self.mean, 3)} [{_short(self.low, 2)}, {_short(self.high, 2)}]"


def split_measure(name: str) -> tuple[str, int]:
    """Return what a measure is called, and how many pages it looks at: `ndcg@5` is ("ndcg", 5).

    Raises:
        InvalidOptionError: If it is none of hit@k, ndcg@k and recall@k, with k from 1 to 1000.
    """
    found = re.fullmatch(rf"({'|'.join(_TREC)})@(\d{{1,4}})", name)
    if not found or not 1 <= int(found[2]) <= _MOST:
        raise InvalidOptionError(f"Measures are hit@k, ndcg@k and recall@k, with k from 1 to {_MOST}; got {name!r}.")
    return found[1], int(found[2])


def measure(right: Mapping[str, set[str]], found: Mapping[str, Sequence[str]], measures: Sequence[str]) -> Values:
    """Measure rankings.

    Args:
        right: The pages that answer each question, by its id.
        found: For each of these questions the pages that were found, best first.
        measures: hit@k: 1 if there is a right page among the first k, else 0. ndcg@k: how high all right pages stand
            there, from 0 to 1, each as relevant as the others (Järvelin & Kekäläinen 2002). recall@k: what share of
            them is there.
    """
    split = {name: split_measure(name) for name in measures}
    judged = {question: dict.fromkeys(pages, 1) for question, pages in right.items()}
    # Ranks in place of scores: trec_eval would order equal scores anew.
    run = {question: {page: -float(rank) for rank, page in enumerate(pages)} for question, pages in found.items()}
    wanted = {f"{_TREC[kind]}.{k}" for kind, k in split.values()}
    values: dict[str, Any] = RelevanceEvaluator(judged, wanted).evaluate(run)
    # A question for which nothing was found is not among them.
    return {
        name: {question: float(values.get(question, {}).get(f"{_TREC[kind]}_{k}", 0.0)) for question in right}
        for name, (kind, k) in split.items()
    }


def summarise(values: Iterable[float]) -> Figure:
    """Return the mean of questions' values, and its interval."""
    some = np.array(list(values))
    samples = np.random.default_rng(0).choice(some, (_RESAMPLES, len(some))).mean(axis=1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return Figure(float(some.mean()), float(low), float(high))


def _short(value: float, digits: int) -> str:
    """Write a number near 1 without the 0 before its point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.{digits}f}")
