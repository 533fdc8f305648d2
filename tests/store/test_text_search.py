"""Pages by their words: from the text that Milvus keeps, following what changes, in files and on servers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen import EmbedderFingerprint, InvalidOptionError, LexicalEmbedder, MilvusPageStore, Page
from llama_index_colqwen.store import text_search
from llama_index_colqwen.store.text_search import TextRanking
from tests.fakes import make_page, unit_rows

FINGERPRINT = EmbedderFingerprint("table", "1", 4)
WORDS = LexicalEmbedder()


@pytest.fixture(params=["file", "file_with_ann", "lite_server", "milvus_server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MilvusPageStore]:
    uri = request.getfixturevalue(request.param) if "server" in request.param else tmp_path / "texts.db"
    candidate_vectors = 2 if request.param == "file_with_ann" else None
    name = f"texts_{os.getpid()}"
    with MilvusPageStore(
        uri, collection_name=name, candidate_vectors=candidate_vectors, cache_dir=tmp_path / "cache"
    ) as opened:
        opened.open(FINGERPRINT)
        opened.delete(page_ids=opened.page_ids())
        yield opened


@pytest.fixture
def local_store(tmp_path: Path) -> Iterator[MilvusPageStore]:
    with MilvusPageStore(tmp_path / "texts.db") as opened:
        opened.open(FINGERPRINT)
        yield opened


def add(store: MilvusPageStore, *pages: Page) -> None:
    store.add(pages, [unit_rows(number, 2) for number in range(len(pages))])


def ranked(store: MilvusPageStore, *queries: str, filters: MetadataFilters | None = None) -> TextRanking:
    return store.rank_texts(queries, WORDS, 10, filters)


def found(store: MilvusPageStore, *queries: str, filters: MetadataFilters | None = None) -> list[str]:
    return [page.page_id for page in ranked(store, *queries, filters=filters).pages]


def test_only_pages_with_a_word_are_found_best_first(store: MilvusPageStore) -> None:
    add(store, make_page("a", "sensor drift and more"), make_page("b", "sensors drifting"), make_page("c", "salt"))
    assert found(store, "Which sensor drifts?") == ["b", "a"]
    assert found(store, "salt") == ["c"]


def test_what_this_process_writes_is_seen_at_once(store: MilvusPageStore) -> None:
    add(store, make_page("a", "turbine"), make_page("b", "harbour"))
    assert found(store, "turbine") == ["a"]
    add(store, make_page("a", "glacier"), make_page("c", "turbine"))
    assert (found(store, "turbine"), found(store, "glacier")) == (["c"], ["a"])
    store.delete(page_ids=["c"])
    assert found(store, "turbine") == []
    page = store.get(["b"])[0]
    node = {**page.node, "metadata": {**page.metadata, "section": "Turbines"}}
    store.update([replace(page, node=node)])
    assert found(store, "turbine") == ["b"]


def test_a_cleared_collection_is_empty(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "turbine"))
    assert found(local_store, "turbine") == ["a"]
    local_store.clear()
    local_store.open(FINGERPRINT)
    assert ranked(local_store, "turbine").stored_pages == 0
    add(local_store, make_page("b", "turbine"))
    assert found(local_store, "turbine") == ["b"]


def test_what_others_write_on_a_server_is_seen_a_moment_later(
    lite_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_search, "_LOOK_SECONDS", 3600.0)
    name = f"texts_of_others_{os.getpid()}"
    with MilvusPageStore(lite_server, collection_name=name, cache_dir=tmp_path) as store:
        store.open(FINGERPRINT)
        add(store, make_page("a", "turbine"), make_page("b", "turbine"))
        assert found(store, "turbine") == ["a", "b"]
        store._pages.remove(["a"])  # beneath what takes note of this process's changes
        assert found(store, "turbine") == ["a", "b"]
        texts = store._require_open().texts
        texts._look_again = 0.0
        assert found(store, "turbine") == ["b"]
        store.clear()


def test_stores_of_one_file_share_the_index_and_see_each_others_writes(tmp_path: Path) -> None:
    with MilvusPageStore(tmp_path / "texts.db") as one, MilvusPageStore(tmp_path / "texts.db") as other:
        one.open(FINGERPRINT)
        other.open(FINGERPRINT)
        add(one, make_page("a", "turbine"))
        assert found(other, "turbine") == ["a"]
        add(other, make_page("b", "turbine"))
        assert found(one, "turbine") == ["a", "b"]
        assert one._require_open().texts is other._require_open().texts


def test_texts_are_read_once_and_changed_ones_again(
    local_store: MilvusPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    class Noting(LexicalEmbedder):
        def count_words(self, pages):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            for page in pages:
                counted.append(page.page_id)
                yield from super().count_words([page])

    words = Noting()
    add(local_store, *(make_page(name, f"turbine {name}") for name in ("a", "b", "c")))
    for _ in range(3):
        local_store.rank_texts(["turbine"], words, 10)
    assert sorted(counted) == ["a", "b", "c"]
    add(local_store, make_page("b", "harbour"))
    local_store.rank_texts(["turbine"], words, 10)
    assert counted[3:] == ["b"]


def test_another_language_counts_the_words_anew(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "Sensoren im Hafen"))
    assert local_store.rank_texts(["Sensor"], LexicalEmbedder("de"), 10).pages
    assert not ranked(local_store, "Sensor").pages
    assert local_store.rank_texts(["Sensor"], LexicalEmbedder("de"), 10).pages


def test_words_of_chinese_and_of_file_names_are_found(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "盐雾试验的结果"), make_page("b", "salt", document_id="annual-report_2023"))
    assert found(local_store, "试验") == ["a"]
    assert found(local_store, "the 2023 report") == ["b"]


def test_words_of_all_queries_count(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "turbine"), make_page("b", "glacier"), make_page("c", "glacier"))
    assert found(local_store, "turbine", "glacier") == ["a", "b", "c"]
    twice, once = ranked(local_store, "turbine", "turbine"), ranked(local_store, "turbine turbines")
    assert twice.pages[0].score == pytest.approx(2 * once.pages[0].score)


def test_equal_scores_go_by_page_id(local_store: MilvusPageStore) -> None:
    add(local_store, *(make_page(name, "turbine") for name in ("c", "a", "b")))
    assert found(local_store, "turbine") == ["a", "b", "c"]


def test_filters_are_exact_and_come_before_the_cut(store: MilvusPageStore) -> None:
    add(store, *(make_page(f"{number:02}", f"turbine {'more ' * number}", kind=number % 7) for number in range(40)))

    def first(filters: MetadataFilters) -> list[str]:
        return [page.page_id for page in store.rank_texts(["turbine"], WORDS, 2, filters).pages]

    def only(operator: FilterOperator, value: int | list[int]) -> MetadataFilters:
        return MetadataFilters(filters=[MetadataFilter(key="kind", value=value, operator=operator)])

    assert first(only(FilterOperator.EQ, 0)) == ["00", "07"]
    assert first(only(FilterOperator.NE, 0)) == ["01", "02"]
    assert first(only(FilterOperator.GTE, 5)) == ["05", "06"]
    assert first(only(FilterOperator.NIN, [0, 1, 2, 3, 4])) == ["05", "06"]
    both = MetadataFilters(
        filters=[only(FilterOperator.EQ, 3), MetadataFilter(key="file_name", value="other.pdf")],
        condition=FilterCondition.OR,
    )
    assert first(both) == ["03", "10"]
    assert first(MetadataFilters(filters=[MetadataFilter(key="kind", value=99)])) == []


def test_a_filter_that_keeps_only_the_last_pages_finds_them(local_store: MilvusPageStore) -> None:
    add(
        local_store,
        *(make_page(f"{number:02}", f"turbine {'word ' * number}", last=str(number >= 38)) for number in range(40)),
    )
    filters = MetadataFilters(filters=[MetadataFilter(key="last", value="True")])
    assert [page.page_id for page in local_store.rank_texts(["turbine"], WORDS, 2, filters).pages] == ["38", "39"]


def test_words_that_no_page_has_find_none(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "turbine and the harbour"))
    for query in ("zeppelin", "and the of"):
        ranking = ranked(local_store, query)
        assert (ranking.pages, ranking.has_text, ranking.has_words) == ([], True, True)
    assert not ranked(local_store, "?!").has_words


def test_pages_without_text_are_said_and_not_found(
    local_store: MilvusPageStore, caplog: pytest.LogCaptureFixture
) -> None:
    add(local_store, make_page("a", "", document_id="turbine"), make_page("b", ""))
    with caplog.at_level(logging.WARNING):
        ranking = ranked(local_store, "turbine")
        assert not ranked(local_store, "turbine").pages
    assert (ranking.pages, ranking.has_text, ranking.stored_pages) == ([], False, 2)
    assert [record.message for record in caplog.records] == [
        "None of the 2 pages of collection 'pages' has text: they are not found by their words."
    ]
    add(local_store, make_page("c", "turbine"))
    assert found(local_store, "turbine") == ["c"]


def test_top_k_below_one_is_refused(local_store: MilvusPageStore) -> None:
    with pytest.raises(InvalidOptionError, match="top_k is a whole number"):
        local_store.rank_texts(["turbine"], WORDS, 0)


def test_threads_ask_while_others_write(local_store: MilvusPageStore) -> None:
    add(local_store, *(make_page(f"{number}", f"turbine {number}") for number in range(10)))
    wrong: list[object] = []

    def ask() -> None:
        try:
            for _ in range(30):
                pages = ranked(local_store, "turbine").pages
                if len(pages) < 10 or not all(np.isfinite(page.score) for page in pages):
                    wrong.append(pages)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(10, 20):
        add(local_store, make_page(f"x{number}", f"turbine {number}"))
    for thread in threads:
        thread.join()
    assert not wrong
    assert found(local_store, "15") == ["x15"]


async def test_asynchronously_the_same(local_store: MilvusPageStore) -> None:
    add(local_store, make_page("a", "turbine"), make_page("b", "turbine harbour"))
    assert await local_store.arank_texts(["turbine"], WORDS, 10) == ranked(local_store, "turbine")
