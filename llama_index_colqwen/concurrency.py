"""Work that overlaps: read ahead, write behind, an event loop in a thread, blocking calls off the event loop.

Threads do not survive a fork, and locks that they hold are never released in the child: what is here begins anew there
or, in the middle of something, is an error. Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from llama_index_colqwen.errors import ColQwenError

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = [
    "BackgroundLoop",
    "Lock",
    "Stopped",
    "WriteBehind",
    "after_fork",
    "check_stopped",
    "gather",
    "in_thread",
    "look_ahead",
    "read_ahead",
]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")

# How long a thread that waits for room goes without asking whether anyone still wants what it has.
_POLL_SECONDS = 0.1

_RENEWALS: dict[int, weakref.WeakMethod[Callable[[], None]]] = {}


def after_fork(renew: Callable[[], None]) -> None:
    """Call an object's method in every process that is forked off this one, first of all, while the object lives.

    As by gunicorn, Celery and multiprocessing. The method replaces locks, which another thread of the parent may have
    held, and forgets threads and connections; it waits for nothing, and closes nothing that is the parent's.
    """
    reference = weakref.WeakMethod(renew, lambda dead: _RENEWALS.pop(id(dead), None))
    _RENEWALS[id(reference)] = reference


def _renew_all() -> None:
    for reference in list(_RENEWALS.values()):
        if (renew := reference()) is not None:
            renew()


class Lock:
    """A lock for `with`, as often as its thread likes, that is free in a forked process, whoever held it in the parent.

    Args:
        hold: Whether a fork waits for the lock, so that the child finds what it guards in order: for state of the whole
            process that is held for moments.
    """

    def __init__(self, *, hold: bool = False) -> None:
        """See the class."""
        self._begin()
        if not hold:
            after_fork(self._begin)
        elif _CAN_FORK:
            os.register_at_fork(before=self._hold, after_in_parent=self._end_hold, after_in_child=self._end_hold)

    def abandon(self) -> None:
        """Have forks wait for it no longer: the thread that has it will not give it back."""
        self._abandoned = True

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._abandoned = False

    def _hold(self) -> None:
        if not self._abandoned:
            self._lock.acquire()

    def _end_hold(self) -> None:
        if not self._abandoned:
            self._lock.release()

    def __enter__(self) -> None:
        """Wait for it, and take it."""
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""
        self._lock.release()


_CAN_FORK = hasattr(os, "register_at_fork")  # not on Windows
if _CAN_FORK:
    os.register_at_fork(after_in_child=_renew_all)


def _check_process(process: int, what: str) -> None:
    if os.getpid() != process:
        raise ColQwenError(
            f"{what} began in process {process}, and its thread did not follow into this one ({os.getpid()}), which "
            "was forked off meanwhile: fork before, or begin again in this process."
        )


class Stopped(BaseException):
    """Nobody wants any longer what a thread is at, as after Ctrl-C; no `Exception`, as asyncio's CancelledError."""


_STOPPED: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)


def check_stopped() -> None:
    """Go on only if someone waits for it: long work calls this every second or so, in whatever thread it runs.

    Raises:
        Stopped: If this thread is `read_ahead`'s, and that was closed.
    """
    stopped = _STOPPED.get()
    if stopped is not None and stopped.is_set():
        raise Stopped


