from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llama_index_colqwen import PatchGrid
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, encode_vectors
from llama_index_colqwen.store.vector_cache import CachedVectors, VectorCache
from tests.conftest import at_most
from tests.fakes import unit_rows

DIM = 8


@cache
def encoded(number: int, rows: int = 20) -> EncodedVectors:
    return encode_vectors(unit_rows(number, rows, dim=DIM), "int8")


def make_cache(folder: Path, max_bytes: int | None = None) -> VectorCache:
    return VectorCache(folder / "cache", DIM, "int8", max_bytes)


def filled(folder: Path, pages: int = 10) -> VectorCache:
    cache = make_cache(folder)
    for number in range(pages):
        cache.put(f"page {number}", encoded(number), PatchGrid(2, 3, number) if number % 2 else None)
    return cache


def same(one: EncodedVectors, other: EncodedVectors) -> bool:
    return one.to_bytes() == other.to_bytes()


def test_vectors_and_grids_come_back_in_another_process_as_they_were_put(tmp_path: Path) -> None:
    filled(tmp_path)
    found = make_cache(tmp_path).get([f"page {number}" for number in range(10)] + ["absent"])
    assert len(found) == 10
    for number in range(10):
        vectors = found[f"page {number}"]
        assert same(vectors.encoded, encoded(number))
        assert vectors.patch_grid == (PatchGrid(2, 3, number) if number % 2 else None)


def test_what_is_put_again_takes_the_place_of_the_older(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.put("page 3", encoded(99, rows=7))
    for reader in (cache, make_cache(tmp_path)):
        assert same(reader.get(["page 3"])["page 3"].encoded, encoded(99, rows=7))


def test_vectors_are_mapped_and_not_copied(tmp_path: Path) -> None:
    values = filled(tmp_path).get(["page 0"])["page 0"].encoded.values
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)
    assert not values.flags.writeable


def test_missing_vectors_are_fetched_once_and_kept(tmp_path: Path) -> None:
    cache = filled(tmp_path, pages=3)
    asked: list[str] = []

    def fetch(wanted: Mapping[str, int]) -> Iterable[tuple[str, CachedVectors]]:
        asked.extend(wanted)
        return [(name, CachedVectors(encoded(number), None)) for name, number in wanted.items() if number < 5]

    wanted = {f"page {number}": number for number in range(6)}
    for _ in range(2):
        found = dict(cache.read(wanted, fetch))
        assert set(found) == {f"page {number}" for number in range(5)}
    assert asked == ["page 3", "page 4", "page 5", "page 5"]
    assert cache.missing(wanted) == ["page 5"]


def test_deleted_folder_is_an_empty_cache_also_for_a_process_that_had_it_open(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    cache.get(["page 1"])
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    (tmp_path / "cache").rmdir()
    assert cache.get(["page 1"]) == {}
    cache.put("page 1", encoded(1))
    assert same(cache.get(["page 1"])["page 1"].encoded, encoded(1))


@pytest.mark.parametrize("kind", ["vectors", "index"])
@pytest.mark.parametrize("was_open", [True, False])
def test_truncated_files_lose_pages_and_nothing_else(tmp_path: Path, kind: str, was_open: bool) -> None:
    cache = filled(tmp_path)
    if was_open:
        cache.get([f"page {number}" for number in range(10)])
    else:
        cache = make_cache(tmp_path)
    [file] = (tmp_path / "cache").glob(f"*.{kind}")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2 + 5)
    found = cache.get([f"page {number}" for number in range(10)])
    assert found
    assert was_open or len(found) < 10  # who wrote the index knows what was in it
    for name, vectors in found.items():
        assert same(vectors.encoded, encoded(int(name.split()[1])))
    for number in range(10):
        cache.put(f"page {number}", encoded(number))
    assert len(cache.get([f"page {number}" for number in range(10)])) == 10
    assert len(make_cache(tmp_path).get([f"page {number}" for number in range(10)])) == 10


