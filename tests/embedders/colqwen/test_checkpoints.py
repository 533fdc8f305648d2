"""Loading that cannot lie: what is loaded is the model, whole, or there is an error that says what is wrong."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import logging
import math
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llama_index_colqwen import ColQwenError, InvalidOptionError, MissingDependencyError, MultiVector, Page
from llama_index_colqwen.embedders.colqwen.checkpoints import load_model
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder
from llama_index_colqwen.embedders.colqwen.families import FAMILIES
from llama_index_colqwen.embedders.hub import locate
from llama_index_colqwen.errors import IncompleteWeightsError, ModelError, ModelNotFoundError
from tests.checkpoints import ARCHITECTURES, build_adapter, build_checkpoint
from tests.extras import needs_colqwen
from tests.fakes import make_page

pytestmark = [
    needs_colqwen,
    # colpali-engine's own way into ColPali makes numpy arrays of tensors, which torch does not do as numpy 2 asks for.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

every_family = pytest.mark.parametrize("architecture", ARCHITECTURES)

Checkpoint = Callable[..., Path]
Tensors = dict[str, Any]

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "language_model.layers.1.mlp.up_proj"
QUERIES = ["What is the total revenue?", "invoice"]
IMAGE = Image.linear_gradient("L").resize((112, 140)).convert("RGB")


def load(model: Path | str, **options: Any) -> ColQwenEmbedder:  # noqa: ANN401
    return ColQwenEmbedder(model, **{"device": "cpu", **options})


def vectors_of(embedder: ColQwenEmbedder) -> list[MultiVector]:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "PNG")
    page: Page = dataclasses.replace(make_page("page"), image=buffer.getvalue())
    return [*embedder.embed_pages([page]), *embedder.embed_queries(QUERIES)]


def assert_equal(vectors: list[MultiVector], expected: list[MultiVector], atol: float = 1e-6) -> None:
    for rows, expected_rows in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(rows, expected_rows, rtol=0, atol=atol)


def message_of(error: BaseException) -> str:
    """Return an error's message, which is a line or two of prose, and not what a library printed."""
    message = str(error)
    assert "\n" not in message and "Traceback" not in message and 20 < len(message) < 900
    return message


# ---- damage


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy" / folder.name))


def edit_json(path: Path, **values: Any) -> None:  # noqa: ANN401
    """Change settings of a JSON file; those of an inner object where a dict is given."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def edit_weights(path: Path, edit: Callable[[Tensors], Tensors]) -> None:
    from safetensors.torch import load_file, save_file

    save_file(edit(load_file(path)), path, {"format": "pt"})


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if not any(part in key for part in parts)}


def make_plain(folder: Path) -> None:
    """Make of a ColQwen2 the Qwen2-VL that one is trained from, with the names that its checkpoints have."""

    def rename(tensors: Tensors) -> Tensors:
        return {key.replace("language_model.", "model."): tensors[key] for key in without("custom_text_proj")(tensors)}

    edit_weights(folder / WEIGHTS, rename)
    edit_json(folder / "config.json", architectures=["Qwen2VLForConditionalGeneration"])


def shard(folder: Path) -> list[Path]:
    """Split a checkpoint's weights over two files and an index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    for file, keys in zip(files, halves, strict=True):
        save_file({key: tensors[key] for key in keys}, file, {"format": "pt"})
    weight_map = {key: file.name for file, keys in zip(files, halves, strict=True) for key in keys}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


# ---- what is loaded


@every_family
def test_full_checkpoint_and_adapter_of_every_family_load(checkpoint: Checkpoint, architecture: str) -> None:
    full, adapted = (load(checkpoint(architecture, adapter=adapter)) for adapter in (False, True))
    for embedder in (full, adapted):
        assert embedder.fingerprint.model == architecture
        assert embedder.dim == embedder.fingerprint.dim == (320 if architecture == "ColQwen3" else 128)
        for rows in vectors_of(embedder):
            assert rows.dtype == np.float32 and rows.shape[1] == embedder.dim
    assert np.abs(vectors_of(full)[0] - vectors_of(adapted)[0]).max() > 0.01, "the adapter did nothing"


def test_every_family_is_built_by_the_checkpoints_of_the_tests() -> None:
    assert {family.model for family in FAMILIES} == set(ARCHITECTURES)


