from __future__ import annotations

import pytest

from llama_index_colqwen import InvalidOptionError
from llama_index_colqwen.cli.filters import choose_pages
from llama_index_colqwen.store.filters import page_filter

METADATA = {
    "file_name": "report.pdf",
    "page_number": 3,
    "page_label": "3",
    "price": 2.5,
    "author": "Ann Lee",
    "tags": ["tide", "salt", 7],
    "key words": "a==b",
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("page_number==3", True),
        ("page_number=4", False),
        ("page_number != 3", False),
        ("page_number!=4", True),
        ("page_label=3", True),
        ("page_label!=3", False),
        ("page_number>=3", True),
        ("page_number > 3", False),
        ("page_number<4", True),
        ("page_number<=2", False),
        ("price>2.4", True),
        ("price = 2.5", True),
        ("author=Ann Lee", True),
        ("author>=Ann", True),
        ("page_number in 1, 3", True),
        ("page_label in 1,3", True),
        ("page_label nin 1,3", False),
        ("author nin Ben,Cleo", True),
        ("tags contains tide", True),
        ("tags contains 7", True),
        ("tags contains fog", False),
        ("tags any fog,7", True),
        ("tags all tide,7", True),
        ("tags all tide,fog", False),
        ("author text_match Lee", True),
        ("author text_match lee", False),
        ("author text_match_insensitive lee", True),
        ("editor is_empty", True),
        ("author is_empty", False),
        ("key words=a==b", True),
        ("key words in a==b,c", True),
    ],
)
def test_conditions_are_the_stores_operators(condition: str, holds: bool) -> None:
    chosen = page_filter(choose_pages(None, [condition]))
    assert chosen is not None
    assert chosen.matches(METADATA) is holds


def test_any_of_the_files_and_all_of_the_conditions() -> None:
    def matches(files: list[str], *conditions: str) -> bool:
        chosen = page_filter(choose_pages(files, conditions))
        return chosen is None or chosen.matches(METADATA)

    assert matches([])
    assert matches(["other.pdf", "report.pdf"])
    assert not matches(["other.pdf"])
    assert matches(["report.pdf"], "page_number>1", "page_number<4")
    assert not matches(["report.pdf"], "page_number>1", "page_number<2")


@pytest.mark.parametrize("condition", ["", "page_number", "page_number>=", "==3", "author is_empty yes", "inside"])
def test_what_is_no_condition_is_said(condition: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"A filter is a key, an operator \(== .*got "):
        choose_pages(None, [condition])
