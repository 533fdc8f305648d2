"""Turn the texts in sample_content/ into the three sample PDFs: a report with charts, a paper and a scanned form.

Everything in them (places, people, figures) is invented. The same versions of the libraries give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sample_drawing import paper, report, scan

HERE = Path(__file__).parent
SAMPLES = (
    (report.write, "report.md", "harbour-annual-report.pdf"),
    (paper.write, "paper.md", "tidal-sensors-paper.pdf"),
    (scan.write, "form.txt", "mooring-permit-form-scan.pdf"),
)


def main() -> None:
    """Write the files into the folder given, or into pdfs/ beside this script."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "pdfs")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for write, content, name in SAMPLES:
        write((HERE / "sample_content" / content).read_text(encoding="utf-8"), folder / name)


if __name__ == "__main__":
    main()
