"""Synthetic pages -> CPU time and quality of pooling their tokens, beside colpali-engine's pooler and row means.

    OMP_NUM_THREADS=1 python benchmarks/pooling.py [--pages 40] [--queries 60] [--seed 0]

A page is a grid of 27 to 32 by 27 to 32 unit vectors of 128 dims: fourteen of 400 topics shared by all pages, mixed
smoothly over the grid, with noise of which a part is smooth too. A query is 25 tokens of one page with noise. "Kept" is
the median over queries of the page's MaxSim after pooling, as a share of its MaxSim before; recall@10 is the share of
the ten best pages before pooling that are among the ten best after. Times are medians over pages, in one thread.
Needs the extra `[colqwen]`. Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from colpali_engine.compression.token_pooling import HierarchicalTokenPooler
from rich.console import Console
from rich.table import Table

from llama_index_colqwen import MultiVector
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores
from llama_index_colqwen.late_interaction.pooling import pool_tokens

DIM = 128
TOPICS, TOPICS_A_PAGE = 400, 14
POOL_FACTORS = (2, 3, 4, 6)

Pool = Callable[[MultiVector, int], MultiVector]


def normal(vectors: npt.NDArray[np.floating]) -> MultiVector:
    """Scale vectors along the last axis to length 1."""
    unit: MultiVector = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def smooth(grids: npt.NDArray[np.float64], times: int) -> npt.NDArray[np.float64]:
    """Average every cell of (n, rows, columns) with its four neighbours, and scale to variance 1."""
    for _ in range(times):
        shifted = (np.roll(grids, step, axis) for step in (1, -1) for axis in (1, 2))
        grids = np.add.reduce([grids, *shifted]) / 5
    scaled: npt.NDArray[np.float64] = grids / grids.std()
    return scaled


def make_pages(number: int, random: np.random.Generator) -> list[MultiVector]:
    """Draw pages."""
    topics = normal(random.normal(size=(TOPICS, DIM)))
    pages = []
    for _ in range(number):
        rows, columns = random.integers(27, 33, size=2)
        weights = np.exp(3 * smooth(random.normal(size=(TOPICS_A_PAGE, rows, columns)), times=3))
        mixed = normal(np.moveaxis(weights, 0, -1) @ topics[random.choice(TOPICS, TOPICS_A_PAGE, replace=False)])
        near = np.moveaxis(smooth(random.normal(size=(DIM, rows, columns)), times=2), 0, -1)
        own = random.normal(size=mixed.shape)
        pages.append(normal(mixed + (0.6 * near + 0.35 * own) / np.sqrt(DIM)).reshape(-1, DIM))
    return pages


def make_queries(
    pages: Sequence[MultiVector], number: int, random: np.random.Generator
) -> tuple[list[MultiVector], list[int]]:
    """Draw queries, each with the number of its page."""
    sources = random.integers(len(pages), size=number).tolist()
    tokens = [pages[source][random.integers(len(pages[source]), size=25)] for source in sources]
    return [normal(near + 0.8 * random.normal(size=near.shape) / np.sqrt(DIM)) for near in tokens], sources


def pool_hierarchically(vectors: MultiVector, pool_factor: int) -> MultiVector:
    """Pool with colpali-engine."""
    pooled = HierarchicalTokenPooler().pool_embeddings([torch.from_numpy(vectors)], pool_factor=pool_factor)
    rows: MultiVector = pooled[0].numpy()
    return rows


def pool_consecutively(vectors: MultiVector, pool_factor: int) -> MultiVector:
    """Take the mean of every `pool_factor` rows as they come."""
    number = max(len(vectors) // pool_factor, 1)
    return normal(np.add.reduceat(vectors, np.arange(number) * len(vectors) // number, axis=0))


METHODS: dict[str, Pool] = {
    "pool_tokens": pool_tokens,
    "HierarchicalTokenPooler": pool_hierarchically,
    "mean of consecutive rows": pool_consecutively,
}


def timed(pool: Pool, pages: Sequence[MultiVector], pool_factor: int) -> tuple[list[MultiVector], float]:
    """Pool all pages; return them and the median CPU milliseconds a page."""
    pooled, milliseconds = [], []
    for page in pages:
        started = time.process_time()
        pooled.append(pool(page, pool_factor))
        milliseconds.append((time.process_time() - started) * 1e3)
    return pooled, float(np.median(milliseconds))


def score(queries: Sequence[MultiVector], pages: Sequence[MultiVector]) -> npt.NDArray[np.float32]:
    """Score all pages for all queries; shape (queries, pages)."""
    return np.stack([maxsim_scores(query, pages) for query in queries])


def recall(exact: npt.NDArray[np.float32], scores: npt.NDArray[np.float32], k: int = 10) -> float:
    """Average over queries the share of the exact k best that are among the k best."""
    best, found = np.argsort(-exact, axis=1)[:, :k], np.argsort(-scores, axis=1)[:, :k]
    return float(np.mean([len(set(one) & set(other)) / k for one, other in zip(best, found, strict=True)]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--queries", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)

    torch.set_num_threads(1)
    random = np.random.default_rng(arguments.seed)
    pages = make_pages(arguments.pages, random)
    queries, sources = make_queries(pages, arguments.queries, random)
    exact = score(queries, pages)
    own = np.arange(len(queries)), sources

    table = Table("factor", "method", "vectors a page", "CPU ms a page", "kept", "recall@10")
    figures: dict[str, dict[int, dict[str, float]]] = {name: {} for name in METHODS}
    for pool_factor in POOL_FACTORS:
        for name, pool in METHODS.items():
            pooled, milliseconds = timed(pool, pages, pool_factor)
            scores = score(queries, pooled)
            kept, found = float(np.median(scores[own] / exact[own])), recall(exact, scores)
            vectors = float(np.median([len(page) for page in pooled]))
            table.add_row(
                str(pool_factor), name, f"{vectors:.0f}", f"{milliseconds:.2f}", f"{kept:.4f}", f"{found:.3f}"
            )
            figures[name][pool_factor] = {
                "ms": round(milliseconds, 2),
                "kept": round(kept, 4),
                "recall@10": round(found, 4),
            }
    Console(width=110).print(table)
    print(json.dumps({"pages": len(pages), "queries": len(queries), **figures}))  # noqa: T201 - the result
    return 0


if __name__ == "__main__":
    sys.exit(main())
