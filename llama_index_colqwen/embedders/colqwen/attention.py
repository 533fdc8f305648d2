"""What a checkpoint, the table of published ones and the user say of attention -> a model that attends so.

colpali-engine builds language models whose tokens see those before them. Some checkpoints were trained with tokens that
see all others: built causal, their weights are whole, and their vectors wrong, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

from llama_index_colqwen.embedders.colqwen.families import Family
from llama_index_colqwen.embedders.colqwen.models import PUBLISHED, Attention
from llama_index_colqwen.embedders.hub import Checkpoint
from llama_index_colqwen.errors import InvalidOptionError, ModelError

__all__ = ["AttentionOption", "choose_attention", "set_attention"]

AttentionOption: TypeAlias = Literal["auto", "causal", "bidirectional"]

# What checkpoints for retrieval declare since vLLM asks it of them (https://github.com/vllm-project/vllm/pull/49372).
_DECLARED = "retrieval_attention_contract"
# What asks for attention both ways, and is no promise: some libraries read it, colpali-engine does not.
_HINTS: dict[str, Callable[[object], bool]] = {
    "is_causal": lambda value: value is False,
    "use_bidirectional_attention": bool,
}


def choose_attention(asked: AttentionOption, checkpoint: Checkpoint, base: Checkpoint, family: Family) -> Attention:
    """Return how a model has to attend: as asked, as published, or as its config.json declares.

    Args:
        asked: What the user says.
        checkpoint: The model.
        base: What has its config.json: the model, or what it is an adapter of.
        family: What kind it is. For those that attend in a way of their own, "causal" stands for that.

    Raises:
        InvalidOptionError: If there is no such attention, or the family cannot attend so.
        ModelError: If nobody says it where it has to be said, or the config.json contradicts itself.
    """
    if asked not in get_args(AttentionOption):
        raise InvalidOptionError(f"attention is one of {', '.join(get_args(AttentionOption))}; got {asked!r}.")
    if asked == "bidirectional" and not family.decoder:
        raise InvalidOptionError(
            f"attention='bidirectional' is for models with causal attention; {checkpoint.name} ({family.model}) has "
            "its own: leave it out."
        )
    if asked != "auto":
        return asked
    if not family.decoder:
        return "causal"
    if not checkpoint.is_folder and checkpoint.name in PUBLISHED:
        return PUBLISHED[checkpoint.name].attention
    return _declared(checkpoint.name, base.json("config.json"), family)


def _declared(name: str, config: Mapping[str, Any], family: Family) -> Attention:
    text = config.get("text_config")
    parts = [config, *([text] if isinstance(text, dict) else [])]
    said = sorted({f"{_DECLARED}={part[_DECLARED]!r}" for part in parts if _DECLARED in part})
    hints = sorted(
        {f"{key}={part[key]!r}" for part in parts for key, is_one in _HINTS.items() if is_one(part.get(key))}
    )
    if said == [f"{_DECLARED}='bidirectional'"]:
        return "bidirectional"
    if said == [f"{_DECLARED}='causal'"] and not hints:
        return "causal"
    if said or hints:
        why = f"its config.json has {', '.join(said + hints)}"
    elif family.attention_varies:
        why = f"its config.json does not say it, and there are {family.model} models of both kinds"
    else:
        return "causal"
    raise ModelError(
        f"How {name} attends is not known for sure ({why}), and the wrong way gives wrong vectors: give "
        "attention='bidirectional' if it was trained so, or attention='causal'."
    )


def set_attention(language_model: Any, attention: Attention) -> None:  # noqa: ANN401 - a torch module
    """Make the full-attention layers attend so; linear-attention layers stay as they are.

    By the config transformers makes masks, which "sdpa" and "eager" follow; "flash_attention_2" gets none, and follows
    each layer's own word (https://github.com/embeddings-benchmark/mteb/pull/5469).
    """
    causal = attention == "causal"
    language_model.config.is_causal = causal
    for module in language_model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = causal
            module.config.is_causal = causal
