from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import log2
from pathlib import Path

import pytest

pytest.importorskip("pytrec_eval", reason="the [evaluate] extra is not installed")
from llama_index_colqwen import ColQwenIndex, PDFPageReader, QueryError
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError
from llama_index_colqwen.evaluation import Evaluation, Figure, Question, evaluate
from llama_index_colqwen.testing import FakeEmbedder
from tests.documents import write_text_pdf
from tests.test_index import make_document

QUESTIONS = [
    Question("first", "salinity", "<b>asin.pdf", (1,)),
    Question("second", "<i>turbidity</i> basin", "<b>asin.pdf", (1,)),
    Question("both", "turbidity basin", "<b>asin.pdf", (1, 2)),
    Question("missed", "turbidity", "<b>asin.pdf", (12,)),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ColQwenIndex]:
    folder = tmp_path_factory.mktemp("evaluation")
    write_text_pdf(folder / "<b>asin.pdf", "Salinity of the basin", "Turbidity of the basin", *["Empty"] * 10)
    write_text_pdf(folder / "quay.pdf", "Height")
    documents = PDFPageReader(image_dir=folder / "pages", ocr="never").lazy_load_data(folder)
    with ColQwenIndex.from_documents(documents, uri=folder / "x.db", show_progress=False) as made:
        yield made


@pytest.fixture(scope="module")
def evaluation(index: ColQwenIndex) -> Evaluation:
    return evaluate(index, QUESTIONS, measures=["hit@1", "ndcg@5", "recall@1"], show_progress=False)


def test_figures_are_those_that_are_reckoned_by_hand(evaluation: Evaluation) -> None:
    assert [answer.rank for answer in evaluation.answers] == [1, 2, 1, None]
    assert [answer.bm25_rank for answer in evaluation.answers] == [1, 2, 1, None]
    assert (evaluation.pages, evaluation.depth) == (13, 10)
    # The third question has both its pages among the first two, and half of them first.
    assert evaluation.means == pytest.approx(
        {"hit@1": 2 / 4, "ndcg@5": (1 + 1 / log2(3) + 1 + 0) / 4, "recall@1": (1 + 0 + 0.5 + 0) / 4}
    )
    figure = evaluation.figures["visual"]["hit@1"]
    assert figure.low <= figure.mean <= figure.high
    assert {name: found.mean for name, found in evaluation.figures["bm25"].items()} == pytest.approx(evaluation.means)
    assert evaluation.figures["difference"] == dict.fromkeys(evaluation.means, Figure(0, 0, 0))


def test_it_prints_figures_and_a_line_a_question(evaluation: Evaluation) -> None:
    printed = str(evaluation)
    assert printed.startswith("lexical, mode visual: 4 questions, 13 pages")
    assert re.search(r"visual +\.500 \[", printed)
    assert re.search(r"difference +\.000 \[\.00, \.00\]", printed)
    assert re.search(r"1 +1 +first salinity +<b>asin\.pdf, 1", printed)
    assert re.search(r"2 +2 +second <i>turbidity</i> basin +<b>asin\.pdf, 1 +<b>asin\.pdf, page 2", printed)
    assert re.search(r"- +- +missed turbidity +<b>asin\.pdf, 12 +<b>asin\.pdf, page 2", printed)


def test_it_is_json(evaluation: Evaluation) -> None:
    told = json.loads(json.dumps(evaluation.to_dict()))
    assert told["figures"]["visual"]["hit@1"]["mean"] == 0.5
    assert (told["embedder"], told["mode"], told["questions"], told["pages"]) == ("lexical", "visual", 4, 13)
    second = told["answers"][1]
    assert (second["id"], second["pages"], second["rank"], second["bm25_rank"]) == ("second", [1], 2, 2)
    assert second["values"] == pytest.approx({"hit@1": 0, "ndcg@5": 1 / log2(3), "recall@1": 0})
    assert len(second["hits"]) == 10
    assert (second["hits"][0]["file_name"], second["hits"][0]["page_number"]) == ("<b>asin.pdf", 2)


def test_html_shows_hits_and_misses_and_fetches_nothing(evaluation: Evaluation) -> None:
    html = evaluation.to_html()
    assert re.findall(r'<details class="(\w+)"( open)?><summary><b>(\w+)</b>', html) == [
        ("missed", " open", "missed"),
        ("lower", " open", "second"),
        ("first", "", "first"),
        ("first", "", "both"),
    ]
    assert "no right page among the first 10; BM25 none" in html
    assert "right page, not found</b> &lt;b&gt;asin.pdf, page 12" in html
    # What questions and files are called is text.
    assert "&lt;i&gt;turbidity&lt;/i&gt;" in html
    assert "&lt;b&gt;asin.pdf" in html
    assert "<i>" not in html and "<b>asin" not in html
    # Every page that is shown has its picture, once, and there is nothing else to load, nor a script.
    shown = set(re.findall(r'class="picture (p\d+)"', html))
    pictures = re.findall(r'\.(p\d+)\{background-image:url\("data:image/jpeg;base64,[^"]+"\)', html)
    assert sorted(shown) == sorted(pictures)
    assert len(shown) >= 3
    assert re.findall(r"(?:src|href)=|url\((?!\"data:)|<script|https?:", html) == []


