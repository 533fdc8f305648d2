"""Where a model comes from and is put, and what it weighs there: device maps, the local cache, 4 and 8 bits."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen import ColQwenEmbedder, InvalidOptionError, MissingDependencyError, MultiVector
from llama_index_colqwen.embedders.colqwen.quantization import check_quantization, quantize
from llama_index_colqwen.embedders.devices import dispatch
from llama_index_colqwen.errors import ModelNotFoundError
from tests.checkpoints import keep_in_cache
from tests.documents import encode
from tests.extras import needs_colqwen, torch
from tests.fakes import make_page

pytestmark = needs_colqwen


Checkpoint = Callable[..., Path]

QUERIES = ["Which sensor drifted least?", "revenue"]
PAGE = dataclasses.replace(make_page("page"), image=encode(Image.linear_gradient("L").resize((224, 280)), "PNG"))


def vectors_of(embedder: ColQwenEmbedder) -> list[MultiVector]:
    return [*embedder.embed_pages([PAGE]), *embedder.embed_queries(QUERIES)]


@pytest.fixture(scope="session")
def exact(checkpoint: Checkpoint) -> list[MultiVector]:
    return vectors_of(ColQwenEmbedder(checkpoint(), device="cpu"))


# ---- device maps


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, {"visual": "cpu", "": "cpu"}])
def test_model_that_is_split_gives_the_same_vectors(
    checkpoint: Checkpoint,
    exact: list[MultiVector],
    device_map: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    embedder = ColQwenEmbedder(checkpoint(), device_map=device_map)
    assert embedder.devices == ["cpu"]
    for rows, expected in zip(vectors_of(embedder), exact, strict=True):
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)
    again = pickle.loads(pickle.dumps(embedder))
    assert again.fingerprint == embedder.fingerprint


def test_inputs_go_to_the_first_gpu_of_the_map(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    # What accelerate does with GPUs cannot be tried here; that it is asked for the right thing can.
    asked: list[dict[str, object]] = []

    def dispatch_model(model: object, chosen: dict[str, object]) -> object:
        asked.append(chosen)
        return model

    monkeypatch.setattr("accelerate.dispatch_model", dispatch_model)
    replica = dispatch(object(), {"visual": "cpu", "language_model": 1, "custom_text_proj": 0}, "it")
    assert replica.device == "cuda:1"
    assert asked == [{"visual": "cpu", "language_model": 1, "custom_text_proj": 0}]


@pytest.mark.parametrize("device_map", ["cpu", "balanced", {"": "disk"}, 3])
def test_device_map_that_is_none_is_refused(checkpoint: Checkpoint, device_map: Any) -> None:  # noqa: ANN401
    with pytest.raises(InvalidOptionError, match="device_map is 'auto', or the devices"):
        ColQwenEmbedder(checkpoint(), device_map=device_map)


def test_device_map_that_leaves_parts_out_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidOptionError, match=r"device_map=.*does not fit .*language_model"):
        ColQwenEmbedder(checkpoint(), device_map={"visual": "cpu"})


def test_device_and_device_map_exclude_each_other(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidOptionError, match="give one of them"):
        ColQwenEmbedder(checkpoint(), device="cpu", device_map="auto")


# ---- the local cache


def test_local_files_only_takes_the_cache_and_never_asks_the_hub(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    keep_in_cache(tmp_path / "hub", "owner/model", checkpoint(), commit="1" * 40)
    embedder = ColQwenEmbedder("owner/model", device="cpu", local_files_only=True)
    assert embedder.fingerprint.revision == "1" * 40
    with pytest.raises(ModelNotFoundError, match=r"owner/other is not in the local cache.*local_files_only forbids"):
        ColQwenEmbedder("owner/other", device="cpu", local_files_only=True)
    with pytest.raises(ModelNotFoundError, match=r"at revision v2 is not in the local cache.*local_files_only forbids"):
        ColQwenEmbedder("owner/model", device="cpu", revision="v2", local_files_only=True)


# ---- 4 and 8 bits


def rounded(checkpoint: Path, bits: int) -> tuple[ColQwenEmbedder, Any]:
    """Put rounded weights in the place of the exact ones: bitsandbytes computes on a CPU, too, but slowly."""
    embedder = ColQwenEmbedder(checkpoint, device="cpu")
    model = copy.deepcopy(embedder._replicas.get().model)
    quantize(model, bits, keep="custom_text_proj")
    model.to("cpu")  # rounds
    embedder._replicas.put(dataclasses.replace(embedder._placed[0], model=model))
    return embedder, model


def test_8_bits_give_nearly_the_same_vectors(checkpoint: Checkpoint, exact: list[MultiVector]) -> None:
    embedder, model = rounded(checkpoint(), 8)
    kinds = {type(module).__name__ for module in model.modules() if "Linear" in type(module).__name__}
    assert kinds == {"Linear8bitLt", "Linear"} and type(model.custom_text_proj) is torch.nn.Linear
    for rows, expected in zip(vectors_of(embedder), exact, strict=True):
        assert 0.99 < (rows * expected).sum(axis=1).mean() < 1 - 1e-7
    check_quantization(8, ["cuda:0", "cuda:1"], split=False)


def test_4_bits_give_the_vectors_of_the_rounded_weights(checkpoint: Checkpoint, exact: list[MultiVector]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    embedder, model = rounded(checkpoint(), 4)
    layers = {name: module for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    by_hand = ColQwenEmbedder(checkpoint(), device="cpu")
    target = by_hand._placed[0].model
    linears = {name for name, module in target.named_modules() if type(module) is torch.nn.Linear}
    assert set(layers) == linears - {"custom_text_proj"}
    with torch.no_grad():
        for name, layer in layers.items():
            target.get_submodule(name).weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    [made], [expected] = embedder.embed_queries(QUERIES[:1]), by_hand.embed_queries(QUERIES[:1])
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-4)
    assert np.abs(made - exact[1]).max() > 1e-3


def test_rounding_is_refused_without_an_nvidia_gpu_before_anything_is_loaded() -> None:
    each: list[dict[str, Any]] = [{"load_in_4bit": True}, {"load_in_8bit": True}]
    for options in each:
        with pytest.raises(InvalidOptionError, match=rf"{next(iter(options))} is for NVIDIA GPUs \(cuda\), .* for cpu"):
            ColQwenEmbedder("nowhere", device="cpu", **options)
    with pytest.raises(InvalidOptionError, match="exclude each other"):
        ColQwenEmbedder("nowhere", device="cpu", load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(InvalidOptionError, match="leave device_map out"):
        check_quantization(4, ["cuda:0"], split=True)


def test_rounding_without_bitsandbytes_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependencyError, match=r"bitsandbytes.*llama-index-colqwen\[quantized\]"):
        check_quantization(8, ["cuda:0"], split=False)
