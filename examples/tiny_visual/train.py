"""Train a tiny ColQwen2 that finds drawn figures by words: random weights -> a checkpoint in a folder.

    python train.py                 # the checkpoint beside this script, as it is kept
    python train.py --evaluate      # measures the checkpoint, trains nothing

The same seed, versions and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from colpali_engine.models import ColQwen2, ColQwen2Processor
from draw import COLOURS, FIGURES, KINDS, DrawnPage, Figure, draw_page, question
from measure import ask, unseen_pages
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.utils.logging import disable_progress_bar

from llama_index_colqwen import ColQwenEmbedder

CHECKPOINT = Path(__file__).parent / "checkpoint"
PATCH = 28  # pixels that a visual token is wide and high
_MARKS = ("vision_start", "vision_end", "image_pad", "video_pad", "im_start", "im_end", "endoftext")
_PROMPT = "user\nDescribe the image. Query: "
_TEMPERATURE = 0.05
_BACKGROUND = 0.4
_INK = 40  # grey levels between a patch's darkest and lightest pixel, from which it shows something


@dataclass(frozen=True)
class Stage:
    """A part of training.

    Attributes:
        share: Of all steps.
        shapes: Rows and columns of the pages' patches; a step has pages of one shape, so that nothing is padded.
        batch: Pages a step.
        figures: How many a page has.
    """

    share: float
    shapes: tuple[tuple[int, int], ...]
    batch: int
    figures: tuple[int, ...]


STAGES = (
    Stage(0.50, ((10, 8), (8, 10), (9, 9), (7, 10)), 40, (0, 1, 1, 1, 1, 1, 1, 1, 1, 1)),
    Stage(0.30, ((14, 11), (11, 14), (12, 12), (15, 11)), 24, (0, 1, 1, 1, 1, 2, 2, 2, 2)),
    Stage(0.17, ((18, 14), (14, 18), (15, 15), (19, 13), (12, 16)), 16, (0, 1, 1, 1, 2, 2, 2, 3, 3)),
    Stage(0.03, ((24, 18), (18, 24), (30, 24)), 8, (0, 1, 2, 2, 3)),
)


def build_processor() -> Any:  # noqa: ANN401 - of a library without types
    """Make the processor: a tokenizer that knows the words of the questions, and images as ColQwen2 has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [question(figure, random.Random(number)) for number in range(8) for figure in FIGURES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*texts, *[_PROMPT] * 4], trainer)
    marks = [f"<|{mark}|>" for mark in _MARKS]
    tokenizer.add_special_tokens(marks)
    return ColQwen2Processor(
        image_processor=Qwen2VLImageProcessor(size={"shortest_edge": 4 * PATCH**2, "longest_edge": 768 * PATCH**2}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<|endoftext|>",
            eos_token="<|im_end|>",
            additional_special_tokens=marks[:-2],
        ),
        video_processor=Qwen2VLVideoProcessor(),
    )


