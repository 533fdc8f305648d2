from __future__ import annotations

from math import log2

import pytest

pytest.importorskip("pytrec_eval", reason="the [evaluate] extra is not installed")
from llama_index_colqwen.errors import InvalidOptionError
from llama_index_colqwen.evaluation.figures import Figure, measure, summarise


def test_measures_are_what_they_are_by_hand() -> None:
    right = {"first": {"a"}, "second": {"b"}, "two": {"a", "c"}, "missed": {"z"}, "nothing": {"a"}}
    found = {name: ["a", "b", "c"] for name in right} | {"nothing": []}
    values = measure(right, found, ["hit@1", "hit@2", "ndcg@2", "ndcg@5", "recall@1", "recall@5"])
    assert values["hit@1"] == {"first": 1, "second": 0, "two": 1, "missed": 0, "nothing": 0}
    assert values["hit@2"] == {"first": 1, "second": 1, "two": 1, "missed": 0, "nothing": 0}
    assert values["recall@1"] == {"first": 1, "second": 0, "two": 0.5, "missed": 0, "nothing": 0}
    assert values["recall@5"] == {"first": 1, "second": 1, "two": 1, "missed": 0, "nothing": 0}
    ideal = 1 + 1 / log2(3)  # of two right pages
    second = 1 / log2(3)
    assert values["ndcg@2"] == pytest.approx(
        {"first": 1, "second": second, "two": 1 / ideal, "missed": 0, "nothing": 0}
    )
    assert values["ndcg@5"] == pytest.approx(
        {"first": 1, "second": second, "two": (1 + 1 / log2(4)) / ideal, "missed": 0, "nothing": 0}
    )


def test_the_order_is_kept_however_pages_are_called() -> None:
    for names in (["a", "b"], ["b", "a"]):
        assert measure({"q": {names[0]}}, {"q": names}, ["hit@1"]) == {"hit@1": {"q": 1.0}}


@pytest.mark.parametrize("name", ["ndcg", "ndcg@0", "ndcg@1001", "mrr@5", "ndcg@5.", "ndcg@-1", "NDCG@5", ""])
def test_a_measure_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidOptionError, match="Measures are hit@k, ndcg@k and recall@k, with k from 1 to 1000"):
        measure({"q": {"a"}}, {"q": ["a"]}, [name])


def test_intervals_are_those_of_the_mean() -> None:
    assert summarise({"a": 0.5, "b": 0.5}.values()) == Figure(0.5, 0.5, 0.5)
    # 100 answers, half of them right: the mean's standard error is .05, and 1.96 of them are .098.
    figure = summarise({str(number): float(number % 2) for number in range(100)}.values())
    assert figure.mean == 0.5
    assert figure.low == pytest.approx(0.402, abs=0.02)
    assert figure.high == pytest.approx(0.598, abs=0.02)
    assert str(Figure(0.8526, 0.7, 1.0)) == ".853 [.70, 1.00]"
    assert str(Figure(-0.05, -0.123, 0.0)) == "-.050 [-.12, .00]"
