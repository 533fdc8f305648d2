from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pytrec_eval", reason="the [evaluate] extra is not installed")
from llama_index_colqwen.errors import DocumentNotFoundError, InvalidOptionError, UnreadableDocumentError
from llama_index_colqwen.evaluation import Question, read_questions
from tests.cli.commands import ROOT

LINE = '{"id": "b", "query": "How deep?", "pdf": "a.pdf", "pages": [3, 1, 3], "answer": "12 m"}'


def test_questions_are_read_a_line_each_and_those_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f'\ufeff{LINE}\n\n{{"query": "Wie tief?", "pdf": "b.pdf", "pages": [2]}}\n', "utf-8")
    assert read_questions(file) == [
        Question("b", "How deep?", "a.pdf", (3, 1)),
        Question("3", "Wie tief?", "b.pdf", (2,)),
    ]


def test_the_samples_questions_are_of_this_kind() -> None:
    assert len(read_questions(ROOT / "examples" / "questions.jsonl")) == 20


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("no json", "line 2: this is no JSON"),
        ("[1]", "line 2: a question is a JSON object; got"),
        (LINE.replace('"b"', '"a"'), "line 2: there is a question 'a' before it"),
        (LINE.replace("How deep?", " "), "line 2: 'query' is a text, not empty; got ' '"),
        (LINE.replace('"pdf": "a.pdf", ', ""), "line 2: 'pdf' is a text, not empty; got ''"),
        (LINE.replace('"a.pdf"', "7"), "line 2: 'pdf' is a text, not empty; got 7"),
        (LINE.replace("[3, 1, 3]", "[]"), "line 2: 'pages' is a list of the pages that answer, at least one; got"),
        (LINE.replace("[3, 1, 3]", "3"), "line 2: 'pages' is a list of the pages that answer, at least one; got"),
        (LINE.replace("[3, 1, 3]", "[0]"), "line 2: A number in 'pages' is a whole number, at least 1; got 0"),
        (LINE.replace("[3, 1, 3]", '["iv"]'), "line 2: A number in 'pages' is a whole number, at least 1; got 'iv'"),
        (LINE.replace("[3, 1, 3]", "[[1]]"), "line 2: "),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{LINE.replace(chr(34) + 'b' + chr(34), chr(34) + 'a' + chr(34))}\n{line}\n", "utf-8")
    with pytest.raises(InvalidOptionError) as caught:
        read_questions(file)
    assert f"{file}, {said}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentNotFoundError, match="there is no such file of questions"):
        read_questions(tmp_path / "questions.jsonl")
    with pytest.raises(UnreadableDocumentError, match="is no file of questions"):
        read_questions(tmp_path)
    (tmp_path / "questions.jsonl").write_bytes(b"\n\n")
    with pytest.raises(UnreadableDocumentError, match="has no questions"):
        read_questions(tmp_path / "questions.jsonl")
    (tmp_path / "questions.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableDocumentError, match="is no file of questions"):
        read_questions(tmp_path / "questions.jsonl")
