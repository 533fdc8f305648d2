"""Questions with known pages -> how often, and how high, an embedder finds them, beside BM25 over the same text.

    python benchmarks/quality.py --pdfs DIR --questions FILE.jsonl [--embedder lexical] [--ocr never] [--cv]

A question is a JSON object a line: `query`, `pdf` (a file name in DIR) and `pages` (all 1-based pages that answer it).
"Corpus" ranks the pages of all PDFs, "within" only those of the question's own. hit@k: a right page among the first k.
NDCG@5 counts every page of `pages`, each as relevant as the other. The figures are means over questions, with 95%
bootstrap confidence intervals; differences are paired by question. Beside MaxSim alone, the retriever's modes "text"
and "hybrid" are measured.

How well a question that no page answers can be told by its best page's score (`score="normalized"`) is measured with
the questions of foreign_questions.txt, which are about cooking, chess, whales and the like.

--cv also chooses the lexical embedder's weights by these questions, among some settings, by five-fold cross-validation
over documents: on the questions of four folds those that find most, measured on the fifth. The pages of all folds are
ranked. It takes some five seconds for each of the settings.

Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import bm25s
import numpy as np
import numpy.typing as npt
import Stemmer
from llama_index.core.schema import Document, QueryBundle
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import (
    ColQwenIndex,
    LexicalEmbedder,
    MultiVector,
    MultiVectorEmbedder,
    PDFPageReader,
    resolve_embedder,
)
from llama_index_colqwen.embedders.lexical import WordWeights
from llama_index_colqwen.embedders.protocol import highest_score
from llama_index_colqwen.evaluation import Figure, Question, read_questions
from llama_index_colqwen.evaluation.figures import measure as evaluate_ranking
from llama_index_colqwen.evaluation.figures import summarise as with_interval
from llama_index_colqwen.late_interaction.maxsim import rank
from llama_index_colqwen.nodes import page_from_node

MEASURES = ("hit@1", "hit@5", "ndcg@5")
FOREIGN = Path(__file__).with_name("foreign_questions.txt")
CUTOFFS = (0.2, 0.25, 0.3, 0.35, 0.4)

FOLDS = 5
SETTINGS = [
    WordWeights(first_words=first, section=section, file_name=name)
    for first, section, name in itertools.product((0.0, 2.0, 4.0), repeat=3)
]
"""What --cv chooses from, beside the weights as they are."""

Run = dict[str, dict[str, float]]
"""Question id -> page key -> score."""

Values = dict[str, dict[str, npt.NDArray[np.float64]]]
"""Scope -> measure -> a value a question."""

Figures = dict[str, dict[str, Figure]]
"""Scope -> measure -> mean, and the ends of its confidence interval."""


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
    documents: Sequence[Document],
    questions: Sequence[Question],
    foreign: Sequence[str],
    embedder: MultiVectorEmbedder,
    work: Path,
) -> tuple[Run, dict[str, float], float, float]:
    """Rank all pages for every question.

    Returns:
        The run, foreign questions' best normalized scores, CPU seconds of indexing, and CPU seconds a query.
    """
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
    retriever = index.as_retriever(similarity_top_k=1, score="normalized", exact=True)
    best = {query: retriever.retrieve(query)[0].score or 0.0 for query in foreign}
    index.store.close()
    return run, best, indexing, per_query


def rank_with_modes(
    documents: Sequence[Document], questions: Sequence[Question], embedder: MultiVectorEmbedder, work: Path
) -> dict[str, Run]:
    """Rank by the retriever's other modes, with its usual numbers of candidates; nodes are not read."""
    keys = {document.id_: page_key_of(document) for document in documents}
    runs: dict[str, Run] = {"text": {}, "hybrid": {}}
    with ColQwenIndex.from_existing(work / "quality.db", embedder) as index:
        ways = {
            "text": index.as_retriever(mode="text", similarity_top_k=len(documents))._by_text,
            "hybrid": index.as_retriever(mode="hybrid", exact=True)._by_both,
        }
        for question in questions:
            for mode, way in ways.items():
                found, _ = way(QueryBundle(question.query))
                runs[mode][question.id] = {keys[page.page_id]: page.score for page in found}
    return runs


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


