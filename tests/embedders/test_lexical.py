from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from llama_index_colqwen import InvalidOptionError, LexicalEmbedder, MultiVectorEmbedder, QueryError
from llama_index_colqwen.embedders.resolve import resolve_embedder
from llama_index_colqwen.late_interaction.maxsim import maxsim
from tests.fakes import make_page
from tests.forks import in_fork, needs_fork


def best(query: str, texts: list[str], language: str = "en") -> int:
    """Return which text wins the query."""
    embedder = LexicalEmbedder(language)
    pages = embedder.embed_pages([make_page(str(number), text) for number, text in enumerate(texts)])
    scores = [maxsim(embedder.embed_queries([query])[0], page) for page in pages]
    return int(np.argmax(scores))


def test_it_is_an_embedder_and_every_vector_is_a_float32_unit_row() -> None:
    embedder = LexicalEmbedder()
    assert isinstance(embedder, MultiVectorEmbedder)
    pages = [make_page("1", "Grain, grain and more grain! 1,234.5 tonnes"), make_page("2", "")]
    for vectors in (*embedder.embed_pages(pages), *embedder.embed_queries(["how much grain?"])):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == embedder.dim == embedder.fingerprint.dim
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_rows_of_queries_and_pages_are_named() -> None:
    embedder = LexicalEmbedder()
    query = "Which sensors, and which sensor, of the salt-spray test?"
    assert embedder.query_tokens(query) == ["which", "sensors", "salt", "spray", "saltspray", "test"]
    assert len(embedder.embed_queries([query])[0]) == 6
    page = make_page("1", "The harbour of\nthe Harbour, and its salt-spray cranes; 35 °C: crane.")
    rows = embedder.page_words(page)
    [vectors] = embedder.embed_pages([page])
    assert len(rows) == len(vectors)
    words = page.text.split()
    found = [[words[number] for number in numbers] for numbers in rows]
    for expected in (["harbour", "Harbour,"], ["salt-spray"], ["cranes;", "crane."], ["35"]):
        assert expected in found
    # a row is the vector of its words
    for row, numbers in enumerate(rows):
        for word in {words[number] for number in numbers} - {"salt-spray"}:
            [[likeness]] = [single @ vectors.T for single in embedder.embed_queries([word])]
            assert likeness.argmax() == row
    assert embedder.page_words(make_page("2", "")) == [[]]
    assert embedder.page_words(make_page("3", "the of and")) == [[]]
    assert len(embedder.embed_pages([make_page("3", "the of and")])[0]) == 1


def test_names_of_a_long_query_are_as_many_as_its_rows() -> None:
    embedder = LexicalEmbedder()
    query = " ".join(f"word{number}x" for number in range(300))
    with pytest.warns(UserWarning, match="first 256"):
        [vectors] = embedder.embed_queries([query])
    assert len(embedder.query_tokens(query)) == len(vectors)


def test_a_page_has_one_vector_per_unique_word_without_stop_words() -> None:
    page = make_page("1", "the harbour of the harbour and its cranes, its crane", file_name="the.pdf")
    [vectors] = LexicalEmbedder().embed_pages([page])
    # harbour; crane and cranes share a stem; "its" is no stop word by frequency alone
    assert len(vectors) == 3


@pytest.mark.parametrize(
    ("query", "winner"),
    [
        ("Where is the turbidity reported?", 0),
        ("diver cleaning barnacles", 1),  # an inflection
        ("revenue of 1,234.5", 2),  # a number, whole
        ("photovolt panels", 3),  # a part of a word
    ],
)
def test_the_page_with_the_words_wins(query: str, winner: int) -> None:
    texts = [
        "Turbidity was highest at the inner basin.",
        "In week 16 divers cleaned a barnacle off every sensor.",
        "Revenue came to 1,234.5 thousand; costs to 1,234 and 5.",
        "Photovoltaics cover the roof of the shed.",
    ]
    assert best(query, texts) == winner


FILLER = " ".join(f"filler{number}" for number in range(30))


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (f"turbidity {FILLER} sample", {}),
        (f"{FILLER} sample\nFigure 3: turbidity", {}),
        (f"{FILLER} sample turbidity", {"section": "Turbidity"}),
        (f"{FILLER} sample turbidity", {"file_name": "turbidity_2023.pdf"}),
        (f"{FILLER} sample turbidity", {"file_names": ["a.pdf", "turbidity.pdf"], "file_paths": ["a", "b"]}),
    ],
    ids=["first words", "caption", "section", "file name", "one of several file names"],
)
def test_word_counts_more_where_it_tells_what_the_page_is_about(text: str, metadata: dict[str, Any]) -> None:
    embedder = LexicalEmbedder()
    pages = [make_page("1", f"{FILLER} sample turbidity"), make_page("2", text, **metadata)]
    [query] = embedder.embed_queries(["turbidity"])
    plain, telling = (maxsim(query, page) for page in embedder.embed_pages(pages))
    assert telling > plain + 0.05
    assert embedder.page_context(pages[0]) == "document\n"


