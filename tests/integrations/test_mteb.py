from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import log2
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from llama_index_colqwen import EmbedderFingerprint, MultiVector, Page
from llama_index_colqwen.errors import (
    DocumentNotFoundError,
    EndpointUnavailableError,
    InvalidOptionError,
    MissingDependencyError,
)
from llama_index_colqwen.pages import WordBox
from llama_index_colqwen.reading import ocr
from tests.cli.commands import run
from tests.documents import encode
from tests.extras import needs_mteb

pytestmark = needs_mteb

TaskType: TypeAlias = Callable[..., Any]
"""A class of mteb's, or what makes one."""

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class ColourEmbedder:
    """A visual embedder: of a page its mean colour, of a query the colour that it names."""

    dim = 3
    sees_images = True
    fingerprint = EmbedderFingerprint("org/colours", "1", 3)

    def __init__(self) -> None:
        self.embedded = 0
        self.fails_at: int | None = None

    def embed_pages(self, pages: Sequence[Page]) -> list[MultiVector]:
        self.embedded += len(pages)
        if self.fails_at is not None and self.embedded > self.fails_at:
            raise KeyboardInterrupt
        return [_unit(np.asarray(page.open_image().convert("RGB")).mean((0, 1))) for page in pages]

    def embed_queries(self, queries: Sequence[str]) -> list[MultiVector]:
        return [_unit(np.array(COLOURS[query])) for query in queries]


def _unit(colour: npt.NDArray[Any]) -> MultiVector:
    unit: MultiVector = (colour / np.linalg.norm(colour)).astype(np.float32)[None]
    return unit


