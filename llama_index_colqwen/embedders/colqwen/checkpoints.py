"""A model's name -> its weights, proven whole, in a colpali-engine model, and its processor.

A model that is loaded with lost or random weights gives plausible nonsense: transformers only logs what it could not
find. Here every such case is an error. Knows nothing of pages, nor of where the model will run.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llama_index_colqwen.concurrency import Lock
from llama_index_colqwen.embedders.colqwen.attention import AttentionOption, choose_attention, set_attention
from llama_index_colqwen.embedders.colqwen.families import FAMILIES, Family
from llama_index_colqwen.embedders.colqwen.models import PUBLISHED, Attention, PublishedModel
from llama_index_colqwen.embedders.devices import is_out_of_memory, require_torch
from llama_index_colqwen.embedders.hub import Checkpoint, locate, one_line
from llama_index_colqwen.errors import (
    DeviceMemoryError,
    IncompleteWeightsError,
    InvalidOptionError,
    MissingDependencyError,
    ModelError,
    ModelNotFoundError,
)

if TYPE_CHECKING:
    import torch

__all__ = ["LoadedModel", "import_colpali_engine", "load_model"]


_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_UNTRAINED_SEED = 0
# A layer of a tower. What else is left over (a language head, Qwen3.5's `mtp`) is not needed for vectors.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks)\.\d+\.")


@dataclass(frozen=True)
class LoadedModel:
    """A whole model, on the CPU, in evaluation mode, its adapter merged.

    Attributes:
        model: A `colpali_engine.models` model.
        processor: Its processor.
        family: What kind it is.
        checkpoint: Where it came from.
        revision: The checkpoint's; "+" the base's, for an adapter.
        dim: The length of its vectors.
        attention: How its language model attends.
        published: What is known of it, if it is a published one.
    """

    model: Any
    processor: Any
    family: Family
    checkpoint: Checkpoint
    revision: str
    dim: int
    attention: Attention
    published: PublishedModel | None


def load_model(
    name: str,
    revision: str | None = None,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    allow_untrained: bool = False,
    attention: AttentionOption = "auto",
    dim: int | None = None,
    local_files_only: bool = False,
) -> LoadedModel:
    """Load a model and prove that all of its weights come from the checkpoint.

    Args:
        name: A hub id, or a folder: a full checkpoint, or a LoRA adapter.
        revision: A branch, tag or commit on the hub; for an adapter, "+" its base's may follow.
        dtype: What the weights are converted to.
        attn_implementation: As in transformers: "sdpa", "eager", "flash_attention_2".
        allow_untrained: Admit a base to train from; a projection that is missing is drawn from a fixed seed.
        attention: As in `ColQwenEmbedder`.
        dim: Keep so many of the first values of vectors.
        local_files_only: Do not ask the hub.

    Raises:
        MissingDependencyError: If the extra `[colqwen]` is not installed, or its packages do not fit each other.
        ModelNotFoundError: If there is no such model here or on the hub, or the hub cannot be reached.
        IncompleteWeightsError: If weights are missing, left over, unreadable or untrained.
        ModelError: If the architecture is none of `FAMILIES`, the adapter is not LoRA, or it is not known how the model
            attends.
        InvalidOptionError: If it cannot attend as asked, or has shorter vectors than asked for.
    """
    models = import_colpali_engine()
    own_revision, _, base_revision = (revision or "").partition("+")
    checkpoint = locate(name, own_revision or None, local_files_only=local_files_only)
    base = _base_of(checkpoint, base_revision, local_files_only)
    family = _family_of(base)
    if base is checkpoint and name.rstrip("/").endswith("-base") and not allow_untrained:
        raise IncompleteWeightsError(
            f"{name} is a base to train from: it would rank pages at random. Give the trained model (such as "
            "vidore/colqwen2-v1.0), or allow_untrained=True."
        )
    attends = choose_attention(attention, checkpoint, base, family)
    _require_weight_files(base)
    model_class = getattr(models, family.model)
    with _LOADING, _loading_errors(name), _without_adapter(base.folder) as folder:
        model, info = model_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are reported then, and are an error here
            local_files_only=True,
            trust_remote_code=False,
        )
        _drop_language_head(model)
        _require_whole(model, info, base.name, family, allow_untrained)
        if base is not checkpoint:
            _merge_adapter(model, model_class, checkpoint, allow_untrained)
        processor = _load_processor(getattr(models, family.processor), checkpoint, base)
    if family.decoder:
        set_attention(model.get_submodule(family.decoder), attends)
    published = None if checkpoint.is_folder else PUBLISHED.get(checkpoint.name)
    if dim is None and published is not None and published.full_dim is not None:
        dim = published.dim
    kept = _keep_dims(model.get_submodule(family.projection), dim, name)
    revisions = [checkpoint.revision] if base is checkpoint else [checkpoint.revision, base.revision]
    return LoadedModel(model.eval(), processor, family, checkpoint, "+".join(revisions), kept, attends, published)


def import_colpali_engine() -> Any:  # noqa: ANN401 - an optional package's module
    """Import `colpali_engine.models`.

    Raises:
        MissingDependencyError: If it, or what it stands on, is not installed or does not fit.
    """
    require_torch("colqwen")
    try:
        import colpali_engine.models
    except ImportError as error:
        raise MissingDependencyError(
            f"Models need colpali-engine, which cannot be imported ({error})", "colqwen"
        ) from error
    return colpali_engine.models


def _base_of(checkpoint: Checkpoint, revision: str, local_files_only: bool) -> Checkpoint:
    """Return the checkpoint that an adapter was trained on, or the checkpoint itself."""
    if not checkpoint.has(_ADAPTER):
        return checkpoint
    if checkpoint.has("config.json") and _weight_files(checkpoint.folder):
        # transformers, too, takes the weights that lie beside an adapter before those that its config names.
        return replace(checkpoint)
    config = checkpoint.json(_ADAPTER)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{checkpoint.name} is a {config.get('peft_type')} adapter; only LoRA adapters are loaded.")
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError(
            f"{checkpoint.name}: its adapter_config.json has no base_model_name_or_path; put the name there of the "
            "model that the adapter was trained on."
        )
    beside = checkpoint.folder / name
    try:
        if beside.is_dir():
            return locate(str(beside))
        return locate(name, revision or config.get("revision"), local_files_only=local_files_only)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{checkpoint.name} is an adapter of {name}, which is needed too. {error}") from error


def _family_of(base: Checkpoint) -> Family:
    if not base.has("config.json"):
        raise ModelNotFoundError(f"{base.name} is no model: {base.folder} has no config.json.")
    architectures = base.json("config.json").get("architectures") or []
    for family in FAMILIES:
        if {family.model, *family.backbones} & set(architectures):
            return family
    supported = ", ".join(family.model for family in FAMILIES)
    got = ", ".join(map(str, architectures)) or "none"
    raise ModelError(f"{base.name} has the architecture {got}; colpali-engine's are supported: {supported}.")


def _weight_files(folder: Path) -> list[Path]:
    """Return a full model's weight files, those of an adapter beside it left out."""
    return [file for file in folder.glob("*.safetensors") if file.name != _ADAPTER_WEIGHTS]


