"""A question, and what an index found for it."""

from __future__ import annotations

from dataclasses import dataclass

from llama_index_colqwen.evaluation.questions import Question
from llama_index_colqwen.nodes import PageNode, PageWithScore

__all__ = ["Answer"]


@dataclass(frozen=True)
class Answer:
    """What was found for a question.

    Attributes:
        question: What was asked.
        right: The pages that answer it.
        hits: What was found, best first.
        rank: Where among the hits the first right page is, from 1; None if it is not among them.
        bm25_rank: The same of what BM25 found.
        values: The question's value by measure.
    """

    question: Question
    right: list[PageNode]
    hits: list[PageWithScore]
    rank: int | None
    bm25_rank: int | None
    values: dict[str, float]