def test_legacy_and_new_names_of_weights_give_equal_vectors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected = {adapter: vectors_of(load(checkpoint(adapter=adapter))) for adapter in (False, True)}
    assert_equal(vectors_of(load(checkpoint(legacy_names=True))), expected[False])
    for number, (old_base, old_adapter) in enumerate(itertools.product((False, True), repeat=2)):
        folder = copy_of(checkpoint(adapter=True, legacy_names=old_adapter), tmp_path / str(number))
        base = checkpoint(legacy_names=old_base)
        edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))
        assert_equal(vectors_of(load(folder)), expected[True])


def test_sharded_checkpoint_loads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(), tmp_path)
    shard(folder)
    assert_equal(vectors_of(load(folder)), vectors_of(load(checkpoint())))


def test_adapter_with_its_base_in_the_same_folder_loads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(adapter=True), tmp_path)
    edit_json(folder / "adapter_config.json", base_model_name_or_path="gone/base")
    for name in ("config.json", WEIGHTS):
        shutil.copy(checkpoint() / name, folder)
    assert_equal(vectors_of(load(folder)), vectors_of(load(checkpoint(adapter=True))))
    edit_weights(folder / WEIGHTS, without(f"{UP}.weight"))
    with pytest.raises(IncompleteWeightsError, match=rf"lacks 1 tensor \({UP}"):
        load(folder)


def test_base_is_also_looked_for_from_the_adapters_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(adapter=True), tmp_path)
    shutil.copytree(checkpoint(), folder.parent / "the-base")
    settings = folder / "adapter_config.json"
    settings.write_text(settings.read_text().replace(str(checkpoint().resolve()), "../the-base"))
    embedder, expected = load(folder), load(checkpoint(adapter=True))
    assert embedder.fingerprint == expected.fingerprint
    assert_equal(vectors_of(embedder), vectors_of(expected))


def by_colpali_engine(folder: Path, architecture: str, dtype: Any) -> list[Any]:  # noqa: ANN401
    """Run a checkpoint with colpali-engine alone, its adapter left unmerged."""
    import torch
    from colpali_engine import models

    model = getattr(models, architecture).from_pretrained(folder, dtype=dtype).eval()
    return outputs_of(model, load_model(str(folder), dtype=torch.float32).processor)


def outputs_of(model: Any, processor: Any) -> list[Any]:  # noqa: ANN401
    import torch

    with torch.inference_mode():
        batches = [processor.process_images([IMAGE]), processor.process_queries(QUERIES[:1])]
        for batch in batches:
            batch.pop("labels", None)
        return [model(**batch).float() for batch in batches]


@every_family
def test_merged_adapter_gives_what_colpali_engine_gives_with_it_unmerged(
    checkpoint: Checkpoint, architecture: str
) -> None:
    import torch

    folder = checkpoint(architecture, adapter=True)
    loaded = load_model(str(folder), dtype=torch.float32)
    assert not [name for name, _ in loaded.model.named_parameters() if "lora" in name]
    assert not [name for name, module in loaded.model.named_modules() if "peft" in type(module).__module__]
    assert not loaded.model.training
    ours = outputs_of(loaded.model, loaded.processor)
    for rows, expected in zip(ours, by_colpali_engine(folder, architecture, torch.float32), strict=True):
        # But for the order of sums: the rows are unit vectors of float32.
        torch.testing.assert_close(rows, expected, rtol=0, atol=5e-6)
        assert (rows - expected).abs().mean() < 1e-6


def test_merging_in_bfloat16_is_as_near_to_float32_as_not_merging(checkpoint: Checkpoint) -> None:
    import torch

    folder = checkpoint(adapter=True)
    exact = by_colpali_engine(folder, "ColQwen2", torch.float32)
    unmerged = by_colpali_engine(folder, "ColQwen2", torch.bfloat16)
    loaded = load_model(str(folder), dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    merged = outputs_of(loaded.model, loaded.processor)

    def distance(outputs: list[Any]) -> float:
        squares = [((rows - expected) ** 2).mean() for rows, expected in zip(outputs, exact, strict=True)]
        return math.sqrt(sum(squares))

    # One rounds the sum of weights, the other the sum of products: over seeds and families, either is the nearer.
    assert 0 < distance(merged) <= 1.1 * distance(unmerged)


def test_adapter_with_a_module_trained_as_a_whole_is_merged_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch

    folder = copy_of(checkpoint(adapter=True), tmp_path)
    edit_json(
        folder / "adapter_config.json",
        modules_to_save=["custom_text_proj"],
        target_modules=r".*language_model.*\.(\w_proj|up_proj|gate_proj|down_proj)$",
    )
    weight, bias = torch.randn(128, 64), torch.randn(128)
    stem = "base_model.model.custom_text_proj"
    edit_weights(
        folder / ADAPTER,
        lambda tensors: {**without(stem)(tensors), f"{stem}.weight": weight, f"{stem}.bias": bias},
    )
    projection = load_model(str(folder), dtype=torch.float32).model.custom_text_proj
    assert type(projection) is torch.nn.Linear
    assert torch.equal(projection.weight, weight) and torch.equal(projection.bias, bias)
    edit_weights(folder / ADAPTER, without(f"{stem}.bias"))
    with pytest.raises(IncompleteWeightsError, match=r"lacks 1 tensor \(custom_text_proj.*bias\)"):
        load(folder)


def test_threads_load_at_once(checkpoint: Checkpoint) -> None:
    folders = [checkpoint(), checkpoint(adapter=True), checkpoint(legacy_names=True), checkpoint("ColQwen3")]
    expected = [vectors_of(load(folder)) for folder in folders]
    with ThreadPoolExecutor(len(folders)) as pool:
        for embedder, vectors in zip(pool.map(load, folders), expected, strict=True):
            assert_equal(vectors_of(embedder), vectors)


# ---- weights that are lost, left over, or were never trained


def layers(number: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        types = ["full_attention"] * number
        edit_json(folder / "config.json", text_config={"num_hidden_layers": number, "layer_types": types})

    return edit


def damage(edit: Callable[[Tensors], Tensors], file: str = WEIGHTS) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder / file, edit)


def truncate(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:20_000])


