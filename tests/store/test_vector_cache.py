from __future__ import annotations

import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_colqwen import PatchGrid
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, encode_vectors
from llama_index_colqwen.store.vector_cache import CachedVectors, VectorCache
from tests.conftest import at_most
from tests.fakes import unit_rows

DIM = 8


@lru_cache(maxsize=1024)
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
        cache = make_cache(Path(sys.argv[1]), max_bytes=1 << 30)
        for number in range(start, start + 200):
            cache.put(f"page {number}", encoded(number))
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_lose_and_mix_up_nothing(tmp_path: Path) -> None:
    reader = make_cache(tmp_path, max_bytes=1 << 30)
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


# ---- whatever happens to the folder

NAMES = [f"page {number}" for number in range(8)]


def check_right(cache: VectorCache, names: Iterable[str] = NAMES) -> dict[str, CachedVectors]:
    """Read these, none of which may be another's vectors."""
    found = cache.get(names)
    for name, vectors in found.items():
        assert same(vectors.encoded, encoded(int(name.split()[1]))), name
    return found


def files(folder: Path, kind: str = "*") -> list[Path]:
    return sorted((folder / "cache").glob(f"*.{kind}"))


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in files(folder, "vectors"))


@pytest.mark.parametrize("lost", ["index", "vectors"])
def test_file_without_the_other_of_its_segment_is_no_page_and_no_error(tmp_path: Path, lost: str) -> None:
    """What a process leaves that is killed between writing the one and the other."""
    filled(tmp_path)
    for file in files(tmp_path, lost):
        file.unlink()
    cache = make_cache(tmp_path)
    assert cache.get(NAMES) == {}
    assert cache.missing(NAMES) == NAMES
    cache.compact(NAMES)
    assert files(tmp_path) == []
    cache.put("page 1", encoded(1))
    assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == ["page 1"]


@pytest.mark.parametrize("kind", ["vectors", "index"])
@pytest.mark.parametrize("in_place", ["folder", "dangling link", "garbage", "nothing in it"])
@pytest.mark.parametrize("was_open", [True, False])
def test_what_is_no_file_of_ours_is_passed_over(tmp_path: Path, kind: str, in_place: str, was_open: bool) -> None:
    cache = filled(tmp_path)
    check_right(cache)
    if not was_open:
        cache = make_cache(tmp_path)
    [file] = files(tmp_path, kind)
    size = file.stat().st_size
    file.unlink()
    if in_place == "folder":
        file.mkdir()
    elif in_place == "dangling link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.write_bytes(os.urandom(2 * size) if in_place == "garbage" else b"")
    check_right(cache)
    cache.compact(NAMES)
    for name in NAMES:
        cache.put(name, encoded(int(name.split()[1])))
    assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == NAMES
    cache.clear()
    assert cache.get(NAMES) == {}


def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    others = ["²²²²²².index", "٠٠٠٠٠٧.vectors", "12.index", "000001.index.bak", "9" * 40 + ".index", ".index", "readme"]
    for name in others:
        (tmp_path / "cache" / name).write_bytes(b"not ours")
    cache = make_cache(tmp_path)
    cache.compact(NAMES[:3])
    cache.put("page 7", encoded(7))
    assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == [*NAMES[:3], "page 7"]
    for name in others:
        assert (tmp_path / "cache" / name).read_bytes() == b"not ours"


def test_folder_that_becomes_a_file_is_an_empty_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = filled(tmp_path)
    check_right(cache)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.get(NAMES) == {}
            cache.put("page 1", encoded(1))
            cache.remove(["page 1"])
            cache.compact(NAMES)
            assert cache.missing(NAMES) == NAMES
            cache.clear()
    assert len(caplog.records) == 1


def test_pages_of_segments_whose_files_were_swapped_are_not_mixed_up(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=4 * 3 * 20 * (DIM + 4))  # three pages a segment
    for name in NAMES:
        cache.put(name, encoded(int(name.split()[1])))
    assert list(check_right(cache)) == NAMES
    one, other = files(tmp_path, "vectors")[:2]
    one.rename(tmp_path / "third")
    other.rename(one)
    (tmp_path / "third").rename(other)
    for reader in (cache, make_cache(tmp_path)):
        assert list(check_right(reader)) == NAMES[6:]


