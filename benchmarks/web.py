"""Requests of `colqwen ui` -> how long a search takes with many pages, from request to results.

    python benchmarks/web.py --pages 10000

Pages are 120 random words each, without images, with the lexical embedder; all runs in this process, over loopback.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from wordfreq import top_n_list

from llama_index_colqwen import LexicalEmbedder, MilvusPageStore, Page
from llama_index_colqwen.shared_index import SharedIndex
from llama_index_colqwen.web.app import create_app
from llama_index_colqwen.web.uploads import Uploads
from tests.fakes import make_page
from tests.services import run_app

_WORDS = top_n_list("en", 20_000)[100:]
_WORDS_A_PAGE, _WORDS_A_QUESTION, _PAGES_A_FILE, _QUESTIONS = 120, 6, 10, 40


def main() -> None:
    """Make an index, ask it, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=10_000)
    pages = parser.parse_args().pages
    chance = random.Random(7)
    with tempfile.TemporaryDirectory() as folder, MilvusPageStore(f"{folder}/pages.db") as store:
        embedder = LexicalEmbedder()
        store.open(embedder.fingerprint)
        for start in range(0, pages, 64):
            some = [_page(number, chance) for number in range(start, min(start + 64, pages))]
            store.add(some, embedder.embed_pages(some))
        shared = SharedIndex(store)
        app = create_app(shared, Uploads(shared, Path(folder) / "uploads", Path(folder) / "images"))
        with run_app(app) as address, httpx.Client(base_url=address) as client:
            took = [_asked(client, "/api/search", q=" ".join(chance.choices(_WORDS, k=_WORDS_A_QUESTION)))]
            took += [
                _asked(client, "/api/search", q=" ".join(chance.choices(_WORDS, k=_WORDS_A_QUESTION)))
                for _ in range(_QUESTIONS)
            ]
            listing = statistics.median(_asked(client, "/api/state") for _ in range(5))
    found = {
        "pages": pages,
        "first_ms": round(took[0]),
        "median_ms": round(statistics.median(took[1:])),
        "slowest_ms": round(max(took[1:])),
        "documents_ms": round(listing),
    }
    for name, value in found.items():
        print(f"{name:>14} {value}")  # noqa: T201
    print(json.dumps(found))  # noqa: T201


def _page(number: int, chance: random.Random) -> Page:
    document, place = divmod(number, _PAGES_A_FILE)
    text = " ".join(chance.choices(_WORDS, k=_WORDS_A_PAGE))
    name = f"document-{document:05d}"
    return make_page(f"{name}-p{place + 1:05d}", text, name, place + 1, page_number=place + 1)


def _asked(client: httpx.Client, path: str, **parameters: str) -> float:
    """Return how many milliseconds a request took."""
    began = time.perf_counter()
    client.get(path, params=parameters).raise_for_status()
    return 1000 * (time.perf_counter() - began)


if __name__ == "__main__":
    main()
