"""The table of published checkpoints: what it says holds for a model of that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_index_colqwen import ColQwenEmbedder, EmbedderFingerprint, InvalidOptionError
from llama_index_colqwen.embedders.colqwen.families import FAMILIES
from llama_index_colqwen.embedders.colqwen.models import PUBLISHED, PublishedModel
from llama_index_colqwen.embedders.colqwen.preprocessing import DEFAULT_VISUAL_TOKENS
from tests.checkpoints import keep_in_cache

Checkpoint = Callable[..., Path]

FAMILY = {family.model: family for family in FAMILIES}
QUERY = "What is the total revenue?"


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=str)
def test_row_names_what_there_is_and_cites_where_it_is_written(row: PublishedModel) -> None:
    family = FAMILY[row.architecture]
    assert row.visual_tokens is None or family.layout == "dynamic"
    assert row.attention == "causal" or family.decoder
    assert row.full_dim is None or row.full_dim > row.dim
    assert 0.1 < row.parameters < 20
    scores = [score for score in (row.nano_vidore_v3, row.vidore_v3) if score is not None]
    assert scores and all(0.2 < score.ndcg < 0.9 for score in scores)
    assert row.sources and all(
        url.startswith("https://") for url in (*row.sources, *(score.source for score in scores))
    )


def test_every_family_whose_models_attend_in_two_ways_has_rows_of_both() -> None:
    for family in FAMILIES:
        kinds = {row.attention for row in PUBLISHED.values() if row.architecture == family.model}
        assert (kinds == {"causal", "bidirectional"}) == family.attention_varies


def page_size(row: PublishedModel) -> str:
    """Return what the exact vectors of a page take; unknown for tiles, whose number is the page's."""
    layout = FAMILY[row.architecture].layout
    vectors = {"square": 1030, "tiles": 0, "dynamic": row.visual_tokens or DEFAULT_VISUAL_TOKENS}[layout]
    return f"{vectors * row.dim / 1000:,.0f} kB" if vectors else "-"


def best_score(row: PublishedModel) -> float:
    return next(score.ndcg for score in (row.nano_vidore_v3, row.vidore_v3) if score is not None)


def table() -> str:
    """Write the models' table of the documentation, best first."""
    lines = [
        "| | billions | GB | dims | page | NanoViDoRe v3 | ViDoRe v3 | licence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(PUBLISHED.values(), key=best_score, reverse=True):
        scores = [
            f"[{score.ndcg:.4f}]({score.source})".replace("[0", "[") if score else "-"
            for score in (row.nano_vidore_v3, row.vidore_v3)
        ]
        size = [f"{billions:.2g}" for billions in (row.parameters, 2 * row.parameters)]
        cells = [f"`{row.name}`", *size, f"{row.dim:,}", page_size(row), *scores, row.licence]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_documentation_has_the_table() -> None:
    guide = Path(__file__).resolve().parents[3] / "docs" / "guides" / "models.md"
    assert f"\n\n{table()}\n\n" in guide.read_text("utf-8"), table()


class Hub:
    """Tiny models under the names of published ones."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def holds(self, name: str, **config: object) -> Path:
        """Keep a tiny model of a published one's architecture in the hub's cache; return the folder it is made of."""
        copy = Path(shutil.copytree(self.checkpoint(PUBLISHED[name].architecture), self.folder / name))
        written = json.loads((copy / "config.json").read_text())
        written.pop("retrieval_attention_contract", None)  # EVIE's says nothing
        (copy / "config.json").write_text(json.dumps({**written, **config}))
        keep_in_cache(self.folder / "hub", name, copy)
        return copy


@pytest.fixture
def hub(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Hub(tmp_path, checkpoint)


@pytest.mark.parametrize(
    ("name", "visual_tokens"),
    [
        ("vidore/colqwen2-v1.0", 768),
        ("vidore/colpali-v1.3", None),
        ("TomoroAI/tomoro-colqwen3-embed-4b", 1280),
        ("athrael-soju/colqwen3.5-4.5B-v3", 768),
        ("vultr/VultronRetrieverCore-Qwen3.5-4.5B", 768),
        ("tencent/EVIE-Preview-4.5B", 768),
        ("tencent/EVIE-8B", 1024),
    ],
)
def test_published_model_is_embedded_with_its_settings(hub: Hub, name: str, visual_tokens: int | None) -> None:
    row = PUBLISHED[name]
    folder = hub.holds(name)
    embedder = ColQwenEmbedder(name, device="cpu")
    fingerprint = embedder.fingerprint
    assert fingerprint.model == name
    assert embedder.max_visual_tokens == fingerprint.options["max_visual_tokens"] == visual_tokens
    assert fingerprint.options.get("attention", "causal") == row.attention
    assert embedder.query_prefix == FAMILY[row.architecture].query_prefix
    expected = ColQwenEmbedder(folder, device="cpu", attention=row.attention)
    np.testing.assert_allclose(embedder.embed_queries([QUERY])[0], expected.embed_queries([QUERY])[0], atol=1e-6)


def test_users_options_go_before_the_table(hub: Hub) -> None:
    hub.holds("tencent/EVIE-8B")
    options: dict[str, Any] = {"attention": "causal", "max_visual_tokens": 100, "query_prefix": "Q: "}
    embedder = ColQwenEmbedder("tencent/EVIE-8B", device="cpu", **options)
    assert (embedder.max_visual_tokens, embedder.query_prefix) == (100, "Q: ")
    assert "attention" not in embedder.fingerprint.options
    again = ColQwenEmbedder.from_fingerprint(embedder.fingerprint)
    assert again.fingerprint == embedder.fingerprint


def test_collection_of_a_published_model_made_without_the_table_is_opened_as_it_was_made(hub: Hub) -> None:
    hub.holds("tencent/EVIE-8B")
    options: dict[str, str | int] = {
        "library": "colpali-engine",
        "query_prefix": "",
        "max_visual_tokens": 768,
        "pool_factor": 1,
        "allow_untrained": False,
    }
    old = EmbedderFingerprint("tencent/EVIE-8B", "0" * 40, 128, options)
    assert ColQwenEmbedder.from_fingerprint(old).fingerprint == old
    assert ColQwenEmbedder("tencent/EVIE-8B", device="cpu").fingerprint != old


def test_vectors_are_the_first_values_of_a_matryoshka_models_made_unit(
    hub: Hub, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model has 128 dims, and so its row keeps 32 of 128.
    name = "tencent/EVIE-4.5B"
    row = PublishedModel(name, "ColQwen3_5", 4.61, 32, "Apache 2.0", (), attention="bidirectional", full_dim=128)
    monkeypatch.setitem(PUBLISHED, name, row)
    hub.holds(name)
    cut = ColQwenEmbedder(name, device="cpu")
    whole = ColQwenEmbedder(name, device="cpu", dim=128)
    assert (cut.dim, whole.dim) == (cut.fingerprint.dim, whole.fingerprint.dim) == (32, 128)
    [short], [long] = cut.embed_queries([QUERY]), whole.embed_queries([QUERY])
    expected = long[:, :32] / np.linalg.norm(long[:, :32], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-6)
    for embedder in (cut, whole):
        again = ColQwenEmbedder.from_fingerprint(embedder.fingerprint)
        assert again.fingerprint == embedder.fingerprint
    for dim in (0, 129):
        with pytest.raises(InvalidOptionError, match=f"of the 128 values .* to keep; got {dim}"):
            ColQwenEmbedder(checkpoint(), device="cpu", dim=dim)
