"""Damaged PDFs and images -> pages, or one clear error; whatever else comes of them is a finding.

    python -m tests.fuzz_reading --count 20000 --seed 0

Small files of many kinds are made, damaged in one to four ways, and read. Findings are: an error that is no
`DocumentError`, or one that is not a sentence with the file's name; a page that could not be stored; a warning; the
end of a process; more seconds or memory than a file may take. Each is printed with what makes it again; one or more
are exit code 1. Needs Linux: for speed, the processes are forks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from llama_index_colqwen.errors import DocumentError
from llama_index_colqwen.pages import unpack_boxes
from llama_index_colqwen.reading.reader import PDFPageReader
from tests.damaged_files import Files, make_files, mutate

BATCH = 25  # files read by a process, after which it makes place for a fresh one
PAGE_SECONDS = 5.0
MAX_PIXELS = 60_000  # what is drawn is small, so that most of the time goes into reading
ADDRESS_SPACE = 6 << 30  # a process that wants more memory than this ends, before the machine does


@dataclass(frozen=True)
class Outcome:
    """What came of a file; what was to come of none is a finding, told in full."""

    kind: str
    finding: str = ""


def read(path: Path, reader: PDFPageReader, megabytes: float) -> Outcome:
    """Read a file and check what comes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            documents = reader.load_data(path)
        for document in documents:
            _check_page(document.text, document.metadata)
    except DocumentError as error:
        message = str(error)
        foreign = str(path.parent), "\n", " object at "  # what other libraries say of files and objects
        if not message.startswith(path.name) or len(message) > 500 or any(one in message for one in foreign):
            return Outcome("not one clear sentence", repr(error))
        if "page_timeout" in message:
            return Outcome("late")
        return Outcome(type(error).__name__)
    except BaseException as error:  # that is what is looked for
        return Outcome(type(error).__name__, traceback.format_exc())
    peak = peak_megabytes()
    if peak > megabytes:
        return Outcome("memory", f"{peak:.0f} MB")
    return Outcome("read" if documents else "no pages", "" if documents else "neither pages nor an error")


def peak_megabytes() -> float:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _check_page(text: str, metadata: dict[str, Any]) -> None:
    text.encode()
    json.dumps(metadata, allow_nan=False).encode()
    str(metadata["page_label"]).encode()
    unpack_boxes(text, metadata["word_boxes"])


def _work(
    connection: Connection, numbers: Sequence[int], *, files: Files, seed: int, reader: PDFPageReader, megabytes: float
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there what it thinks of a file
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number in numbers:
            name, data = mutate(files, seed, number)
            path = Path(folder) / name
            path.write_bytes(data)
            outcome = read(path, reader, megabytes)
            path.unlink()
            connection.send(outcome)
            if outcome.finding or outcome.kind == "late":
                return  # the process may have suffered


class _Worker:
    """A process that reads some files, as seen from outside."""

    def __init__(self, numbers: deque[int], work: Callable[[Connection, Sequence[int]], None], seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        self.numbers, self._seconds, self._since = numbers, seconds, time.monotonic()
        self.connection, theirs = context.Pipe(duplex=False)
        # A daemonic process starts none for pdfium: a page that is late is an error, and no other is read after it.
        self._process = context.Process(target=work, args=(theirs, tuple(numbers)), daemon=True)
        self._process.start()
        theirs.close()

    def next_outcome(self, is_ready: bool) -> Outcome | None:
        """Return what came of the first of the numbers, if that is known by now."""
        if is_ready:
            try:
                outcome: Outcome = self.connection.recv()
            except EOFError:
                self._process.join()
                return self._end(self._process.exitcode or 0)
            self._since = time.monotonic()
            return outcome
        if time.monotonic() - self._since < self._seconds:
            return None
        self._process.kill()
        self._process.join()
        self._end(0)
        return Outcome("hang", f"more than {self._seconds:g} s")

    def _end(self, code: int) -> Outcome | None:
        self.connection.close()
        if code == 0:
            return None
        return Outcome("crash", signal.Signals(-code).name if code < 0 else f"exit code {code}")


def fuzz(
    numbers: range, work: Callable[[Connection, Sequence[int]], None], jobs: int, seconds: float
) -> Iterator[tuple[int, Outcome]]:
    """Read damaged files in processes of their own; yield what comes of each, in the order in which it comes."""
    waiting = deque(deque(numbers[start : start + BATCH]) for start in range(0, len(numbers), BATCH))
    workers: list[_Worker] = []
    while waiting or workers:
        while waiting and len(workers) < jobs:
            workers.append(_Worker(waiting.popleft(), work, seconds))
        ready = wait([worker.connection for worker in workers], timeout=0.5)
        for worker in tuple(workers):
            outcome = worker.next_outcome(worker.connection in ready)
            if outcome is not None:
                yield worker.numbers.popleft(), outcome
            if worker.connection.closed:
                workers.remove(worker)
                waiting.extend([worker.numbers] if worker.numbers else [])


def main(argv: Sequence[str] | None = None) -> int:
    """Read damaged files; print the findings, and how often what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many files are damaged and read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first one's number: a finding's, to make it again")
    parser.add_argument("--keep", type=Path, help="a folder that files with findings are written to")
    parser.add_argument("--renderer", choices=["pdfium", "poppler"], default="pdfium")
    parser.add_argument("--jobs", type=int, default=2, help="processes that read")
    parser.add_argument("--seconds", type=float, default=30, help="that a file may take")
    parser.add_argument("--megabytes", type=float, default=1024, help="that a process may hold")
    arguments = parser.parse_args(argv)

    os.environ["TQDM_DISABLE"] = "1"
    files = make_files()
    renderer = arguments.renderer
    reader = PDFPageReader(ocr="never", renderer=renderer, max_pixels=MAX_PIXELS, page_timeout=PAGE_SECONDS)
    work = partial(_work, files=files, seed=arguments.seed, reader=reader, megabytes=arguments.megabytes)
    numbers = range(arguments.first, arguments.first + arguments.count)
    kinds: Counter[str] = Counter()
    findings = 0
    for number, outcome in fuzz(numbers, work, arguments.jobs, arguments.seconds):
        kinds[outcome.kind] += 1
        if not outcome.finding:
            continue
        findings += 1
        name, data = mutate(files, arguments.seed, number)
        again = f"python -m tests.fuzz_reading --seed {arguments.seed} --first {number} --count 1 --renderer {renderer}"
        sys.stdout.write(f"{name}: {outcome.kind}: {outcome.finding.strip()}\n  again: {again}\n")
        sys.stdout.flush()
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            (arguments.keep / name).write_bytes(data)
    sys.stdout.write(
        json.dumps({"files": sum(kinds.values()), "findings": findings, **dict(kinds.most_common())}) + "\n"
    )
    return int(findings > 0)


if __name__ == "__main__":
    raise SystemExit(main())
