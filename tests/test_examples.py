from __future__ import annotations

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from llama_index_colqwen import ColQwenEmbedder, LexicalEmbedder
from llama_index_colqwen.embedders.lexical import WordWeights
from llama_index_colqwen.late_interaction.maxsim import maxsim
from llama_index_colqwen.reading import ocr
from tests.checkpoints import keep_in_cache
from tests.extras import needs_colqwen
from tests.fakes import unit_rows
from tests.recording_llm import SeeingLLM
from tests.test_index import make_document

ROOT = Path(__file__).parents[1]


@contextmanager
def threads_of_torch_kept() -> Iterator[None]:
    """Let torch compute with as many threads afterwards as before, where it is installed."""
    if find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(not ocr.is_available(), reason="the scanned sample needs the [ocr] extra")
def test_demo_finds_at_least_18_of_its_20_questions_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("demo.*"))
    shutil.copy(ROOT / "examples" / "demo.py", tmp_path / "examples")
    found = runpy.run_path(str(tmp_path / "examples" / "demo.py"))["main"]()
    assert found >= 18
    assert f"{found} of 20 right at first rank" in capsys.readouterr().out
    again = runpy.run_path(str(tmp_path / "examples" / "demo.py"))["main"]()
    assert again == found
    assert "(17 were there already)" in re.sub(r"\s+", " ", capsys.readouterr().out)


# In this order a page may use what the pages before it have made.
GUIDES = [
    "start",
    *(f"guides/{name}" for name in ("answers", "agents", "models", "serving", "explanation", "search", "evaluation")),
]


def python_blocks(*pages: Path) -> list[tuple[str, str]]:
    """Return the Python of these pages, each with its page's name."""
    return [
        (page.name, block)
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]


def test_all_pages_with_python_are_run() -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if python_blocks(page)]
    assert {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in pages} == set(GUIDES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")  # by LlamaIndex's agents
@pytest.mark.parametrize("pages", [["README.md"], [f"docs/{guide}.md" for guide in GUIDES]], ids=["README", "docs"])
def test_python_of_the_documentation_runs_as_it_stands(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Callable[..., Path],
    pages: list[str],
) -> None:
    pytest.importorskip("fastapi", reason="the [server] extra is not installed")
    pytest.importorskip("langchain_core", reason="the [langchain] extra is not installed")
    from tests.services import serve

    # In the hub's place, a cache that has a tiny model under the big one's name.
    keep_in_cache(tmp_path / "hub", "vidore/colqwen2-v1.0", checkpoint(adapter=True))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "reports").mkdir()
    shutil.copy(ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"vision_llm": SeeingLLM()}
    with serve(ColQwenEmbedder(device="cpu")) as url:
        for page, block in python_blocks(*(ROOT / page for page in pages)):
            before = names.get("index")
            exec(compile(block.replace("http://127.0.0.1:8000", url), page, "exec"), names)
            if before is not None and before is not names["index"]:
                before.store.close()
        names["index"].store.close()
        if "embedder" in names:
            names["embedder"].close()
    output = capsys.readouterr().out
    assert re.search(r"^\d\.\d+ tidal-sensors-paper.pdf 3 .*page-0003", output)
    assert re.search(r"\d images \['3'", output)


