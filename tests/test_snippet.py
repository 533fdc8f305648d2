from __future__ import annotations

import pytest

from llama_index_colqwen.snippet import snippet

FILLER = "Nothing of interest stands on this part of the page. " * 12


@pytest.mark.parametrize(
    ("question", "text", "words"),
    [
        ("Which sensors drifted?", "The SENSOR was drifting.", ["SENSOR", "drifting"]),
        ("what is the", "the cat is what", ["the", "is", "what"]),  # no other words
        ("1,234.5 mm", "It is 1,234.5 mm, not 1,234.", ["1,234.5", "mm"]),
        ("x-ray\ttubes", "X-ray tube", ["X", "ray", "tube"]),
        ("\u6642\u4ee3\u306e\u5909\u5316", "AI\u6642\u4ee3\u306b", ["\u6642\u4ee3"]),
        ("radar", "nothing", []),
        ("radar", "", []),
    ],
)
def test_inflections_match_and_stop_words_do_not(question: str, text: str, words: list[str]) -> None:
    found = snippet(question, text)
    assert found.words == words
    assert found.text == text


def test_the_piece_is_where_most_of_the_question_stands_in_one_line_of_whole_words() -> None:
    text = f"Radar. {FILLER}\n{FILLER} The radar's\nlens is   sealed. {FILLER}"
    found = snippet("Why is the radar lens sealed?", text)
    assert "The radar's lens is sealed." in found.text
    assert found.words == ["radar", "lens", "sealed"]
    assert [found.text[start:end] for start, end in found.matches] == ["radar", "lens", "sealed"]
    assert len(found.text) <= 168
    inner = found.text.removeprefix("... ").removesuffix(" ...")
    assert len(inner) <= len(found.text) - 8
    assert f" {inner} " in f" {' '.join(text.split())} "


def test_without_matches_it_is_the_beginning_and_at_the_end_nothing_follows() -> None:
    assert snippet("radar", FILLER).text.startswith("Nothing of interest")
    assert snippet("radar", f"{FILLER} radar").text.endswith(" radar")
    unbroken = snippet("radar", "x" * 1000)
    assert unbroken.text == "x" * 160 + " ..."


def test_inflections_are_the_languages() -> None:
    assert snippet("Haus", "viele H\u00e4user", "de").words == ["H\u00e4user"]
    assert snippet("Haus", "viele H\u00e4user", "en").words == []
    assert snippet("hus", "mange hus", "nb").words == ["hus"]  # has no stemmer by that name


def test_a_snippet_is_as_long_as_asked() -> None:
    text = f"{'Dredging goes on. ' * 60}Turbidity of the harbour basin. {'More follows. ' * 60}"
    for most in (80, 160, 400):
        found = snippet("Which turbidity has the harbour?", text, max_characters=most)
        assert "Turbidity of the harbour" in found.text
        assert found.text.startswith("... ") and found.text.endswith(" ...")
        assert most / 2 < len(found.text) <= most + 8
