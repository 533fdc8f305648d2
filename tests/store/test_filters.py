from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen import EmbedderFingerprint, InvalidOptionError, MilvusPageStore
from llama_index_colqwen.store.filters import page_filter
from tests.fakes import make_page, unit_rows

VALUES: list[Any] = [
    1, 2, 1.5, -3, 10**17, "1", "abc", "Abc def", "", "ünï 頁", 'a"b\\c', "x' or 1 == 1 or '", "%_", "line\nbreak",
    True, None, [], ["a"], ["a", "b"], [1, "a"], [1.0, 2.0],
]  # fmt: skip
PAGES = [make_page(f"p{number:02d}", document_id="d", number=1, k=value) for number, value in enumerate(VALUES)]
PAGES.append(make_page("bare"))
PAGES.append(make_page("float", k=3.0))
ODD: dict[str, Any] = {'k"] == 1 or metadata["k': 1, "k": 5, "other": "abc", "control": "\x1f\x08\n\t\x0b"}
PAGES.append(make_page("odd", **ODD))


def leaf(operator: FilterOperator, value: Any = None, key: str = "k") -> MetadataFilter:  # noqa: ANN401
    return MetadataFilter(key=key, value=value, operator=operator)


def group(condition: FilterCondition, *parts: MetadataFilter | MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(parts), condition=condition)


def ids(*numbers: int) -> set[str]:
    return {PAGES[number].page_id for number in numbers}


def found_by(filters: MetadataFilters) -> set[str]:
    chosen = page_filter(filters)
    assert chosen is not None
    return {page.page_id for page in PAGES if chosen.matches(page.metadata)}


@pytest.mark.parametrize(
    ("operator", "value", "expected"),
    [
        (FilterOperator.EQ, 1, ids(0)),
        (FilterOperator.EQ, 1.5, ids(2)),
        (FilterOperator.EQ, 3, {"float"}),
        (FilterOperator.EQ, "1", ids(5)),
        (FilterOperator.GT, 1, ids(1, 2, 4) | {"odd", "float"}),
        (FilterOperator.GTE, 2, ids(1, 4) | {"odd", "float"}),
        (FilterOperator.LT, 1, ids(3)),
        (FilterOperator.LTE, 1.5, ids(0, 2, 3)),
        (FilterOperator.LT, "a", ids(5, 7, 8, 12)),
        (FilterOperator.IN, ["1", "abc"], ids(5, 6)),
        (FilterOperator.CONTAINS, "a", ids(17, 18, 19)),
        (FilterOperator.CONTAINS, 1, ids(19, 20)),
        (FilterOperator.ANY, ["b", "z"], ids(18)),
        (FilterOperator.ALL, ["a", "b"], ids(18)),
        (FilterOperator.TEXT_MATCH, "bc", ids(6, 7)),
        (FilterOperator.TEXT_MATCH_INSENSITIVE, "aBC", ids(6, 7)),
        (FilterOperator.IS_EMPTY, None, ids(8, 15, 16) | {"bare"}),
    ],
)
def test_each_operator_means_what_it_says(operator: FilterOperator, value: object, expected: set[str]) -> None:
    assert found_by(group(FilterCondition.AND, leaf(operator, value))) == expected


def test_missing_and_null_match_only_what_is_negative() -> None:
    for operator, value in ((FilterOperator.NE, 1), (FilterOperator.NIN, [1, 2])):
        found = found_by(group(FilterCondition.AND, leaf(operator, value)))
        assert {"bare", PAGES[15].page_id} <= found
        assert PAGES[0].page_id not in found


def test_groups_nest() -> None:
    number = group(FilterCondition.OR, leaf(FilterOperator.EQ, 1), leaf(FilterOperator.EQ, 2))
    assert found_by(number) == ids(0, 1)
    assert found_by(group(FilterCondition.AND, number, leaf(FilterOperator.GT, 1))) == ids(1)
    neither = group(FilterCondition.NOT, leaf(FilterOperator.EQ, 1), leaf(FilterOperator.EQ, 2))
    assert found_by(neither) == {page.page_id for page in PAGES} - ids(0, 1)


def test_no_filters_are_none() -> None:
    assert page_filter(None) is None
    assert page_filter(MetadataFilters(filters=[])) is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (leaf(FilterOperator.IN, "abc"), "takes a list"),
        (leaf(FilterOperator.ANY, []), "takes a list"),
        (leaf(FilterOperator.EQ, ["a"]), "one number or text"),
        (leaf(FilterOperator.GT, None), "one number or text"),
        (leaf(FilterOperator.TEXT_MATCH, 3), "takes a text"),
        (leaf(FilterOperator.EQ, float("nan")), "finite"),
        (leaf(FilterOperator.EQ, 2**70), "64 bits"),
        (MetadataFilters(filters=[]), "empty"),
    ],
)
def test_values_that_do_not_go_with_the_operator_are_named(part: MetadataFilter | MetadataFilters, words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        page_filter(group(FilterCondition.AND, part))


def test_endless_nesting_is_refused() -> None:
    nested = group(FilterCondition.AND, leaf(FilterOperator.EQ, 1))
    for _ in range(40):
        nested = group(FilterCondition.AND, nested)
    with pytest.raises(InvalidOptionError, match="32 deep"):
        page_filter(nested)


@pytest.fixture(scope="module", params=["file", "milvus_server"])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusPageStore]:
    """The pages above in Milvus."""
    folder = tmp_path_factory.mktemp("filters")
    uri = folder / "filters.db" if request.param == "file" else request.getfixturevalue("milvus_server")
    with MilvusPageStore(uri, collection_name=f"filters_{os.getpid()}", cache_dir=folder / "cache") as store:
        store.clear()
        store.open(EmbedderFingerprint("table", "1", 4))
        store.add(PAGES, [unit_rows(number, 2) for number, _ in enumerate(PAGES)])
        yield store
        store.clear()