def read_ahead(items: Iterable[_Item], ahead: int) -> Generator[_Item, None, None]:
    """Iterate in a thread of its own, at most `ahead` items in advance.

    Errors of the iteration are raised here, after the items before them. Closing this generator waits for the thread,
    which ends with the item that it is at, or at its next `check_stopped`.

    Raises:
        ColQwenError: In a process that was forked off meanwhile.
    """
    process = os.getpid()
    taken: queue.Queue[tuple[_Item] | BaseException | None] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[_Item] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                taken.put(entry, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put((item,))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, it is raised where the items are used
            put(error)

    context = contextvars.copy_context()
    context.run(_STOPPED.set, stopped)
    thread = threading.Thread(target=context.run, args=(read,), name="colqwen-read", daemon=True)
    thread.start()
    try:
        while (entry := taken.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
            _check_process(process, "Reading ahead")
    finally:
        stopped.set()
        thread.join()


def gather(items: Iterable[_Item], most: int, first: int | None = None) -> Iterator[list[_Item]]:
    """Put items together, `most` at a time; an error of the iteration comes after the items before it.

    Args:
        items: Of any kind.
        most: How many.
        first: How many the first time, where someone waits for them.
    """
    gathered: list[_Item] = []
    wanted = most if first is None else first
    failure: Exception | None = None
    try:
        for item in items:
            gathered.append(item)
            if len(gathered) == wanted:
                yield gathered
                gathered, wanted = [], most
    except Exception as error:
        failure = error
    if gathered:
        yield gathered
    if failure is not None:
        raise failure


def look_ahead(items: Iterable[_Item], ahead: int) -> Iterator[_Item]:
    """Take items, such as futures of work that begins when they are taken, `ahead` of their use.

    An error of the iteration comes after the items before it.

    Raises:
        ColQwenError: In a process that was forked off meanwhile.
    """
    process = os.getpid()
    remaining = iter(items)
    waiting: deque[_Item] = deque()
    failure: Exception | None = None
    more = True
    while more or waiting:
        while more and len(waiting) <= ahead:
            try:
                waiting.append(next(remaining))
            except StopIteration:
                more = False
            except Exception as error:
                failure, more = error, False
        if waiting:
            yield waiting.popleft()
            _check_process(process, "Looking ahead")
    if failure is not None:
        raise failure


class WriteBehind(Generic[_Item]):
    """Write items in a thread of its own: each as soon as it can be, and together what has gathered meanwhile.

    Leaving the block waits until everything is written, whatever the reason for leaving.

    Args:
        write: Called with one to `most` items, in the order they were put.
        most: Also how many can wait.
    """

    def __init__(self, write: Callable[[list[_Item]], None], most: int) -> None:
        """See the class."""
        self._write = write
        self._most = most
        self._waiting: queue.Queue[tuple[_Item] | None] = queue.Queue(most)
        self._error: BaseException | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="colqwen-write", daemon=True)

    def put(self, item: _Item) -> None:
        """Hand an item over; wait while too many are waiting.

        Raises:
            BaseException: What `write` raised over earlier items.
            ColQwenError: In a process that was forked off meanwhile.
        """
        _check_process(self._process, "Writing behind")
        if self._error is not None:
            raise self._error
        self._waiting.put((item,))

    def __enter__(self) -> WriteBehind[_Item]:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until everything is written; raise what `write` raised, unless an error is under way already."""
        if os.getpid() != self._process:
            return  # what was put is written by the parent
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _work(self) -> None:
        more = True
        while more:
            batch: list[_Item] = []
            entry = self._waiting.get()
            while True:
                if entry is None:
                    more = False
                    break
                batch.append(entry[0])
                if len(batch) == self._most:
                    break
                try:
                    entry = self._waiting.get_nowait()
                except queue.Empty:
                    break
            # After an error the queue is emptied all the same, so that no one waits for room in it.
            if batch and self._error is None:
                try:
                    self._write(batch)
                except BaseException as error:  # raised by `put`, or at the end
                    self._error = error


def in_thread(blocking: Callable[_Arguments, _Result]) -> Callable[_Arguments, Coroutine[Any, Any, _Result]]:
    """Return the asynchronous twin of a blocking method: it runs in a thread, and the event loop goes on.

    As `aadd = in_thread(add)` in the body of a class.
    """

    @wraps(blocking)
    async def twin(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        # Looked up by name, so that the twin of a method that a subclass overrides is the subclass's.
        method: Callable[..., _Result] = getattr(args[0], blocking.__name__)
        return await asyncio.to_thread(method, *args[1:], **kwargs)

    twin.__name__ = f"a{blocking.__name__}"
    twin.__qualname__ = f"{blocking.__qualname__.rpartition('.')[0]}.{twin.__name__}"
    twin.__doc__ = f"Do `{blocking.__name__}` without blocking the event loop."
    return twin


class BackgroundLoop:
    """An event loop in a thread (anyio's blocking portal), for callers that have another loop, or none.

    It starts when it is first needed, and again after `stop` or a fork. Safe for many threads and loops.
    """

    def __init__(self) -> None:
        """See the class."""
        self._lock = Lock()
        self._begin()
        after_fork(self._begin)

    def _begin(self) -> None:
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None

    def submit(
        self,
        function: Callable[_Arguments, Coroutine[Any, Any, _Result]],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> Future[_Result]:
        """Start a coroutine function there; cancelling the future cancels it."""
        with self._lock:
            if self._portal is None:
                self._portal = self._start()
            return self._portal.start_task_soon(partial(function, *args, **kwargs))

    def run(
        self,
        function: Callable[_Arguments, Coroutine[Any, Any, _Result]],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Run a coroutine function there, and wait for it in this thread."""
        future = self.submit(function, *args, **kwargs)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # as by Ctrl-C
            raise

    async def arun(
        self,
        function: Callable[_Arguments, Coroutine[Any, Any, _Result]],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Run a coroutine function there, and wait for it on this loop; being cancelled cancels it."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def stop(self) -> None:
        """Cancel what runs there, and end the thread."""
        with self._lock:
            portal, thread, self._portal, self._thread = self._portal, self._thread, None, None
        if portal is not None and thread is not None:
            portal.call(portal.stop, True)
            thread.join()

    def _start(self) -> BlockingPortal:
        import anyio
        from anyio.from_thread import BlockingPortal

        started: Future[BlockingPortal] = Future()

        async def serve() -> None:
            async with BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()

        # Not anyio's start_blocking_portal: one that nobody has closed waits for ever when the interpreter exits.
        self._thread = threading.Thread(target=anyio.run, args=(serve,), name="colqwen-loop", daemon=True)
        self._thread.start()
        return started.result()