def test_the_open_model_of_the_readme_can_be_made_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("llama_index.llms.openai_like", reason="the [ask] extra is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    [made] = re.findall(r"`(OpenAILike\(.*\))`", (ROOT / "README.md").read_text("utf-8"))
    llm = eval(made, {"OpenAILike": models.OpenAILike})
    assert llm._get_client() is not None
    assert (llm.metadata.is_chat_model, llm.metadata.context_window) == (True, 32_000)


def test_links_to_files_of_the_repository_lead_somewhere() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pages = [ROOT / name for name in listed.stdout.split() if not name.startswith("docs/")]  # those mkdocs looks after
    broken = []
    for page in pages:
        tokens = MarkdownIt().enable("table").parse(page.read_text("utf-8"))
        for token in (child for one in tokens for child in one.children or []):
            target = str(token.attrs.get("href") or token.attrs.get("src") or "")
            if target and "://" not in target and not (page.parent / target.partition("#")[0]).exists():
                broken.append((page.name, target))
    assert len(pages) >= 5
    assert broken == []


@pytest.mark.slow
def test_samples_are_what_their_script_draws(tmp_path: Path) -> None:
    import pypdfium2

    script = str(ROOT / "examples" / "make_samples.py")
    subprocess.run([sys.executable, script, str(tmp_path)], check=True, capture_output=True)
    for kept in sorted((ROOT / "examples" / "pdfs").glob("*.pdf")):
        texts = []
        for path in (kept, tmp_path / kept.name):
            pdf = pypdfium2.PdfDocument(path)
            texts.append([page.get_textpage().get_text_range() for page in pdf])
            pdf.close()
        assert texts[0] == texts[1]


@pytest.mark.slow
def test_quality_benchmark_measures_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # which it sets, for reading anew
    main = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))["main"]
    files = ["--pdfs", str(ROOT / "examples" / "pdfs"), "--questions", str(ROOT / "examples" / "questions.jsonl")]
    main([*files, "--ocr", "never", "--cv"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["embedder"], line["pages"], line["questions"]) == ("lexical", 17, 20)
    for scope in ("corpus", "within"):
        for figures in (line[scope], line["bm25"][scope], line["cv"][scope]):
            assert set(figures) == {"hit@1", "hit@5", "ndcg@5"}
            # the 5 questions on the scan cannot be found without OCR, but by chance
            assert 0.7 <= figures["hit@1"] <= figures["hit@5"] <= 1
    lost, stopped = line["cutoffs"]["0.3"]
    assert lost <= 0.25
    assert stopped > 0.9


def test_quality_scores_in_memory_are_maxsim() -> None:
    all_scores = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))["all_scores"]
    shared = unit_rows(1, 1)
    queries = [np.concatenate([shared, unit_rows(2, 2)]), unit_rows(3, 3), np.concatenate([unit_rows(4, 1), shared])]
    pages = [unit_rows(5, 4), unit_rows(6, 1)]
    expected = [[maxsim(query, page) for page in pages] for query in queries]
    np.testing.assert_allclose(all_scores(queries, pages), expected, atol=1e-6)


def test_quality_chooses_weights_by_the_questions_of_other_documents(tmp_path: Path) -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))
    words = ["anchor", "windlass", "barnacle", "herring", "turbidity"]
    filler = " ".join(f"filler{number}" for number in range(40))  # so that no page's first words are the question's

    def choose(file_names: list[str]) -> tuple[set[float], list[float]]:
        pages = [f"{filler} {word}" for word in words]
        documents = [
            make_document(tmp_path, 1, text, name, file_name=f"{name}.pdf")
            for text, name in zip(pages, file_names, strict=True)
        ]
        questions = [
            names["Question"](word, word, f"{name}.pdf", (1,)) for word, name in zip(words, file_names, strict=True)
        ]
        found, chosen = names["cross_validate"](documents, questions, LexicalEmbedder())
        return {weights.file_name for weights in chosen}, found["corpus"]["hit@1"].tolist()

    assert choose([f"report {number}" for number in range(5)]) == ({WordWeights().file_name}, [1.0] * 5)  # as it is
    assert choose([*words[1:], words[0]]) == ({0.0}, [1.0] * 5)  # each file has the name of another's word


def test_quality_measures_count_by_hand() -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))
    questions = [names["Question"]("a", "?", "x", (1, 3)), names["Question"]("b", "?", "y", (1,))]
    run = {
        "a": {"x#00001": 1.0, "x#00002": 3.0, "x#00003": 2.0, "y#00001": 9.0},
        "b": {"x#00001": 1.0, "x#00002": 1.0, "x#00003": 1.0, "y#00001": 1.0},
    }
    figures = {scope: {k: v.mean for k, v in m.items()} for scope, m in names["measure"](run, questions).items()}
    # a: y1 x2 x3 x1, relevant at ranks 3 and 4; b: ties in order of file and page, relevant at rank 4
    ideal = 1 + 1 / 1.584963
    assert figures["corpus"]["hit@1"] == 0
    assert figures["corpus"]["hit@5"] == 1
    assert figures["corpus"]["ndcg@5"] == pytest.approx(((1 / 2 + 1 / 2.321928) / ideal + 1 / 2.321928) / 2, abs=1e-4)
    # a within x: x2 x3 x1, relevant at ranks 2 and 3; b within y: the only page
    assert figures["within"]["hit@1"] == 0.5
    assert figures["within"]["ndcg@5"] == pytest.approx(((1 / 1.584963 + 1 / 2) / ideal + 1) / 2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler's programs are not installed")
def test_text_benchmark_compares_words_with_popplers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf", tmp_path)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4")
    main = runpy.run_path(str(ROOT / "benchmarks" / "text.py"))["main"]
    assert main([str(tmp_path), "--pages", "2"]) == 0
    output = capsys.readouterr().out
    assert "pdftotext cannot read them: broken.pdf" in output
    line = json.loads(output.splitlines()[-1])
    assert (line["files"], line["all"]["pages"]) == (1, 2)
    assert line["all"]["words"] > 100
    assert line["all"]["recall"] > 0.95
    assert line["all"]["more"] < 0.05
    assert line["worst"] == [["tidal-sensors-paper.pdf", line["all"]["recall"]]]
    assert line["cpu_ms"] > 0