def values(run: Run, questions: Sequence[Question]) -> Values:
    """Measure a run over the corpus and within the questions' documents."""
    judged = {q.id: {page_key(q.pdf, number) for number in q.pages} for q in questions}
    pdf_of = {q.id: q.pdf for q in questions}
    within = {
        id_: {key: score for key, score in scores.items() if key.rsplit("#", 1)[0] == pdf_of[id_]}
        for id_, scores in run.items()
    }
    return {"corpus": _values(judged, run), "within": _values(judged, within)}


def _values(judged: Mapping[str, set[str]], run: Run) -> dict[str, npt.NDArray[np.float64]]:
    ranked = {id_: sorted(scores, key=lambda key: (-scores[key], key)) for id_, scores in run.items()}
    found = evaluate_ranking(judged, ranked, MEASURES)
    return {name: np.array([of[id_] for id_ in judged]) for name, of in found.items()}


def measure(run: Run, questions: Sequence[Question]) -> Figures:
    """Measure a run: means and intervals."""
    return summarise(values(run, questions))


def summarise(measured: Values) -> Figures:
    """Return means and intervals."""
    return {
        scope: {name: with_interval(some) for name, some in measures.items()} for scope, measures in measured.items()
    }


def differences(ours: Values, others: Values) -> Figures:
    """Compare two runs, question by question."""
    return summarise({scope: {k: ours[scope][k] - others[scope][k] for k in MEASURES} for scope in ours})


def cross_validate(
    documents: Sequence[Document], questions: Sequence[Question], embedder: LexicalEmbedder
) -> tuple[Values, list[WordWeights]]:
    """Choose weights by cross-validation over documents; return what they find, and those that each fold was given."""
    pages, keys = [page_from_node(document) for document in documents], list(map(page_key_of, documents))
    queries = embedder.embed_queries([question.query for question in questions])
    # The weights as they are come first: they stay where others find no more.
    settings = [WordWeights(), *SETTINGS]
    found: list[Values] = []
    tuned = LexicalEmbedder(embedder.language)
    for setting in settings:
        tuned.weights = setting
        scores = all_scores(queries, tuned.embed_pages(pages)).tolist()
        run = {q.id: dict(zip(keys, row, strict=True)) for q, row in zip(questions, scores, strict=True)}
        found.append(values(run, questions))

    names = sorted({question.pdf for question in questions})
    fold_of = {name: place % FOLDS for place, name in enumerate(np.random.default_rng(0).permutation(names))}
    folds = np.array([fold_of[question.pdf] for question in questions])
    chosen = []
    mixed: Values = {scope: {name: np.zeros(len(questions)) for name in MEASURES} for scope in found[0]}
    for fold in range(FOLDS):
        inside = folds == fold
        means = [sum(one[scope]["ndcg@5"][~inside].mean() for scope in one) for one in found]
        best = int(np.argmax(means))
        chosen.append(settings[best])
        for scope, name in itertools.product(mixed, MEASURES):
            mixed[scope][name][inside] = found[best][scope][name][inside]
    return mixed, chosen


def all_scores(queries: Sequence[MultiVector], pages: Sequence[MultiVector]) -> npt.NDArray[np.float32]:
    """Score all pages for all queries by MaxSim: shape (queries, pages). Words that queries share are compared once."""
    rows, place = np.unique(np.concatenate(queries), axis=0, return_inverse=True)
    best = np.empty((len(rows), len(pages)), dtype=np.float32)
    for number, page in enumerate(pages):
        best[:, number] = (rows @ page.T).max(axis=1)
    starts = np.cumsum([0, *map(len, queries)])[:-1]
    return np.add.reduceat(best[place.reshape(-1)], starts, axis=0)


