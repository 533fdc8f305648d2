"""The architectures of colpali-engine: what their classes are called, and what is to be known of each.

One table. Nothing is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FAMILIES", "Family"]


@dataclass(frozen=True)
class Family:
    """A kind of model that colpali-engine runs.

    Attributes:
        model: Its class in `colpali_engine.models`, and what checkpoints of it have in `architectures`.
        processor: Its processor's class there.
        backbones: What untrained checkpoints, which lack the projection, have in `architectures`.
        projection: The module that makes vectors of hidden states.
        layout: How pages become patches: "dynamic" keeps their aspect ratio, and their number of tokens can be capped;
            "square" scales them to one; "tiles" cuts them up and adds a small picture of the whole.
        query_prefix: What its published models were trained to see before a query.
        decoder: The part that attends causally unless it is told not to; "" for one that attends in its own way.
        attention_varies: Whether its published models are of both kinds.
    """

    model: str
    processor: str
    backbones: tuple[str, ...]
    projection: str = "custom_text_proj"
    layout: Literal["dynamic", "square", "tiles"] = "dynamic"
    query_prefix: str = ""
    decoder: str = ""
    attention_varies: bool = False


# colpali-engine put "Query: " before queries while the first four were trained, and no longer does.
FAMILIES = (
    Family(
        "ColQwen2",
        "ColQwen2Processor",
        ("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
        query_prefix="Query: ",
        decoder="language_model",
    ),
    Family(
        "ColQwen2_5",
        "ColQwen2_5_Processor",
        ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        query_prefix="Query: ",
        decoder="language_model",
    ),
    Family(
        "ColPali",
        "ColPaliProcessor",
        ("PaliGemmaForConditionalGeneration",),
        layout="square",
        query_prefix="Query: ",
    ),
    Family(
        "ColIdefics3",
        "ColIdefics3Processor",
        ("Idefics3ForConditionalGeneration", "Idefics3Model"),
        projection="linear",
        layout="tiles",
        query_prefix="Query: ",
        decoder="model.text_model",
    ),
    Family("ColModernVBert", "ColModernVBertProcessor", ("ModernVBertModel", "ModernVBertForMaskedLM"), layout="tiles"),
    Family(
        "ColQwen3",
        "ColQwen3Processor",
        ("Qwen3VLForConditionalGeneration", "Qwen3VLModel"),
        decoder="language_model",
    ),
    Family(
        "ColQwen3_5",
        "ColQwen3_5Processor",
        ("Qwen3_5ForConditionalGeneration", "Qwen3_5Model"),
        decoder="language_model",
        attention_varies=True,
    ),
)
