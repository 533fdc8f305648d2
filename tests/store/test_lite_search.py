"""What a Milvus Lite collection large enough for a first stage does; the store's contract is in test_store."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen import EmbedderFingerprint, InvalidOptionError, MilvusPageStore, MultiVector
from llama_index_colqwen.late_interaction.maxsim import maxsim, rank
from llama_index_colqwen.store.lite_search import LiteSearch
from llama_index_colqwen.store.table import MilvusTable
from tests.fakes import make_page
from tests.late_interaction.test_centroids import DIM, topical_pages

FINGERPRINT = EmbedderFingerprint("topical", "1", DIM)
PAGES = topical_pages(200)


def use_small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a first stage from fifty pages on, and a collection of vectors for every forty."""
    monkeypatch.setattr("llama_index_colqwen.store.lite_search._EXACT_VECTORS", 3000 * DIM / 128)
    monkeypatch.setattr("llama_index_colqwen.store.lite_search._PAGE_VECTORS", 0)
    monkeypatch.setattr("llama_index_colqwen.store.vector_shards._SHARD_PAGES", 40)


@pytest.fixture(autouse=True)
def _small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_numbers(monkeypatch)


def page_id(number: int) -> str:
    return f"page {number:04d}"


def fill(store: MilvusPageStore, numbers: range, version: str = "") -> None:
    pages = [make_page(page_id(number), f"{version}{number}", parity=number % 2) for number in numbers]
    store.add(pages, [PAGES[number % len(PAGES)] for number in numbers])


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database of 200 pages and its cache, to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_numbers(monkeypatch)
        with MilvusPageStore(folder / "local.db") as opened:
            opened.open(FINGERPRINT)
            fill(opened, range(200))
    return folder


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Iterator[MilvusPageStore]:
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    with MilvusPageStore(tmp_path / "local.db") as opened:
        opened.open(FINGERPRINT)
        yield opened


def best(store: MilvusPageStore, query: MultiVector, top_k: int = 5, **options: Any) -> list[str]:  # noqa: ANN401
    return [page.page_id for page in rank(query, store.candidates(query, **options), top_k)]


def exact_best(query: MultiVector, numbers: range, top_k: int = 5) -> list[str]:
    scores = {page_id(number): maxsim(query, PAGES[number % len(PAGES)]) for number in numbers}
    return sorted(scores, key=lambda name: (-scores[name], name))[:top_k]


