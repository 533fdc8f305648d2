from __future__ import annotations

import numpy as np
import pytest

from llama_index_colqwen import MultiVector
from llama_index_colqwen.late_interaction.centroids import CentroidLists, Centroids, number_of_centroids
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores
from tests.fakes import unit_rows

DIM = 16


def topical_pages(number: int, seed: int = 0) -> list[MultiVector]:
    """Pages whose vectors lie near some of 200 centres."""
    random = np.random.default_rng(seed)
    centres = unit_rows(12345, 200, dim=DIM)
    pages = []
    for _ in range(number):
        chosen = centres[random.choice(200, 12, replace=False)[random.integers(12, size=60)]]
        noisy = (chosen + 0.05 * random.normal(size=chosen.shape)).astype(np.float32)
        pages.append(noisy / np.linalg.norm(noisy, axis=1, keepdims=True))
    return pages


def trained(pages: list[MultiVector]) -> Centroids:
    sample = np.concatenate(pages)
    return Centroids.train(sample[np.random.default_rng(0).permutation(len(sample))], number_of_centroids(len(sample)))


@pytest.fixture(scope="module")
def pages() -> list[MultiVector]:
    return topical_pages(600)


@pytest.fixture(scope="module")
def centroids(pages: list[MultiVector]) -> Centroids:
    return trained(pages)


def lists_of(pages: list[MultiVector], centroids: Centroids) -> CentroidLists:
    lists = CentroidLists(centroids)
    for number, ids in enumerate(centroids.assign(pages)):
        lists.add(f"{number:04d}", ids)
    return lists


def scores_by_hand(lists: CentroidLists, query: MultiVector) -> dict[str, float]:
    """What the lists say, without visiting only some of them."""
    similarities = lists.centroids.similarities(query)
    return {page_id: float(similarities[:, ids].max(axis=1).sum()) for page_id, ids in lists.pages().items()}


@pytest.mark.slow
def test_centroids_are_unit_vectors_and_repeatable(pages: list[MultiVector], centroids: Centroids) -> None:
    again = trained(pages)
    np.testing.assert_array_equal(centroids.fine, again.fine)
    np.testing.assert_allclose(np.linalg.norm(centroids.fine, axis=2), 1, atol=1e-5)
    assert 0.7 < len(centroids) / number_of_centroids(36_000) < 1.3


def test_assigned_centroid_is_the_nearest_of_the_nearest_cell(pages: list[MultiVector], centroids: Centroids) -> None:
    page = pages[7]
    cells = (page @ centroids.coarse.T).argmax(axis=1)
    a_cell = centroids.fine.shape[1]
    expected = {
        cell * a_cell + int((vector @ centroids.fine[cell].T).argmax())
        for vector, cell in zip(page, cells, strict=True)
    }
    [ids] = centroids.assign([page])
    assert ids.tolist() == sorted(expected)


def test_pages_assigned_together_are_assigned_as_each_alone(pages: list[MultiVector], centroids: Centroids) -> None:
    together = centroids.assign(pages[:9])
    for page, ids in zip(pages[:9], together, strict=True):
        np.testing.assert_array_equal(centroids.assign([page])[0], ids)


def test_the_page_of_a_query_is_first_and_the_best_are_among_the_candidates(
    pages: list[MultiVector], centroids: Centroids
) -> None:
    lists = lists_of(pages, centroids)
    random = np.random.default_rng(3)
    shares = []
    for source in random.choice(600, 20, replace=False):
        query = pages[source][random.choice(60, 10, replace=False)]
        exact = np.argsort(-maxsim_scores(query, pages))[:10]
        found = [int(page_id) for page_id in lists.best(query, 60)]
        assert source in found[:3]
        shares.append(len(set(exact) & set(found)) / 10)
    assert np.mean(shares) > 0.95


def test_visiting_all_centroids_scores_pages_by_their_nearest(
    pages: list[MultiVector], centroids: Centroids, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = lists_of(pages, centroids)
    query = pages[11][:8]
    few = lists.best(query, 600)
    monkeypatch.setattr("llama_index_colqwen.late_interaction.centroids._VISITED", 1_000_000)
    scores = scores_by_hand(lists, query)
    ranked = [scores[page_id] for page_id in lists.best(query, 600)]
    np.testing.assert_allclose(ranked, sorted(scores.values(), reverse=True), atol=1e-5)
    assert len(set(few[:20]) & set(lists.best(query, 20))) >= 8


def test_only_allowed_pages_are_returned_however_far_they_are(pages: list[MultiVector], centroids: Centroids) -> None:
    lists = lists_of(pages, centroids)
    allowed = ["0500", "0003", "0077", "absent"]
    assert set(lists.best(pages[11][:8], 10, allowed)) == {"0500", "0003", "0077"}
    assert lists.best(pages[11][:8], 2, ["0003", "0011"])[0] == "0011"
    assert lists.best(pages[11][:8], 2, []) == []


def test_asking_for_more_than_there_are_gives_all(pages: list[MultiVector], centroids: Centroids) -> None:
    lists = lists_of(pages[:5], centroids)
    assert sorted(lists.best(pages[0], 100)) == [f"{number:04d}" for number in range(5)]
    assert CentroidLists(centroids).best(pages[0], 3) == []


def test_changes_are_seen_at_once_and_gaps_close(pages: list[MultiVector], centroids: Centroids) -> None:
    lists = lists_of(pages, centroids)
    query = pages[11][:8]
    assert lists.best(query, 1) == ["0011"]
    lists.remove("0011")
    assert "0011" not in lists.best(query, 600)
    lists.add("new", centroids.assign([pages[11]])[0])
    assert lists.best(query, 1) == ["new"]
    lists.add("new", centroids.assign([pages[50]])[0])
    assert lists.best(query, 1) != ["new"]
    for _ in range(3):
        for number in range(600):
            lists.add(f"{number:04d}", centroids.assign([pages[number]])[0])
    assert lists.best(query, 1) == ["0011"]
    assert len(lists) == 601
    assert len(lists._page_ids) < 2 * 601 + 1000


def test_few_or_equal_vectors_can_be_trained_on() -> None:
    same = np.repeat(unit_rows(0, 1, dim=DIM), 50, axis=0)
    [ids] = Centroids.train(same, 64).assign([same])
    assert len(ids) == 1
    opposite = np.concatenate([same, -same])
    assert np.isfinite(Centroids.train(opposite, 64).fine).all()