def test_any_byte_that_changes_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, pages=4)
    names = [f"page {number}" for number in range(4)]
    for kind in ("vectors", "index"):
        [file] = (tmp_path / "cache").glob(f"*.{kind}")
        whole = file.read_bytes()
        for place in np.random.default_rng(0).choice(len(whole), 60, replace=False):
            changed = bytearray(whole)
            changed[place] ^= 0x40
            file.write_bytes(changed)
            with caplog.at_level(logging.WARNING):
                found = make_cache(tmp_path).get(names)
            assert len(found) == 3
            assert all(same(vectors.encoded, encoded(int(name.split()[1]))) for name, vectors in found.items())
        file.write_bytes(whole)
    assert "read from Milvus again" in caplog.text


def test_size_is_bounded_and_the_oldest_go_first(tmp_path: Path) -> None:
    bound = 40 * 20 * (DIM + 4)  # forty pages
    cache = make_cache(tmp_path, max_bytes=bound)
    for number in range(200):
        cache.put(f"page {number}", encoded(number))
        assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.vectors")) <= bound
    found = cache.get([f"page {number}" for number in range(200)])
    assert len(found) >= 20
    assert set(found) == {f"page {number}" for number in range(200 - len(found), 200)}
    assert make_cache(tmp_path, max_bytes=bound).get(found).keys() == found.keys()


def test_views_outlive_the_files_they_were_made_of(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=10 * 20 * (DIM + 4))
    cache.put("first", encoded(1))
    vectors = cache.get(["first"])["first"].encoded
    for number in range(100):
        cache.put(f"page {number}", encoded(number))
    assert cache.get(["first"]) == {}
    assert same(vectors, encoded(1))


def test_compacting_drops_what_is_no_longer_wanted(tmp_path: Path) -> None:
    cache = filled(tmp_path, pages=40)
    names = [f"page {number}" for number in range(0, 40, 4)]
    before = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    cache.compact(names)
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) < before / 3
    for reader in (cache, make_cache(tmp_path)):
        found = reader.get([f"page {number}" for number in range(40)])
        assert sorted(found) == sorted(names)
        assert all(same(vectors.encoded, encoded(int(name.split()[1]))) for name, vectors in found.items())
    cache.compact(names)  # nothing to gain: the files stay
    assert len(cache.get(names)) == 10


# The processes are forked from one: to import all of this takes longer than to write.
WRITE = """
import os, signal, sys
from pathlib import Path
from tests.store.test_vector_cache import encoded, make_cache
print("writing", flush=True)
for start in (0, 200, 400):
    if os.fork() == 0:
        signal.alarm(60)  # and not for ever
        cache = make_cache(Path(sys.argv[1]))
        for number in range(start, start + 200):
            cache.put(f"page {number}", encoded(number))
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_lose_and_mix_up_nothing(tmp_path: Path) -> None:
    reader = make_cache(tmp_path)
    names = [f"page {number}" for number in range(600)]
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writers, at_most(60, writers):
        assert writers.stdout is not None
        assert writers.stdout.readline() == "writing\n"
        seen = set()
        while writers.poll() is None:
            found = reader.get(names)
            seen.add(len(found))
            for name, vectors in found.items():
                assert same(vectors.encoded, encoded(int(name.split()[1])))
    assert writers.returncode == 0
    assert len(reader.get(names)) == 600
    assert len(seen) > 2, "it was not read while it was written"


@pytest.mark.slow
def test_many_threads_read_while_one_writes(tmp_path: Path) -> None:
    cache = filled(tmp_path, pages=1)
    names = [f"page {number}" for number in range(300)]

    def read() -> int:
        seen = 0
        for _ in range(100):
            found = cache.get(names)
            assert len(found) >= seen
            seen = len(found)
            assert all(same(vectors.encoded, encoded(int(name.split()[1]))) for name, vectors in found.items())
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for number in range(300):
            cache.put(f"page {number}", encoded(number))
        assert all(reader.result() > 0 for reader in readers)


def test_folder_that_cannot_be_written_costs_speed_and_not_pages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = make_cache(tmp_path)
    with caplog.at_level(logging.WARNING):
        cache.put("page", encoded(1))
        cache.put("other", encoded(2))
    assert cache.get(["page"]) == {}
    assert len(caplog.records) == 1
    assert "searches will be slower" in caplog.text
    wanted = {"page": 1}
    fetched = dict(cache.read(wanted, lambda _: [("page", CachedVectors(encoded(1), None))]))
    assert same(fetched["page"].encoded, encoded(1))