def reads_of_vectors(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which collections of vectors are loaded, as all are that are read or deleted from, from now on."""
    read: list[str] = []
    load = MilvusTable.load

    def noting(self: MilvusTable) -> None:
        if "_vectors" in self.name:
            read.append(self.name)
        load(self)

    monkeypatch.setattr(MilvusTable, "load", noting)
    return read


def local_search(store: MilvusPageStore) -> LiteSearch:
    search = store._require_open().search
    assert isinstance(search, LiteSearch)
    return search


def reopened(store: MilvusPageStore) -> MilvusPageStore:
    store.close()
    return MilvusPageStore(store.uri)


def test_first_stage_puts_few_pages_forward_and_the_right_ones(store: MilvusPageStore) -> None:
    for source in (0, 63, 199):
        query = PAGES[source][:6]
        candidates = list(store.candidates(query, candidate_k=20))
        assert len(candidates) == 20
        assert best(store, query, 1, candidate_k=20) == [page_id(source)]


def test_all_pages_as_candidates_give_the_exact_ranking(store: MilvusPageStore) -> None:
    query = PAGES[63][:6]
    exact = [page.page_id for page in rank(query, store.candidates(query, exact=True), 200)]
    assert exact == [page.page_id for page in rank(query, store.candidates(query, candidate_k=200), 200)]
    assert exact[0] == page_id(63)
    assert len(set(exact[:5]) & set(exact_best(query, range(200)))) >= 4  # int8 may exchange near equals


def test_filters_come_before_ranking_and_are_exact_where_they_leave_few(store: MilvusPageStore) -> None:
    query = PAGES[63][:6]
    even = MetadataFilters(filters=[MetadataFilter(key="parity", value=0)])
    found = list(store.candidates(query, candidate_k=20, filters=even))
    assert len(found) == 20
    assert all(int(candidate.page_id.split()[1]) % 2 == 0 for candidate in found)
    some = [page_id(number) for number in (5, 63, 120)]
    few = MetadataFilters(
        filters=[MetadataFilter(key="file_name", value="document.pdf"), MetadataFilter(key="parity", value=1)]
    )
    assert best(store, query, 1, candidate_k=20, filters=few) == [some[1]]
    none = MetadataFilters(filters=[MetadataFilter(key="parity", value=7, operator=FilterOperator.GT)])
    assert list(store.candidates(query, filters=none)) == []


def test_warm_cache_answers_without_reading_vectors_from_milvus(
    store: MilvusPageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = PAGES[63][:6]
    expected = best(store, query)
    read = reads_of_vectors(monkeypatch)
    with reopened(store) as again:
        assert best(again, query) == expected
        assert len(list(again.candidates(query, exact=True))) == 200
    assert read == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "truncated", "corrupt", "centroids corrupt", "centroids deleted"])
def test_damaged_cache_is_made_anew_from_milvus(
    store: MilvusPageStore, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = PAGES[63][:6]
    expected = best(store, query)
    store.close()
    for file in Path(store.uri).with_suffix(".cache").rglob("*.*"):
        if file.is_file() and (("centroids" in file.name) == ("centroids" in damage)):
            if "deleted" in damage:
                file.unlink()
            elif damage == "truncated":
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            else:
                data = bytearray(file.read_bytes())
                data[len(data) // 3 :: 1000] = bytes(len(data[len(data) // 3 :: 1000]))
                file.write_bytes(data)
    read = reads_of_vectors(monkeypatch)
    with MilvusPageStore(store.uri) as again:
        assert best(again, query) == expected
        exact = {candidate.page_id: candidate.vectors for candidate in again.candidates(query, exact=True)}
        assert len(exact) == 200
        for number in range(200):
            np.testing.assert_allclose(exact[page_id(number)], PAGES[number], atol=0.01)
    assert bool(read) == ("centroids" not in damage)
    read.clear()
    with MilvusPageStore(store.uri) as once_more:
        assert best(once_more, query) == expected
    assert read == []


def test_changes_are_found_at_once_and_after_reopening(store: MilvusPageStore) -> None:
    query = PAGES[63][:6]
    store.delete(page_ids=[page_id(63)])
    assert page_id(63) not in best(store, query, 200)
    store.add([make_page(page_id(5), "changed")], [PAGES[63]])
    assert best(store, query, 1, candidate_k=10) == [page_id(5)]
    with reopened(store) as again:
        assert best(again, query, 1, candidate_k=10) == [page_id(5)]
        assert page_id(63) not in best(again, query, 200)
        assert again.count() == 199


@pytest.mark.slow
def test_vectors_of_deleted_and_changed_pages_are_given_back(store: MilvusPageStore) -> None:
    def rows(opened: MilvusPageStore) -> int:
        tables = opened._require_open().vectors
        return sum(tables._table(shard).count() for shard in tables._shards())

    assert len(store._require_open().vectors.shards()) == 5
    store.delete(page_ids=[page_id(number) for number in range(0, 50)])
    fill(store, range(50, 60), version="new ")
    with reopened(store) as again:
        assert rows(again) == again.count() == 150
        again.delete(document_ids=["document"])
        assert again.count() == 0
    with MilvusPageStore(store.uri) as empty:
        assert rows(empty) == 0
        assert len(empty._require_open().vectors._shards()) <= 2  # the first, and the one that is written to
        fill(empty, range(30))
        assert best(empty, PAGES[7][:6], 1) == [page_id(7)]


def test_collection_that_was_being_closed_when_the_process_died_is_found(store: MilvusPageStore) -> None:
    client = store._connection.client
    client.rename_collection("pages_vectors_1", "pages_vectors_1_unloading")
    with reopened(store) as again:
        for file in Path(store.uri).with_suffix(".cache").rglob("*.*"):
            file.unlink()
        fill(again, range(200, 210))
        assert len(list(again.candidates(PAGES[0][:6], exact=True))) == 210


def test_centroids_are_trained_anew_as_the_collection_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_colqwen.store.lite_search._EXACT_VECTORS", 1500 * DIM / 128)
    sizes = []
    with MilvusPageStore(tmp_path / "grow.db") as growing:
        growing.open(FINGERPRINT)
        for start in range(0, 200, 20):
            fill(growing, range(start, start + 20))
            lists = local_search(growing)._lists
            sizes.append(0 if lists is None else len(lists.centroids))
            assert best(growing, PAGES[start][:6], 1, candidate_k=10) == [page_id(start)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 3


@pytest.mark.slow
def test_searching_goes_on_while_pages_are_written_and_centroids_trained(store: MilvusPageStore) -> None:
    query, stop, asked = PAGES[63][:6], threading.Event(), 0
    faults: list[BaseException] = []

    def search() -> None:
        nonlocal asked
        try:
            while not stop.is_set():
                found = best(store, query, 3, candidate_k=20)
                assert found[0] == page_id(63)
                asked += 1
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for start in range(200, 600, 40):
            numbers = [number for number in range(start, start + 40) if number % 200 != 63]
            pages = [make_page(page_id(number), str(number)) for number in numbers]
            store.add(pages, [PAGES[number % 200] for number in numbers])
        store.delete(page_ids=[page_id(number) for number in range(300, 400)])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert asked > 10


def test_searching_does_not_wait_for_whoever_writes(store: MilvusPageStore) -> None:
    """As while centroids are trained, which takes seconds."""
    assert best(store, PAGES[3][:6], 1) == [page_id(3)]
    search = local_search(store)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with search.changing():
            held.set()
            done.wait(60)

    writer = threading.Thread(target=hold)
    writer.start()
    assert held.wait(60)
    started = time.monotonic()
    found = best(store, PAGES[5][:6], 1)
    waited = time.monotonic() - started
    done.set()
    writer.join()
    assert found == [page_id(5)]
    assert waited < 30, "it waited for the writer"


def test_second_store_of_the_process_that_clears_is_noticed(store: MilvusPageStore) -> None:
    assert best(store, PAGES[3][:6], 1) == [page_id(3)]
    with MilvusPageStore(store.uri) as second:
        second.clear()
        second.open(FINGERPRINT)
        second.add([make_page("other", "other")], [PAGES[9]])
        assert best(store, PAGES[3][:6]) == ["other"]
    assert best(store, PAGES[3][:6]) == ["other"]


def test_deleting_a_page_takes_milliseconds(store: MilvusPageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of its vectors wait for the collection that has them to be read anyway, which takes much longer."""
    read = reads_of_vectors(monkeypatch)
    with reopened(store) as again:
        best(again, PAGES[3][:6])
        again.delete(page_ids=[page_id(3)])
        assert again.count() == 199
        assert read == []
    assert read == ["pages_vectors"]


@pytest.mark.parametrize("candidate_k", [0, -1])
def test_no_candidates_are_no_option(store: MilvusPageStore, candidate_k: int) -> None:
    with pytest.raises(InvalidOptionError, match="candidate_k"):
        store.candidates(PAGES[0], candidate_k=candidate_k)
