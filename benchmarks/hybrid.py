"""Pages of random words -> what searching their text takes: making the index, following a change, a query, memory.

    python benchmarks/hybrid.py [--pages 10000] [--words 250]

Words are drawn by Zipf's law from 50,000, by a fixed seed. The index of texts is compared with bm25s's over the same
words. Seconds and milliseconds are of CPU; memory is what the process has more of afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bm25s
import numpy as np

from llama_index_colqwen import EmbedderFingerprint, LexicalEmbedder, MilvusPageStore, Page

DIM, VOCABULARY, QUERIES = 8, 50_000, 100


def draw_texts(pages: int, words: int) -> list[str]:
    """Draw texts."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(["".join(random.choice(letters, random.integers(3, 11))) for _ in range(VOCABULARY)])
    shares = 1 / np.arange(1, VOCABULARY + 1)
    return [" ".join(random.choice(vocabulary, words, p=shares / shares.sum())) for _ in range(pages)]


def make_page(number: int, text: str) -> Page:
    """Make a page, fifty to a file."""
    name = f"file {number // 50}.pdf"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Page(f"{number:06d}", name, name, number % 50 + 1, text, content_hash=sha256, node={"text": text})


def resident() -> int:
    """Return how much memory the process has, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextmanager
def measured(what: str, times: int = 1) -> Iterator[None]:
    """Print what something takes."""
    before, started = resident(), time.process_time()
    yield
    took = (time.process_time() - started) / times
    grown = (resident() - before) / 1e6
    sys.stdout.write(f"{what}: {took:.2f} s, {took * 1e3:.1f} ms; {grown:+.0f} MB\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=250)
    arguments = parser.parse_args()

    texts = draw_texts(arguments.pages, arguments.words)
    pages = [make_page(number, text) for number, text in enumerate(texts)]
    vectors = np.eye(1, DIM, dtype=np.float32)
    words = LexicalEmbedder()
    queries = [" ".join(text.split()[:8]) for text in texts[:: max(1, len(texts) // QUERIES)]]
    words.query_words("what a process reads once")
    with tempfile.TemporaryDirectory() as folder, MilvusPageStore(Path(folder) / "texts.db") as store:
        store.open(EmbedderFingerprint("random", "1", DIM))
        store.add(pages, [vectors] * len(pages))
        store.page_ids()
        with measured("the first query, which makes the index"):
            store.rank_texts(queries[:1], words, 10)
        with measured(f"a query of 8 words ({len(queries)} of them)", len(queries)):
            for query in queries:
                store.rank_texts([query], words, 10)
        store.add([make_page(0, "changed")], [vectors])
        with measured("the first query after a change"):
            store.rank_texts(queries[:1], words, 10)
        split = [list(counts) for counts, _ in words.count_words(pages)]
        with measured("bm25s's index of the same words"):
            bm25s.BM25().index(split, show_progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    sys.stdout.write(f"peak of the process: {peak:.0f} MB\n")


if __name__ == "__main__":
    main()
