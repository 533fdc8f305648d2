"""Collections: whose they are, made by several at once, made anew, moved, damaged, and let go of."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymilvus import MilvusClient
from pymilvus.client.connection_manager import ConnectionManager

from llama_index_colqwen import (
    AnnIndex,
    CollectionNotFoundError,
    EmbedderFingerprint,
    FingerprintMismatchError,
    InvalidOptionError,
    MilvusPageStore,
    QueryError,
    StoreError,
    StoreLockedError,
)
from llama_index_colqwen.store import schema
from llama_index_colqwen.store.milvus_search import MilvusSearch
from llama_index_colqwen.store.table import MilvusTable
from tests.fakes import FINGERPRINT, add, everything, make_page, unit_rows
from tests.forks import needs_fork
from tests.services import wait_for

OTHER = EmbedderFingerprint("other", "1", 4)


@pytest.fixture(params=["file", "lite_server", "milvus_server"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., MilvusPageStore]]:
    """Makes stores of one database, by the end of their names; what they made is dropped."""
    address = tmp_path / "x.db" if request.param == "file" else request.getfixturevalue(request.param)
    prefix, made = f"mine_{uuid.uuid4().hex[:8]}", list[MilvusPageStore]()

    def make(suffix: str = "", **options: Any) -> MilvusPageStore:  # noqa: ANN401
        store = MilvusPageStore(address, collection_name=prefix + suffix, cache_dir=tmp_path / "cache", **options)
        made.append(store)
        return store

    yield make
    client = make()._connection.client
    for name in client.list_collections():
        if name.startswith(prefix):
            client.drop_collection(name)
    for store in made:
        store.close()


@pytest.mark.slow
def test_collections_of_others_are_neither_dropped_nor_written_and_named_in_the_error(
    make_store: Callable[..., MilvusPageStore],
) -> None:
    store = make_store()
    name = store.collection_name
    client = store._connection.client
    client.create_collection(f"{name}_vectors", dimension=4)
    client.insert(f"{name}_vectors", [{"id": 1, "vector": [0.5] * 4}])
    with pytest.raises(StoreError, match=rf"needs a collection '{name}_vectors'.*nothing was changed"):
        store.open(FINGERPRINT)
    assert sorted(one for one in client.list_collections() if one.startswith(name)) == [f"{name}_vectors"]
    with pytest.raises(StoreError, match="not made by this package"):
        make_store("_vectors").clear()
    assert [row["id"] for row in client.query(f"{name}_vectors", ids=[1], consistency_level="Strong")] == [1]

    beside = make_store("_free")  # a number that others have is passed over
    beside.open(FINGERPRINT)
    beside.clear()
    client.create_collection(f"{beside.collection_name}_vectors_2024", dimension=4)
    client.create_collection(f"{beside.collection_name}_candidates_of_mine", dimension=4)
    beside.open(FINGERPRINT)
    add(beside, make_page("a"))
    beside.clear()
    there = {one.removeprefix(name) for one in client.list_collections() if one.startswith(name)}
    assert there == {"_vectors", "_free_vectors_2024", "_free_candidates_of_mine"}


@pytest.mark.slow
def test_our_own_indexes_do_not_take_each_others_collections(make_store: Callable[..., MilvusPageStore]) -> None:
    older, newer = make_store("_vectors"), make_store()
    older.open(FINGERPRINT)
    add(older, make_page("a"))
    with pytest.raises(StoreError, match="there is one that is not part of it"):
        newer.open(FINGERPRINT)
    assert [candidate.page_id for candidate in everything(older)] == ["a"]
    older.clear()
    newer.open(FINGERPRINT)
    with pytest.raises(StoreError, match=f"is part of collection '{newer.collection_name}'"):
        older.open(FINGERPRINT)
    with pytest.raises(StoreError, match="is part of collection"):
        older.clear()


@pytest.mark.slow
def test_what_is_left_of_a_collection_that_is_gone_is_replaced(make_store: Callable[..., MilvusPageStore]) -> None:
    """As by a process that died while it cleared one, or while it made one."""
    store = make_store()
    store.open(FINGERPRINT)
    add(store, make_page("old"))
    client = store._connection.client
    client.drop_collection(store.collection_name)
    store.close()
    again = make_store()
    again.open(EmbedderFingerprint("other", "1", 8))
    assert everything(again) == []
    client = again._connection.client
    client.drop_collection(f"{again.collection_name}_vectors")
    again.close()
    last = make_store()
    last.open(EmbedderFingerprint("other", "1", 8))
    last.add([make_page("new")], [unit_rows(0, 3, dim=8)])
    assert [candidate.page_id for candidate in everything(last)] == ["new"]


@pytest.mark.slow
def test_many_that_make_a_collection_at_once_share_it(make_store: Callable[..., MilvusPageStore]) -> None:
    together = threading.Barrier(4)

    def write(number: int) -> None:
        store = make_store()
        store._connection.client  # noqa: B018 - connected beforehand, so that they meet
        together.wait()
        store.open(FINGERPRINT)
        for page in range(3):
            store.add([make_page(f"{number}-{page}")], [unit_rows(number, 3)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    store = make_store()
    assert store.count() == 12
    assert [page.page_id for page in everything(store)] == [f"{n}-{p}" for n in range(4) for p in range(3)]


# The processes are forked from one: to import all of this takes longer than to write.
RACE = """
import multiprocessing, sys
from llama_index_colqwen import MilvusPageStore
from tests.fakes import FINGERPRINT, make_page, unit_rows