def stored_matches(store: MilvusPageStore, filters: MetadataFilters) -> set[str]:
    candidates = store.candidates(unit_rows(0, 1), filters=filters, exact=True)
    return {candidate.page_id for candidate in candidates}


texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from([value for value in VALUES if isinstance(value, str)]),
    st.sampled_from(['" or true or "', '"] == 1 or metadata["k', "\\", '\\"', '") or (page_id != "', "' or 1==1 --"]),
).filter(lambda text: "\x00" not in text and text.isprintable() or "\n" in text)
numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(-1e6, 1e6), st.sampled_from([1, 2, 1.5, -3, 10**17, 1.0]))
scalars = st.one_of(texts, numbers)
lists = st.one_of(st.lists(texts, min_size=1, max_size=3), st.lists(st.integers(-3, 3), min_size=1, max_size=3))
keys = st.one_of(st.just("k"), st.just('k"] == 1 or metadata["k'), st.just("other"), texts.filter(bool))

leaves = st.one_of(
    st.builds(
        leaf,
        st.sampled_from(
            [
                FilterOperator.EQ,
                FilterOperator.NE,
                FilterOperator.GT,
                FilterOperator.GTE,
                FilterOperator.LT,
                FilterOperator.LTE,
                FilterOperator.CONTAINS,
            ]
        ),
        scalars,
        keys,
    ),
    st.builds(
        leaf,
        st.sampled_from([FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY, FilterOperator.ALL]),
        lists,
        keys,
    ),
    st.builds(leaf, st.sampled_from([FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE]), texts, keys),
    st.builds(leaf, st.just(FilterOperator.IS_EMPTY), st.none(), keys),
)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(group, st.sampled_from(list(FilterCondition)), inner, inner),
    max_leaves=5,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trees)
@example(leaf(FilterOperator.EQ, '" or page_id != "'))
@example(leaf(FilterOperator.EQ, "\x1f\x08\n\t\x0b", "control"))
@example(leaf(FilterOperator.CONTAINS, 1))
@example(leaf(FilterOperator.ALL, [1, 2]))
@example(leaf(FilterOperator.EQ, 3))
@example(leaf(FilterOperator.IN, [3, 4]))
@example(leaf(FilterOperator.EQ, 1, 'k"] == 1 or metadata["k'))
@example(leaf(FilterOperator.IN, [f"value {number}" for number in range(200)]))
def test_milvus_keeps_exactly_the_pages_that_match(
    pages: MilvusPageStore, part: MetadataFilter | MetadataFilters
) -> None:
    """No literal breaks out of its quotes, and no engine's own idea of null or types gets through."""
    filters = group(FilterCondition.AND, part)
    assert stored_matches(pages, filters) == found_by(filters)


def test_what_all_engines_agree_on_is_asked_of_milvus() -> None:
    """So that a server reads the pages that match, and not all."""
    parts = group(
        FilterCondition.AND,
        leaf(FilterOperator.EQ, 'a"b'),
        leaf(FilterOperator.NE, 3),
        group(FilterCondition.OR, leaf(FilterOperator.GT, 1), leaf(FilterOperator.IN, [4, 5])),
        group(FilterCondition.OR, leaf(FilterOperator.GT, 1), leaf(FilterOperator.TEXT_MATCH, "x")),
    )
    chosen = page_filter(parts)
    assert chosen is not None
    field = 'metadata["k"]'
    assert chosen.expression == (
        f"({field} == {json.dumps('a' + chr(34) + 'b')} and ({field} > 1 or ({field} == 4 or {field} == 5)))"
    )


def test_deleting_and_counting_by_filter(tmp_path: Path) -> None:
    with MilvusPageStore(tmp_path / "delete.db") as store:
        store.open(EmbedderFingerprint("table", "1", 4))
        store.add(PAGES, [unit_rows(number, 2) for number, _ in enumerate(PAGES)])
        numeric = group(FilterCondition.AND, leaf(FilterOperator.GT, -100))
        assert store.count(numeric) == 7
        assert store.delete(filters=numeric) == 7
        assert store.count() == len(PAGES) - 7
        assert stored_matches(store, numeric) == set()