def test_text_benchmark_counts_words_by_hand() -> None:
    names = runpy.run_path(str(ROOT / "benchmarks" / "text.py"))
    # "a" twice of three times, "b", not "c"; and "d" besides
    page = names["compare"]("A a, b! d", "a a a b c")
    assert (page.theirs, page.shared, page.more) == (5, 3, 1)
    missed = names["compare"]("", "one two three")
    assert names["figures"]([page, missed]) == {"pages": 2, "words": 8, "recall": 0.375, "more": 0.125}
    assert names["figures"]([]) == {"pages": 0, "words": 0, "recall": None, "more": None}


@needs_colqwen
def test_indexing_benchmark_measures_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "indexing.py"))["main"]
    assert main(["--pages", "5", "--rounds", "1", "--stage-rounds", "2", "--batch", "1", "2", "--pretend-ms", "5"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(milliseconds > 0 for milliseconds in line["stages"].values())
    assert [run["batch"] for run in line["runs"]] == [1, 2]
    for run in line["runs"]:
        assert 0 < run["in_model"] < 1
        assert run["ratio"] == pytest.approx(run["pages_s"] / run["colpali_engine_pages_s"])


@needs_colqwen
def test_serving_benchmark_compares_batching_and_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi", reason="the [server] extra is not installed")
    main = runpy.run_path(str(ROOT / "benchmarks" / "serving.py"))["main"]
    with threads_of_torch_kept():
        assert main(["--clients", "8", "--seconds", "0.5", "--rounds", "1", "--pages", "2"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    text, page = line["loads"]
    assert (text["kind"], page["kind"]) == ("text", "page")
    assert text["off"]["items_a_batch"] == page["off"]["items_a_batch"] == 1
    assert text["on"]["items_a_batch"] > 1
    assert line["bytes"]["float"] > 4 * line["bytes"]["base64-float16"]
    assert line["overhead"]["served_ms"] > 0
    assert line["overhead"]["pooling_ms"] > 0


@needs_colqwen
def test_pooling_benchmark_compares_poolers(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "pooling.py"))["main"]
    with threads_of_torch_kept():
        assert main(["--pages", "4", "--queries", "6"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    ours, theirs = line["pool_tokens"], line["HierarchicalTokenPooler"]
    assert ours.keys() == theirs.keys() == {"2", "3", "4", "6"}
    assert all(ours[factor]["ms"] < theirs[factor]["ms"] for factor in ours)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file .*vectors.f32:ResourceWarning")  # open to a process's end
def test_search_benchmark_compares_ours_with_exact_scans(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = runpy.run_path(str(ROOT / "benchmarks" / "search.py"))["main"]
    start = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - passed on
        # A process for each method is for the memory it takes, which is not compared here: so one is started, and the
        # others would take most of the time to import all of this.
        if "exact-numpy" in command:
            return start(command, **options)
        with redirect_stdout(io.StringIO()) as printed:
            assert main(command[2:]) == 0
        return subprocess.CompletedProcess(command, 0, printed.getvalue())

    monkeypatch.setattr(subprocess, "run", run)
    with threads_of_torch_kept():
        assert main(["--pages", "40", "--queries", "3", "--small-pages", "0"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["method"]: row for row in line["rows"]}
    assert {"exact-numpy", "ours", "lexical"} <= rows.keys()
    lexical = rows.pop("lexical")
    assert lexical["hit@1"] == 1
    assert all(lexical[name] > 0 for name in ("first_answer_s", "p50_ms", "refresh_s", "as_retriever_ms"))
    assert lexical["cache_x"] <= 2
    assert all(rows["ours"][name] > 0 for name in ("one_file_x", "half_x", "threads4_x"))
    for row in rows.values():
        assert row["pages"] == line["pages"] == 40
        assert row["hit@1"] == 1
        assert row["recall@10"] > 0.9
        assert all(row[name] > 0 for name in ("build_s", "disk_mb", "rss_mb", "p50_ms", "p95_ms", "recall@100"))