def write(number):
    store = MilvusPageStore(sys.argv[1], collection_name=sys.argv[2], cache_dir=sys.argv[3])
    store._connection.client  # connected beforehand, so that they meet
    together.wait(60)
    store.open(FINGERPRINT)
    for page in range(3):
        store.add([make_page(f"{number}-{page}")], [unit_rows(page, 3)])

fork = multiprocessing.get_context("fork")
together = fork.Barrier(4)
writers = [fork.Process(target=write, args=(number,)) for number in range(4)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join(100)
print(*(writer.exitcode for writer in writers))
"""


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("server", ["lite_server", "milvus_server"])
def test_many_processes_that_make_a_collection_at_once_share_it(
    request: pytest.FixtureRequest, server: str, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    uri, name = request.getfixturevalue(server), f"race_{uuid.uuid4().hex[:8]}"
    assert run_python(RACE, uri, name, tmp_path / "writer").split() == ["0"] * 4
    with MilvusPageStore(uri, collection_name=name, cache_dir=tmp_path / "cache") as store:
        wait_for(lambda: store.count() == len(everything(store)) == 12)  # by others: seen a moment later
        store.clear()


@pytest.mark.slow
def test_collection_made_anew_by_another_embedder_is_refused_at_the_next_use(
    make_store: Callable[..., MilvusPageStore],
) -> None:
    old, new = make_store(), make_store()
    old.open(FINGERPRINT)
    add(old, make_page("a"))
    assert len(everything(old)) == 1
    new.clear()
    new.open(OTHER)
    add(new, make_page("b"))
    page, vectors, query = make_page("c"), unit_rows(0, 2), unit_rows(0, 1)
    for use in (
        lambda: old.candidates(query),
        lambda: old.add([page], [vectors]),
        lambda: old.update([page]),
        lambda: old.delete(page_ids=["b"]),
        lambda: old.get(["b"]),
        old.count,
        old.documents,
        lambda: old.states(["b"]),
        lambda: old.delete_other_versions({"x": {"y"}}),
    ):
        with pytest.raises(FingerprintMismatchError, match="made by other.*this embedder is table"):
            use()
    assert [candidate.page_id for candidate in everything(new)] == ["b"]
    new.clear()
    new.open(FINGERPRINT)  # by the same one again: what is there now is what is used
    add(new, make_page("d"))
    assert [candidate.page_id for candidate in everything(old)] == ["d"]
    new.clear()
    with pytest.raises(CollectionNotFoundError):
        old.count()


@pytest.mark.slow
def test_lost_vectors_are_said_and_stored_again(
    make_store: Callable[..., MilvusPageStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store()
    store.open(FINGERPRINT)
    vectors = add(store, make_page("a", "a"), make_page("b", "b"), make_page("c", "c"))
    entry = store._require_open().search.entries(["b"])["b"]
    store._require_open().vectors.remove([entry.vectors])
    shutil.rmtree(store._cache_dir, ignore_errors=True)
    store.close()
    again = make_store()
    with caplog.at_level(logging.WARNING):
        found = everything(again)
    assert [candidate.page_id for candidate in found] == ["a", "c"]
    assert "1 pages of collection" in caplog.text
    assert "have lost their vectors and cannot be found (b): index their files again" in caplog.text
    assert again.count() == 3
    assert set(again.states(["a", "b", "c"])) == {"a", "c"}  # so that indexing embeds it
    checked = again.check()
    assert (checked.pages, checked.restored, checked.lost, checked.orphans) == (3, 0, ["b"], 0)
    again.add([make_page("b", "b")], [vectors[1]])
    assert [candidate.page_id for candidate in everything(again)] == ["a", "b", "c"]
    assert set(again.states(["a", "b", "c"])) == {"a", "b", "c"}
    assert again.check().lost == []


@pytest.mark.slow
def test_check_restores_vectors_from_the_cache_and_removes_what_belongs_to_no_page(
    make_store: Callable[..., MilvusPageStore],
) -> None:
    store = make_store()
    store.open(FINGERPRINT)
    vectors = add(store, make_page("a"), make_page("b"))
    assert len(everything(store)) == 2  # cached
    opened = store._require_open()
    opened.vectors.remove([opened.search.entries(["a"])["a"].vectors])
    row = schema.vectors_row("gone", schema.vector_id("gone", "0" * 16), bytes(64), None)
    opened.vectors.write([row], [100])
    checked = store.check()
    assert (checked.pages, checked.restored, checked.lost, checked.orphans) == (2, 1, [], 1)
    shutil.rmtree(store._cache_dir, ignore_errors=True)
    store.close()
    again = make_store()
    for candidate, expected in zip(everything(again), vectors, strict=True):
        np.testing.assert_allclose(candidate.vectors, expected, atol=0.005)
    checked = again.check()
    assert (checked.restored, checked.lost, checked.orphans, checked.unsearchable) == (0, [], 0, 0)


@pytest.mark.parametrize("where", ["file", "milvus_server"])
def test_check_writes_candidates_that_milvus_lacks(request: pytest.FixtureRequest, where: str, tmp_path: Path) -> None:
    uri = tmp_path / "x.db" if where == "file" else request.getfixturevalue(where)
    name = f"check_{uuid.uuid4().hex[:8]}"
    with MilvusPageStore(uri, collection_name=name, candidate_vectors=2, cache_dir=tmp_path / "cache") as store:
        store.open(FINGERPRINT)
        add(store, make_page("a"), make_page("b"))
        search = store._require_open().search
        assert isinstance(search, MilvusSearch)
        rows = sorted(row["candidate_id"] for row in search._table.scan(["candidate_id"]))
        assert len(rows) == 4
        search._table.remove(rows[:1])
        assert store.check().unsearchable == 1
        assert sorted(row["candidate_id"] for row in search._table.scan(["candidate_id"])) == rows
        assert store.check().unsearchable == 0
        store.clear()


def test_what_is_known_of_pages_is_kept_and_read_anew_where_the_database_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, scan = 0, MilvusTable.scan

    def counting(self: MilvusTable, *arguments: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        nonlocal scans
        scans += 1
        return scan(self, *arguments)

    monkeypatch.setattr(MilvusTable, "scan", counting)
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        add(store, make_page("a", year=1), make_page("b", year=2))
    scans = 0
    with MilvusPageStore(tmp_path / "x.db") as store:
        assert len(everything(store)) == 2
        assert store.states(["a"])["a"].revision == make_page("a", year=1).revision
    assert scans == 0
    shutil.copytree(tmp_path / "x.db", tmp_path / "copy.db")
    shutil.copytree(tmp_path / "x.cache", tmp_path / "copy.cache")
    with MilvusPageStore(tmp_path / "copy.db") as store:
        assert len(everything(store)) == 2
        assert scans == 0  # moved together, it is as it was
        store.delete(page_ids=["a"])
    shutil.rmtree(tmp_path / "x.db")
    shutil.copytree(tmp_path / "copy.db", tmp_path / "x.db")
    with MilvusPageStore(tmp_path / "x.db") as store:  # another state of the database, beside an older cache
        assert [candidate.page_id for candidate in everything(store)] == ["b"]
    assert scans == 1


def test_process_that_ends_without_closing_leaves_what_is_known_for_the_next(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    code = (
        "import sys\nfrom tests.fakes import *\nstore = MilvusPageStore(sys.argv[1])\n"
        "store.open(FINGERPRINT)\nadd(store, make_page('a'))\nprint(len(everything(store)))"
    )
    assert run_python(code, tmp_path / "x.db").strip() == "1"
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        assert store._require_open().search._read_entries() is not None  # type: ignore[attr-defined]
        assert [candidate.page_id for candidate in everything(store)] == ["a"]


def test_closing_leaves_other_clients_of_the_process_at_work(tmp_path: Path) -> None:
    mine = MilvusClient(str(tmp_path / "x.db"))
    mine.create_collection("chunks", dimension=4)
    mine.insert("chunks", [{"id": 1, "vector": [0.5] * 4}])
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        add(store, make_page("a"))
    assert [row["id"] for row in mine.query("chunks", ids=[1])] == [1]
    mine.close()


def test_closing_a_file_closes_its_connection(tmp_path: Path) -> None:
    connections = ConnectionManager.get_instance().get_stats
    before = connections()["total_connections"]
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        assert connections()["total_connections"] == before + 1
    assert connections()["total_connections"] == before


ASK = """
import sys
from llama_index_colqwen import MilvusPageStore, StoreLockedError
for uri in sys.argv[1:]:
    try:
        print(MilvusPageStore(uri).count())
    except StoreLockedError:
        print("locked")
"""


@pytest.mark.slow
def test_stores_that_were_collected_or_closed_hold_no_file(tmp_path: Path, run_python: Callable[..., str]) -> None:
    dropped, twice, held = (tmp_path / f"{name}.db" for name in ("dropped", "twice", "held"))
    for path in (dropped, twice, twice, held):  # a notebook's cell that is run again
        store = MilvusPageStore(path)
        store.open(FINGERPRINT)
        add(store, make_page("a"))
        if path == twice:
            kept = store
    assert len(everything(store)) == 1
    kept.close()
    del kept
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "colqwen-close":
            thread.join(60)
    assert run_python(ASK, dropped, twice, held).split() == ["1", "1", "locked"]
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_database_on_a_read_only_file_system_says_so(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", mounted], capture_output=True).returncode:
        pytest.skip("only root may mount")
    try:
        with MilvusPageStore(mounted / "x.db") as store:
            store.open(FINGERPRINT)
            add(store, make_page("a"))
        subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
        with pytest.raises(StoreError, match=r"cannot be written \(a read-only file system") as error:
            MilvusPageStore(mounted / "x.db").count()
        assert not isinstance(error.value, StoreLockedError)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_database_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "x.db" / "databases").mkdir(parents=True)
    (tmp_path / "x.db" / "LOCK").mkdir()
    with pytest.raises(StoreError, match=r"Milvus Lite cannot open .*IsADirectoryError"):
        MilvusPageStore(tmp_path / "x.db").open(FINGERPRINT)


def test_collections_of_the_version_before_are_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their parts do not say of what they are part; as of then, only their fields do."""
    monkeypatch.setattr("llama_index_colqwen.store.vector_shards._SHARD_PAGES", 2)
    names = [f"{number}" for number in range(5)]
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        for name in names:
            add(store, make_page(name))
        client, made = store._connection.client, store._require_open().description
        for part in schema.parts_of(client, "pages", made):
            client.alter_collection_properties(part, {schema._PART_PROPERTY: "{}"})
        client.alter_collection_properties("pages", {schema._PROPERTY: replace(made, schema=3).to_json()})
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        assert store._require_open().description.schema == 3
        add(store, make_page("new"))
    shutil.rmtree(tmp_path / "x.cache")
    with MilvusPageStore(tmp_path / "x.db") as store:
        assert [candidate.page_id for candidate in everything(store)] == [*names, "new"]
        store.clear()
        assert store._connection.client.list_collections() == []


def test_user_and_password_in_the_address_are_not_shown() -> None:
    store = MilvusPageStore("http://root:Secret123@127.0.0.1:9")
    assert store.uri == "http://127.0.0.1:9"
    with pytest.raises(StoreError) as error:
        store.count()
    assert "Secret123" not in str(error.value)
    assert store._connection._token == "root:Secret123"


def test_path_as_the_shell_completes_a_folder_is_the_database(tmp_path: Path) -> None:
    assert MilvusPageStore(f"{tmp_path}/x.db/").uri == str(tmp_path / "x.db")


def test_tilde_is_the_home_folder_and_that_of_nobody_an_ordinary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    store = MilvusPageStore("~/x.db", image_dir="~/pages", cache_dir="~/cache")
    assert (store.uri, store.image_dir) == (str(tmp_path / "x.db"), tmp_path / "pages")
    monkeypatch.chdir(tmp_path)
    nobody = MilvusPageStore("~nobody-of-that-name/x.db")
    assert nobody.uri == str(tmp_path / "~nobody-of-that-name" / "x.db")


def test_query_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        add(store, make_page("a"))
        with pytest.raises(QueryError, match="not finite"):
            store.candidates(np.full((1, 4), np.nan, np.float32))


@pytest.mark.slow
def test_what_a_server_cannot_hold_is_said_with_the_page_and_nothing_is_stored(
    milvus_server: str, tmp_path: Path
) -> None:
    name = f"fits_{os.getpid()}"
    with MilvusPageStore(milvus_server, collection_name=name, cache_dir=tmp_path) as store:
        store.open(FINGERPRINT)
        good, vectors = make_page("good"), unit_rows(0, 2)
        for bad, what in (
            (make_page("bad", note="ü" * 40_000), "metadata"),
            (make_page("p" * 600), "page_id"),
            (make_page("bad", document_id="d" * 600), "document_id"),
        ):
            with pytest.raises(InvalidOptionError, match=f"The {what} of page 1 of .* takes .* bytes"):
                store.add([good, bad], [vectors, vectors])
        assert store.count() == 0
        store.clear()


FORK = """
import gc, os, subprocess, sys, warnings
from llama_index_colqwen import StoreLockedError
from tests.fakes import *
warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads
store = MilvusPageStore(sys.argv[1])
store.open(FINGERPRINT)
add(store, make_page("a"))
if not (child := os.fork()):
    for one in (store, MilvusPageStore(sys.argv[1])):
        try:
            one.count()
        except StoreLockedError as error:
            print("child:", "in use by another process" in str(error), flush=True)
    store.close()
    del store, one
    gc.collect()
    sys.exit()  # with all that is called then
os.waitpid(child, 0)
print("other:", subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], capture_output=True, text=True).stdout)
add(store, make_page("b"))
print("parent:", [candidate.page_id for candidate in everything(store)])
"""


@needs_fork
@pytest.mark.slow
def test_forked_process_does_not_get_at_its_parents_file(tmp_path: Path, run_python: Callable[..., str]) -> None:
    said = run_python(FORK, tmp_path / "x.db", ASK).split()
    assert " ".join(said) == "child: True child: True other: locked parent: ['a', 'b']"


FORK_SERVER = """
import sys, warnings
from tests.fakes import *
from tests.forks import in_fork
from tests.services import wait_for
def write_and_search():
    add(store, make_page("b"))
    return [candidate.page_id for candidate in everything(store)]
with MilvusPageStore(sys.argv[1], collection_name=sys.argv[2], cache_dir=sys.argv[3]) as store:
    store.open(FINGERPRINT)
    add(store, make_page("a"))
    for _ in range(2):
        assert [candidate.page_id for candidate in everything(store)][:1] == ["a"]
        assert in_fork(write_and_search) == ["a", "b"]
    wait_for(lambda: [candidate.page_id for candidate in everything(store)] == ["a", "b"])
    store.clear()
print("done")
"""


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("server", ["lite_server", "milvus_server"])
def test_store_of_a_server_works_in_a_forked_process(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    """In an interpreter of its own: gRPC cannot be forked while other threads, as of other tests, are in calls."""
    uri, name = request.getfixturevalue(server), f"forked_{uuid.uuid4().hex[:8]}"
    assert run_python(FORK_SERVER, uri, name, tmp_path / "cache").strip() == "done"


@pytest.mark.parametrize("size", [0, 100])
@pytest.mark.parametrize("ann_index", [None, AnnIndex("HNSW", {})])
def test_indexes_that_a_process_died_writing_are_made_anew(
    tmp_path: Path, size: int, ann_index: AnnIndex | None
) -> None:
    def open_store() -> MilvusPageStore:
        return MilvusPageStore(tmp_path / "x.db", cache_dir=tmp_path / "cache", ann_index=ann_index)

    with open_store() as store:
        store.open(FINGERPRINT)
        add(store, make_page("a"), make_page("b"))
        everything(store)
    shutil.rmtree(tmp_path / "cache")
    indexes = list((tmp_path / "x.db").rglob("*.*idx"))
    assert indexes
    for path in indexes:
        os.truncate(path, size)
    with open_store() as store:
        assert [page.page_id for page in everything(store)] == ["a", "b"]
        query = unit_rows(0, 1, FINGERPRINT.dim)
        assert {page.page_id for page in store.candidates(query, candidate_k=2)} == {"a", "b"}


FORK_WHILE_ASKED = """
import os, sys, threading, warnings
from tests.fakes import *
def ask():
    while not started.is_set():
        everything(store)
started = threading.Event()
with MilvusPageStore(sys.argv[1]) as store:
    store.open(FINGERPRINT)
    add(store, make_page("a"))
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks of processes with threads
    for _ in range(30):
        os.waitpid(os.fork() or os._exit(0), 0)
    started.set()
    for thread in threads:
        thread.join()
"""


@needs_fork
@pytest.mark.slow
def test_forks_while_milvus_is_asked_have_nothing_written_to_stderr(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK_WHILE_ASKED, str(tmp_path / "x.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("left", [None, "schema.json.tmp", "data/rows.parquet"])
def test_folder_of_a_collection_that_a_process_died_making_or_dropping_is_taken_over(
    tmp_path: Path, left: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "x.db" / "collections" / "pages_vectors"
    (folder / "data").mkdir(parents=True)
    if left is not None:
        (folder / left).write_text("{")
    with caplog.at_level(logging.WARNING), MilvusPageStore(tmp_path / "x.db") as store:
        store.open(FINGERPRINT)
        add(store, make_page("a"))
        assert [candidate.page_id for candidate in everything(store)] == ["a"]
    kept = [str(path.relative_to(tmp_path)) for path in (tmp_path / "x.db").glob("leftovers/*/data/*")]
    assert len(kept) == ("data/rows.parquet" == left) == caplog.text.count("half made or half dropped")
