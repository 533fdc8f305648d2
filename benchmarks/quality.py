"""Questions with known pages -> how often, and how high, an embedder finds them, beside BM25 over the same text.

    python benchmarks/quality.py --pdfs DIR --questions FILE.jsonl [--embedder lexical] [--ocr never]

A question is a JSON object a line: `query`, `pdf` (a file name in DIR) and `pages` (all 1-based pages that answer it).
"Corpus" ranks the pages of all PDFs, "within" only those of the question's own. hit@k: a right page among the first k.
NDCG@5 counts every page of `pages`, each as relevant as the other. The figures are means over questions, with 95%
bootstrap confidence intervals. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bm25s
import ir_measures
import numpy as np
import Stemmer
from ir_measures import Success, nDCG
from llama_index.core.schema import Document
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import ColQwenIndex, MultiVectorEmbedder, PDFPageReader, resolve_embedder
from llama_index_colqwen.late_interaction.maxsim import rank

MEASURES = {"hit@1": Success @ 1, "hit@5": Success @ 5, "ndcg@5": nDCG @ 5}
RESAMPLES = 10_000

Run = dict[str, dict[str, float]]
"""Question id -> page key -> score."""

Figures = dict[str, dict[str, tuple[float, float, float]]]
"""Scope -> measure -> mean, and the ends of its confidence interval."""


@dataclass(frozen=True)
class Question:
    """A question and where it is answered."""

    id: str
    query: str
    pdf: str
    pages: tuple[int, ...]


def read_questions(path: Path) -> list[Question]:
    """Read a JSON object a line."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [Question(str(number), row["query"], row["pdf"], tuple(row["pages"])) for number, row in enumerate(rows)]


def page_key(pdf: str, page_number: int) -> str:
    """Name a page so that equal scores are ordered by file and page."""
    return f"{pdf}#{page_number:05d}"


def read_pages(pdfs: Path, ocr: Literal["auto", "never"], work: Path) -> tuple[list[Document], float, float]:
    """Read all pages; return them, the CPU seconds it took, and the CPU seconds of OCR, which are counted apart."""
    started = time.process_time()
    PDFPageReader(image_dir=work / "first", ocr=ocr).load_data(pdfs)
    first = time.process_time() - started
    # The measured reading renders and writes everything again, and finds what OCR read in the user's cache.
    started = time.process_time()
    documents = PDFPageReader(image_dir=work / "second", ocr=ocr).load_data(pdfs)
    second = time.process_time() - started
    return documents, second, max(0.0, first - second)


def rank_with_index(
    documents: Sequence[Document], questions: Sequence[Question], embedder: MultiVectorEmbedder, work: Path
) -> tuple[Run, float, float]:
    """Rank all pages for every question; return the run, CPU seconds of indexing, and CPU seconds a query."""
    keys = {document.id_: page_key_of(document) for document in documents}
    started = time.process_time()
    index = ColQwenIndex.from_documents(documents, embedder, uri=work / "quality.db", show_progress=False)
    indexing = time.process_time() - started
    run: Run = {}
    index.as_retriever().retrieve("anything")  # what a process does once is not a query's time
    started = time.process_time()
    for question in questions:
        query = embedder.embed_queries([question.query])[0]
        ranked = rank(query, index.store.candidates(query, exact=True), top_k=len(documents))
        run[question.id] = {keys[page.page_id]: page.score for page in ranked}
    per_query = (time.process_time() - started) / len(questions)
    index.store.close()
    return run, indexing, per_query


def rank_with_bm25(documents: Sequence[Document], questions: Sequence[Question]) -> Run:
    """Rank all pages by BM25 (k1 = 1.5, b = .75) over stemmed words, English stop words left out."""
    options = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize([document.text for document in documents], **options), show_progress=False)
    keys = [page_key_of(document) for document in documents]
    run: Run = {}
    for question in questions:
        words = bm25s.tokenize([question.query], return_ids=False, **options)[0]
        scores = retriever.get_scores(words) if words else np.zeros(len(keys))
        run[question.id] = {key: float(score) for key, score in zip(keys, scores, strict=True)}
    return run


