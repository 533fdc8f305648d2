r"""PDFs -> how many of the words that poppler's pdftotext finds are in the pages' texts, and what reading a page takes.

    python benchmarks/text.py FOLDER... [--pages 30]

Words are what `\w+` matches, in lower case, counted page by page: what is found twice has to be there twice. Only the
text layer is compared: no page is read by OCR. Recall is of pdftotext's words; "more" are words that it does not have,
as a share of its own. A page that we do not read misses all its words. pdftotext is no truth: it parts words at line
ends, and small capitals from what they stand beside. So the worst files are named, to be looked at. CPU time is that of
the whole reading, drawing included. Prints tables and, last, one JSON line. Needs poppler's programs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from llama_index_colqwen import PDFPageReader, SkippedDocumentWarning

MANY_WORDS = 20
WORST = 10


@dataclass(frozen=True)
class PageWords:
    """How many words of a page pdftotext finds, how many of these we have, and how many we have besides."""

    theirs: int
    shared: int
    more: int


def compare(ours: str, theirs: str) -> PageWords:
    """Compare two texts of a page as multisets of words."""
    ours_counted, theirs_counted = (Counter(re.findall(r"\w+", text.lower())) for text in (ours, theirs))
    shared = (ours_counted & theirs_counted).total()
    return PageWords(theirs_counted.total(), shared, ours_counted.total() - shared)


def read_with_poppler(path: Path, pages: int) -> list[str] | None:
    """Return the texts of the first pages; None if poppler cannot read the file."""
    command = ["pdftotext", "-enc", "UTF-8", "-l", str(pages), str(path), "-"]
    run = subprocess.run(command, capture_output=True)
    if run.returncode:
        return None
    return run.stdout.decode(errors="replace").split("\f")[:-1]  # each ends with a form feed


def read_with_us(path: Path, pages: int) -> tuple[list[str], list[float]]:
    """Return the texts of the first pages, empty for those that are not read, and the CPU seconds of the others."""
    reader = PDFPageReader(ocr="never", on_error="skip")
    texts: list[str] = []
    seconds: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedDocumentWarning)
        with closing(reader.lazy_load_data(path, show_progress=False)) as documents:
            while len(texts) < pages:
                started = time.process_time()
                document = next(documents, None)
                if document is None or document.metadata["page_number"] > pages:
                    break
                seconds.append(time.process_time() - started)
                texts += [""] * (document.metadata["page_number"] - len(texts) - 1) + [document.text]
    return texts, seconds


def figures(pages: Iterable[PageWords]) -> dict[str, float | None]:
    """Sum pages up; recall and more are None where pdftotext finds no word."""
    pages = list(pages)
    theirs = sum(page.theirs for page in pages)
    shared, more = sum(page.shared for page in pages), sum(page.more for page in pages)
    recall, besides = (round(shared / theirs, 4), round(more / theirs, 4)) if theirs else (None, None)
    return {"pages": len(pages), "words": theirs, "recall": recall, "more": besides}


def _print_table(console: Console, title: str, rows: Sequence[tuple[str, dict[str, float | None]]]) -> None:
    table = Table(title, "pages", "pdftotext's words", "recall", "more")
    for name, row in rows:
        table.add_row(name, *("-" if value is None else f"{value:g}" for value in row.values()))
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--pages", type=int, default=30, help="so many first pages of each file")
    arguments = parser.parse_args(argv)

    by_file: dict[Path, list[PageWords]] = {}
    seconds: list[float] = []
    refused: list[str] = []
    for path in (path for folder in arguments.folders for path in sorted(folder.rglob("*.pdf"))):
        theirs = read_with_poppler(path, arguments.pages)
        if theirs is None:
            refused.append(path.name)
            continue
        ours, taken = read_with_us(path, arguments.pages)
        seconds += taken
        by_file[path] = [compare(*both) for both in zip_longest(ours, theirs, fillvalue="")]
    if not seconds:
        raise SystemExit("No page was read.")

    pages = [page for file in by_file.values() for page in file]
    everything, full = figures(pages), figures(page for page in pages if page.theirs >= MANY_WORDS)
    files = [(path.name, figures(file)) for path, file in by_file.items()]
    worst = sorted((file for file in files if file[1]["words"]), key=lambda file: file[1]["recall"] or 0)[:WORST]
    console = Console(width=110)
    _print_table(console, "", [("all pages", everything), (f"of {MANY_WORDS} words or more", full)])
    _print_table(console, "worst files", worst)
    if refused:
        sys.stdout.write(f"Left out, as pdftotext cannot read them: {', '.join(refused)}\n")
    sys.stdout.write(f"CPU ms a page, median: {median(seconds) * 1e3:.1f}\n")
    line = {"files": len(files), "all": everything, "many_words": full, "cpu_ms": round(median(seconds) * 1e3, 1)}
    line["worst"] = [[name, row["recall"]] for name, row in worst]
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