def show_abstention(own: Sequence[float], foreign: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Print, and return, what share of both kinds of questions has no page above a cutoff."""
    table = Table("similarity_cutoff", "Questions that lose all pages", "Foreign questions that are stopped")
    shares = {}
    for cutoff in CUTOFFS:
        lost, stopped = float(np.mean(np.array(own) < cutoff)), float(np.mean(np.array(foreign) < cutoff))
        table.add_row(f"{cutoff:g}", f"{lost:.3f}", f"{stopped:.3f}")
        shares[f"{cutoff:g}"] = round(lost, 4), round(stopped, 4)
    Console(width=110).print(table)
    return shares


def show(figures: Mapping[str, Figures]) -> None:
    """Print a table, a row a method and scope."""
    table = Table("Method", "Scope", *MEASURES)
    for method, scopes in figures.items():
        for scope, measures in scopes.items():
            table.add_row(method, scope, *(str(figure).replace("[", "\\[") for figure in measures.values()))
    Console(width=110).print(table)


def means(figures: Figures) -> dict[str, dict[str, float]]:
    """Keep only the means, rounded, for the JSON line."""
    return {
        scope: {name: round(figure.mean, 4) for name, figure in measures.items()} for scope, measures in figures.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdfs", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--embedder", default="lexical")
    parser.add_argument("--ocr", choices=["auto", "never"], default="auto")
    parser.add_argument("--cv", action="store_true", help="choose the lexical embedder's weights by cross-validation")
    options = parser.parse_args(arguments)

    questions = read_questions(options.questions)
    foreign = FOREIGN.read_text("utf-8").splitlines()
    embedder = resolve_embedder(options.embedder)
    if options.cv and not isinstance(embedder, LexicalEmbedder):
        raise SystemExit("--cv is for --embedder lexical: others have no weights to choose.")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # OCR is measured, so nothing is found there
        documents, reading, recognising = read_pages(options.pdfs, options.ocr, work)
        known = {page_key_of(document) for document in documents}
        absent = [q.query for q in questions if not all(page_key(q.pdf, number) in known for number in q.pages)]
        if absent:
            raise SystemExit(f"{len(absent)} questions name pages that are not there, such as: {absent[0]}")
        run, best_of_foreign, indexing, per_query = rank_with_index(documents, questions, foreign, embedder, work)
        bm25 = values(rank_with_bm25(documents, questions), questions)
        measured = {options.embedder: values(run, questions)}
        modes = {
            mode: values(ranked, questions)
            for mode, ranked in rank_with_modes(documents, questions, embedder, work).items()
        }
        if options.cv and isinstance(embedder, LexicalEmbedder):
            measured["cross-validated"], chosen = cross_validate(documents, questions, embedder)
            sys.stdout.write("Weights that the folds were given:\n" + "".join(f"{one}\n" for one in chosen))

    figures = {method: summarise(some) for method, some in measured.items()}
    above = {method: differences(some, bm25) for method, some in measured.items()}
    by_mode = {f'mode="{mode}"': summarise(some) for mode, some in modes.items()}
    gain = differences(modes["hybrid"], measured[options.embedder])
    show({**figures, **by_mode, "bm25": summarise(bm25)})
    show({f"hybrid - {options.embedder}": gain, **{f"{method} - bm25": some for method, some in above.items()}})
    highest = [highest_score(embedder, embedder.embed_queries([question.query])[0]) for question in questions]
    own = [max(run[question.id].values()) / most for question, most in zip(questions, highest, strict=True)]
    shares = show_abstention(own, list(best_of_foreign.values()))
    sys.stdout.write(
        f"CPU ms a page: reading {reading / len(documents) * 1e3:.1f}, embedding and storing "
        f"{indexing / len(documents) * 1e3:.1f}; OCR apart: {recognising:.0f} s in all. "
        f"CPU ms a query over {len(documents)} pages: {per_query * 1e3:.1f}.\n"
    )
    line: dict[str, object] = {"embedder": options.embedder, "pages": len(documents), "questions": len(questions)}
    line |= means(figures[options.embedder])
    line |= {mode: means(summarise(some)) for mode, some in modes.items()}
    line |= {"bm25": means(summarise(bm25)), "cutoffs": shares}
    if options.cv:
        line["cv"] = means(figures["cross-validated"])
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