def test_file_names_and_sections_are_the_context_in_whatever_order_files_come() -> None:
    contexts = [
        LexicalEmbedder().page_context(
            make_page("1", text, section="Method", file_name=names[0], file_names=names, file_paths=["a", "b"])
        )
        for text, names in (("one", ["x-1.final.pdf", "y.pdf"]), ("other", ["y.pdf", "x-1.final.pdf"]))
    ]
    assert contexts == ["x 1 final\ny\nMethod"] * 2


def test_copies_of_a_file_count_its_name_once() -> None:
    paths: dict[str, Any] = {"file_names": ["basin.pdf", "basin (1).pdf"], "file_paths": ["a", "b"]}
    embedder = LexicalEmbedder()
    one, two = embedder.embed_pages(
        [make_page("1", "text", file_name="basin.pdf"), make_page("2", "text", file_name="basin.pdf", **paths)]
    )
    [query] = embedder.embed_queries(["basin"])
    assert maxsim(query, one) == pytest.approx(maxsim(query, two))


def test_page_without_text_is_blank_whatever_its_file_is_called() -> None:
    embedder = LexicalEmbedder()
    [vectors] = embedder.embed_pages([make_page("1", " ", file_name="turbidity.pdf", section="Turbidity")])
    assert maxsim(embedder.embed_queries(["turbidity"])[0], vectors) < 0


@pytest.mark.parametrize(
    ("query", "text", "other"),
    [
        ("email", "the e-mail server", "the mail server"),
        ("e-mail", "the email server", "the mailed server"),
        ("state-of-the-art", "a state-of-the-art sensor", "art of the state: a sensor"),
        ("1234.5", "came to 1,234.5 thousand", "came to 1,234 and 5.5"),
        ("1,234,567", "came to 1234567", "came to 1,234.567"),
        ("45 kg", "weighs 45kg", "weighs 54kg"),
        ("Q3 of FY2019", "results of Q3, FY2019", "results of Q4, FY2018"),
        ("2019 results", "results of FY2019", "results of FY2018"),
        ("cafe Munchen", "das Café in München", "das Cafeteria in Menschen"),
        ("Café", "café", "cafe"),
        ("efficient office", "e\ufb03cient o\ufb03ce", "sufficient officer"),
        ("turbidity", "tur\u00adbid\u00adity", "turbine"),
        ("Αθήνα", "ΑΘΗΝΑ", "ΑΘΑΝΑΣΙΟΣ"),
    ],
)
def test_word_is_found_however_it_is_written(query: str, text: str, other: str) -> None:
    assert best(query, [other, text]) == 1


@pytest.mark.parametrize(
    "torn", ["集 装 箱 数 量", "集\n装\n箱\n数\n量", "港口有集装\n箱数量很多"], ids=["spaced", "vertical", "wrapped"]
)
def test_chinese_that_spaces_or_line_ends_tear_is_whole(torn: str) -> None:
    assert best("集装箱数量", ["集中装置箱子", torn]) == 1
    [whole, parted] = LexicalEmbedder().embed_pages([make_page("1", "".join(torn.split())), make_page("2", torn)])
    np.testing.assert_array_equal(whole, parted)


def test_rows_of_names_sections_and_torn_runs_stand_for_the_words_of_the_text_that_are_theirs() -> None:
    page = make_page("1", "集 装 箱 e-mail basin", file_name="turbidity.pdf", section="Basin")
    [vectors] = LexicalEmbedder().embed_pages([page])
    rows = LexicalEmbedder().page_words(page)
    assert len(rows) == len(vectors)
    assert rows == [[0, 1], [1, 2], [3], [3], [3], [4], []]  # 集装, 装箱, e, mail, email, basin; turbidity


def test_a_rare_word_outweighs_a_common_one() -> None:
    assert best("annual turbidity", ["the annual report of the year", "turbidity in the water"]) == 1


def test_a_short_page_beats_a_long_one_with_the_same_match() -> None:
    filler = " ".join(f"word{number}" for number in range(500))
    assert best("turbidity", [f"turbidity {filler}", "turbidity of the basin"]) == 1


@pytest.mark.parametrize("query", ["turbidity", "quixotic zeugma", "the of and", "1.5"])
def test_a_page_without_words_is_below_every_page_with_words(query: str) -> None:
    embedder = LexicalEmbedder()
    texts = ["", "   \n", "...", "entirely unrelated", "x", "harbour crane quay vessel"]
    pages = embedder.embed_pages([make_page(str(number), text) for number, text in enumerate(texts)])
    [vectors] = embedder.embed_queries([query])
    blank, worded = [maxsim(vectors, page) for page in pages[:3]], [maxsim(vectors, page) for page in pages[3:]]
    assert max(blank) < min(worded)