def _require_weight_files(base: Checkpoint) -> None:
    if base.has("model.safetensors"):
        return
    if not base.has(_INDEX):
        raise IncompleteWeightsError(
            f"{base.name} has no model.safetensors: weights in other formats, such as pytorch_model.bin, are never "
            "read, since that can run code. Take a revision of the model that has .safetensors, or convert its weights."
        )
    files = base.json(_INDEX).get("weight_map")
    missing = sorted({str(file) for file in dict(files or {}).values() if not base.has(str(file))})
    if missing or not files:
        raise IncompleteWeightsError(
            f"{base.name} lacks weight files that its {_INDEX} names ({', '.join(missing)}): fetch them again."
        )


# transformers registers key mappings and patches initialisation while it loads.
_LOADING = Lock()


@contextmanager
def _without_adapter(folder: Path) -> Iterator[str]:
    """Give a folder of the same files but an adapter, which transformers would load, and hide what the base lacks."""
    if not (folder / _ADAPTER).exists():
        yield str(folder)
        return
    with TemporaryDirectory() as others:
        for file in folder.iterdir():
            if file.is_file() and file.name != _ADAPTER:
                try:
                    (Path(others) / file.name).symlink_to(file.resolve())
                except OSError:  # Windows lets not everybody make links
                    shutil.copy(file, others)
        yield others


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    """Turn what transformers and safetensors raise into sentences, and silence their reports: we raise instead."""
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    # A filter, and not a level: other threads' messages of other loggers stay as they are.
    report = logging.getLogger("transformers.modeling_utils"), logging.getLogger("transformers.integrations.peft")
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in report:
        logger.addFilter(_drop)
    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        raise IncompleteWeightsError(
            f"{name}: a weight file is truncated or corrupt ({one_line(error)}); fetch it again."
        ) from error
    except ImportError as error:
        raise ModelError(
            f"{name} cannot be loaded: {one_line(error)} Install what is missing, or leave attn_implementation out."
        ) from error
    except Exception as error:  # damaged files make the libraries raise almost anything
        if is_out_of_memory(error):
            raise DeviceMemoryError(
                f"{name} does not fit the memory of this machine: take a smaller model, or dtype='bfloat16'."
            ) from error
        raise ModelError(f"{name} cannot be loaded: {one_line(error)}") from error
    finally:
        for logger in report:
            logger.removeFilter(_drop)
        if bars:
            transformers_logging.enable_progress_bar()


