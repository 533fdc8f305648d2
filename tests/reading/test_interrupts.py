"""Ctrl-C while pages are read by OCR, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_index_colqwen.reading import ocr
from tests.conftest import at_most
from tests.documents import draw_scan, write_scan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ocr.is_available(), reason="the [ocr] extra is not installed"),
    pytest.mark.skipif(not hasattr(os, "killpg"), reason="Ctrl-C is another thing on this system"),
]

READ = "import sys; from llama_index_colqwen import PDFPageReader; PDFPageReader(num_workers={}).load_data(sys.argv[1])"
INDEX = ["-m", "llama_index_colqwen.cli", "index"]
SECONDS = 12  # on machines that are busy; eight pages to their end, for which it once waited, take longer there


@pytest.mark.parametrize(
    ("arguments", "tracebacks", "begun"),
    [
        pytest.param(["-c", READ.format(1)], 1, "OCR: scan.pdf page 2", id="reading"),
        pytest.param(["-c", READ.format(2)], 1, "scan.pdf page 1", id="reading-in-workers"),
        pytest.param(INDEX, 0, "OCR: scan.pdf page 1", id="indexing"),
    ],
)
def test_ctrl_c_ends_ocr_at_once_with_one_traceback_and_no_process_left(
    tmp_path: Path, arguments: list[str], tracebacks: int, begun: str
) -> None:
    pages = [
        draw_scan([(60, 20 + 17 * line, f"Line {line} of page {number}. " * 3) for line in range(60)], font_size=14)
        for number in range(12)
    ]
    write_scan(tmp_path / "scan.pdf", *pages)
    errors = tmp_path / "errors.txt"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # where no page was read yet
    command = [sys.executable, *arguments, str(tmp_path / "scan.pdf")]
    with (
        errors.open("w") as stderr,
        # A session of its own: Ctrl-C in a terminal goes to all processes of one.
        subprocess.Popen(
            command, stderr=stderr, cwd=tmp_path, env=environment, start_new_session=True, text=True
        ) as process,
        at_most(110, process),
    ):
        while begun not in errors.read_text("utf-8"):
            assert process.poll() is None, errors.read_text("utf-8")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        pressed = time.monotonic()
        process.wait(timeout=50)
        took = time.monotonic() - pressed
    told = errors.read_text("utf-8")
    assert took < SECONDS
    assert told.count("Traceback (most recent call last)") == tracebacks, told
    assert "Exception ignored" not in told and "will be closed" not in told
    deadline = time.monotonic() + 10  # loky's watchers of shared resources end when they see that the others have
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)
