"""Indexing that ends badly: killed at any moment, without disk, without its server.

`COLQWEN_TEST_KILLS=20 pytest tests/store/test_crash.py` kills twenty times; the default is a few.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llama_index_colqwen import EmbedderFingerprint, MilvusPageStore, StoreError
from llama_index_colqwen.late_interaction.maxsim import rank
from tests.conftest import at_most, start_lite_server
from tests.fakes import make_page
from tests.late_interaction.test_centroids import DIM, topical_pages

FINGERPRINT = EmbedderFingerprint("topical", "1", DIM)
PAGES = topical_pages(120)
ROUND_PAGES = 4

# Small numbers, so that few pages reach the first stage, several collections of vectors, and saved centroids. Each line
# read, a version, is written by a process of its own, which is forked: importing would take longer than writing.
WRITER = """
import os, signal, sys
from llama_index_colqwen.store import lite_search, vector_cache, vector_shards
lite_search._EXACT_VECTORS, lite_search._PAGE_VECTORS, lite_search._SAVE_PAGES = 250, 0, 16
vector_shards._SHARD_PAGES, vector_cache._SEGMENT_BYTES = 25, 25_000
from llama_index_colqwen import MilvusPageStore
from tests.store.test_crash import write
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # and not for ever
        print(os.getpid(), flush=True)
        with MilvusPageStore(sys.argv[1]) as store:
            write(store, line.strip())
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


def page_name(number: int) -> str:
    return f"page {number:04d}"


def write(store: MilvusPageStore, version: str) -> None:
    """Write all pages that are not stored in this version, and say which are."""
    store.open(FINGERPRINT)
    pages = [make_page(page_name(number), f"{version} {number}") for number in range(len(PAGES))]
    for start in range(0, len(pages), ROUND_PAGES):
        some = pages[start : start + ROUND_PAGES]
        states = store.states([page.page_id for page in some])
        missing = [
            page for page in some if page.page_id not in states or states[page.page_id].revision != page.revision
        ]
        if missing:
            store.add(missing, [vectors_of(page.page_id, version) for page in missing])
        for page in some:
            sys.stdout.write(f"{page.page_id}\n")
        sys.stdout.flush()


def vectors_of(page_id: str, version: str) -> np.ndarray:
    """Vectors that are another page's in another version."""
    number = int(page_id.split()[1])
    return PAGES[number] if version == "first" else PAGES[-1 - number]


def check(path: Path, version: str, before: str, reported: set[str]) -> None:
    """All pages reported in this version are found by search, and none is half one version and half another."""
    with MilvusPageStore(path) as store:
        stored = {page.page_id: page.text.split()[0] for page in store.get([page_name(n) for n in range(len(PAGES))])}
        assert reported <= {page_id for page_id, found in stored.items() if found == version}
        query = PAGES[0][:4]
        candidates = {candidate.page_id: candidate for candidate in store.candidates(query, exact=True)}
        assert candidates.keys() == stored.keys()
        for page_id, found in stored.items():
            assert found in (version, before)
            np.testing.assert_allclose(candidates[page_id].vectors, vectors_of(page_id, found), atol=0.01)
        for page_id in random.Random(0).sample(sorted(reported), min(len(reported), 10)):
            query = vectors_of(page_id, version)[:12]
            same = {page_id, page_name(len(PAGES) - 1 - int(page_id.split()[1]))}  # the other version's namesake
            ranked = rank(query, store.candidates(query, candidate_k=50), 2)
            assert page_id in {page.page_id for page in ranked}
            assert ranked[0].page_id in same


