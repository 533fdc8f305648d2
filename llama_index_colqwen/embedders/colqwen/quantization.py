"""A model in half precision -> the same with linear layers of 4 or 8 bits a weight, by bitsandbytes.

The model is whole, and its adapter merged, before: what is rounded is what was proven. Knows nothing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index_colqwen.errors import InvalidOptionError, MissingDependencyError

__all__ = ["check_quantization", "quantize"]

_EXTRA = "quantized"


def check_quantization(bits: int, devices: Sequence[str], *, split: bool) -> None:
    """Say before a model is loaded whether its weights can be rounded here.

    Args:
        bits: 4 or 8.
        devices: What the model is for.
        split: Whether it will be split over several.

    Raises:
        InvalidOptionError: If a device is no NVIDIA GPU (the CPU's kernels are slower than float32), or `split`.
        MissingDependencyError: If bitsandbytes is not installed, or cannot be imported.
    """
    option = f"load_in_{bits}bit"
    if split:
        raise InvalidOptionError(f"{option} makes a model small enough for one GPU: leave device_map out.")
    others = [device for device in devices if not device.startswith("cuda")]
    if others:
        raise InvalidOptionError(
            f"{option} is for NVIDIA GPUs (cuda), and the model is for {', '.join(others)}: leave it out there, or "
            "take a smaller model."
        )
    _import()


def quantize(model: Any, bits: int, keep: str) -> None:  # noqa: ANN401 - a torch module
    """Replace linear layers in place; their weights are rounded when the model is put on its device.

    4 bits are NF4 (Dettmers et al. 2023), 8 bits LLM.int8() (Dettmers et al. 2022), which keeps outliers exact.

    Args:
        model: On the CPU, in the dtype that it will compute in.
        bits: 4 or 8.
        keep: The name of the layer that stays as it is: the projection to vectors.
    """
    import torch

    bitsandbytes = _import()
    layers = bitsandbytes.nn
    for name, linear in list(model.named_modules()):
        if type(linear) is not torch.nn.Linear or name == keep:
            continue
        shape: dict[str, Any] = {"input_features": linear.in_features, "output_features": linear.out_features}
        bias = linear.bias is not None
        weight = linear.weight.detach()
        if bits == 4:
            small = layers.Linear4bit(**shape, bias=bias, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
            small.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=small)
        else:
            small = layers.Linear8bitLt(**shape, bias=bias, has_fp16_weights=False, threshold=6.0, device="meta")
            small.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        small.bias = linear.bias
        model.set_submodule(name, small)


def _import() -> Any:  # noqa: ANN401 - an optional package's module
    try:
        import bitsandbytes
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependencyError("Loading in 4 or 8 bits needs bitsandbytes", _EXTRA) from error
    return bitsandbytes
