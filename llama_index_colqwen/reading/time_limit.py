"""Calls into pdfium that end in time, or are given up.

A call that runs for ever can be stopped only together with its process, and pdfium takes one call at a time. So calls
run in a thread; when one is late, pdfium is lost to this process, and what else is to be read is read in a process that
can be killed. Until then that costs a tenth of a millisecond a page.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

from llama_index_colqwen.concurrency import Lock

__all__ = ["PDFIUM_LOCK", "LateError", "PdfiumLostError", "in_time", "is_pdfium_lost"]

_Item = TypeVar("_Item")

_POLL_SECONDS = 0.25


class LateError(Exception):
    """A call has taken too long; its thread is left to itself."""


class PdfiumLostError(Exception):
    """A call of another thread has taken too long: this process cannot use pdfium any more."""


class _PdfiumLock(Lock):
    """Knows which thread is in pdfium, and since when."""

    def __init__(self) -> None:
        super().__init__(hold=True)
        self._entered: tuple[threading.Thread, float] | None = None
        self._depth = 0

    def __enter__(self) -> None:
        super().__enter__()
        self._depth += 1
        if self._depth == 1:
            self._entered = threading.current_thread(), time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._entered = None
        super().__exit__(kind, error, traceback)

    def seconds_of(self, thread: threading.Thread) -> float:
        """How long a thread has been in pdfium."""
        entered = self._entered
        return time.monotonic() - entered[1] if entered and entered[0] is thread else 0.0


PDFIUM_LOCK = _PdfiumLock()
"""pdfium keeps global state and is not thread-safe: every call into it holds this lock, and forks wait for it."""

_LOST = threading.Event()


def is_pdfium_lost() -> bool:
    """Whether a call into pdfium was given up in this process, or in one that it was forked off."""
    return _LOST.is_set()


def in_time(items: Callable[[], Iterator[_Item]], seconds: float) -> Generator[_Item, None, None]:
    """Iterate in a thread of its own, an item when it is asked for; time is that in which the thread holds pdfium.

    Args:
        items: Begins the iteration, in the thread.
        seconds: How long it may be in pdfium at a time.

    Raises:
        LateError: If it takes longer.
        PdfiumLostError: If it waits for a call of another thread that took longer.
    """
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    given: queue.SimpleQueue[tuple[_Item] | BaseException | None] = queue.SimpleQueue()

    def iterate() -> None:
        iterator = None
        try:
            while asked.get():
                iterator = items() if iterator is None else iterator
                given.put((next(iterator),))
        except StopIteration:
            given.put(None)
        except BaseException as error:  # whatever it is, it is raised where the items are used
            given.put(error)
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    thread = threading.Thread(target=iterate, name="colqwen-pdfium", daemon=True)
    thread.start()
    try:
        while True:
            asked.put(True)
            given_item = _wait(given, thread, seconds)
            if given_item is None:
                return
            if isinstance(given_item, BaseException):
                raise given_item
            yield given_item[0]
    finally:
        asked.put(False)
        if not is_pdfium_lost():
            thread.join(1)  # so that the file is closed


def _wait(
    given: queue.SimpleQueue[tuple[_Item] | BaseException | None], thread: threading.Thread, seconds: float
) -> tuple[_Item] | BaseException | None:
    while True:
        if is_pdfium_lost():
            raise PdfiumLostError
        try:
            return given.get(timeout=min(_POLL_SECONDS, seconds))
        except queue.Empty:
            if PDFIUM_LOCK.seconds_of(thread) >= seconds:
                _lose(thread)
                raise LateError from None


def _lose(thread: threading.Thread) -> None:
    """Leave a thread to itself, with as little of the processor as can be."""
    _LOST.set()
    PDFIUM_LOCK.abandon()
    _never_free_pdfium()
    if sys.platform == "linux" and thread.native_id is not None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread.native_id, 19)


def _never_free_pdfium() -> None:
    """Have pypdfium2 free nothing, neither now nor when the process ends: the thread is still using it."""
    with suppress(ImportError, AttributeError):  # what it has for this is not public
        from pypdfium2 import _library_scope
        from pypdfium2.internal import bases

        atexit.unregister(_library_scope.destroy_lib)
        bases.LIBRARY_AVAILABLE = False
        bases._warn_close = bases._debug_close