def reshape(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: tensors[key][1:].clone()}


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        pytest.param(damage(without(f"{UP}.weight")), f"lacks 1 tensor ({UP}.weight)", id="a-tensor"),
        pytest.param(
            damage(without("language_model.layers.1.")), "lacks 12 tensors (language_model.layers.1", id="layer"
        ),
        pytest.param(damage(without("visual.merger.mlp.0.bias")), "(visual.merger.mlp.0.bias)", id="vision"),
        pytest.param(layers(3), "lacks 12 tensors (language_model.layers.2", id="config-with-more-layers"),
        pytest.param(layers(1), "no place for 12 tensors (language_model.layers.1", id="config-with-fewer-layers"),
        pytest.param(damage(reshape(f"{UP}.weight")), f"other shapes for 1 tensor ({UP}.weight)", id="another-shape"),
        pytest.param(
            damage(lambda tensors: {f"x.{key}": value for key, value in tensors.items()}), "no place for", id="prefix"
        ),
        pytest.param(
            make_plain,
            "no trained projection to vectors, it lacks 2 tensors (custom_text_proj.bias, custom_text_proj.weight)",
            id="plain-qwen2-vl",
        ),
        pytest.param(truncate(WEIGHTS), "truncated or corrupt", id="truncated"),
        pytest.param(lambda folder: shard(folder)[1].unlink(), "model-00002-of-00002.safetensors", id="shard"),
    ],
)
def test_checkpoint_that_is_not_whole_is_refused_and_what_is_wrong_is_named(
    checkpoint: Checkpoint, tmp_path: Path, damaged: Callable[[Path], object], words: str
) -> None:
    folder = copy_of(checkpoint(), tmp_path)
    damaged(folder)
    with pytest.raises(IncompleteWeightsError) as caught:
        load(folder)
    assert words in message_of(caught.value) and str(folder) in str(caught.value)
    # An adapter is as good as its base: of this, transformers tells nothing.
    adapter = copy_of(checkpoint(adapter=True), tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    with pytest.raises(IncompleteWeightsError) as caught:
        load(adapter)
    if "truncated" not in words:
        assert words in message_of(caught.value) and str(folder) in str(caught.value)


@every_family
def test_every_family_tells_of_a_lost_tensor_and_of_a_lost_projection(
    checkpoint: Checkpoint, tmp_path: Path, architecture: str
) -> None:
    folder = copy_of(checkpoint(architecture), tmp_path)
    tower = "text_model" if architecture in ("ColIdefics3", "ColModernVBert") else "language_model"
    damage(without(f"{tower}.layers.1.mlp."))(folder)
    with pytest.raises(IncompleteWeightsError, match=rf"lacks \d tensors \(.*{tower}\.layers\.1\.mlp"):
        load(folder)
    folder = copy_of(checkpoint(architecture), tmp_path / "projection")
    projection = "linear" if architecture == "ColIdefics3" else "custom_text_proj"
    damage(lambda tensors: {key: value for key, value in tensors.items() if not key.startswith(projection)})(folder)
    with pytest.raises(IncompleteWeightsError, match=rf"no trained projection.*{projection}\.bias"):
        load(folder)


STEM = "base_model.model." + UP


def zeros(tensors: Tensors) -> Tensors:
    return {key: value * 0 if "lora_B" in key else value for key, value in tensors.items()}


def one_more(tensors: Tensors) -> Tensors:
    return {**tensors, STEM.replace("1", "7") + ".lora_A.weight": tensors[f"{STEM}.lora_A.weight"].clone()}


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        pytest.param(damage(without(f"{UP}.lora_A"), ADAPTER), f"lacks 1 tensor ({UP}.lora_A", id="a-tensor"),
        pytest.param(damage(one_more, ADAPTER), "no place for 1 tensor (language_model.layers.7.", id="left-over"),
        pytest.param(damage(zeros, ADAPTER), "untrained, with nothing but zeros in 15 tensors", id="zero"),
        pytest.param(damage(lambda tensors: {"x": tensors[f"{STEM}.lora_A.weight"]}, ADAPTER), "lacks 30", id="none"),
        pytest.param(damage(lambda tensors: {}, ADAPTER), "lacks 30 tensors", id="empty"),
        pytest.param(damage(reshape(f"{STEM}.lora_B.weight"), ADAPTER), f"other shapes for 1 tensor ({UP}", id="shape"),
        pytest.param(
            lambda folder: edit_json(folder / "adapter_config.json", r=8), "other shapes for 30 tensors", id="rank"
        ),
        pytest.param(
            lambda folder: edit_json(folder / "adapter_config.json", target_modules=["up_proj"]),
            "no place for 26 tensors",
            id="config-with-fewer-modules",
        ),
        pytest.param(truncate(ADAPTER), "truncated or corrupt", id="truncated"),
        pytest.param(lambda folder: (folder / ADAPTER).unlink(), f"without {ADAPTER}", id="gone"),
    ],
)
def test_adapter_that_is_not_whole_is_refused_and_what_is_wrong_is_named(
    checkpoint: Checkpoint, tmp_path: Path, damaged: Callable[[Path], object], words: str
) -> None:
    folder = copy_of(checkpoint(adapter=True), tmp_path)
    damaged(folder)
    with pytest.raises(IncompleteWeightsError) as caught:
        load(folder)
    assert words in message_of(caught.value) and str(folder) in str(caught.value)


