"""How a model attends is what its checkpoint was trained for: as published, declared or said, else it is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen import (
    ColQwenEmbedder,
    EmbedderFingerprint,
    InvalidOptionError,
    ModelError,
    MultiVector,
    Page,
)
from llama_index_colqwen.embedders.colqwen.checkpoints import load_model
from llama_index_colqwen.embedders.colqwen.models import Attention
from tests.documents import encode
from tests.extras import needs_colqwen, torch
from tests.fakes import make_page

pytestmark = needs_colqwen


Checkpoint = Callable[..., Path]

DECLARED = "retrieval_attention_contract"
QUERIES = ["who signed it?", "What is the total revenue of the third quarter?"]


def page_of(size: tuple[int, int], name: str) -> Page:
    drawn = np.random.default_rng(len(name)).integers(0, 256, (size[1] // 16, size[0] // 16, 3), np.uint8)
    image = Image.fromarray(drawn).resize(size, Image.Resampling.NEAREST)
    return dataclasses.replace(make_page(name), image=encode(image, "PNG"))


PAGES = [page_of((256, 320), "a"), page_of((480, 256), "of another size")]


def saying(folder: Path, tmp_path: Path, text: dict[str, object] | None = None, **values: object) -> Path:
    """Copy a checkpoint, with other words on attention in its config.json."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config.pop(DECLARED, None)
    config = {**config, **values, "text_config": {**config["text_config"], **(text or {})}}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def load(folder: Path, **options: Any) -> ColQwenEmbedder:  # noqa: ANN401 - passed on
    return ColQwenEmbedder(folder, device="cpu", **options)


def of_the_model_itself(folder: Path, attn_implementation: str) -> Callable[[dict[str, Any]], list[MultiVector]]:
    """Run colpali-engine's model, made bidirectional as the publishers of EVIE say; rows without padding."""
    from colpali_engine.models import ColQwen3_5

    model = ColQwen3_5.from_pretrained(folder, dtype=torch.float32, attn_implementation=attn_implementation).eval()
    model.config.text_config.is_causal = False
    model.language_model.config.is_causal = False
    for layer in model.language_model.layers:
        if hasattr(layer, "self_attn"):  # not a linear-attention layer
            layer.self_attn.is_causal = False

    def run(inputs: dict[str, Any]) -> list[MultiVector]:
        with torch.no_grad():
            rows = model(**inputs).numpy()
        return [page[kept] for page, kept in zip(rows, inputs["attention_mask"].bool().numpy(), strict=True)]

    return run


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_bidirectional_rows_are_those_of_the_model_called_directly_and_not_the_causal_ones(
    checkpoint: Checkpoint, attn_implementation: str
) -> None:
    folder = checkpoint("ColQwen3_5")
    embedder = load(folder, attention="bidirectional", attn_implementation=attn_implementation)
    run = of_the_model_itself(folder, attn_implementation)
    processor = embedder._processor
    images = [page.open_image().convert("RGB") for page in PAGES]
    together = run(dict(processor.process_images(images)))
    apart = [run(dict(processor.process_images([image])))[0] for image in images]
    queries = run(dict(processor.process_queries(QUERIES)))
    made = embedder.embed_pages(PAGES)
    assert len({len(rows) for rows in made}) == 2, "pages of one length need no padding"
    for expected in (together, apart):
        for rows, right in zip(made, expected, strict=True):
            np.testing.assert_allclose(rows, right, rtol=0, atol=1e-5)
    for rows, right in zip(embedder.embed_queries(QUERIES), queries, strict=True):
        np.testing.assert_allclose(rows, right, rtol=0, atol=1e-5)
    for page, rows in zip(PAGES, made, strict=True):
        np.testing.assert_allclose(embedder.embed_pages([page])[0], rows, rtol=0, atol=1e-5)

    causal = load(folder)
    for rows, other in zip(made, causal.embed_pages(PAGES), strict=True):
        assert np.abs(rows - other).max() > 0.01


