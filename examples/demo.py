"""The sample PDFs -> 20 questions answered with a page each: what was found, and how long it took.

    python examples/demo.py

Keeps its index in examples/demo.db; a second run finds it there. Ask your own with
`colqwen search "..." --uri examples/demo.db`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llama_index_colqwen import ColQwenIndex, PDFPageReader

HERE = Path(__file__).parent


def main() -> int:
    """Index the samples, ask the questions, print a table; return how many were found at first rank."""
    console = Console()
    started = time.perf_counter()
    reader = PDFPageReader(image_dir=HERE / "demo.images")
    documents = reader.load_data(HERE / "pdfs", show_progress=True)
    reading = time.perf_counter() - started

    index = ColQwenIndex.from_documents(documents, uri=HERE / "demo.db")
    retriever = index.as_retriever(similarity_top_k=3)

    table = Table("", "Question", title="The first page found for each question")
    table.add_column("Page found", overflow="fold")
    table.add_column("Known answer")
    questions = [json.loads(line) for line in (HERE / "questions.jsonl").read_text("utf-8").splitlines()]
    found = 0
    started = time.perf_counter()
    for question in questions:
        best = retriever.retrieve(question["query"])[0]
        right = best.metadata["file_name"] == question["pdf"] and best.metadata["page_number"] in question["pages"]
        found += right
        page = f"{best.metadata['file_name']}, page {best.metadata['page_label']}"
        mark = "[green]✓[/]" if right else "[red]✗[/]"
        table.add_row(mark, question["query"], page, question["answer"])
    asking = time.perf_counter() - started
    index.store.close()

    console.print(table)
    console.print(
        f"{found} of {len(questions)} right at first rank. Read {len(documents)} pages in {reading:.1f} s, "
        f"indexed them in {index.report.seconds:.1f} s ({index.report.unchanged} were there already), "
        f"{asking / len(questions) * 1e3:.0f} ms a question."
    )
    console.print(f"Page images are in {HERE / 'demo.images'}.")
    return found


if __name__ == "__main__":
    main()
