"""Questions -> the pages that an index finds for them -> how good they are, beside BM25.

Knows nothing of files or commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, QueryError
from llama_index_colqwen.evaluation.answer import Answer
from llama_index_colqwen.evaluation.figures import MEASURES, Figure, Values, measure, split_measure, summarise
from llama_index_colqwen.evaluation.questions import Question, read_questions
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.nodes import PageNode, PageWithScore, caption
from llama_index_colqwen.progress import tqdm
from llama_index_colqwen.retriever import ColQwenRetriever, Mode, node_to_show
from llama_index_colqwen.text_tables import as_text

__all__ = ["Evaluation", "evaluate"]

_LEAST_DEPTH = 10
_WIDTH = 120


@dataclass(frozen=True)
class Evaluation:
    """How well an index finds the pages that answer questions; `print` shows it, `to_html` with the pages' pictures.

    Attributes:
        embedder: The model's name.
        mode: The retriever's.
        pages: How many pages there are.
        depth: How many pages were looked at for each question.
        figures: By way of ranking (the retriever's, "bm25", and "difference", which is paired by question), and by
            measure. The last two are absent if no page has text.
        answers: What was found for each question.
    """

    embedder: str
    mode: Mode
    pages: int
    depth: int
    figures: dict[str, dict[str, Figure]]
    answers: list[Answer]

    @property
    def means(self) -> dict[str, float]:
        """What the retriever reaches, by measure."""
        return {name: figure.mean for name, figure in self.figures[self.mode].items()}

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pictures and texts, as JSON has it."""
        return {
            "embedder": self.embedder,
            "mode": self.mode,
            "pages": self.pages,
            "questions": len(self.answers),
            "depth": self.depth,
            "figures": {
                way: {name: asdict(figure) for name, figure in figures.items()} for way, figures in self.figures.items()
            },
            "answers": [
                {
                    **asdict(answer.question),
                    "rank": answer.rank,
                    "bm25_rank": answer.bm25_rank,
                    "values": answer.values,
                    "hits": [
                        {
                            "file_name": hit.metadata.get("file_name"),
                            "page_number": hit.metadata.get("page_number"),
                            "score": hit.score,
                        }
                        for hit in answer.hits
                    ],
                }
                for answer in self.answers
            ],
        }

    def to_html(self) -> str:
        """Return a file to look at, with the pages' pictures and nothing from elsewhere."""
        from llama_index_colqwen.evaluation.html import write_html

        return write_html(title=self.title, depth=self.depth, figures=self.figures, answers=self.answers)

    def __str__(self) -> str:
        """Return the figures, and a line a question."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        figures = Table("", *self.means, box=SIMPLE)
        for way, row in self.figures.items():
            figures.add_row(way, *(Text(str(figure)) for figure in row.values()))
        questions = Table("Rank", "BM25", "Question", "Right pages", "Found first", box=SIMPLE)
        for answer in self.answers:
            asked = answer.question
            first = answer.hits[0].node if answer.hits else None
            questions.add_row(
                str(answer.rank or "-"),
                str(answer.bm25_rank or "-"),
                Text(f"{asked.id} {asked.query}"),
                Text(f"{asked.pdf}, {', '.join(map(str, asked.pages))}"),
                Text("" if answer.rank == 1 else "-" if first is None else caption(first)),
            )
        return as_text(Text(self.title), figures, questions, width=_WIDTH)

    @property
    def title(self) -> str:
        """Say what was evaluated."""
        return f"{self.embedder}, mode {self.mode}: {len(self.answers)} questions, {self.pages} pages"


def evaluate(
    index: ColQwenIndex,
    questions: Iterable[Question] | str | Path,
    *,
    measures: Sequence[str] = MEASURES,
    mode: Mode = "visual",
    show_progress: bool = True,
) -> Evaluation:
    """Ask an index questions whose pages are known.

    Args:
        index: Whose pages are ranked, all of them.
        questions: Or their file; see `read_questions`.
        measures: hit@k, ndcg@k or recall@k, with k from 1 to 1000. Figures have 95% bootstrap intervals over questions.
        mode: The retriever's. What `mode="text"` finds, BM25 over the pages' text, is measured beside it.
        show_progress: Whether to show a progress bar, after a second.

    Raises:
        InvalidOptionError: If there are no questions, a measure is none, or the index has no page of that number.
        DocumentNotFoundError: If the index has no file of that name, or no pages at all.
        QueryError: If the embedder cannot read a question.
    """
    asked = read_questions(questions) if isinstance(questions, (str, Path)) else list(questions)
    if len({question.id for question in asked}) < len(asked):
        raise InvalidOptionError("Two questions have one id.")
    if not asked or not measures:
        raise InvalidOptionError(f"There are no {'measures' if asked else 'questions'}.")
    depth = max(_LEAST_DEPTH, *(split_measure(name)[1] for name in measures))
    right = _right_pages(index, asked)

    retriever = index.as_retriever(similarity_top_k=depth, mode=mode)
    by_words: ColQwenRetriever | None = index.as_retriever(similarity_top_k=depth, mode="text")
    found: dict[str, list[PageWithScore]] = {}
    found_by_words: dict[str, list[PageWithScore]] = {}
    for question in tqdm(asked, "Asking", unit="question", delay=1, disable=not show_progress):
        found[question.id] = _ask(retriever, question)
        try:
            found_by_words[question.id] = by_words.retrieve(question.query) if by_words else []
        except QueryError:  # it has no letters or digits to look for
            found_by_words[question.id] = []
        except InvalidOptionError:  # no page has text
            by_words = None

    values = measure(right, _ids(found), measures)
    figures = {str(mode): {name: summarise(some.values()) for name, some in values.items()}}
    if by_words is not None:
        beside = measure(right, _ids(found_by_words), measures)
        figures["bm25"] = {name: summarise(some.values()) for name, some in beside.items()}
        figures["difference"] = {name: summarise(_minus(values, beside, name).values()) for name in measures}
    nodes = _nodes(index, {page for pages in right.values() for page in pages})
    answers = [
        Answer(
            question,
            [nodes[page] for page in sorted(right[question.id]) if page in nodes],
            found[question.id],
            _rank(found[question.id], right[question.id]),
            _rank(found_by_words.get(question.id, []), right[question.id]),
            {name: some[question.id] for name, some in values.items()},
        )
        for question in asked
    ]
    return Evaluation(index.embedder.fingerprint.model, mode, index.store.count(), depth, figures, answers)


def _right_pages(index: ColQwenIndex, questions: Sequence[Question]) -> dict[str, set[str]]:
    """Find the ids of the pages that answer.

    Raises:
        DocumentNotFoundError: If a file is not there.
        InvalidOptionError: If a page is not there, or two are.
    """
    if not index.store.count():
        raise DocumentNotFoundError(f"There are no pages to find in {index.store.uri}: index some first.")
    right: dict[str, set[str]] = {}
    for question in questions:
        right[question.id] = set()
        for number in question.pages:
            ids = _pages_of(index, question.pdf, number)
            if len(ids) != 1:
                raise _no_such_page(index, question, number, len(ids))
            right[question.id] |= set(ids)
    return right


def _pages_of(index: ColQwenIndex, file_name: str, page_number: int | None = None) -> list[str]:
    wanted: dict[str, Any] = {"file_name": file_name}
    if page_number is not None:
        wanted["page_number"] = page_number
    filters = [MetadataFilter(key=key, value=value) for key, value in wanted.items()]
    return index.store.page_ids(MetadataFilters(filters=list(filters)))


def _no_such_page(index: ColQwenIndex, question: Question, number: int, found: int) -> Exception:
    where = f"Question {question.id!r} is answered on page {number} of {question.pdf}, "
    if found:
        return InvalidOptionError(f"{where}and {found} files of that name have such a page: give one another name.")
    if pages := len(_pages_of(index, question.pdf)):
        return InvalidOptionError(f"{where}which has {pages} pages.")
    names = {document.file_name for document in index.store.documents()}
    near = get_close_matches(question.pdf, names, 3)
    meant = f": is it {' or '.join(near)}?" if near else "."
    return DocumentNotFoundError(f"{where}which is not among the {len(names)} files{meant}")


def _ask(retriever: ColQwenRetriever, question: Question) -> list[PageWithScore]:
    try:
        return retriever.retrieve(question.query)
    except QueryError as error:
        raise QueryError(f"Question {question.id!r}: {error}") from error


def _ids(found: Mapping[str, Sequence[PageWithScore]]) -> dict[str, list[str]]:
    return {question: [hit.node_id for hit in hits] for question, hits in found.items()}


def _minus(some: Values, others: Values, name: str) -> dict[str, float]:
    return {question: value - others[name][question] for question, value in some[name].items()}


def _rank(hits: Sequence[PageWithScore], right: set[str]) -> int | None:
    return next((rank for rank, hit in enumerate(hits, start=1) if hit.node_id in right), None)


def _nodes(index: ColQwenIndex, page_ids: Iterable[str]) -> dict[str, PageNode]:
    return {page.page_id: node_to_show(page) for page in index.store.get(sorted(page_ids))}
