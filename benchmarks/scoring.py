"""Pages of ColQwen2's size, kept as int8 -> how long numpy and a torch device take to score them exactly.

    python -m benchmarks.scoring [--pages 100 1000] [--device cuda]

Random unit vectors: 865 a page, 128 dims, 25 of a query; medians of `--rounds`, in turns, with what it takes to bring
the pages to the device. Prints a line each and, last, one JSON line; scores that differ by more than .02 (which a
kernel's TF32 stays below) end it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial

import numpy as np

from llama_index_colqwen.embedders.scoring import maxsim_on_device
from llama_index_colqwen.late_interaction.maxsim import Scorer, maxsim_scores
from llama_index_colqwen.late_interaction.multivectors import MultiVector, encode_vectors


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    random = np.random.default_rng(0)

    def unit(rows: int) -> MultiVector:
        drawn = random.standard_normal((rows, 128), np.float32)
        unit_rows: MultiVector = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return unit_rows

    query = unit(25)
    pages = [encode_vectors(unit(865), "int8") for _ in range(max(options.pages))]
    ways: dict[str, Scorer] = {"numpy": maxsim_scores, options.device: partial(maxsim_on_device, device=options.device)}
    figures: dict[str, dict[str, float]] = {}
    for number in options.pages:
        some = pages[:number]
        expected, found = (score(query, some) for score in ways.values())
        np.testing.assert_allclose(found, expected, atol=0.02)
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, score in ways.items():
                started = time.perf_counter()
                score(query, some)
                took[name].append(1000 * (time.perf_counter() - started))
        figures[str(number)] = {name: round(statistics.median(times), 1) for name, times in took.items()}
        print(f"{number} pages, ms:", figures[str(number)])  # noqa: T201
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
