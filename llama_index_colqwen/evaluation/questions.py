"""A file of questions -> questions whose pages are known.

Knows nothing of indexes or measures.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError, check_count

__all__ = ["Question", "read_questions"]


@dataclass(frozen=True)
class Question:
    """A question, and the pages that answer it.

    Attributes:
        id: Names it in tables; no two questions have the same.
        query: What is asked.
        pdf: The file's name.
        pages: Numbers of all pages that answer it, each as well as the others; counted from 1.

    Raises:
        InvalidOptionError: If the query is empty, or there are no pages.
    """

    id: str
    query: str
    pdf: str
    pages: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("id", "query", "pdf"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise InvalidOptionError(f"{name!r} is a text, not empty; got {getattr(self, name)!r}.")
        if not isinstance(self.pages, tuple) or not self.pages:
            raise InvalidOptionError(f"'pages' is a list of the pages that answer, at least one; got {self.pages!r}.")
        for number in self.pages:
            check_count("A number in 'pages'", number)


def read_questions(path: str | Path) -> list[Question]:
    """Read questions: a JSON object a line, with `query`, `pdf`, `pages` and, if it is to have another than its
    line's number, `id`; what else it has is left out.

        {"id": "q02", "query": "How many containers came in 2024?", "pdf": "report.pdf", "pages": [3]}

    Raises:
        DocumentNotFoundError: If there is no such file.
        UnreadableDocumentError: If it is no text, or has no questions.
        InvalidOptionError: If a line is no question, or two questions have one id.
    """  # noqa: D205
    path = Path(os.path.expanduser(path))
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DocumentNotFoundError(f"{path}: there is no such file of questions.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableDocumentError(f"{path} is no file of questions: {error}.") from error
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        question = _question(line, str(number), where)
        if question.id in questions:
            raise InvalidOptionError(f"{where}: there is a question {question.id!r} before it; ids name one question.")
        questions[question.id] = question
    if not questions:
        raise UnreadableDocumentError(f"{path} has no questions: it needs a JSON object a line.")
    return list(questions.values())


def _question(line: str, id_: str, where: str) -> Question:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InvalidOptionError(f"{where}: this is no JSON ({error}).") from error
    if not isinstance(row, dict):
        raise InvalidOptionError(f"{where}: a question is a JSON object; got {line[:80]!r}.")
    pages = row.get("pages")
    try:
        return Question(
            str(row.get("id", id_)),
            row.get("query", ""),
            row.get("pdf", ""),
            tuple(dict.fromkeys(pages)) if isinstance(pages, list) else pages,  # type: ignore[arg-type]
        )
    except (InvalidOptionError, TypeError) as error:
        raise InvalidOptionError(f"{where}: {error}") from error