# ---- untrained models, when asked for


def test_base_is_refused_by_its_name_unless_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(), tmp_path).rename(tmp_path / "colqwen2-base")
    with pytest.raises(IncompleteWeightsError, match="base to train from.*allow_untrained=True"):
        load(folder)
    fingerprint = load(folder, allow_untrained=True).fingerprint
    assert fingerprint.options["allow_untrained"] is True
    # A trained adapter of it is what its users load.
    adapter = copy_of(checkpoint(adapter=True), tmp_path)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(folder))
    assert load(adapter).fingerprint.options["allow_untrained"] is False


def test_projection_that_is_drawn_is_the_same_everywhere(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import torch

    folder = copy_of(checkpoint(), tmp_path)
    make_plain(folder)
    first = load(folder, allow_untrained=True)
    assert first.fingerprint.options["allow_untrained"] is True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4711)
        assert_equal(vectors_of(load(folder, allow_untrained=True)), vectors_of(first))
    loaded = load_model(str(folder), dtype=torch.float32, allow_untrained=True)
    weight, bias = loaded.model.custom_text_proj.weight, loaded.model.custom_text_proj.bias
    # What any process on any machine draws of the seed.
    expected = torch.tensor([-1.1258398, -1.1523602, -0.2505786, -0.4338788]) / weight.shape[1] ** 0.5
    torch.testing.assert_close(weight.detach().flatten()[:4], expected, rtol=0, atol=1e-6)
    assert not bias.any()


def test_untrained_model_still_has_to_be_whole(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(), tmp_path)
    make_plain(folder)
    damage(without("model.layers.1.mlp.up_proj"))(folder)
    with pytest.raises(IncompleteWeightsError, match=rf"lacks 3 tensors \(.*{UP}"):
        load(folder, allow_untrained=True)


def test_adapter_of_zeros_is_admitted_when_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(adapter=True), tmp_path)
    damage(zeros, ADAPTER)(folder)
    assert_equal(vectors_of(load(folder, allow_untrained=True)), vectors_of(load(checkpoint())))


# ---- code of a checkpoint is never run


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_pickled_weights_are_never_read(checkpoint: Checkpoint, tmp_path: Path, adapter: bool) -> None:
    folder = copy_of(checkpoint(adapter=adapter), tmp_path)
    (folder / (ADAPTER if adapter else WEIGHTS)).unlink()
    pickled = folder / ("adapter_model.bin" if adapter else "pytorch_model.bin")
    pickled.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(IncompleteWeightsError, match="safetensors: weights in other formats.*never read"):
        load(folder)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled.read_bytes())
    assert (tmp_path / "ran").exists(), "the pickle is no test"