def page_key_of(document: Document) -> str:
    """Name a document's page."""
    return page_key(document.metadata["file_name"], document.metadata["page_number"])


def measure(run: Run, questions: Sequence[Question]) -> Figures:
    """Measure a run over the corpus and within the questions' documents."""
    judged = {q.id: {page_key(q.pdf, number): 1 for number in q.pages} for q in questions}
    pdf_of = {q.id: q.pdf for q in questions}
    within = {
        id_: {key: score for key, score in scores.items() if key.rsplit("#", 1)[0] == pdf_of[id_]}
        for id_, scores in run.items()
    }
    return {"corpus": _figures(judged, run), "within": _figures(judged, within)}


def _figures(judged: Mapping[str, Mapping[str, int]], run: Run) -> dict[str, tuple[float, float, float]]:
    # Equal scores keep the order of the keys, whatever the measuring library does with them.
    untied = {
        id_: {key: -float(place) for place, key in enumerate(sorted(scores, key=lambda key: (-scores[key], key)))}
        for id_, scores in run.items()
    }
    figures = {}
    for name, wanted in MEASURES.items():
        values = np.array([metric.value for metric in ir_measures.iter_calc([wanted], judged, untied)])
        if len(values) != len(judged):
            raise RuntimeError(f"{len(judged)} questions were asked, {len(values)} measured.")
        samples = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
        low, high = np.percentile(samples, [2.5, 97.5])
        figures[name] = float(values.mean()), float(low), float(high)
    return figures


def show(figures: Mapping[str, Figures]) -> None:
    """Print a table, a row a method and scope."""
    table = Table("Method", "Scope", *MEASURES)
    for method, scopes in figures.items():
        for scope, measures in scopes.items():
            cells = [f"{mean:.3f} [{low:.2f}, {high:.2f}]" for mean, low, high in measures.values()]
            table.add_row(method, scope, *(cell.replace("[", "\\[") for cell in cells))
    Console(width=110).print(table)


def means(figures: Figures) -> dict[str, dict[str, float]]:
    """Keep only the means, rounded, for the JSON line."""
    return {
        scope: {name: round(values[0], 4) for name, values in measures.items()} for scope, measures in figures.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--embedder", default="lexical")
    parser.add_argument("--ocr", choices=["auto", "never"], default="auto")
    arguments = parser.parse_args()

    questions = read_questions(arguments.questions)
    embedder = resolve_embedder(arguments.embedder)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # OCR is measured, so nothing is found there
        documents, reading, recognising = read_pages(arguments.pdfs, arguments.ocr, work)
        known = {page_key_of(document) for document in documents}
        absent = [q.query for q in questions if not all(page_key(q.pdf, number) in known for number in q.pages)]
        if absent:
            raise SystemExit(f"{len(absent)} questions name pages that are not there, such as: {absent[0]}")
        run, indexing, per_query = rank_with_index(documents, questions, embedder, work)
    ours, bm25 = measure(run, questions), measure(rank_with_bm25(documents, questions), questions)

    show({arguments.embedder: ours, "bm25": bm25})
    sys.stdout.write(
        f"CPU ms a page: reading {reading / len(documents) * 1e3:.1f}, embedding and storing "
        f"{indexing / len(documents) * 1e3:.1f}; OCR apart: {recognising:.0f} s in all. "
        f"CPU ms a query over {len(documents)} pages: {per_query * 1e3:.1f}.\n"
    )
    line = {"embedder": arguments.embedder, "pages": len(documents), "questions": len(questions)}
    sys.stdout.write(json.dumps({**line, **means(ours), "bm25": means(bm25)}) + "\n")


if __name__ == "__main__":
    main()