@pytest.mark.parametrize("query", ["", "  ", "?!", "—"])
def test_query_without_letters_or_digits_is_an_error_that_shows_it(query: str) -> None:
    with pytest.raises(QueryError, match="no letters or digits"):
        LexicalEmbedder().embed_queries([query])


def test_query_of_stop_words_alone_still_searches() -> None:
    [vectors] = LexicalEmbedder().embed_queries(["to be or not to be"])
    assert len(vectors) >= 1


def test_query_of_ten_thousand_words_is_cut_with_a_warning() -> None:
    query = " ".join(first + second + third for first in "abcdefghij" for second in "abcdefghij" for third in LETTERS)
    with pytest.warns(UserWarning, match="10000 words; the first 256"):
        [vectors] = LexicalEmbedder().embed_queries([query])
    assert len(vectors) <= 256


LETTERS = [one + two for one in "klmnopqrst" for two in "klmnopqrst"]

# Sentences of our own; the question shares its terms, not its wording.
UNSPACED = {
    "zh": (
        ["港口去年处理了四十万个集装箱", "雷达传感器的电池可以使用一百三十九天", "潜水员在第十六周清除了藤壶"],
        ["集装箱有多少？", "电池能用几天", "谁清除藤壶"],
    ),
    "ja": (
        [
            "港は昨年四十万個のコンテナを扱った",
            "レーダーの電池は百三十九日もつ",
            "潜水士は第十六週にフジツボを取り除いた",
        ],
        ["コンテナの数は", "電池は何日もつか", "フジツボをいつ除いたか"],
    ),
    "ko": (
        [
            "항구는 작년에 컨테이너 사십만 개를 처리했다",
            "레이더 배터리는 백삼십구 일 간다",
            "잠수부가 따개비를 제거했다",
        ],
        ["컨테이너는 몇 개인가", "배터리가 며칠 가는가", "따개비는 누가 제거했나"],
    ),
    "th": (
        ["ท่าเรือขนถ่ายตู้สินค้าสี่แสนตู้", "แบตเตอรี่ของเรดาร์ใช้ได้ร้อยสามสิบเก้าวัน", "นักดำน้ำขูดเพรียงออกในสัปดาห์ที่สิบหก"],
        ["ตู้สินค้ามีกี่ตู้", "แบตเตอรี่ใช้ได้กี่วัน", "ใครขูดเพรียง"],
    ),
}


@pytest.mark.parametrize("script", UNSPACED)
def test_scripts_without_spaces_are_found_by_pairs_of_characters(script: str) -> None:
    texts, queries = UNSPACED[script]
    assert [best(query, texts) for query in queries] == [0, 1, 2]


def test_words_with_combining_marks_stay_whole() -> None:
    [vectors] = LexicalEmbedder("hi").embed_pages([make_page("1", "हिन्दी", file_name="हिन्दी.pdf")])
    assert len(vectors) == 1


def test_another_language_has_its_own_stop_words_and_inflections() -> None:
    texts = ["Die Häfen der Stadt", "und der die das den"]
    assert best("der Hafen", texts, language="de") == 0
    assert LexicalEmbedder("de").fingerprint != LexicalEmbedder("en").fingerprint


def test_language_without_frequencies_is_refused_with_those_that_have_them() -> None:
    with pytest.raises(InvalidOptionError, match="'xx'; known are .*en"):
        LexicalEmbedder("xx")


@pytest.mark.slow
def test_vectors_are_the_same_in_another_process() -> None:
    code = (
        "from llama_index_colqwen import LexicalEmbedder\n"
        "import hashlib; v = LexicalEmbedder().embed_queries(['tidal gauge drift 1,234'])[0]\n"
        "print(hashlib.sha256(v.round(5).tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"})
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_threads_get_the_vectors_that_one_thread_gets() -> None:
    embedder = LexicalEmbedder()
    pages = [make_page(str(number), f"harbours running {number} cleaned cranes stationed") for number in range(64)]
    expected = embedder.embed_pages(pages)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(embedder.embed_pages, [pages] * 8):
            for one, other in zip(vectors, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@needs_fork
def test_fork_gets_the_vectors_that_the_parent_gets() -> None:
    embedder = LexicalEmbedder()
    (expected,) = embedder.embed_queries(["cleaned harbours"])
    (found,) = in_fork(lambda: embedder.embed_queries(["cleaned harbours"]))
    np.testing.assert_array_equal(found, expected)


def test_embedders_are_resolved_by_name_and_unknown_names_are_refused() -> None:
    assert isinstance(resolve_embedder("lexical"), LexicalEmbedder)
    german = LexicalEmbedder("de")
    assert resolve_embedder(german) is german
    assert resolve_embedder(german.fingerprint).fingerprint == german.fingerprint
    with pytest.raises(InvalidOptionError, match="no embedder 'colqwen9'"):
        resolve_embedder("colqwen9")
    with pytest.raises(InvalidOptionError, match="no embedder 'int'"):
        resolve_embedder(3)  # type: ignore[arg-type]
