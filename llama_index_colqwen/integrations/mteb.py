"""mteb's retrieval tasks -> pages in indexes of their own -> mteb's scores: the whole retriever, on public benchmarks.

Knows nothing of how pages are embedded, nor of files of questions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from llama_index.core.schema import Document

from llama_index_colqwen.embedders.lexical import LexicalEmbedder
from llama_index_colqwen.embedders.protocol import MultiVectorEmbedder
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.errors import (
    ColQwenError,
    DocumentNotFoundError,
    EndpointUnavailableError,
    InvalidOptionError,
    MissingDependencyError,
    in_one_line,
)
from llama_index_colqwen.evaluation.databases import database_path
from llama_index_colqwen.evaluation.figures import split_measure
from llama_index_colqwen.evaluation.html import html_page, html_table
from llama_index_colqwen.fingerprint import fingerprint_digest
from llama_index_colqwen.index import ColQwenIndex
from llama_index_colqwen.progress import tqdm
from llama_index_colqwen.reading import ocr as ocr_reading
from llama_index_colqwen.reading.reader import PDFPageReader
from llama_index_colqwen.retriever import Mode
from llama_index_colqwen.store.page_store import MilvusPageStore
from llama_index_colqwen.text_tables import as_text

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.models.model_meta import ModelMeta

__all__ = ["BenchmarkScores", "ColQwenSearch", "find_tasks", "run_benchmark"]

Ocr: TypeAlias = Literal["auto", "always", "never"]

_MTEB_NAMES = {"hit": "hit_rate", "ndcg": "ndcg", "recall": "recall"}


class ColQwenSearch:
    """The whole retriever as mteb's `SearchProtocol`: `mteb.evaluate(ColQwenSearch("vidore/colqwen2-v1.0"), tasks)`.

    A corpus is read, embedded and stored as `ColQwenIndex` does it with a folder, in a database for each corpus and
    embedder: one that is there is not made again, and an interrupted run goes on. Close it at the end, or use it in a
    `with` block.

    Args:
        embedder: As for `ColQwenIndex`.
        folder: Where the databases are.
        mode: The retriever's: "visual", "text" or "hybrid".
        ocr: Which pages' images are read for their text: "auto" all, if the extra `[ocr]` is there, "never" none. By
            default "never" for a visual embedder alone, which has no use for it. A text that a task has is taken in
            place of OCR's.

    Raises:
        InvalidOptionError: If there is no such embedder or mode; by `index` and `search`, if a task has no page images,
            or asks with something else than words.
        DocumentNotFoundError: By `index`, if a task has no pages.
        MissingDependencyError: If the extra `[evaluate]` is not installed.
    """

    def __init__(
        self,
        embedder: str | MultiVectorEmbedder = "lexical",
        folder: str | Path = "colqwen-evaluation",
        *,
        mode: Mode = "visual",
        ocr: str | None = None,
    ) -> None:
        """See the class."""
        if mode not in get_args(Mode):
            raise InvalidOptionError(f"mode is one of {', '.join(get_args(Mode))}; got {mode!r}.")
        _load_mteb()
        self.embedder = resolve_embedder(embedder)
        self.folder, self.mode = Path(os.path.expanduser(folder)), mode
        words = mode != "visual" or isinstance(self.embedder, LexicalEmbedder)
        self.ocr = PDFPageReader(ocr=cast("Ocr", ocr or ("auto" if words else "never"))).ocr
        self._index: ColQwenIndex | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What mteb calls it, and keeps its results by."""
        from mteb.models.model_meta import ModelMeta

        model = re.sub(r"[^\w.-]+", "__", self.embedder.fingerprint.model)
        return ModelMeta.create_empty(
            overwrites={
                "name": f"llama-index-colqwen/{model}-{self.mode}-ocr-{self.ocr}",
                "revision": f"{version('llama-index-colqwen')}-{fingerprint_digest(self.embedder.fingerprint)}",
                "modalities": ["image", "text"],
            }
        )

    def index(self, corpus: Dataset, *, task_metadata: Any, **options: Any) -> None:  # noqa: ANN401
        """Store a task's pages, or those of them that are not stored yet.

        Args:
            corpus: With columns `id` and `image`, and perhaps `text`.
            task_metadata: Names the task.
            **options: Of mteb; they change nothing.
        """
        from datasets import Image

        self.close()
        name = str(task_metadata.name)
        if "image" not in corpus.column_names:
            has = ", ".join(corpus.column_names)
            raise InvalidOptionError(f"Task {name} has no page images: its corpus has {has}.")
        if not len(corpus):
            raise DocumentNotFoundError(f"Task {name} has no pages.")
        if self.ocr == "auto" and "text" not in corpus.column_names and not ocr_reading.is_available():
            raise MissingDependencyError(f"Task {name} has images alone, and ranking by words needs OCR", "ocr")
        # The bytes as they are kept: they tell corpora apart, and pages that are stored need not be decoded.
        encoded = corpus.cast_column("image", Image(decode=False))
        known_by = f"{_digest(encoded)} {self.ocr}"
        store = MilvusPageStore(database_path(self.folder, name, known_by, self.embedder))
        self._index = ColQwenIndex(store, self.embedder)
        reader = PDFPageReader(image_dir=store.image_dir, ocr=self.ocr)
        stored = set(store.page_ids())
        new = encoded.select([row for row, id_ in enumerate(corpus["id"]) if str(id_) not in stored])
        self._index.insert_nodes(_documents(new, reader))

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: Any,  # noqa: ANN401
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **options: Any,  # noqa: ANN401
    ) -> dict[str, dict[str, float]]:
        """Rank the pages of the corpus that was indexed last.

        Args:
            queries: With columns `id` and `text`.
            task_metadata: Names the task.
            top_k: How many pages to return; at least four times as many are candidates.
            top_ranked: Is refused: these tasks rank a few given pages.
            **options: Of mteb; they change nothing.

        Returns:
            Scores by page id, by query id.
        """
        name = str(task_metadata.name)
        if self._index is None:
            raise InvalidOptionError(f"Task {name} is searched before its pages are indexed.")
        if "text" not in queries.column_names or top_ranked is not None:
            asks = "asks with something else than words" if top_ranked is None else "ranks pages that are given"
            raise InvalidOptionError(f"Task {name} {asks}: it needs another kind of search.")
        retriever = self._index.as_retriever(similarity_top_k=top_k, mode=self.mode)
        return {
            str(query["id"]): {hit.node_id: float(hit.get_score()) for hit in retriever.retrieve(query["text"])}
            for query in tqdm(queries, f"Asking {name}", unit="question", delay=1)
        }

    def close(self) -> None:
        """Close the index of the last task."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def __enter__(self) -> ColQwenSearch:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True)
class BenchmarkScores:
    """What mteb measured; `print` shows it.

    Attributes:
        name: The benchmark's, or the task's.
        embedder: The model's name.
        mode: The retriever's.
        scores: By task and by measure; `main` is the measure that the task is ranked by.
        left_out: Tasks of the benchmark whose data are not public.
    """

    name: str
    embedder: str
    mode: Mode
    scores: dict[str, dict[str, float]]
    left_out: list[str]

    @property
    def means(self) -> dict[str, float]:
        """Means over tasks, by measure."""
        some = list(self.scores.values())
        return {name: sum(scores[name] for scores in some) / len(some) for name in some[0]}

    @property
    def title(self) -> str:
        """Say what was evaluated."""
        return f"{self.name}: {self.embedder}, mode {self.mode}"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, as JSON has it."""
        return {
            "benchmark": self.name,
            "embedder": self.embedder,
            "mode": self.mode,
            "means": self.means,
            "scores": self.scores,
            "left_out": self.left_out,
        }

    def to_html(self) -> str:
        """Return a file to look at."""
        return html_page(self.title, html_table(["", *self.means], self._rows()))

    def __str__(self) -> str:
        """Return a line a task."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        table = Table("", *self.means, box=SIMPLE)
        for row in self._rows():
            table.add_row(*map(Text, row))
        left_out = [Text(f"Not public, and left out: {', '.join(self.left_out)}.")] if self.left_out else []
        return as_text(Text(self.title), table, *left_out, width=120)

    def _rows(self) -> list[list[str]]:
        rows = {**self.scores, "mean": self.means}
        return [[name, *(f"{score:.3f}" for score in scores.values())] for name, scores in rows.items()]


def find_tasks(name: str) -> list[Any]:
    """Return the tasks of an mteb benchmark such as "ViDoRe(v3)", or the one task of that name.

    Raises:
        InvalidOptionError: If mteb has neither.
    """
    mteb = _load_mteb()
    with suppress(KeyError):
        # Before benchmarks, for which mteb makes all of its tasks: each seeds torch, 9 s where that is loaded.
        return [mteb.get_task(name)]
    with _without_notes_on_tasks():
        benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
        if name in benchmarks:
            return list(benchmarks[name].tasks)
        pages = mteb.get_tasks(task_types=["DocumentUnderstanding"], exclude_superseded=False)
    known = {known.casefold(): known for known in [*benchmarks, *(task.metadata.name for task in pages)]}
    near = [known[found] for found in get_close_matches(name.casefold(), known, 3, 0.5)]
    meant = f": is it {' or '.join(near)}?" if near else "."
    raise InvalidOptionError(f"mteb has no benchmark and no task {name!r}{meant}")


@contextmanager
def _without_notes_on_tasks() -> Iterator[None]:
    """Let mteb, which makes all of its tasks to list benchmarks, neither warn nor log that some are in beta."""
    logger = logging.getLogger("mteb.abstasks.abstask")

    def drop(record: logging.LogRecord) -> bool:
        return "in beta" not in str(record.msg)

    logger.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* is currently in beta")
            yield
    finally:
        logger.removeFilter(drop)


def run_benchmark(name: str, search: ColQwenSearch, measures: Iterable[str] = ("ndcg@5",)) -> BenchmarkScores:
    """Run an mteb benchmark, or one task; what was finished before is not run again.

    Args:
        name: As for `find_tasks`.
        search: What is measured. mteb's own results are kept in its folder, too.
        measures: hit@k, ndcg@k or recall@k, with a k that mteb measures: 1, 3, 5, 10, 20, 100 or 1000.

    Raises:
        InvalidOptionError: If mteb has no such benchmark, it is not about finding pages, or mteb does not measure that.
        EndpointUnavailableError: If the data are not on this machine and the Hugging Face hub cannot be reached.
    """
    mteb = _load_mteb()
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    tasks = find_tasks(name)
    public = [task for task in tasks if task.metadata.is_public or len(tasks) == 1]
    if not all(isinstance(task, AbsTaskRetrieval) and _finds_images_by_words(task.metadata) for task in public):
        raise InvalidOptionError(f"{name} is not about finding pages: not all of its tasks find images by words.")
    mteb_names = {measure: _mteb_name(measure, public) for measure in measures}
    cache = mteb.ResultCache(search.folder / "mteb")
    scores = {}
    for task in public:
        try:
            with warnings.catch_warnings():
                # A benchmark is of the tasks that it is of, also where there are newer ones.
                warnings.filterwarnings("ignore", message=".* is superseded by ")
                [result] = mteb.evaluate(
                    search, task, cache=cache, public_only=False, co2_tracker=False, show_progress_bar=False
                ).task_results
        except ColQwenError:
            raise
        except (ConnectionError, FileNotFoundError) as error:
            raise EndpointUnavailableError(
                f"The data of {task.metadata.name} are not on this machine, and the Hugging Face hub does not give "
                f"them: {in_one_line(error)}"
            ) from error
        wanted = {"main": "main_score", **mteb_names}
        scores[task.metadata.name] = {
            measure: _mean([one[key] for split in result.scores.values() for one in split])
            for measure, key in wanted.items()
        }
    left_out = [task.metadata.name for task in tasks if task not in public]
    return BenchmarkScores(name, search.embedder.fingerprint.model, search.mode, scores, left_out)


def _finds_images_by_words(metadata: Any) -> bool:  # noqa: ANN401
    from mteb.types import PromptType

    asked, found = (set(metadata.get_modalities(side)) for side in (PromptType.query, PromptType.document))
    return asked == {"text"} and "image" in found <= {"text", "image"}


def _load_mteb() -> Any:  # noqa: ANN401
    """Import mteb, which takes seconds."""
    try:
        import mteb
    except ImportError as error:
        raise MissingDependencyError("Benchmarks need mteb", "evaluate") from error
    return mteb


def _mteb_name(measure: str, tasks: Sequence[Any]) -> str:
    kind, k = split_measure(measure)
    for task in tasks:
        if k not in task.k_values:
            measured = ", ".join(map(str, task.k_values))
            raise InvalidOptionError(f"mteb measures {task.metadata.name} with k of {measured}; got {measure!r}.")
    return f"{_MTEB_NAMES[kind]}_at_{k}"


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _digest(corpus: Dataset) -> str:
    """Tell a corpus from others by its ids, images and texts: languages of a task often share one."""
    digest = hashlib.sha256()
    for row in corpus:
        digest.update(f"{row['id']}\n{row.get('text') or ''}\n".encode("utf-8", "surrogatepass"))
        digest.update(hashlib.sha256(_image_bytes(row)).digest())
    return digest.hexdigest()


def _documents(corpus: Dataset, reader: PDFPageReader) -> Iterator[Document]:
    for row in corpus:
        text = row.get("text")
        chosen = reader.model_copy(update={"extract_text": False}) if text else reader
        [document] = chosen.load_data(_image_bytes(row), extra_info={"file_name": str(row["id"])})
        # Pages of equal images are told apart by the task, so not by the image.
        document.id_ = str(row["id"])
        document.metadata["document_id"] = document.id_
        if text:
            document.set_content(str(text))
        yield document


def _image_bytes(row: Mapping[str, Any]) -> bytes:
    image = row["image"]
    if not image or not (image["bytes"] or image["path"]):
        raise InvalidOptionError(f"Page {row['id']!r} has no image.")
    data: bytes = image["bytes"] or Path(image["path"]).read_bytes()
    return data
