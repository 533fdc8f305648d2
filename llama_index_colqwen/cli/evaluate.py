"""`colqwen evaluate`: questions whose pages are known, or a public benchmark -> how well pages are found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, stderr
from llama_index_colqwen.cli.options import AsJson, CollectionName, Mode, RankedBy, Token
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError

if TYPE_CHECKING:
    from llama_index_colqwen.evaluation import Evaluation
    from llama_index_colqwen.index import ColQwenIndex
    from llama_index_colqwen.integrations.mteb import BenchmarkScores
    from llama_index_colqwen.retriever import Mode as RetrieverMode

__all__ = ["evaluate"]


class _Ocr(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


_FOLDER = Path("colqwen-evaluation")


def evaluate(
    questions: Annotated[
        str,
        typer.Argument(
            help="A file of questions, a JSON object a line: query, pdf (a file's name) and pages (all that answer); "
            "or a benchmark or task of mteb, as ViDoRe(v3)."
        ),
    ],
    pdfs: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder, or file, that is asked; its pages are kept in colqwen-evaluation/."),
    ] = None,
    uri: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="In place of --pdfs, an index that is there: a path ending in .db, or a Milvus server."),
    ] = None,
    token: Token = None,
    collection_name: CollectionName = "pages",
    embedder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="As for colqwen index; by default lexical, or the one that made the index."),
    ] = None,
    mode: RankedBy = Mode.visual,
    ocr: Annotated[
        Optional[_Ocr],  # noqa: UP045
        typer.Option(help="Which pages to read by OCR: auto by default; of a benchmark, none if only pictures count."),
    ] = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file to write, with the pictures of what was found and missed."),
    ] = None,
    fail_under: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Exit with 1 if a measure is lower, as in ndcg@5=.6; may be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often, and how high, the right pages are found; BM25 over their text is measured beside it."""
    with plain_errors():
        from llama_index_colqwen.evaluation import evaluate, read_questions
        from llama_index_colqwen.evaluation.figures import MEASURES

        least = dict(map(_least, fail_under or []))
        measures = list(dict.fromkeys([*MEASURES, *least]))
        if html is not None and not html.absolute().parent.is_dir():
            raise DocumentNotFoundError(f"{html} cannot be written: there is no folder {html.parent}.")
        found: Evaluation | BenchmarkScores
        try:
            is_file = Path(questions).suffix.startswith(".json") or Path(questions).exists()
            if pdfs is None and uri is None and not is_file:
                found = _run_benchmark(questions, embedder, mode.value, ocr, measures)
            else:
                asked = read_questions(questions)
                with _open(pdfs, uri, token, collection_name, embedder, ocr) as index:
                    found = evaluate(index, asked, measures=measures, mode=mode.value)
        except KeyboardInterrupt:
            stderr().print("Interrupted. What is stored stays; the same command goes on from there.")
            raise typer.Exit(130) from None
        if html is not None:
            html.write_text(found.to_html(), "utf-8")
        if as_json:
            print_json(found.to_dict())
        else:
            typer.echo(str(found))
        means = found.means
        under = [
            f"{name} is {means[name]:.4f}, under {value:g}" for name, value in least.items() if means[name] < value
        ]
        if under:
            stderr().print(f"{'; '.join(under)}.")
            raise typer.Exit(1)


def _least(given: str) -> tuple[str, float]:
    """Read `ndcg@5=.6`."""
    from llama_index_colqwen.evaluation.figures import split_measure

    measure, _, value = given.partition("=")
    split_measure(measure)
    try:
        least = float(value)
    except ValueError:
        least = -1.0
    if not 0 <= least <= 1:
        raise InvalidOptionError(f"--fail-under is a measure and a number from 0 to 1, as in ndcg@5=.6; got {given!r}.")
    return measure, least


def _run_benchmark(
    name: str, embedder: str | None, mode: RetrieverMode, ocr: _Ocr | None, measures: list[str]
) -> BenchmarkScores:
    import logging

    from llama_index_colqwen.integrations.mteb import ColQwenSearch, find_tasks, run_benchmark

    # They tell of each task's newer version, each time they try again, and what they could have to be faster.
    for library in ("mteb", "huggingface_hub", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    find_tasks(name)  # before a model is loaded
    with ColQwenSearch(embedder or "lexical", _FOLDER, mode=mode, ocr=ocr and ocr.value) as search:
        return run_benchmark(name, search, measures)


@contextmanager
def _open(
    pdfs: Path | None, uri: str | None, token: str | None, collection_name: str, embedder: str | None, ocr: _Ocr | None
) -> Iterator[ColQwenIndex]:
    """Open the index that is asked: one that is there, or that of the PDFs, brought up to date."""
    from llama_index_colqwen import ColQwenIndex, MilvusPageStore, PDFPageReader, resolve_embedder
    from llama_index_colqwen.evaluation.databases import database_path

    if (pdfs is None) == (uri is None):
        raise InvalidOptionError("Give --pdfs, the folder that is asked, or --uri, an index that is there.")
    if uri is not None:
        with ColQwenIndex.from_existing(uri, embedder, token=token, collection_name=collection_name) as index:
            yield index
        return
    assert pdfs is not None
    chosen = resolve_embedder(embedder or "lexical")
    with MilvusPageStore(database_path(_FOLDER, pdfs.name, str(pdfs.resolve()), chosen)) as store:
        reader = PDFPageReader(image_dir=store.image_dir, ocr=(ocr or _Ocr.auto).value)
        with closing(reader.lazy_load_data(pdfs)) as documents:
            index = ColQwenIndex(store, chosen)
            index.refresh_ref_docs(documents, delete_missing=True)
        yield index
