from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llama_index_colqwen.concurrency import (
    BackgroundLoop,
    Lock,
    Stopped,
    WriteBehind,
    check_stopped,
    gather,
    look_ahead,
    read_ahead,
)
from llama_index_colqwen.errors import ColQwenError
from tests.forks import in_fork, needs_fork


def test_items_come_in_order_from_another_thread() -> None:
    threads = set()

    def items() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.current_thread().name)
            yield number

    assert list(read_ahead(items(), 3)) == list(range(100))
    assert threads == {"colqwen-read"}


def test_reading_is_at_most_so_far_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number

    for used, _ in enumerate(read_ahead(items(), 4)):
        time.sleep(0.002)
        assert taken <= used + 1 + 4 + 1  # the one in use, those that wait, and one in the reader's hand


def test_error_of_the_iteration_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("disk on fire")

    seen = []
    with pytest.raises(OSError, match="disk on fire"):
        for item in read_ahead(items(), 1):
            seen.append(item)
    assert seen == [1, 2]


def test_closing_stops_the_thread_and_leaves_the_rest_unread() -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    reader = read_ahead(items(), 2)
    assert next(reader) == 0
    reader.close()
    assert len(taken) <= 4
    assert not any(thread.name == "colqwen-read" for thread in threading.enumerate())


def test_long_work_ends_where_it_asks_whether_anyone_waits_for_it() -> None:
    begun, ended = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        check_stopped()
        yield 1
        begun.set()
        try:
            while True:
                check_stopped()
                time.sleep(0.01)
        except Stopped:
            ended.set()
            raise

    reader = read_ahead(items(), 2)
    assert next(reader) == 1
    assert begun.wait(10)
    reader.close()
    assert ended.is_set()
    check_stopped()  # this thread goes on


def test_everything_is_written_in_order_and_together_what_has_gathered() -> None:
    batches: list[list[int]] = []
    started, go_on = threading.Event(), threading.Event()

    def write(items: list[int]) -> None:
        started.set()
        go_on.wait(10)
        batches.append(items)

    with WriteBehind(write, 4) as writer:
        writer.put(0)
        assert started.wait(10)
        for number in range(1, 5):
            writer.put(number)
        go_on.set()
    assert [number for batch in batches for number in batch] == [0, 1, 2, 3, 4]
    assert batches[:2] == [[0], [1, 2, 3, 4]]


def test_leaving_by_an_error_still_writes_what_was_put() -> None:
    written: list[int] = []
    with pytest.raises(KeyboardInterrupt), WriteBehind(written.extend, 2) as writer:
        for number in range(7):
            writer.put(number)
        raise KeyboardInterrupt
    assert written == list(range(7))


def test_error_of_writing_is_raised_at_the_next_put_or_at_the_end_and_never_hangs() -> None:
    def write(items: list[int]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind(write, 2) as writer:
        for number in range(1000):
            writer.put(number)
    with pytest.raises(OSError, match="disk full"), WriteBehind(write, 2) as writer:
        writer.put(1)


def test_reading_and_writing_overlap() -> None:
    """The fifth item is read and the first is written while the third is in use: each waits there for the others."""
    meeting = threading.Barrier(3, timeout=30)
    written: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            if number == 4:
                meeting.wait()
            yield number

    def write(batch: list[int]) -> None:
        if 0 in batch:
            meeting.wait()
        written.extend(batch)

    with WriteBehind(write, 1) as writer:
        for item in read_ahead(items(), 2):
            if item == 2:
                meeting.wait()
            writer.put(item)
    assert written == list(range(10))


def test_gathering_and_looking_ahead_give_what_came_before_an_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("disk on fire")

    gathered, seen = [], []
    with pytest.raises(OSError, match="disk on fire"):
        for batch in gather(items(), 2):
            gathered.append(batch)
    assert gathered == [[0, 1], [2, 3], [4]]
    assert list(gather(range(6), 3, first=1)) == [[0], [1, 2, 3], [4, 5]]
    with pytest.raises(OSError, match="disk on fire"):
        for item in look_ahead(items(), 3):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]


def test_looking_ahead_takes_so_many_more_than_are_used() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    ahead = look_ahead(items(), 2)
    assert [next(ahead), next(ahead)] == [0, 1]
    assert taken == [0, 1, 2, 3]
    assert list(ahead) == [2, 3, 4, 5, 6, 7, 8]


# ---- forks


def busy_with(lock: Lock, held: threading.Event, free: threading.Event) -> None:
    with lock:
        held.set()
        free.wait()


@needs_fork
def test_lock_that_a_thread_of_the_parent_holds_is_free_in_a_fork() -> None:
    lock, held, free = Lock(), threading.Event(), threading.Event()
    thread = threading.Thread(target=busy_with, args=(lock, held, free))
    thread.start()
    held.wait()

    def take() -> str:
        with lock:
            return "taken"

    try:
        assert in_fork(take) == "taken"
    finally:
        free.set()
        thread.join()


@needs_fork
def test_fork_waits_for_a_lock_that_guards_what_the_child_needs_in_order() -> None:
    lock, held, free = Lock(hold=True), threading.Event(), threading.Event()
    thread = threading.Thread(target=busy_with, args=(lock, held, free))
    thread.start()
    held.wait()
    release = threading.Timer(0.1, free.set)
    release.start()

    def take() -> bool:
        with lock:
            return free.is_set()

    assert in_fork(take)
    thread.join()
    release.join()
    with lock:
        pass


@needs_fork
def test_background_loop_begins_anew_in_a_fork_and_goes_on_in_the_parent() -> None:
    async def process() -> int:
        await asyncio.sleep(0)
        return os.getpid()

    loop = BackgroundLoop()
    try:
        assert loop.run(process) == os.getpid()
        assert in_fork(lambda: loop.run(process)) != os.getpid()
        assert in_fork(lambda: in_fork(lambda: loop.run(process))) != os.getpid()
        assert loop.run(process) == os.getpid()
    finally:
        loop.stop()


@needs_fork
def test_background_loop_that_is_gone_does_not_trouble_a_fork() -> None:
    loops = [BackgroundLoop() for _ in range(3)]
    del loops
    assert in_fork(lambda: "fine") == "fine"


@needs_fork
@pytest.mark.parametrize("ahead", [read_ahead, look_ahead])
def test_going_on_in_a_fork_with_what_a_thread_of_the_parent_reads_is_an_error(
    ahead: Callable[[Iterator[int], int], Iterator[int]],
) -> None:
    items = ahead(iter(range(100)), 2)
    assert next(items) == 0

    def go_on() -> list[int]:
        return list(items)

    with pytest.raises(ColQwenError, match="began in process .* begin again"):
        in_fork(go_on)
    assert list(items) == list(range(1, 100))


@needs_fork
def test_writing_on_in_a_fork_is_an_error_and_leaving_the_block_there_does_not_wait() -> None:
    written: list[int] = []

    def leave(writer: WriteBehind[int]) -> str:
        writer.__exit__(None, None, None)
        return "left"

    with WriteBehind[int](written.extend, 2) as writer:
        writer.put(1)
        with pytest.raises(ColQwenError, match="Writing behind began in process"):
            in_fork(lambda: writer.put(2))
        assert in_fork(lambda: leave(writer)) == "left"
        writer.put(3)
    assert written == [1, 3]
