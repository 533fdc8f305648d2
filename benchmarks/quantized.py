"""ColQwen2 on the CPU -> what int8 weights (torch's dynamic quantisation) do to its vectors, speed and memory.

    python -m benchmarks.quantized --checkpoint examples/tiny_visual/checkpoint  # a trained one, of 2 MB
    python -m benchmarks.quantized                                               # ColQwen2-2B's sizes, random weights

The same pages of examples/pdfs and the same questions are embedded before and after every linear layer of the language
model (`--part language`), or of the whole model (`--part all`), is quantised in place: weights int8 with a scale a row,
activations int8 with a scale a batch. "cosine": of each row with what it was; the least, the hundredth least, the mean.
"ranked alike": of all questions, those with the same best page. Prints a line each and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_index_colqwen import ColQwenEmbedder, MultiVector, PDFPageReader
from llama_index_colqwen.late_interaction.maxsim import maxsim_scores
from llama_index_colqwen.nodes import page_from_node

ROOT = Path(__file__).parents[1]


def quantise(model: Any, part: str) -> None:  # noqa: ANN401 - a torch module
    """Replace linear layers by int8 ones, in place."""
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    target = model if part == "all" else model.language_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch names what will follow it some day
        quantize_dynamic(target, {torch.nn.Linear: per_channel_dynamic_qconfig}, inplace=True)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--part", choices=["language", "all"], default="language")
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--max-visual-tokens", type=int, default=768)
    options = parser.parse_args()
    lines = (ROOT / "examples" / "questions.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line)["query"] for line in lines][: options.questions]
    with tempfile.TemporaryDirectory() as folder:
        documents = PDFPageReader(image_dir=Path(folder) / "images", ocr="never").load_data(ROOT / "examples" / "pdfs")
        pages = [page_from_node(document) for document in documents][: options.pages]
        checkpoint = options.checkpoint or importlib.import_module("benchmarks.indexing").build_full(
            Path(folder) / "full"
        )
        embedder = ColQwenEmbedder(
            checkpoint, device="cpu", batch_size=1, max_visual_tokens=options.max_visual_tokens, attention="causal"
        )

        def measure() -> tuple[list[list[MultiVector]], list[float]]:
            embedder.embed_queries(questions[:1])
            started = time.perf_counter()
            asked = [embedder.embed_queries([question])[0] for question in questions]
            middle = time.perf_counter()
            made = embedder.embed_pages(pages)
            took = time.perf_counter() - middle
            return [asked, made], [(middle - started) / len(questions), took / len(pages)]

        exact = measure()
        quantise(embedder._placed[0].model, options.part)
        int8 = measure()
    results: dict[str, object] = {"part": options.part, "pages": len(pages), "questions": len(questions)}
    for number, what in enumerate(("query", "page")):
        before, after = np.concatenate(exact[0][number]), np.concatenate(int8[0][number])
        cosines = np.sort((before * after).sum(axis=1))
        figures = {
            "cosine_least": float(cosines[0]),
            "cosine_p1": float(cosines[len(cosines) // 100]),
            "cosine_mean": float(cosines.mean()),
            "float32_s": exact[1][number],
            "int8_s": int8[1][number],
        }
        results[what] = {name: round(figure, 4) for name, figure in figures.items()}
        print(what, results[what])  # noqa: T201
    best = [[int(np.argmax(maxsim_scores(question, run[0][1]))) for question in run[0][0]] for run in (exact, int8)]
    results["ranked_alike"] = float(np.mean([one == other for one, other in zip(*best, strict=True)]))
    results["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