@pytest.fixture(scope="module")
def task_type(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TaskType]:
    """Makes types of mteb's tasks whose data are a folder of Parquet files, as a data set of the hub is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        import mteb
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.task_metadata import TaskMetadata

    assert mteb.get_task
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))

    def make(
        name: str,
        corpus: Sequence[dict[str, Any]],
        queries: dict[str, str],
        right: dict[str, Sequence[str]],
        languages: Sequence[str] = (),
    ) -> TaskType:
        folder = tmp_path_factory.mktemp(name)
        judged = [{"query-id": query, "corpus-id": page, "score": 1} for query in right for page in right[query]]
        asked = [{"_id": id_, "text": text} for id_, text in queries.items()]
        configs = ""
        for language in languages or [""]:
            for config, rows in (("corpus", corpus), ("queries", asked), ("qrels", judged)):
                config = f"{language}-{config}" if language else config
                table = datasets.Dataset.from_list(list(rows))
                if rows and "image" in rows[0]:
                    table = table.cast_column("image", datasets.Image())
                table.to_parquet(folder / config / "test-0.parquet")
                files = f"[{{split: test, path: {config}/*.parquet}}]"
                configs += f"- config_name: {config}\n  data_files: {files}\n"
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        about = TaskMetadata(
            name=name,
            description="Pages that the tests draw.",
            dataset={"path": str(folder), "revision": "1"},
            type="DocumentUnderstanding",
            category="t2i",
            eval_splits=["test"],
            eval_langs={language: ["eng-Latn"] for language in languages} if languages else ["eng-Latn"],
            main_score="ndcg_at_5",
            modalities=["text", "image"],
        )
        return type(name, (AbsTaskRetrieval,), {"metadata": about})

    yield make
    patch.undo()


def picture(colour: tuple[int, int, int], *, dot: bool = False) -> dict[str, Any]:
    image = Image.new("RGB", (60, 80), colour)
    if dot:
        image.paste("black", (10, 10, 20, 20))
    return {"bytes": encode(image, "PNG"), "path": None}


@pytest.fixture(scope="module")
def colours(task_type: TaskType) -> TaskType:
    """Twenty pages, two of them of equal bytes, in two languages: images alone."""
    pages = [{"_id": f"page/{name}", "image": picture(colour)} for name, colour in COLOURS.items()]
    pages.append({"_id": "page/red again", "image": picture(COLOURS["red"])})
    pages += [{"_id": f"page/grey {grey}", "image": picture((grey, grey, grey))} for grey in range(100, 116)]
    right = {"q1": ["page/red", "page/red again"], "q2": ["page/blue", "page/green"], "q3": ["page/red"]}
    made: TaskType = task_type(
        "Colours", pages, {"q1": "red", "q2": "blue", "q3": "green"}, right, ["english", "french"]
    )
    return made


def test_images_alone_are_indexed_once_and_scored_by_mteb(colours: TaskType, tmp_path: Path) -> None:
    import mteb

    from llama_index_colqwen.integrations.mteb import ColQwenSearch

    embedder = ColourEmbedder()
    with ColQwenSearch(embedder, tmp_path) as search:
        assert isinstance(search, mteb.SearchProtocol)
        assert search.ocr == "never"
        result = mteb.evaluate(search, colours(), cache=None, co2_tracker=False, show_progress_bar=False)
    # Both languages have one corpus, and its pages are embedded once.
    assert embedder.embedded == 20
    assert len(list(tmp_path.glob("Colours-org-colours-*.db"))) == 1
    [task] = result.task_results
    assert [scores["hf_subset"] for scores in task.scores["test"]] == ["english", "french"]
    for scores in task.scores["test"]:
        # "red" finds both its pages first, "blue" the blue one, then the grey ones; and so does "green".
        assert scores["hit_rate_at_1"] == pytest.approx(2 / 3, abs=1e-4)
        assert scores["ndcg_at_5"] == pytest.approx((1 + 1 / (1 + 1 / log2(3)) + 0) / 3, abs=1e-4)
        assert scores["main_score"] == scores["ndcg_at_5"]
        assert scores["recall_at_5"] == pytest.approx((1 + 1 / 2 + 0) / 3, abs=1e-4)
        assert scores["recall_at_1000"] == 1


def test_an_interrupted_run_goes_on(colours: TaskType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_index_colqwen.integrations import mteb as ours

    monkeypatch.setattr(ours, "find_tasks", lambda name: [colours()])
    embedder = ColourEmbedder()
    embedder.fails_at = 16
    with ours.ColQwenSearch(embedder, tmp_path) as search, pytest.raises(KeyboardInterrupt):
        ours.run_benchmark("Colours", search)
    [database] = tmp_path.glob("*.db")
    embedder.fails_at, embedder.embedded = None, 0
    with ours.ColQwenSearch(embedder, tmp_path) as search:
        first = ours.run_benchmark("Colours", search, ["hit@1", "recall@1000"])
        assert embedder.embedded == 4  # the first sixteen, a batch, were stored
        # And what was finished is not even read again.
        monkeypatch.setattr(ours.ColQwenSearch, "index", None)
        again = ours.run_benchmark("Colours", search, ["hit@1", "recall@1000"])
    assert list(tmp_path.glob("*.db")) == [database]
    assert first == again
    assert first.means == pytest.approx(
        {"main": first.scores["Colours"]["main"], "hit@1": 2 / 3, "recall@1000": 1}, abs=1e-4
    )


TEXTS = {"a": "Salinity of the basin", "b": "Turbidity of the basin", "c": "Height of the quay"}


@pytest.fixture
def registered(task_type: TaskType, monkeypatch: pytest.MonkeyPatch) -> TaskType:
    """A task with images and texts that mteb knows by its name."""
    pages = [{"_id": id_, "image": picture(COLOURS["red"]), "text": text} for id_, text in TEXTS.items()]
    right = {"q1": ["a"], "q2": ["b"], "q3": ["a"]}
    made: TaskType = task_type("WrittenPages", pages, {"q1": "salinity", "q2": "quay", "q3": "turbidity basin"}, right)
    monkeypatch.setitem(sys.modules["mteb.get_tasks"]._TASKS_REGISTRY, "WrittenPages", made)
    return made


@pytest.mark.usefixtures("registered")
def test_the_command_runs_a_task_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mteb", "huggingface_hub"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)  # which the command sets
    result = run("evaluate", "WrittenPages", "--html", "scores.html", "--fail-under", "hit@1=.3")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("WrittenPages: lexical, mode visual")
    assert '<th scope="row">WrittenPages<td>' in Path("scores.html").read_text("utf-8")
    again = run("evaluate", "WrittenPages", "--json", "--mode", "text", "--fail-under", "hit@1=.34")
    assert again.exit_code == 1
    assert again.stderr.endswith("hit@1 is 0.3333, under 0.34.\n")
    # By hand: the first question's page is found first, the third's second; that of the second has no word of it.
    expected = {"main": (1 + 0 + 1 / log2(3)) / 3, "hit@1": 1 / 3, "hit@5": 2 / 3, "recall@5": 2 / 3}
    assert json.loads(again.stdout)["means"] == pytest.approx(expected | {"ndcg@5": expected["main"]}, abs=1e-4)


def test_images_alone_are_read_by_ocr_where_words_are_ranked(
    task_type: TaskType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb

    from llama_index_colqwen.integrations.mteb import ColQwenSearch

    def read(image: Image.Image) -> tuple[list[WordBox], str]:  # OCR itself is tested elsewhere, and takes seconds
        red, _, blue = np.asarray(image).mean((0, 1))
        return [], "Salinity of the basin" if red > blue else "Height of the quay"

    monkeypatch.setattr(ocr, "is_available", lambda: True)
    monkeypatch.setattr(ocr, "read_words", read)
    # An evenly coloured image would have nothing to read.
    pages = [{"_id": name, "image": picture(COLOURS[name], dot=True)} for name in ("red", "blue")]
    task = task_type("Scans", pages, {"q1": "height"}, {"q1": ["blue"]})()
    with ColQwenSearch("lexical", tmp_path, mode="hybrid") as search:
        result = mteb.evaluate(search, task, cache=None, co2_tracker=False, show_progress_bar=False)
    assert result.task_results[0].scores["test"][0]["ndcg_at_1"] == 1


def test_that_a_task_is_in_beta_is_said_only_to_those_who_ask_for_it(
    registered: TaskType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mteb

    from llama_index_colqwen.integrations.mteb import find_tasks

    all_benchmarks = mteb.get_benchmarks
    metadata: Any = vars(registered)["metadata"]
    monkeypatch.setattr(registered, "metadata", metadata.model_copy(update={"is_beta": True}))
    # Some versions of mteb make tasks in beta, too, when they list benchmarks.
    monkeypatch.setattr(mteb, "get_benchmarks", lambda: (registered(), all_benchmarks())[1])
    assert len(find_tasks("ViDoRe(v3)")) == 10
    assert "in beta" not in caplog.text
    with pytest.warns(UserWarning, match="'WrittenPages' is currently in beta"):
        find_tasks("WrittenPages")
    assert "in beta" in caplog.text


def test_what_cannot_be_run_is_one_sentence(
    task_type: TaskType, registered: TaskType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mteb

    from llama_index_colqwen.integrations.mteb import ColQwenSearch, find_tasks, run_benchmark

    assert [task.metadata.name for task in find_tasks("WrittenPages")] == ["WrittenPages"]
    assert len(find_tasks("ViDoRe(v3)")) == 10
    for name, said in (
        ("vidore(V3)", r"no benchmark and no task 'vidore\(V3\)': is it ViDoRe\(v3\) or "),
        ("Vidore3HrRetrival", "is it Vidore3HrRetrieval or "),
        ("quarterly figures", r"no benchmark and no task 'quarterly figures'\.$"),
    ):
        with pytest.raises(InvalidOptionError, match=said):
            find_tasks(name)

    def scored(task: object) -> object:
        return mteb.evaluate(search, task, cache=None, co2_tracker=False, show_progress_bar=False)

    red = {"_id": "a", "image": picture(COLOURS["red"])}
    with ColQwenSearch(ColourEmbedder(), tmp_path) as search:
        with pytest.raises(EndpointUnavailableError, match=r"data of Vidore3HrRetrieval are not on this machine, and"):
            run_benchmark("Vidore3HrRetrieval", search)  # tests have no network
        with pytest.raises(InvalidOptionError, match="k of 1, 3, 5, 10, 20, 100, 1000; got 'ndcg@6'"):
            run_benchmark("WrittenPages", search, ["ndcg@6"])
        for other in (
            "Banking77Classification",
            "NFCorpus",
            "ClothoT2ARetrieval",
            "FORBI2IRetrieval",
            "CIRRIT2IRetrieval",
        ):
            with pytest.raises(InvalidOptionError, match=f"{other} is not about finding pages"):
                run_benchmark(other, search)
        with pytest.raises(InvalidOptionError, match="Task Words has no page images: its corpus has id, text"):
            scored(task_type("Words", [{"_id": "a", "text": "red"}], {"q": "red"}, {"q": ["a"]})())
        with pytest.raises(InvalidOptionError, match="Page 'b' has no image"):
            scored(task_type("Gap", [red, {"_id": "b", "image": None}], {"q": "red"}, {"q": ["a"]})())
        with pytest.raises(InvalidOptionError, match="searched before its pages are indexed"):
            search.search([], task_metadata=registered().metadata, top_k=1)
        task = task_type("Empty", [red], {"q": "red"}, {"q": ["a"]})()
        task.load_data()
        data = task.dataset["default"]["test"]
        with pytest.raises(DocumentNotFoundError, match="Task Empty has no pages"):
            search.index(data["corpus"].select([]), task_metadata=task.metadata)
        search.index(data["corpus"], task_metadata=task.metadata)
        with pytest.raises(InvalidOptionError, match="Task Empty ranks pages that are given"):
            search.search(data["queries"], task_metadata=task.metadata, top_k=1, top_ranked={"q": ["a"]})
        with pytest.raises(InvalidOptionError, match="Task Empty asks with something else than words"):
            search.search(data["corpus"], task_metadata=task.metadata, top_k=1)
        monkeypatch.setattr(ocr, "is_available", lambda: False)
        with (
            ColQwenSearch(ColourEmbedder(), tmp_path, mode="hybrid") as words,
            pytest.raises(MissingDependencyError, match="Task Empty has images alone, and ranking by words needs OCR"),
        ):
            words.index(data["corpus"], task_metadata=task.metadata)
    with pytest.raises(InvalidOptionError, match="ocr"):
        ColQwenSearch("lexical", tmp_path, ocr="maybe")
    with pytest.raises(InvalidOptionError, match="mode is one of"):
        ColQwenSearch("lexical", tmp_path, mode="words")  # type: ignore[arg-type]