def build_model(processor: Any) -> Any:  # noqa: ANN401 - of a library without types
    """Make a ColQwen2 of about a million parameters, with random weights."""
    tokenizer = processor.tokenizer
    ids = {f"{mark}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in _MARKS[:2]}
    ids["image_token_id"], ids["video_token_id"] = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 3,
        "embed_dim": 96,
        "hidden_size": 128,
        "num_heads": 3,
        "mlp_ratio": 2,
        "initializer_range": 0.05,
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    config._attn_implementation = "sdpa"
    return ColQwen2(config)


def draw_batch(rng: random.Random, stage: Stage) -> list[DrawnPage]:
    """Draw pages of one shape; at least one has figures."""
    rows, columns = rng.choice(stage.shapes)
    counts = [rng.choice(stage.figures) for _ in range(stage.batch - 1)]
    return [
        draw_page(rng, rng.sample(FIGURES, count), (PATCH * columns, PATCH * rows))
        for count in [max(stage.figures), *counts]
    ]


def label_patches(page: DrawnPage) -> npt.NDArray[np.int64]:
    """Say what patches show: a figure's number in `FIGURES`, len(FIGURES) for none, -100 for what is not to be learned.

    That is what is blank within a figure, and the surroundings of it, where its labels are.
    """
    grey = np.asarray(page.image.convert("L"))
    rows, columns = grey.shape[0] // PATCH, grey.shape[1] // PATCH
    cells = grey.reshape(rows, PATCH, columns, PATCH).astype(int)
    blank = cells.max(axis=(1, 3)) - cells.min(axis=(1, 3)) < _INK
    y, x = np.mgrid[:rows, :columns] * PATCH + PATCH / 2
    labels = np.full((rows, columns), len(FIGURES))
    for drawn in page.figures:
        left, top, right, bottom = drawn.box
        near = PATCH * 0.8
        labels[(x > left - near) & (x < right + near) & (y > top - near) & (y < bottom + near)] = -100
    for drawn in page.figures:
        left, top, right, bottom = drawn.box
        within = (x > left) & (x < right) & (y > top) & (y < bottom)
        labels[within & ~blank] = FIGURES.index(drawn.figure)
    return labels.ravel()


def score(queries: torch.Tensor, mask: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """MaxSim, divided by the query's number of tokens: (q, n, dim), (q, n) and (p, m, dim) -> (q, p)."""
    q, n, dim = queries.shape
    similarities = queries.reshape(q * n, dim) @ pages.reshape(-1, dim).T
    best = similarities.view(q, n, len(pages), -1).amax(dim=3)
    return (best * mask[..., None]).sum(dim=1) / mask.sum(dim=1)[:, None]


def losses(
    model: Any,  # noqa: ANN401 - of a library without types
    processor: Any,  # noqa: ANN401
    pages: Sequence[DrawnPage],
    rng: random.Random,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return what is to be made small, over pages and over patches, and the share of questions that found a right page.

    Pages: of those in the batch, the ones that have the figure that is asked for are to score highest. Patches: each is
    to be most like the phrase of the figure that it shows; those that show none, and the prompt's tokens, are to be
    like no phrase.
    """
    asked: list[Figure] = [rng.choice(page.figures).figure for page in pages if page.figures]
    inputs = dict(processor.process_images([page.image for page in pages]))
    is_patch = inputs["input_ids"][0] == model.config.image_token_id
    vectors = model(**inputs)
    texts = [question(figure, rng) for figure in [*asked, *FIGURES]]
    words = dict(processor.process_queries(["Query: " + text for text in texts]))
    mask = words["attention_mask"].float()
    phrases = model(**words)

    scores = score(phrases[: len(asked)], mask[: len(asked)], vectors) / _TEMPERATURE
    right = torch.tensor([[any(d.figure == figure for d in page.figures) for page in pages] for figure in asked])
    over_pages = (scores.logsumexp(dim=1) - scores.masked_fill(~right, -torch.inf).logsumexp(dim=1)).mean()
    hits = right.gather(1, scores.argmax(dim=1, keepdim=True)).float().mean().item()

    means = phrases[len(asked) :].sum(dim=1) / mask[len(asked) :].sum(dim=1)[:, None]
    logits = vectors @ means.T
    logits = torch.cat([logits, logits.new_full((*logits.shape[:2], 1), _BACKGROUND)], dim=2) / _TEMPERATURE
    labels = torch.full(vectors.shape[:2], len(FIGURES))
    labels[:, is_patch] = torch.from_numpy(np.stack([label_patches(page) for page in pages]))
    each = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    of_figures = (labels.flatten() >= 0) & (labels.flatten() < len(FIGURES))
    elsewhere = labels.flatten() == len(FIGURES)
    return over_pages, each[of_figures].mean() + each[elsewhere].mean(), hits


def stages_of(stages: Sequence[Stage], steps: int) -> Iterator[Stage]:
    """Yield a step's stage, for each step."""
    ends = np.cumsum([stage.share for stage in stages]) / sum(stage.share for stage in stages)
    for step in range(steps):
        yield stages[int(np.searchsorted(ends, (step + 0.5) / steps))]


def save(model: Any, processor: Any, folder: Path) -> None:  # noqa: ANN401
    """Write a checkpoint, in float16: twice as small, and its scores the same to three digits."""
    copy.deepcopy(model).half().save_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    processor.save_pretrained(folder)
    processor.tokenizer.padding_side = "right"


def train(folder: Path, *, steps: int, seed: int = 0, rate: float = 2e-3, stages: Sequence[Stage] = STAGES) -> None:
    """Train, and write the checkpoint into a folder, also every 200 steps on the way."""
    torch.manual_seed(seed)
    rng = random.Random(f"train {seed}")
    processor = build_processor()
    # Padded on the right, no token is without one that it may look at: on the left, such tokens' gradients are no
    # numbers. What comes after a token is nothing to it, so vectors are the same.
    processor.tokenizer.padding_side = "right"
    model = build_model(processor).train()
    log = Console(highlight=False)
    log.print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    since, figures = time.process_time(), np.zeros(3)
    for step, stage in enumerate(stages_of(stages, steps), start=1):
        pages, patches, hits = losses(model, processor, draw_batch(rng, stage), rng)
        optimizer.zero_grad()
        (pages + patches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        figures += pages.item(), patches.item(), hits
        if step % 50 == 0:
            pages_loss, patches_loss, found = figures / 50
            log.print(
                f"step {step}: pages {pages_loss:.3f}, patches {patches_loss:.3f}, first {found:.2f}, "
                f"{time.process_time() - since:.0f} CPU-seconds"
            )
            figures[:] = 0
        if step % 200 == 0 or step == steps:
            save(model, processor, folder)


def evaluate(folder: Path, count: int = 300) -> dict[str, Any]:
    """Ask a checkpoint for a figure of each of so many unseen pages."""
    found = ask(ColQwenEmbedder(folder, device="cpu"), unseen_pages(count))
    right = [each for each in found if each.right]

    def share(asked: list[bool]) -> float:
        return round(float(np.mean(asked)), 3)

    return {
        "pages": count,
        "hit@1": share([each.right for each in found]),
        "patch in box": share([each.in_box for each in right]),
        "hit@1 by kind": {kind: share([each.right for each in found if each.figure[1] == kind]) for kind in KINDS},
        "hit@1 by colour": {
            colour: share([each.right for each in found if each.figure[0] == colour]) for colour in COLOURS
        },
    }


def main() -> None:
    """Train, then measure on 300 unseen pages; the last line is JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CHECKPOINT)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--evaluate", action="store_true", help="measure the checkpoint, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    if not options.evaluate:
        train(options.folder, steps=options.steps, seed=options.seed, rate=options.rate)
    print(json.dumps(evaluate(options.folder)))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