def test_bytes_written_over_pages_that_were_read_before_are_noticed(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    check_right(cache)
    [file] = files(tmp_path, "vectors")
    time.sleep(0.02)  # what a file system's clock can tell apart
    with file.open("r+b") as opened:
        opened.write(b"x" * 300)
    assert list(check_right(cache)) == NAMES[2:]


def write_over(file: Path, choose: random.Random) -> None:
    time.sleep(0.01)  # what a file system's clock can tell apart
    with file.open("r+b") as opened:
        opened.seek(choose.randint(0, file.stat().st_size))
        opened.write(choose.randbytes(choose.randint(1, 60)))


def append(file: Path, choose: random.Random) -> None:
    with file.open("ab") as opened:
        opened.write(choose.randbytes(choose.randint(1, 60)))


def make_folder(file: Path, _: random.Random) -> None:
    file.unlink()
    file.mkdir()


def swap(file: Path, choose: random.Random) -> None:
    other = choose.choice([other for other in file.parent.iterdir() if other.is_file()])
    file.rename(file.parent / "swapped")
    if other != file:
        other.rename(file)
    (file.parent / "swapped").rename(other)


def copy(file: Path, choose: random.Random) -> None:
    target = file.parent / choose.choice(["000002.index", "000003.vectors", "000009.index", "000000.index", "odd"])
    if not target.exists():
        shutil.copy(file, target)


def make_folder_a_file(file: Path, _: random.Random) -> None:
    shutil.rmtree(file.parent)
    file.parent.write_bytes(b"x")


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "delete": lambda file, _: file.unlink(),
    "cut": lambda file, choose: os.truncate(file, file.stat().st_size * choose.randint(0, 3) // 4),
    "write over": write_over,
    "append": append,
    "make a folder": make_folder,
    "swap": swap,
    "copy": copy,
    "delete the folder": lambda file, _: shutil.rmtree(file.parent),
    "make the folder a file": make_folder_a_file,
}


def damage(folder: Path, how: str, seed: int) -> None:
    """Do something to the cache that no cache does, or undo what leaves nothing else to be done."""
    choose = random.Random(seed)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not found:
        folder.unlink(missing_ok=True) if folder.is_file() else None
    elif (file := choose.choice(found)).is_file():
        DAMAGES[how](file, choose)
    else:
        file.rmdir()


def take(step: str, numbers: set[int], cache: VectorCache) -> None:
    names = [f"page {number}" for number in sorted(numbers)]
    if step == "put":
        for number in sorted(numbers):
            cache.put(f"page {number}", encoded(number))
    elif step == "missing":
        assert set(cache.missing(names)) <= set(names)
    elif step == "clear":
        cache.clear()
    else:
        {"get": cache.get, "remove": cache.remove, "compact": cache.compact}[step](names)


def test_records_of_vectors_that_are_not_there_do_not_name_what_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_colqwen.store.vector_cache._SEGMENT_BYTES", 3 * 20 * (DIM + 4))
    cache = make_cache(tmp_path)
    cache.put("page 0", encoded(0))
    shutil.copy(tmp_path / "cache" / "000001.index", tmp_path / "cache" / "000002.index")
    for number in range(8):
        cache.put(f"page {number}", encoded(number))
    assert set(check_right(cache)) == set(NAMES)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("COLQWEN_TEST_DAMAGES", "150")), deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["put", "put", "get", "remove", "compact", "missing", "clear", "reopen", "other"]),
                st.sets(st.integers(0, 7), min_size=1),
            ),
            st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(0, 1 << 20)),
        ),
        max_size=25,
    ),
    st.sampled_from([None, 12 * 20 * (DIM + 4)]),
)
def test_no_damage_between_any_steps_is_an_error_or_mixes_pages_up(
    steps: list[tuple[str, int | set[int]]], max_bytes: int | None
) -> None:
    """Two caches over one folder, to which anything may happen: pages get lost, and come back when they are put."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("llama_index_colqwen.store.vector_cache._SEGMENT_BYTES", 3 * 20 * (DIM + 4))
        monkeypatch.setattr("llama_index_colqwen.store.vector_cache._RETRY_SECONDS", 0)
        folder = Path(name)
        cache, other = make_cache(folder, max_bytes), make_cache(folder, max_bytes)
        for step, what in steps:
            if isinstance(what, int):
                damage(folder / "cache", step, what)
            elif step == "reopen":
                cache = make_cache(folder, max_bytes)
            elif step == "other":
                cache, other = other, cache
            else:
                take(step, what, cache)
            if not isinstance(what, int):
                check_right(cache)
                check_right(other)
        if (folder / "cache").is_file():
            (folder / "cache").unlink()
        for number in range(8):
            cache.put(f"page {number}", encoded(number))
        assert len(check_right(cache)) == 8 or max_bytes is not None
        assert "page 7" in check_right(cache)


@pytest.mark.slow
def test_folder_that_is_deleted_at_any_moment_is_no_error(tmp_path: Path) -> None:
    cache, done = make_cache(tmp_path), threading.Event()

    def delete() -> None:
        while not done.is_set():
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for step in range(400):
            for number in range(8):
                cache.put(f"page {number}", encoded(number))
                check_right(cache)
            cache.remove(NAMES[step % 8 :])
            cache.compact(NAMES[: step % 8])
    finally:
        done.set()
        thread.join()


# ---- full disks


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond this: what a full disk is to whoever appends to one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rewriting_on_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_colqwen.store.vector_cache._RETRY_SECONDS", 0)
    cache = filled(tmp_path, pages=40)
    before = folder_bytes(tmp_path)
    with largest_file(3 * 20 * (DIM + 4) + 17):  # three pages, and a part of one
        cache.compact(NAMES)
        assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == NAMES
    cache.compact(NAMES)
    assert folder_bytes(tmp_path) < before / 2
    assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == NAMES


def test_disk_that_was_full_is_written_to_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(tmp_path, pages=2)
    with largest_file(3 * 20 * (DIM + 4) - 17), caplog.at_level(logging.WARNING):
        for name in NAMES:
            cache.put(name, encoded(int(name.split()[1])))
        assert list(check_right(cache)) == NAMES[:2]
    assert len(caplog.records) == 1
    cache.put("page 5", encoded(5))
    assert list(check_right(cache)) == NAMES[:2]
    monkeypatch.setattr("time.monotonic", lambda now=time.monotonic: now() + 61)
    cache.put("page 5", encoded(5))
    assert list(check_right(cache)) == list(check_right(make_cache(tmp_path))) == [*NAMES[:2], "page 5"]


@pytest.mark.slow
def test_disk_without_room_costs_pages_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file system of 64 KB, where this user may mount one."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    monkeypatch.setattr("llama_index_colqwen.store.vector_cache._RETRY_SECONDS", 0)
    names = [f"page {number}" for number in range(300)]
    try:
        cache = filled(tmp_path, pages=300)
        found = check_right(cache, names)
        assert 200 < len(found) < 300
        cache.compact([*found][::3])
        assert list(check_right(cache, [*found][::3])) == [*found][::3]
        assert list(check_right(make_cache(tmp_path), [*found][::3])) == [*found][::3]
        cache.remove(found)
        assert folder_bytes(tmp_path) < 20 * (DIM + 4)  # a page that was cut off
        for name in NAMES:
            cache.put(name, encoded(int(name.split()[1])))
        assert list(check_right(cache)) == NAMES
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# ---- growth


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("segment", [5, 1000])
def test_rewriting_all_pages_again_and_again_takes_twice_their_room_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, segment: int
) -> None:
    page_bytes = 20 * (DIM + 4)
    monkeypatch.setattr("llama_index_colqwen.store.vector_cache._SEGMENT_BYTES", segment * page_bytes)
    cache = filled(tmp_path, pages=40)
    for version in range(1, 9):
        for start in range(0, 40, batch):
            numbers = range(40 * version + start, 40 * version + min(start + batch, 40))
            for number in numbers:
                cache.put(f"page {number}", encoded(number))
            cache.remove([f"page {number - 40}" for number in numbers])
            assert folder_bytes(tmp_path) <= 2 * 40 * page_bytes
    names = [f"page {number}" for number in range(320, 360)]
    assert list(check_right(cache, names)) == list(check_right(make_cache(tmp_path), names)) == names
    assert len(files(tmp_path)) <= 2 * 80


def test_vectors_put_again_under_their_names_take_twice_their_room_at_most(tmp_path: Path) -> None:
    cache = filled(tmp_path, pages=8)
    before = folder_bytes(tmp_path)
    for name in NAMES:
        cache.put(name, encoded(int(name.split()[1])), PatchGrid(2, 3, 1) if int(name.split()[1]) == 1 else None)
    for version in range(10):
        for name in NAMES:
            cache.put(name, encoded(100 * version + int(name.split()[1])))
            assert folder_bytes(tmp_path) <= 2 * before + 20 * (DIM + 4)
    for reader in (cache, make_cache(tmp_path)):
        found = reader.get(NAMES)
        assert all(same(found[name].encoded, encoded(900 + int(name.split()[1]))) for name in NAMES)


def test_vectors_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    before = folder_bytes(tmp_path)
    cache.remove(["page 2"])
    for number in range(10):
        cache.put(f"page {number}", encoded(number), PatchGrid(2, 3, number) if number % 2 else None)
    assert folder_bytes(tmp_path) == before
    cache.remove([f"page {number}" for number in range(10) if number != 2])
    assert list(check_right(cache)) == ["page 2"]


def test_removed_vectors_that_are_in_use_stay_as_they_are(tmp_path: Path) -> None:
    cache = filled(tmp_path, pages=8)
    found = check_right(cache)
    cache.remove(NAMES[1:])
    assert list(check_right(cache)) == NAMES[:1]
    assert all(same(found[name].encoded, encoded(int(name.split()[1]))) for name in NAMES)


def test_bounded_cache_that_others_have_open_is_not_rewritten(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, max_bytes=1 << 20)
    for name in NAMES:
        cache.put(name, encoded(int(name.split()[1])))
    cache.remove(NAMES)
    assert list(check_right(make_cache(tmp_path, 1 << 20))) == NAMES


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "put", "remove", "compact", "reopen"]),
            st.sets(st.integers(0, 7), min_size=1),
            st.integers(0, 3),
        ),
        max_size=25,
    )
)
def test_cache_is_a_dict_of_what_is_wanted(steps: list[tuple[str, set[int], int]]) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("llama_index_colqwen.store.vector_cache._SEGMENT_BYTES", 3 * 20 * (DIM + 4))
        cache, model = make_cache(Path(name)), dict[str, int]()
        for step, numbers, version in steps:
            names = [f"page {number}" for number in numbers]
            if step == "put":
                for number in numbers:
                    cache.put(f"page {number}", encoded(10 * version + number))
                    model[f"page {number}"] = 10 * version + number
            elif step == "remove":
                cache.remove(names)
                for gone in names:
                    model.pop(gone, None)
            else:
                if step == "reopen":
                    cache = make_cache(Path(name))
                else:
                    model = {kept: seed for kept, seed in model.items() if kept in names}
                cache.compact(model)
            found = cache.get(NAMES)
            assert found.keys() >= model.keys()
            assert all(same(found[kept].encoded, encoded(seed)) for kept, seed in model.items())
            assert folder_bytes(Path(name)) <= 2 * len(model) * 20 * (DIM + 4)


REWRITE = """
import sys
from pathlib import Path
from llama_index_colqwen.store import vector_cache
vector_cache._SEGMENT_BYTES = 5 * 240
from tests.store.test_vector_cache import encoded, make_cache
cache, start = make_cache(Path(sys.argv[1])), int(sys.argv[2])
for number in range(start, start + 100_000):
    cache.put(f"page {number}", encoded(number % 50))
    cache.remove([f"page {number - 20}"])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_killed_while_files_are_rewritten_no_page_is_lost(tmp_path: Path) -> None:
    moments = random.Random(3)
    last = -1
    for _ in range(4):
        command = [sys.executable, "-c", REWRITE, str(tmp_path), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = int(process.stdout.readline())
            time.sleep(moments.random() * 0.3)
            os.kill(process.pid, signal.SIGKILL)
            last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
        names = [f"page {number}" for number in range(max(last - 19, 0), last + 1)]
        cache = make_cache(tmp_path)
        cache.compact(names)
        found = cache.get(names)
        assert list(found) == names
        assert all(same(vectors.encoded, encoded(int(name.split()[1]) % 50)) for name, vectors in found.items())
        assert folder_bytes(tmp_path) <= 2 * len(names) * 20 * (DIM + 4)
