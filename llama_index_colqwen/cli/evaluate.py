"""`colqwen evaluate`: questions whose pages are known, or a public benchmark -> how well pages are found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, cast

import typer

from llama_index_colqwen.cli.console import plain_errors, print_json, stderr
from llama_index_colqwen.cli.options import AsJson, CollectionName, Token
from llama_index_colqwen.errors import InvalidOptionError

if TYPE_CHECKING:
    from llama_index_colqwen.index import ColQwenIndex
    from llama_index_colqwen.retriever import Mode

__all__ = ["evaluate"]

_FOLDER = Path("colqwen-evaluation")


def evaluate(
    questions: Annotated[
        str,
        typer.Argument(
            help="A file of questions, a JSON object a line: query, pdf (a file's name) and pages (all that answer)."
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
    mode: Annotated[str, typer.Option(help="visual; text (BM25), or hybrid (both).")] = "visual",
    ocr: Annotated[str, typer.Option(help="Which pages to read by OCR: auto, always or never.")] = "auto",
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
        asked = read_questions(questions)
        with _open(pdfs, uri, token, collection_name, embedder, ocr) as index:
            found = evaluate(index, asked, measures=list(dict.fromkeys([*MEASURES, *least])), mode=cast("Mode", mode))
        if html is not None:
            html.write_text(found.to_html(), "utf-8")
        if as_json:
            print_json(found.to_dict())
        else:
            typer.echo(str(found))
        for measure, value in least.items():
            if found.means[measure] < value:
                stderr().print(f"{measure} is {found.means[measure]:.4f}, which is under {value:g}.")
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


@contextmanager
def _open(
    pdfs: Path | None, uri: str | None, token: str | None, collection_name: str, embedder: str | None, ocr: str
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
        reader = PDFPageReader(image_dir=store.image_dir, ocr=cast("Literal['auto']", ocr))
        with closing(reader.lazy_load_data(pdfs)) as documents:
            index = ColQwenIndex(store, chosen)
            index.refresh_ref_docs(documents, delete_missing=True)
        yield index
