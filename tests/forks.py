"""Forked processes, as gunicorn, Celery and multiprocessing make them."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import pytest

_T = TypeVar("_T")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


def in_fork(function: Callable[[], _T], seconds: float = 60) -> _T:
    """Call a function in a process that is forked off this one; return what it returns, or raise its error."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, sender))
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks of processes with threads: that they end well is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    try:
        assert receiver.poll(seconds), "it hangs in the forked process"
        value: Any = receiver.recv()
    finally:
        process.kill()
        process.join()
        sender.close()
        receiver.close()
    if isinstance(value, BaseException):
        raise value
    answer: _T = value
    return answer


def _send(function: Callable[[], object], sender: Connection) -> None:
    try:
        sender.send(function())
    except BaseException as error:
        sender.send(error)