@pytest.mark.slow
def test_killed_at_any_moment_nothing_that_was_reported_is_lost_and_nothing_is_half_stored(tmp_path: Path) -> None:
    path = tmp_path / "crash.db"
    moments = random.Random(int(os.environ.get("COLQWEN_TEST_SEED", "7")))
    kills = int(os.environ.get("COLQWEN_TEST_KILLS", "4"))
    version, before, reported = "first", "first", set[str]()
    command = [sys.executable, "-c", WRITER, str(path)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        at_most(60 + 60 * kills, process),
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        for killed in range(1, kills + 1):
            process.stdin.write(f"{version}\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            fatal = moments.randrange(8, len(PAGES) - 8)
            lines: list[str] = []
            for line in iter(process.stdout.readline, "ended\n"):
                assert line, "the writer of writers has ended"
                lines.append(line.strip())
                if len(lines) == fatal:
                    time.sleep(moments.random() * 0.05)
                    os.kill(child, signal.SIGKILL)
            assert len(lines) >= fatal
            reported |= set(lines)
            check(path, version, before, reported)
            if killed % 2 == 0:  # half of the kills are in a collection that is being replaced
                with MilvusPageStore(path) as store:
                    write(store, version)
                check(path, version, before, {page_name(number) for number in range(len(PAGES))})
                version, before = ("second", "first") if version == "first" else ("first", "second")
                reported = set()


FILL = """
import resource, signal, sys
from llama_index_colqwen import MilvusPageStore, StoreError
from tests.store.test_crash import write
store = MilvusPageStore(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write(store, "first")
    print("everything fitted")
except StoreError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_full_disk_is_a_sentence_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """No file may grow beyond 60 KB: what a full disk is to whoever appends to one."""
    path = tmp_path / "full.db"
    command = [sys.executable, "-c", FILL, str(path), "60000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    *stored, last = done.stdout.splitlines()
    assert last.startswith("refused: Milvus could not add to collection 'pages'"), done.stdout + done.stderr
    assert "run the same again" in last
    # From 3.13 on, Python itself reports the engine's own file, which cannot be flushed at exit while the disk is full.
    python_s = r"Exception ignored .*<_io\.BufferedWriter name='.*/wal/.*\.arrow'>.*\n(.*\n)*?OSError: \[Errno 27\].*\n"
    assert "Traceback" not in re.sub(python_s, "", done.stderr), done.stderr
    check(path, "first", "first", set(stored))
    with MilvusPageStore(path) as store:
        write(store, "first")
    check(path, "first", "first", {page_name(number) for number in range(len(PAGES))})


@pytest.mark.slow
def test_server_that_goes_away_is_a_sentence_and_the_next_run_goes_on(tmp_path: Path) -> None:
    stored: list[str] = []
    with start_lite_server(tmp_path / "server.db") as (process, uri):
        with MilvusPageStore(uri, cache_dir=tmp_path / "cache") as store:
            store.open(FINGERPRINT)
            with pytest.raises(StoreError, match=r"could not .* 'pages' at http.*run the same again") as error:
                for number in range(len(PAGES)):
                    store.add([make_page(page_name(number), f"first {number}")], [PAGES[number]])
                    stored.append(page_name(number))
                    if number == 20:
                        process.kill()
                        process.wait()
                        started = time.perf_counter()
            assert time.perf_counter() - started < 60
            assert "Traceback" not in str(error.value)
    assert len(stored) == 21
    with start_lite_server(tmp_path / "server.db") as (_, uri), MilvusPageStore(uri, cache_dir=tmp_path / "c") as store:
        assert {page.page_id for page in store.get(stored)} == set(stored)
        write(store, "first")
        assert store.count() == len(PAGES)


@pytest.mark.slow
def test_open_store_goes_on_when_its_server_is_started_again(tmp_path: Path) -> None:
    with start_lite_server(tmp_path / "server.db") as (process, uri):
        store = MilvusPageStore(uri, cache_dir=tmp_path / "cache")
        store.open(FINGERPRINT)
        store.add([make_page(page_name(0), "first 0")], [PAGES[0]])
        process.kill()
        process.wait()
        with pytest.raises(StoreError, match="Check that the server runs"):
            store.count()
    with start_lite_server(tmp_path / "server.db", port=int(uri.rpartition(":")[2])), store:
        store.add([make_page(page_name(1), "first 1")], [PAGES[1]])
        assert [page.page_id for page in rank(PAGES[1], store.candidates(PAGES[1]), 1)] == [page_name(1)]
        assert store.count() == 2