def test_a_picture_that_is_gone_is_said(tmp_path: Path) -> None:
    document = make_document(tmp_path, 1, "red chart")
    with ColQwenIndex.from_documents([document], FakeEmbedder(), uri=tmp_path / "x.db", show_progress=False) as index:
        (tmp_path / "d-1.png").unlink()
        html = evaluate(index, [Question("q", "red", "d.pdf", (1,))], show_progress=False).to_html()
    assert '.p0::after{content:"The picture is gone."}' in html
    assert re.search(r"right page, 1\. score [\d.]+</b> d\.pdf, page 1<", html)


def test_pages_without_text_are_not_compared_with_bm25(tmp_path: Path) -> None:
    document = make_document(tmp_path, 1, "")
    with ColQwenIndex.from_documents([document], FakeEmbedder(), uri=tmp_path / "x.db", show_progress=False) as index:
        # The second has no word to look for, which BM25 is not asked about.
        questions = [Question("a", "red", "d.pdf", (1,)), Question("b", "?", "d.pdf", (1,))]
        found = evaluate(index, questions, measures=["hit@1"], show_progress=False)
    assert set(found.figures) == {"visual"}
    assert [(answer.rank, answer.bm25_rank) for answer in found.answers] == [(1, None), (1, None)]


def test_a_question_that_bm25_cannot_read_counts_as_missed_by_it(tmp_path: Path) -> None:
    document = make_document(tmp_path, 1, "red")
    with ColQwenIndex.from_documents([document], FakeEmbedder(), uri=tmp_path / "x.db", show_progress=False) as index:
        questions = [Question("a", "red", "d.pdf", (1,)), Question("b", "?", "d.pdf", (1,))]
        found = evaluate(index, questions, measures=["hit@1"], mode="hybrid", show_progress=False)
    assert found.figures["hybrid"]["hit@1"].mean == 1
    assert found.figures["bm25"]["hit@1"].mean == 0.5
    assert found.figures["difference"]["hit@1"].mean == 0.5


@pytest.mark.parametrize(
    ("question", "error", "said"),
    [
        (
            Question("q", "basin", "<b>asin.pdf", (1, 13)),
            InvalidOptionError,
            "Question 'q' is answered on page 13 of <b>asin.pdf, which has 12 pages.",
        ),
        (
            Question("q", "basin", "basin.pdf", (1,)),
            DocumentNotFoundError,
            "Question 'q' is answered on page 1 of basin.pdf, which is not among the 2 files: is it <b>asin.pdf?",
        ),
        (
            Question("q", "basin", "report.docx", (1,)),
            DocumentNotFoundError,
            "Question 'q' is answered on page 1 of report.docx, which is not among the 2 files.",
        ),
        (Question("q", "?", "quay.pdf", (1,)), QueryError, "Question 'q': "),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(
    index: ColQwenIndex, question: Question, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        evaluate(index, [*QUESTIONS, question], show_progress=False)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_two_files_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_text_pdf(tmp_path / name / "report.pdf", f"Salinity {name}")
    documents = PDFPageReader(image_dir=tmp_path / "pages", ocr="never").load_data(tmp_path)
    with (
        ColQwenIndex.from_documents(documents, uri=tmp_path / "x.db", show_progress=False) as index,
        pytest.raises(InvalidOptionError, match=r"page 1 of report\.pdf, and 2 files of that name have such a page"),
    ):
        evaluate(index, [Question("q", "salinity", "report.pdf", (1,))], show_progress=False)


def test_nothing_to_ask_and_nothing_to_find_are_errors(index: ColQwenIndex, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="There are no questions"):
        evaluate(index, [])
    with pytest.raises(InvalidOptionError, match="There are no measures"):
        evaluate(index, QUESTIONS, measures=[])
    with pytest.raises(InvalidOptionError, match="Two questions have one id"):
        evaluate(index, [QUESTIONS[0], QUESTIONS[0]])
    with pytest.raises(InvalidOptionError, match=r"got 'mrr@5'"):
        evaluate(index, QUESTIONS, measures=["mrr@5"])
    with pytest.raises(InvalidOptionError, match="mode is one of"):
        evaluate(index, QUESTIONS, mode="words")  # type: ignore[arg-type]
    with (
        ColQwenIndex.from_documents([], uri=tmp_path / "x.db", show_progress=False) as empty,
        pytest.raises(DocumentNotFoundError, match=r"There are no pages to find in .*x\.db"),
    ):
        evaluate(empty, QUESTIONS)
