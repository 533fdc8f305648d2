"""What the fuzzing of the reader finds, and that it finds it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from llama_index_colqwen import PDFPageReader
from tests.damaged_files import make_files, mutate
from tests.forks import needs_fork

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@needs_fork
def test_damaged_files_are_pages_or_one_clear_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz_reading", "--count", "200", "--seed", "1000", "--keep", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
    line = json.loads(run.stdout.splitlines()[-1])
    assert (line["files"], line["findings"]) == (200, 0)
    assert line["read"] > 40
    assert line["UnreadableDocumentError"] > 40
    assert not list(tmp_path.iterdir())


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_crashes_and_hangs_are_findings_and_the_rest_is_read() -> None:
    from tests.fuzz_reading import Outcome, fuzz

    def work(connection: Connection, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 3:
                time.sleep(60)
            connection.send(Outcome("read"))

    outcomes = dict(fuzz(range(6), work, jobs=1, seconds=4))
    assert {number: outcome.kind for number, outcome in outcomes.items()} == dict.fromkeys((0, 2, 4, 5), "read") | {
        1: "crash",
        3: "hang",
    }
    assert outcomes[1].finding == "SIGKILL"
    assert outcomes[3].finding == "more than 4 s"


@needs_fork
def test_errors_and_memory_are_findings(tmp_path: Path) -> None:
    from tests.fuzz_reading import read

    path = tmp_path / "x.png"
    path.write_bytes(make_files()["RGB.png"])
    reader = PDFPageReader(ocr="never")
    assert read(path, reader, megabytes=1 << 20).kind == "read"
    assert read(path, reader, megabytes=1).kind == "memory"
    outcome = read(path, "no reader", megabytes=1)  # type: ignore[arg-type]
    assert outcome.kind == "AttributeError"
    assert "load_data" in outcome.finding


def test_a_seed_and_a_number_make_the_same_file_again() -> None:
    files, again = make_files(), make_files()
    first = [mutate(files, 5, number) for number in range(50)]
    assert first == [mutate(again, 5, number) for number in range(50)]
    assert len({data for _, data in first}) == 50
    assert first != [mutate(files, 6, number) for number in range(50)]
    assert {name.rpartition(".")[2] for name, _ in first} > {"pdf", "png", "tif", "jpg"}