@pytest.mark.parametrize("architecture", ["ColQwen3_5", "ColQwen2"])
def test_first_row_knows_the_last_word_only_where_tokens_see_all_others(
    checkpoint: Checkpoint, architecture: str
) -> None:
    for attention in ("causal", "bidirectional"):
        embedder = load(checkpoint(architecture), attention=attention)
        [one], [other] = embedder.embed_queries(["the left figure"]), embedder.embed_queries(["the left report"])
        difference = np.abs(one[0] - other[0]).max()
        assert difference < 1e-6 if attention == "causal" else difference > 1e-4


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_layers_and_their_config_say_the_same_since_kernels_follow_either(
    checkpoint: Checkpoint, attention: Attention
) -> None:
    for architecture, decoder in (("ColQwen3_5", "language_model"), ("ColIdefics3", "model.text_model")):
        loaded = load_model(str(checkpoint(architecture)), dtype=torch.float32, attention=attention)
        for name, module in loaded.model.named_modules():
            if hasattr(module, "is_causal") and name.startswith(decoder):
                assert module.is_causal is module.config.is_causal is (attention == "causal")
            elif hasattr(module, "is_causal"):
                assert module.is_causal is False, "pictures are seen as before"


def test_fingerprint_says_that_attention_is_bidirectional_and_of_causal_ones_what_it_said_before(
    checkpoint: Checkpoint,
) -> None:
    folder = checkpoint("ColQwen3_5")
    causal, both = load(folder), load(folder, attention="bidirectional")
    assert set(causal.fingerprint.options) == {
        "library",
        "query_prefix",
        "max_visual_tokens",
        "pool_factor",
        "allow_untrained",
    }
    assert both.fingerprint != causal.fingerprint
    assert dict(both.fingerprint.options) == {**causal.fingerprint.options, "attention": "bidirectional"}
    assert "attention='bidirectional'" in str(both.fingerprint)
    for embedder in (causal, both):
        again = ColQwenEmbedder.from_fingerprint(EmbedderFingerprint.from_json(embedder.fingerprint.to_json()))
        assert again.fingerprint == embedder.fingerprint
        np.testing.assert_allclose(again.embed_queries(QUERIES)[0], embedder.embed_queries(QUERIES)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({DECLARED: "bidirectional"}, "bidirectional"),
        ({DECLARED: "bidirectional", "is_causal": False, "text": {"is_causal": False}}, "bidirectional"),
        ({DECLARED: "bidirectional", "text": {DECLARED: "bidirectional"}}, "bidirectional"),
        ({"text": {DECLARED: "causal"}}, "causal"),
        ({DECLARED: "causal", "is_causal": True}, "causal"),
    ],
)
def test_declared_attention_is_followed(
    checkpoint: Checkpoint, tmp_path: Path, config: dict[str, Any], attention: str
) -> None:
    embedder = load(saying(checkpoint("ColQwen3_5"), tmp_path, **config))
    assert embedder.fingerprint.options.get("attention", "causal") == attention
    expected = load(checkpoint("ColQwen3_5"), attention=attention)
    np.testing.assert_allclose(embedder.embed_queries(QUERIES)[1], expected.embed_queries(QUERIES)[1], atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "config", "words"),
    [
        ("ColQwen3_5", {}, r"does not say it, and there are ColQwen3_5 models of both kinds"),
        ("ColQwen3_5", {"text": {"is_causal": False}}, r"config.json has is_causal=False"),
        ("ColQwen3_5", {DECLARED: "both"}, rf"config.json has {DECLARED}='both'"),
        ("ColQwen3_5", {DECLARED: "causal", "text": {DECLARED: "bidirectional"}}, r"='bidirectional', .*='causal'"),
        ("ColQwen3_5", {DECLARED: "causal", "is_causal": False}, r"='causal', is_causal=False"),
        ("ColQwen2", {"is_causal": False}, r"config.json has is_causal=False"),
        ("ColQwen2", {"text": {"use_bidirectional_attention": True}}, r"has use_bidirectional_attention=True"),
    ],
)
def test_unknown_checkpoint_that_leaves_a_doubt_is_refused_with_the_option_that_admits_it(
    checkpoint: Checkpoint, tmp_path: Path, architecture: str, config: dict[str, Any], words: str
) -> None:
    folder = saying(checkpoint(architecture), tmp_path, **config)
    with pytest.raises(ModelError, match=rf"{words}.*attention='bidirectional' if .* or attention='causal'\.$"):
        load(folder)
    for attention in ("causal", "bidirectional"):
        rows = load(folder, attention=attention).embed_queries(QUERIES)[1]
        expected = load(checkpoint(architecture), attention=attention).embed_queries(QUERIES)[1]
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_attention_that_there_is_not_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidOptionError, match="one of auto, causal, bidirectional; got 'both'"):
        load(checkpoint("ColQwen3_5"), attention="both")
    for architecture in ("ColPali", "ColModernVBert"):
        with pytest.raises(InvalidOptionError, match="leave it out"):
            load(checkpoint(architecture), attention="bidirectional")