def test_code_beside_a_checkpoint_is_never_imported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(), tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    names = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    auto_map = dict.fromkeys(names, "evil.Config")
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))
    assert_equal(vectors_of(load(folder)), vectors_of(load(checkpoint())))
    assert not (tmp_path / "ran").exists()
    edit_json(folder / "config.json", architectures=["Evil"])
    with pytest.raises(ModelError, match="architecture Evil"):
        load(folder)
    assert not (tmp_path / "ran").exists()


# ---- the hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40


def put_in_cache(cache: Path, name: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> None:
    """Lay a model into a cache as huggingface_hub keeps them: files are links to blobs."""
    model = cache / f"models--{name.replace('/', '--')}"
    for kind in ("refs", "blobs", f"snapshots/{commit}"):
        (model / kind).mkdir(parents=True, exist_ok=True)
    (model / "refs" / ref).write_text(commit)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = model / "blobs" / f"{commit[:4]}{number:060}"
        shutil.copy(file, blob)
        (model / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / blob.name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache, and no hub: huggingface_hub read where it is when it was imported."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_hub_id_loads_from_the_cache_and_the_commit_is_in_the_fingerprint(checkpoint: Checkpoint, cache: Path) -> None:
    put_in_cache(cache, "org/name", checkpoint())
    embedder = load("org/name")
    fingerprint = embedder.fingerprint
    assert (fingerprint.model, fingerprint.revision, fingerprint.location) == ("org/name", COMMIT, "")
    assert_equal(vectors_of(embedder), vectors_of(load(checkpoint())))
    assert ColQwenEmbedder.from_fingerprint(fingerprint).fingerprint == fingerprint


def test_revision_is_a_branch_or_a_commit(checkpoint: Checkpoint, cache: Path, tmp_path: Path) -> None:
    other = copy_of(checkpoint(), tmp_path)
    damage(lambda tensors: {**tensors, "custom_text_proj.bias": tensors["custom_text_proj.bias"] + 1})(other)
    put_in_cache(cache, "org/name", checkpoint())
    put_in_cache(cache, "org/name", other, OLDER, "old")
    expected = vectors_of(load(other))
    for revision in ("old", OLDER):
        embedder = load("org/name", revision=revision)
        assert embedder.fingerprint.revision == OLDER
        assert_equal(vectors_of(embedder), expected)
    assert load("org/name").fingerprint.revision == COMMIT
    with pytest.raises(ModelNotFoundError, match="org/name at revision none .*HF_HUB_OFFLINE.*hf download org/name"):
        load("org/name", revision="none")


def test_adapters_base_is_found_in_the_cache(checkpoint: Checkpoint, cache: Path, tmp_path: Path) -> None:
    adapter = copy_of(checkpoint(adapter=True), tmp_path)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/base", revision="old")
    put_in_cache(cache, "org/adapter", adapter)
    with pytest.raises(ModelNotFoundError, match="org/adapter is an adapter of org/base.*hf download org/base"):
        load("org/adapter")
    put_in_cache(cache, "org/base", checkpoint(), OLDER, "old")
    embedder = load("org/adapter")
    assert embedder.fingerprint.revision == f"{COMMIT}+{OLDER}"
    assert_equal(vectors_of(embedder), vectors_of(load(checkpoint(adapter=True))))


def test_revision_of_a_folder_is_an_invalid_option(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidOptionError, match="revision='main' is for models on the hub.*is a folder"):
        load(checkpoint(), revision="main")


class Hub:
    """A server that answers as the hub does: with the files of `folder`, or with `status` and `headers`."""

    def __init__(self) -> None:
        self.folder = Path()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                if hub.status != 200:
                    return self.answer(b"{}", hub.status, hub.headers)
                path, _, _ = self.path.partition("?")
                if path.startswith("/api/models/org/name/revision/"):
                    return self.answer(json.dumps({"id": "org/name", "sha": COMMIT, "siblings": []}).encode())
                if path == f"/api/models/org/name/tree/{COMMIT}":
                    files = [
                        {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": f"{number:040}"}
                        for number, file in enumerate(sorted(hub.folder.iterdir()))
                    ]
                    return self.answer(json.dumps(files).encode())
                file = hub.folder / path.rpartition("/")[2]
                if path.startswith(f"/org/name/resolve/{COMMIT}/") and file.is_file():
                    return self.answer(file.read_bytes(), 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}"'})
                return self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET

            def answer(self, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Put a server of our own in the hub's place."""
    from huggingface_hub import close_session, constants

    hub = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    close_session()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    close_session()
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


def test_model_is_downloaded_once_and_loads(
    checkpoint: Checkpoint, hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.folder = checkpoint()
    embedder = load("org/name")
    assert embedder.fingerprint.revision == COMMIT
    assert_equal(vectors_of(embedder), vectors_of(load(checkpoint())))
    hub.requests.clear()
    capfd.readouterr()  # the download shows its progress
    load("org/name")
    load("org/name", revision=COMMIT)
    assert not [path for path in hub.requests if "/resolve/" in path]
    assert capfd.readouterr() == ("", "")


def test_what_is_not_needed_is_not_downloaded(checkpoint: Checkpoint, hub: Hub, cache: Path, tmp_path: Path) -> None:
    hub.folder = copy_of(checkpoint(), tmp_path)
    for name in ("pytorch_model.bin", "evil.py", "README.md", "training_args.bin"):
        (hub.folder / name).write_bytes(b"x")
    load("org/name")
    assert {path.name for path in cache.rglob("snapshots/*/*")} == {path.name for path in checkpoint().iterdir()}


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, ["There is no model 'org/name'", "folder", "hub"]),
        (401, {"X-Error-Code": "RepoNotFound"}, ["There is no model 'org/name'", "that you may read"]),
        (401, {"X-Error-Code": "GatedRepo"}, ["org/name is gated", "hf auth login"]),
        (403, {"X-Error-Code": "GatedRepo"}, ["org/name is gated", "https://huggingface.co/org/name"]),
        (404, {"X-Error-Code": "RevisionNotFound"}, ["org/name has no revision 'v2'"]),
        (403, {}, ["org/name at revision v2", "the hub does not give it", "403"]),
        (500, {}, ["org/name at revision v2", "the hub does not give it", "500", "hf download org/name"]),
    ],
)
def test_what_the_hub_answers_is_a_sentence(hub: Hub, status: int, headers: dict[str, str], words: list[str]) -> None:
    hub.status, hub.headers = status, headers
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError) as caught:
        load("org/name", revision="v2")
    assert all(word in message_of(caught.value) for word in words), str(caught.value)
    assert time.monotonic() - start < 5


def test_hub_that_cannot_be_reached_is_told_of_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    start = time.monotonic()
    with pytest.raises(ModelNotFoundError, match=r"the hub cannot be reached \(.*refused.*\).*hf download org/name"):
        load("org/name")
    assert time.monotonic() - start < 5


def test_cached_model_loads_while_the_hub_fails(checkpoint: Checkpoint, hub: Hub, cache: Path) -> None:
    put_in_cache(cache, "org/name", checkpoint())
    hub.status = 500
    assert load("org/name").fingerprint.revision == COMMIT


# ---- sentences


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/no/such/folder", "There is no folder '/no/such/folder'"),
        ("./folder", "There is no folder './folder'"),
        ("a/b/c", "There is no folder 'a/b/c'"),
        ("", "There is no folder ''"),
        ("not an/id", "There is no model 'not an/id'"),
        ("org/name", "not in the local cache.*HF_HUB_OFFLINE.*hf download org/name.*folder's path"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_model_that_is_not_there_is_a_sentence(name: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"


@pytest.mark.parametrize(
    ("adapter", "damaged", "error", "words"),
    [
        (
            False,
            write(CONFIG, '{"architectures": ["Bert"]}'),
            ModelError,
            "architecture Bert; .*ColQwen2, .*ColQwen3_5",
        ),
        (False, write(CONFIG, '{"architectures": [1]}'), ModelError, "architecture 1"),
        (False, write(CONFIG, "{}"), ModelError, "architecture none"),
        (False, lambda folder: (folder / CONFIG).unlink(), ModelNotFoundError, "is no model: .* has no config.json"),
        (False, write(CONFIG, "{"), ModelError, "config.json cannot be read"),
        (False, write(CONFIG, "[]"), ModelError, "config.json is not a JSON object"),
        (False, lambda folder: edit_json(folder / CONFIG, vision_config={"depth": "two"}), ModelError, "depth"),
        (False, lambda folder: (folder / "tokenizer.json").unlink(), ModelError, "cannot be loaded: .*tokenizer"),
        (False, write("processor_config.json", "{"), ModelError, "processor_config.json"),
        (True, write(ADAPTER_CONFIG, "{"), ModelError, "adapter_config.json cannot be read"),
        (True, write(ADAPTER_CONFIG, '{"peft_type": "IA3"}'), ModelError, "IA3 adapter; only LoRA"),
        (True, write(ADAPTER_CONFIG, '{"peft_type": "LORA"}'), ModelError, "no base_model_name_or_path"),
        (
            True,
            lambda folder: edit_json(folder / ADAPTER_CONFIG, base_model_name_or_path="/no/base"),
            ModelNotFoundError,
            "is an adapter of /no/base, which is needed too.*no folder",
        ),
        (
            True,
            lambda folder: edit_json(folder / ADAPTER_CONFIG, target_modules="nothing"),
            ModelError,
            "[Tt]arget modules nothing not found",
        ),
    ],
)
def test_folder_that_is_no_model_is_a_sentence(
    checkpoint: Checkpoint,
    tmp_path: Path,
    adapter: bool,
    damaged: Callable[[Path], object],
    error: type[ColQwenError],
    words: str,
) -> None:
    folder = copy_of(checkpoint(adapter=adapter), tmp_path)
    damaged(folder)
    with pytest.raises(error, match=words) as caught:
        load(folder)
    assert type(caught.value) is error and str(folder) in message_of(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda:77"}, "no device 'cuda:77'.*there are: cpu"),
        ({"device": "tpu"}, "no device 'tpu'.*there are: cpu"),
        ({"device": ["cpu", "tpu"]}, "no device 'tpu'"),
        ({"device": []}, r"list of different ones; got \[\]"),
        ({"device": ["cpu", "cpu"]}, "list of different ones"),
        ({"device": 5}, "no device '5'"),
        ({"dtype": "int8"}, "auto, float32, bfloat16, float16; got 'int8'"),
        ({"batch_size": 0}, "batch_size is a whole number, at least 1; got 0"),
        ({"pool_factor": 0}, "pool_factor is a whole number, at least 1; got 0"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_loaded(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        load("/no/such/folder", **options)


def test_device_of_torch_is_a_device(checkpoint: Checkpoint) -> None:
    import torch

    assert load(checkpoint(), device=torch.device("cpu")).devices == ["cpu"]


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("quick", 'attn_implementation="quick"` is not supported'),
        pytest.param(
            "flash_attention_2",
            "FlashAttention2.*or leave attn_implementation out",
            marks=pytest.mark.skipif(find_spec("flash_attn") is not None, reason="it is installed"),
        ),
    ],
)
def test_attention_that_is_not_there_is_a_sentence(checkpoint: Checkpoint, attention: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load(checkpoint(), attn_implementation=attention)
    assert message_of(caught.value).startswith(f"{checkpoint()} cannot be loaded: ")


@pytest.mark.parametrize("package", ["torch", "torchvision", "colpali_engine", "colpali_engine.models"])
def test_extra_that_is_not_installed_is_a_sentence(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llama-index-colqwen\[colqwen\]'") as caught:
        ColQwenEmbedder()
    assert package.partition("_")[0] in message_of(caught.value)


def test_torchvision_that_does_not_fit_torch_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(MissingDependencyError, match="torchvision::nms does not exist.*pip install.*torch torchvision"):
        ColQwenEmbedder()


TOO_LARGE = """
import resource, sys
from llama_index_colqwen.embedders.colqwen.embedder import ColQwenEmbedder, import_colpali_engine
from llama_index_colqwen.errors import DeviceMemoryError
import_colpali_engine()
ColQwenEmbedder(sys.argv[1], device="cpu")  # so that what is loaded late is there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for room in (1 << 30, 3 << 30):
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        ColQwenEmbedder(sys.argv[2], device="cpu")
    except DeviceMemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not keep a process from memory")
def test_model_too_large_for_the_memory_is_a_sentence(
    checkpoint: Checkpoint, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    rows = 8 << 20  # a vocabulary of 2 GiB
    folder = copy_of(checkpoint(), tmp_path)
    edit_json(folder / CONFIG, text_config={"vocab_size": rows})
    file = folder / WEIGHTS
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = content[8 + length :]
    tensors = {key: value for key, value in header.items() if "embed_tokens" not in key and key != "__metadata__"}
    kept = b""
    for value in tensors.values():
        start, end = value["data_offsets"]
        value["data_offsets"] = [len(kept), len(kept) + end - start]
        kept += data[start:end]
    size = rows * 64 * 4
    tensors["language_model.embed_tokens.weight"] = {
        "dtype": "F32", "shape": [rows, 64], "data_offsets": [len(kept), len(kept) + size]
    }  # fmt: skip
    head = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head + kept)
        out.truncate(out.tell() + size)  # zeros that take no place on the disk
    said = run_python(TOO_LARGE, checkpoint(), folder).splitlines()
    assert len(said) == 2
    for line in said:
        assert str(folder) in line and "memory" in line and "take a smaller" in line


# ---- quietly


def test_loading_prints_nothing_and_leaves_logging_as_it_was(
    checkpoint: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    def state(names: list[str]) -> list[object]:
        loggers = [logging.getLogger(), *map(logging.getLogger, names)]
        of_loggers = [(logger.name, logger.level, logger.disabled, list(logger.filters)) for logger in loggers]
        return [transformers_logging.is_progress_bar_enabled(), of_loggers]

    broken = copy_of(checkpoint(), tmp_path)
    damage(without("language_model.layers.1."))(broken)
    checkpoint(legacy_names=True)
    for architecture in ARCHITECTURES:  # built, so that nothing but loading can print
        checkpoint(architecture, adapter=True)
    load(checkpoint(adapter=True))  # makes most loggers; those that a family brings when it is first loaded are new
    capfd.readouterr()
    for enabled in (True, False):
        set_bars = transformers_logging.enable_progress_bar if enabled else transformers_logging.disable_progress_bar
        before_tests = transformers_logging.is_progress_bar_enabled()
        set_bars()
        try:
            names = sorted(logging.root.manager.loggerDict)
            before = state(names)
            for architecture in ARCHITECTURES:
                load(checkpoint(architecture))
                load(checkpoint(architecture, adapter=True))
            load(checkpoint(legacy_names=True))
            with pytest.raises(IncompleteWeightsError):
                load(broken)
            assert state(names) == before
        finally:
            if before_tests:
                transformers_logging.enable_progress_bar()
            else:
                transformers_logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")


# ---- the fingerprint of a folder


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
def test_copy_of_a_folder_has_its_fingerprint_and_changed_weights_another(
    checkpoint: Checkpoint, tmp_path: Path, adapter: bool
) -> None:
    original = load(checkpoint(adapter=adapter)).fingerprint
    folder = copy_of(checkpoint(adapter=adapter), tmp_path)
    copied = load(folder).fingerprint
    assert copied == original and copied.location != original.location
    assert copied.location == str(folder.resolve())

    key = f"{STEM}.lora_B.weight" if adapter else f"{UP}.weight"
    damage(lambda tensors: {**tensors, key: tensors[key] * 1.01}, ADAPTER if adapter else WEIGHTS)(folder)
    assert load(folder).fingerprint != original


def test_adapters_fingerprint_follows_its_base_and_its_settings_but_not_where_the_base_lies(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    original = load(checkpoint(adapter=True)).fingerprint
    folder, base = (copy_of(checkpoint(adapter=adapter), tmp_path) for adapter in (True, False))
    settings = folder / ADAPTER_CONFIG
    settings.write_text(settings.read_text().replace(str(checkpoint().resolve()), str(base)))
    assert load(folder).fingerprint == original
    settings.write_text(settings.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    assert load(folder).fingerprint != original
    settings.write_text(settings.read_text().replace('"lora_alpha": 8', '"lora_alpha": 4'))
    damage(lambda tensors: {**tensors, f"{UP}.weight": tensors[f"{UP}.weight"] * 1.01})(base)
    assert load(folder).fingerprint != original


def test_fingerprint_of_a_folder_loads_it_again(checkpoint: Checkpoint) -> None:
    embedder = load(checkpoint(adapter=True), max_visual_tokens=32, query_prefix="")
    again = ColQwenEmbedder.from_fingerprint(embedder.fingerprint)
    assert again.fingerprint == embedder.fingerprint
    assert_equal(vectors_of(again), vectors_of(embedder), atol=1e-5)


def test_equal_arguments_build_equal_checkpoints(checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = build_checkpoint("ColQwen2", tmp_path / "base")
    assert (base / WEIGHTS).read_bytes() == (checkpoint() / WEIGHTS).read_bytes()
    adapter = build_adapter(base, tmp_path / "adapter")
    assert (adapter / ADAPTER).read_bytes() == (checkpoint(adapter=True) / ADAPTER).read_bytes()


def test_tilde_is_the_home_folder_and_the_home_of_nobody_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    for name in ("~/models/tiny", "~/models/tiny/"):
        assert locate(name).folder == (tmp_path / "models" / "tiny").resolve()
    with pytest.raises(ModelNotFoundError, match="no folder '~nobody-of-that-name/tiny'"):
        locate("~nobody-of-that-name/tiny")