def _drop(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in str(record.msg)


def _drop_language_head(model: Any) -> None:  # noqa: ANN401 - an optional package's type
    """Take the language head out: vectors are made of hidden states, and ColPali computes its logits all the same.

    Checkpoints that do not repeat the tied weights also leave ColPali's head without any.
    """
    import torch

    for name, _ in list(model.named_modules()):
        if name.rpartition(".")[2] == "lm_head":
            model.set_submodule(name, torch.nn.Identity())


def _require_whole(
    model: Any,  # noqa: ANN401 - an optional package's type
    info: Mapping[str, Any],
    name: str,
    family: Family,
    allow_untrained: bool,
) -> None:
    # What is missing from the checkpoint, and what a model was given no memory for.
    empty = {key for key, tensor in model.named_parameters() if tensor.is_meta}
    missing = sorted(key for key in {*info["missing_keys"], *empty} if "lm_head." not in key)
    mismatched = sorted(key for key, *_ in info["mismatched_keys"])
    left_over = sorted(key for key in info["unexpected_keys"] if _LAYER.search(key) and "mtp." not in key)
    if mismatched:
        raise IncompleteWeightsError(
            f"{name}: its config.json says other shapes for {_name(mismatched)}; fetch both again, at one revision."
        )
    if left_over:
        raise IncompleteWeightsError(
            f"{name}: {family.model} has no place for {_name(left_over)}; the checkpoint's config.json or the names of "
            "its tensors do not fit."
        )
    if missing and all(key.startswith(family.projection + ".") for key in missing):
        if not allow_untrained:
            raise IncompleteWeightsError(
                f"{name} has no trained projection to vectors, it lacks {_name(missing)}: it would rank pages at "
                "random. Give a model trained for retrieval, or allow_untrained=True."
            )
        _draw(model.get_submodule(family.projection))
    elif missing:
        raise IncompleteWeightsError(f"{name} lacks {_name(missing)}: its files are not whole, fetch them again.")


def _name(keys: list[str], most: int = 5) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} tensor{'s' * (len(keys) != 1)} ({', '.join(keys[:most])}{rest})"


