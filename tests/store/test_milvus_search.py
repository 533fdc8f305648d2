"""The first stage in Milvus: pooled or all vectors, on Milvus Lite and on a real server."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_colqwen import (
    AnnIndex,
    FingerprintMismatchError,
    IgnoredParameterWarning,
    InvalidOptionError,
    LexicalEmbedder,
    MilvusPageStore,
    MultiVector,
)
from llama_index_colqwen.late_interaction.maxsim import rank
from llama_index_colqwen.store.milvus_search import MilvusSearch
from tests.fakes import make_page
from tests.late_interaction.test_centroids import DIM, topical_pages
from tests.store.test_lite_search import FINGERPRINT, page_id

PAGES = topical_pages(60)


@pytest.fixture(autouse=True)
def _small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_colqwen.store.milvus_search._EXACT_PAGES", 5)


def fill(store: MilvusPageStore, numbers: range) -> None:
    pages = [make_page(page_id(number), str(number), parity=number % 2) for number in numbers]
    store.add(pages, [PAGES[number] for number in numbers])


@pytest.fixture(scope="module", params=["file-8", "file-all", "milvus_server-8", "milvus_server-all"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusPageStore]:
    """Sixty pages, with eight pooled vectors a page or all sixty, in Milvus Lite and on a server."""
    folder = tmp_path_factory.mktemp("ann")
    where, number = request.param.split("-")
    uri = folder / "ann.db" if where == "file" else request.getfixturevalue(where)
    with MilvusPageStore(
        uri,
        collection_name=f"ann_{number}_{os.getpid()}",  # others may use the server at the same time
        candidate_vectors="all" if number == "all" else int(number),
        cache_dir=folder / "cache",
    ) as opened:
        opened.clear()
        opened.open(FINGERPRINT)
        fill(opened, range(60))
        yield opened
        opened.clear()


def best(store: MilvusPageStore, query: MultiVector, top_k: int, **options: Any) -> list[str]:  # noqa: ANN401
    return [page.page_id for page in rank(query, store.candidates(query, **options), top_k)]


def milvus_search(store: MilvusPageStore) -> MilvusSearch:
    search = store._require_open().search
    assert isinstance(search, MilvusSearch)
    return search


def candidate_rows(store: MilvusPageStore) -> list[dict[str, Any]]:
    return milvus_search(store)._table.scan(["page_id", "document_id", "sequence_id"])


def test_pages_have_numbered_rows_of_their_candidate_vectors(store: MilvusPageStore) -> None:
    number = 60 if "all" in store.collection_name else 8
    rows = [row for row in candidate_rows(store) if row["page_id"] == page_id(7)]
    assert sorted(row["sequence_id"] for row in rows) == list(range(number))
    assert {row["document_id"] for row in rows} == {"document"}


def test_the_page_of_a_query_is_found_among_few_candidates(store: MilvusPageStore) -> None:
    for source in (0, 23, 59):
        query = PAGES[source][:6]
        assert len(list(store.candidates(query, candidate_k=10))) == 10
        assert best(store, query, 1, candidate_k=10) == [page_id(source)]
        assert best(store, query, 60, exact=True)[0] == page_id(source)


def test_filters_reach_milvus_and_what_it_cannot_say_is_checked_after(store: MilvusPageStore) -> None:
    query = PAGES[23][:6]
    odd = MetadataFilter(key="parity", value=1)
    found = list(store.candidates(query, candidate_k=10, filters=MetadataFilters(filters=[odd])))
    assert len(found) == 10
    assert all(int(candidate.page_id.split()[1]) % 2 for candidate in found)
    not_even = MetadataFilter(key="parity", value=0, operator=FilterOperator.NE)
    found = list(store.candidates(query, candidate_k=10, filters=MetadataFilters(filters=[not_even])))
    assert len(found) == 10
    assert all(int(candidate.page_id.split()[1]) % 2 for candidate in found)
    rare = MetadataFilter(key="file_name", value="DOCUMENT", operator=FilterOperator.TEXT_MATCH_INSENSITIVE)
    both = MetadataFilters(filters=[rare, not_even])
    assert best(store, query, 1, candidate_k=10, filters=both) == [page_id(23)]
    nothing = MetadataFilters(filters=[MetadataFilter(key="absent", value="x", operator=FilterOperator.TEXT_MATCH)])
    assert list(store.candidates(query, filters=nothing)) == []


def test_changed_metadata_can_be_filtered_by_at_once(store: MilvusPageStore) -> None:
    store.update([make_page(page_id(23), "23", parity=1, mark="here")])
    marked = MetadataFilters(filters=[MetadataFilter(key="mark", value="here")])
    query = PAGES[23][:6]
    assert best(store, query, 5, filters=marked) == [page_id(23)]
    assert milvus_search(store).best(query, 20, 'metadata["mark"] == "here"') == [page_id(23)]


def test_changed_and_deleted_pages_leave_no_candidates(store: MilvusPageStore) -> None:
    store.add([make_page("extra", "one"), make_page("other", "one")], [PAGES[3], PAGES[4]])
    before = len([row for row in candidate_rows(store) if row["page_id"] == "extra"])
    store.add([make_page("extra", "two")], [PAGES[50]])
    assert len([row for row in candidate_rows(store) if row["page_id"] == "extra"]) == before
    assert "extra" in best(store, PAGES[50][:6], 2, candidate_k=10)
    store.delete(page_ids=["extra", "other"])
    assert {row["page_id"] for row in candidate_rows(store)} == {page_id(number) for number in range(60)}
    assert "extra" not in best(store, PAGES[50][:6], 60, candidate_k=10)


def test_more_hits_are_asked_for_until_there_are_enough_pages(store: MilvusPageStore) -> None:
    assert len(list(store.candidates(PAGES[3][:1], candidate_k=40))) >= 40


def test_options_are_checked_when_the_collection_is_opened_again(store: MilvusPageStore) -> None:
    for options in ({"candidate_vectors": 9}, {"ann_index": AnnIndex("FLAT", {})}, {"vector_dtype": "float16"}):
        other = MilvusPageStore(store.uri, collection_name=store.collection_name, **options)
        with pytest.raises(FingerprintMismatchError, match="was asked for: leave that out"):
            other.open(FINGERPRINT)
        other.close()
    again = MilvusPageStore(
        store.uri, collection_name=store.collection_name, ann_index=AnnIndex(search_params={"ef": 500})
    )
    again.open(FINGERPRINT)
    assert best(again, PAGES[23][:6], 1, candidate_k=10) == [page_id(23)]
    again.close()


def test_parameters_that_milvus_lite_ignores_are_said(tmp_path: Path) -> None:
    with MilvusPageStore(tmp_path / "said.db", ann_index=AnnIndex("HNSW", {"M": 32})) as store:
        with pytest.warns(IgnoredParameterWarning, match="ignores M of HNSW"):
            store.open(FINGERPRINT)


def test_parameters_that_a_server_takes_are_not_said(milvus_server: str, tmp_path: Path) -> None:
    ann_index = AnnIndex("HNSW", {"M": 32, "efConstruction": 100})
    name = f"ann_said_{os.getpid()}"
    with MilvusPageStore(milvus_server, collection_name=name, ann_index=ann_index, cache_dir=tmp_path) as store:
        store.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store.open(FINGERPRINT)
        described = store._connection.client.describe_index(f"{name}_candidates", "vector")
        assert (described["M"], described["efConstruction"]) == ("32", "100")
        assert "page_id" in store._connection.client.list_indexes(f"{name}_candidates")
        store.clear()


@pytest.mark.parametrize("number", [0, -1, "some", True, 1.5])
def test_numbers_of_candidates_that_make_no_sense_are_refused(number: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidOptionError, match="candidate_vectors"):
        MilvusPageStore(candidate_vectors=number)


def test_embedders_recommend_how_many_vectors_a_server_searches(lite_server: str, tmp_path: Path) -> None:
    for recommended, expected in ((LexicalEmbedder.candidate_vectors, "all"), (12, 12), (None, 128)):
        with MilvusPageStore(lite_server, collection_name="recommended", cache_dir=tmp_path) as store:
            store.clear()
            store.open(FINGERPRINT, recommended)
            assert store._require_open().description.candidate_vectors == expected
            store.clear()


@pytest.mark.slow
def test_vectors_of_a_page_with_many_are_pooled_piece_by_piece(tmp_path: Path) -> None:
    with MilvusPageStore(tmp_path / "many.db", candidate_vectors=16) as store:
        store.open(FINGERPRINT)
        store.add([make_page("long")], [np.resize(PAGES[0], (12_000, DIM))])
        assert len(candidate_rows(store)) == 16
