"""Tiny checkpoints of the late-interaction models of colpali-engine: real files of real classes, with random weights.

Everything is made here, offline; equal arguments give equal bytes. The image processors have the settings of the
published models, so tokens can be counted; only widths, depths and vocabularies are small.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

_Made: TypeAlias = Any
"""Made by a library that is imported late."""

_Options: TypeAlias = Mapping[str, Any]
_HIDDEN = 64
_TEXT: _Options = {
    "hidden_size": _HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_VISION: _Options = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SIGLIP = {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
_ROPE: _Options = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
_QWEN2_IMAGE = {"size": {"shortest_edge": 56 * 56, "longest_edge": 768 * 28 * 28}}
# In the words of their own configurations: transformers 5.20 knows no others.
_QWEN_VISION = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": _HIDDEN}
_QWEN3_VISION = {**_QWEN_VISION, "num_position_embeddings": 256}
_QWEN3_IMAGE = {
    "size": {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096},
    "patch_size": 16,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_QWEN_SPECIALS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
_TILE_SPECIALS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"] + [
    f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)
]
_WORDS = (
    "Describe the image. User: Assistant: user assistant What is the total revenue of the third quarter? Which page "
    "has the table of contents? How many sensors drifted in the salt-spray test? The invoice of the year, the figure "
    "on the left and the report of the committee: who signed it, when, and for how much? See section 4.2.\n\n"
)


def build_checkpoint(
    architecture: str, folder: Path, *, seed: int = 0, legacy_names: bool = False, dtype: str = "float32"
) -> Path:
    """Write a checkpoint that the class `colpali_engine.models.<architecture>` and its processor load.

    `legacy_names` writes the names of weights, and the files of the processor, that ColQwen2 had in 2024.
    """
    import torch

    if legacy_names and architecture != "ColQwen2":
        raise ValueError("only ColQwen2 has legacy names")
    config, processor = _FAMILIES[architecture]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(_models(), architecture)(config)
    _scale(model.named_parameters(), seed)
    weights = {
        _legacy_name(name) if legacy_names else name: weight.to(getattr(torch, dtype)).contiguous()
        for name, weight in model.state_dict().items()
        if not name.endswith("lm_head.weight")  # tied
    }
    config.architectures = [architecture]
    config.dtype = dtype
    _save(folder, "model.safetensors", weights, processor, legacy_names)
    config.save_pretrained(folder)
    return folder


def build_adapter(base: Path, folder: Path, *, seed: int = 1, legacy_names: bool = False, rank: int = 4) -> Path:
    """Write a LoRA adapter of a checkpoint: the linear layers of its language model, and its projection."""
    import torch

    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    config, processor = _FAMILIES[architecture]()
    with torch.device("meta"):
        model = getattr(_models(), architecture)(config)
    generator = torch.Generator().manual_seed(seed)
    weights, layers, projection = {}, set(), ""
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if not isinstance(module, torch.nn.Linear) or not re.search("language_model|text_model|^$", parent):
            continue
        if parent:
            layers.add(last)
        else:
            projection = last
        stem = "base_model.model." + (_legacy_name(name) if legacy_names else name)
        for part, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
            weights[f"{stem}.lora_{part}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    lora = {
        "base_model_name_or_path": str(base.resolve()),
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": rf"(.*(language_model|text_model).*\.({'|'.join(sorted(layers))})$|({projection})$)",
        "task_type": "FEATURE_EXTRACTION",
    }
    _save(folder, "adapter_model.safetensors", weights, processor, legacy_names)
    (folder / "adapter_config.json").write_text(json.dumps(lora, indent=2))
    return folder


def _models() -> ModuleType:
    return import_module("colpali_engine.models")


def _transformers() -> ModuleType:
    return import_module("transformers")


def _legacy_name(name: str) -> str:
    return re.sub(r"^language_model\.", "model.", name)


def _save(folder: Path, name: str, weights: dict[str, Any], processor: _Made, legacy_files: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    import_module("safetensors.torch").save_file(weights, folder / name, {"format": "pt"})
    processor.save_pretrained(folder)
    if legacy_files:  # the image processor had a file of its own, which named its limits otherwise
        settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        limits = settings.pop("size")
        settings |= {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
        (folder / "processor_config.json").unlink()
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def _scale(parameters: Iterable[tuple[str, Any]], seed: int) -> None:
    # With the usual initial weights all pages look alike. These keep the variance of what they map, and what they see
    # of a patch is its contrast, hardly its colour and place, so that the margins do not outweigh the content.
    # Norms, biases and other vectors stay as they were made.
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(parameters, key=lambda item: item[0]):
            if weight.ndim < 2:
                continue
            drawn = torch.randn(weight.shape, generator=generator)
            if not re.search("embed_tokens|tok_embeddings", name):
                drawn /= 1e4 if re.search("pos(ition)?_embed", name) else weight[0].numel() ** 0.5
            if weight.ndim > 3:
                drawn -= drawn.mean(dim=(-2, -1), keepdim=True)
            weight.copy_(drawn)


def _tokenizer(specials: list[str], **named: str) -> _Made:
    tokenizers = import_module("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=sorted(byte_level.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    tokenizer.add_special_tokens(specials)
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=[token for token in specials if token not in named.values()],
        model_max_length=32768,
        padding_side="left",
        **named,
    )


def _text(tokenizer: _Made, **more: object) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {**_TEXT, **ids, "vocab_size": len(tokenizer), **more}


def _qwen(names: str, text: _Options, vision: _Options, image: _Options) -> tuple[_Made, _Made]:
    config, processor, video = names.split()
    tokenizer = _tokenizer(_QWEN_SPECIALS, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    markers = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in markers.items()}
    transformers = _transformers()
    return (
        getattr(transformers, config)(
            text_config=_text(tokenizer, **text), vision_config=dict(vision), tie_word_embeddings=True, **ids
        ),
        getattr(_models(), processor)(
            image_processor=transformers.Qwen2VLImageProcessor(**image),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, video)(),
        ),
    )


def _qwen2() -> tuple[_Made, _Made]:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": _HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    text = {"rope_parameters": dict(_ROPE)}
    return _qwen("Qwen2VLConfig ColQwen2Processor Qwen2VLVideoProcessor", text, vision, _QWEN2_IMAGE)


def _qwen2_5() -> tuple[_Made, _Made]:
    vision = {**_QWEN_VISION, "fullatt_block_indexes": [1]}
    text = {"rope_parameters": dict(_ROPE)}
    return _qwen("Qwen2_5_VLConfig ColQwen2_5_Processor Qwen2VLVideoProcessor", text, vision, _QWEN2_IMAGE)


def _qwen3() -> tuple[_Made, _Made]:
    text = {"head_dim": 16, "rope_parameters": {**_ROPE, "mrope_interleaved": True}}
    vision = {**_QWEN3_VISION, "deepstack_visual_indexes": [0]}
    return _qwen("Qwen3VLConfig ColQwen3Processor Qwen3VLVideoProcessor", text, vision, _QWEN3_IMAGE)


def _qwen3_5() -> tuple[_Made, _Made]:
    rope = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = {
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": {**_ROPE, **rope},
    }
    config, processor = _qwen(
        "Qwen3_5Config ColQwen3_5Processor Qwen3VLVideoProcessor", text, _QWEN3_VISION, _QWEN3_IMAGE
    )
    config.retrieval_attention_contract = "causal"  # published checkpoints are of both kinds, and say which
    return config, processor


def _pali() -> tuple[_Made, _Made]:
    specials = ["<pad>", "<eos>", "<bos>", "<image>"]
    tokenizer = _tokenizer(specials, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    image = _transformers().SiglipImageProcessor(size={"height": 448, "width": 448})
    image.image_seq_length = 1024
    processor = _models().ColPaliProcessor(image_processor=image, tokenizer=tokenizer)  # adds 1152 tokens
    hidden = _HIDDEN // 2
    text = _text(tokenizer, model_type="gemma", hidden_size=hidden, head_dim=16, num_key_value_heads=1)
    config = _transformers().PaliGemmaConfig(
        text_config=text,
        vision_config={**_SIGLIP, "image_size": 448, "patch_size": 14},
        image_token_index=processor.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=hidden,
        hidden_size=hidden,
    )
    return config, processor


def _tile_processor(name: str, specials: list[str], **named: str) -> _Made:
    return getattr(_models(), name)(
        image_processor=_transformers().Idefics3ImageProcessor(
            size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}
        ),
        tokenizer=_tokenizer([*specials, *_TILE_SPECIALS], **named),
        image_seq_len=64,
    )


def _idefics3() -> tuple[_Made, _Made]:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {"pad_token": "<|im_end|>", "eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>"}
    processor = _tile_processor("ColIdefics3Processor", specials, **named)
    config = _transformers().Idefics3Config(
        text_config=_text(processor.tokenizer, model_type="llama"),
        vision_config={**_VISION, "model_type": "idefics3_vision", "image_size": 512, "patch_size": 16},
        image_token_id=processor.image_token_id,
        scale_factor=4,
    )
    return config, processor


def _modernvbert() -> tuple[_Made, _Made]:
    specials = ["[CLS]", "[SEP]", "[PAD]", "<|begin_of_text|>"]
    named = {"pad_token": "[PAD]", "eos_token": "[SEP]", "bos_token": "[CLS]"}
    processor = _tile_processor("ColModernVBertProcessor", specials, **named)
    text = _text(processor.tokenizer, model_type="modernbert")
    del text["num_key_value_heads"]
    config = _transformers().ModernVBertConfig(
        text_config={**text, "cls_token_id": text["bos_token_id"], "sep_token_id": text["eos_token_id"]},
        vision_config={**_SIGLIP, "image_size": 512, "patch_size": 16},
        image_token_id=processor.image_token_id,
        pixel_shuffle_factor=4,
    )
    return config, processor


_FAMILIES = {
    "ColQwen2": _qwen2,
    "ColQwen2_5": _qwen2_5,
    "ColPali": _pali,
    "ColIdefics3": _idefics3,
    "ColModernVBert": _modernvbert,
    "ColQwen3": _qwen3,
    "ColQwen3_5": _qwen3_5,
}

ARCHITECTURES: tuple[str, ...] = tuple(_FAMILIES)
"""Names of classes in `colpali_engine.models`."""


def keep_in_cache(cache: Path, name: str, folder: Path, commit: str = "0" * 40) -> Path:
    """Lay a checkpoint into a Hugging Face hub cache, as if it had been downloaded; return the snapshot's folder."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, model / "snapshots" / commit))