def _draw(projection: Any) -> None:  # noqa: ANN401 - torch.nn.Linear
    """Initialise a projection, the same on every machine."""
    import torch

    generator = torch.Generator("cpu").manual_seed(_UNTRAINED_SEED)
    with torch.no_grad():
        weight = torch.randn(projection.weight.shape, generator=generator)
        projection.weight.copy_(weight / projection.in_features**0.5)
        projection.bias.zero_()


def _keep_dims(projection: Any, dim: int | None, name: str) -> int:  # noqa: ANN401 - torch.nn.Linear
    """Cut a projection down to its first rows: the model's vectors are made unit after it. Returns how many it has."""
    import torch

    has = int(projection.out_features)
    if dim is None or dim == has:
        return has
    if not 1 <= dim < has:
        raise InvalidOptionError(f"dim is how many of the {has} values of {name}'s vectors to keep; got {dim}.")
    projection.weight = torch.nn.Parameter(projection.weight[:dim].detach().clone(), requires_grad=False)
    projection.bias = torch.nn.Parameter(projection.bias[:dim].detach().clone(), requires_grad=False)
    projection.out_features = dim
    return dim


def _merge_adapter(
    model: Any,  # noqa: ANN401 - an optional package's type
    model_class: Any,  # noqa: ANN401
    adapter: Checkpoint,
    allow_untrained: bool,
) -> None:
    """Add a LoRA adapter's products to the weights: the same vectors as with the adapter beside, in less time."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from safetensors import safe_open
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not adapter.has(_ADAPTER_WEIGHTS):
        raise IncompleteWeightsError(
            f"{adapter.name} is an adapter without {_ADAPTER_WEIGHTS}: weights in other formats are never read."
        )
    with safe_open(adapter.folder / _ADAPTER_WEIGHTS, "pt") as file:
        in_file = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118 - not a dict
    # The names of the checkpoints of 2024 are mapped as the model class maps those of full checkpoints.
    mapping = get_model_conversion_mapping(
        model, key_mapping=getattr(model_class, "_checkpoint_conversion_mapping", None)
    )
    info = model.load_adapter(str(adapter.folder), weight_mapping=mapping, ignore_mismatched_sizes=True).to_dict()
    lora = {name: tensor for name, tensor in model.named_parameters() if "lora_" in name}
    problems = {
        "lacks": sorted(info["missing_keys"]),
        "does not fit its base, which has no place for": sorted(info["unexpected_keys"]),
        "does not fit its base or adapter_config.json, which say other shapes for": sorted(
            key for key, *_ in info["mismatched_keys"]
        ),
    }
    if not allow_untrained:
        problems["is untrained, with nothing but zeros in"] = sorted(
            name for name, tensor in lora.items() if "lora_B" in name and not torch.any(tensor)
        )
    for problem, keys in problems.items():
        if keys:
            raise IncompleteWeightsError(f"{adapter.name}: the adapter {problem} {_name(keys)}.")
    if len(lora) != len(in_file) or not lora:
        raise IncompleteWeightsError(
            f"{adapter.name}: the adapter's file has {len(in_file)} LoRA tensors, {len(lora)} were loaded."
        )
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            dtype = base.weight.dtype
            module.float()  # one layer at a time: bfloat16 sums would lose the small products
            module.merge(safe_merge=True)
            model.set_submodule(name, base.to(dtype))
        elif isinstance(module, ModulesToSaveWrapper):  # trained as a whole
            model.set_submodule(name, module.modules_to_save[module.active_adapter])


def _load_processor(processor_class: Any, checkpoint: Checkpoint, base: Checkpoint) -> Any:  # noqa: ANN401
    # Adapters are published with their processor; if one is not, its base has it.
    source = checkpoint if checkpoint.has("tokenizer_config.json") else base
    return processor_class.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
