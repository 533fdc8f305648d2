"""A device's name -> what it computes in, and what its memory errors look like.

Knows nothing of pages or of models' families.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from llama_index_colqwen.errors import DeviceMemoryError, InvalidOptionError, MissingDependencyError, ModelError

if TYPE_CHECKING:
    import torch

__all__ = [
    "Dtype",
    "Replica",
    "available_devices",
    "begin_after_fork",
    "check_process",
    "choose_devices",
    "choose_dtype",
    "dispatch",
    "dtype_name",
    "empty_cache",
    "is_out_of_memory",
    "place",
    "require_torch",
]

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Replica:
    """A model on one device; only who holds it runs it.

    Attributes:
        model: A torch module.
        device: Its device.
    """

    model: Any
    device: str


def require_torch(extra: str) -> None:
    """Import torch and torchvision.

    Raises:
        MissingDependencyError: If they are not installed, which `extra` does, or do not fit each other.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("Models need torch", extra) from error
    try:
        # First, since transformers hides what a torchvision that does not fit torch says when it is imported.
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Models need torchvision", extra) from error
    except (ImportError, RuntimeError, OSError) as error:
        raise MissingDependencyError(
            f"The installed torch and torchvision do not fit each other ({error}): a matching pair, from one package "
            "index, is needed",
            extra,
            "--force-reinstall torch torchvision",
        ) from error


def available_devices() -> list[str]:
    """Name the devices that torch can compute on here."""
    import torch

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return [*devices, "mps"] if torch.backends.mps.is_available() else devices


def choose_devices(device: str | Sequence[str] | None) -> list[str]:
    """Return the devices asked for, or the best one there is: the first GPU, else MPS, else the CPU.

    Raises:
        InvalidOptionError: If this machine has no such device.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return ["cuda:0"]
        return ["mps" if torch.backends.mps.is_available() else "cpu"]
    names = [str(name) for name in device] if isinstance(device, (list, tuple)) else [str(device)]
    if not names or len(set(names)) != len(names):
        raise InvalidOptionError(f"device is a device's name, or a list of different ones; got {device!r}.")
    available = available_devices()
    for name in names:
        if ("cuda:0" if name == "cuda" else name) not in available:
            raise InvalidOptionError(f"There is no device {name!r} for torch here; there are: {', '.join(available)}.")
    return names


def choose_dtype(dtype: Dtype, device: str) -> torch.dtype:
    """Return the dtype to compute in; "auto" is the one that is fast on the device and does not overflow.

    Raises:
        InvalidOptionError: If there is no such dtype.
    """
    import torch

    if dtype not in get_args(Dtype):
        raise InvalidOptionError(f"dtype is one of {', '.join(get_args(Dtype))}; got {dtype!r}.")
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.startswith("cuda"):
        # Before Ampere bfloat16 is emulated, slowly.
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device == "mps" and torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.bfloat16
    return torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as `choose_dtype` takes it."""
    return str(dtype).removeprefix("torch.")


def place(model: Any, devices: Sequence[str], name: str) -> list[Replica]:  # noqa: ANN401 - a torch module
    """Put a model, or copies of it, on devices.

    Raises:
        DeviceMemoryError: If it does not fit.
    """
    replicas = []
    for number, device in enumerate(devices):
        try:
            copy = model if number == len(devices) - 1 else deepcopy(model)
            replicas.append(Replica(copy.to(device), device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            gigabytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) / 1e9
            raise DeviceMemoryError(
                f"{name} takes {gigabytes:.1f} GB in {dtype_name(model.dtype)}, which do not fit the memory of "
                f"{device}: take a smaller model or dtype, or a device with more memory."
            ) from error
    return replicas


def dispatch(model: Any, device_map: Literal["auto"] | Mapping[str, str | int], name: str) -> Replica:  # noqa: ANN401
    """Split a model over devices, as accelerate does: "auto" fills the GPUs evenly, and the CPU with what is left.

    Args:
        model: A transformers model, on the CPU.
        device_map: "auto", or the device of each of its parts by their names.
        name: What it is called.

    Returns:
        The model, and the device that takes its inputs.

    Raises:
        DeviceMemoryError: If it does not fit the devices together.
        InvalidOptionError: If the map is none, or leaves parts out.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    if device_map == "auto":
        whole = list(model._no_split_modules or ())
        memory = get_balanced_memory(model, no_split_module_classes=whole)
        chosen: dict[str, str | int] = infer_auto_device_map(model, memory, no_split_module_classes=whole)
        if "disk" in chosen.values():
            raise DeviceMemoryError(f"{name} does not fit the memory of this machine's devices together.")
    elif isinstance(device_map, Mapping) and "disk" not in device_map.values():
        chosen = dict(device_map)
    else:
        raise InvalidOptionError(
            f"device_map is 'auto', or the devices of a model's parts by their names; got {device_map!r}. For one "
            "device there is device."
        )
    try:
        placed = dispatch_model(model, chosen)
    except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
        if is_out_of_memory(error):
            raise DeviceMemoryError(f"{name} does not fit the devices of {chosen}: {error}") from error
        raise InvalidOptionError(f"device_map={chosen} does not fit {name}: {error}") from error
    first = next((device for device in chosen.values() if device != "cpu"), "cpu")
    return Replica(placed, f"cuda:{first}" if isinstance(first, int) else first)


def begin_after_fork() -> None:
    """Let torch compute in a process that was forked off: in one thread, since it waits for those of the parent.

    PyTorch's own DataLoader does the same in its workers.
    """
    import torch

    torch.set_num_threads(1)


def check_process(process: int, devices: Sequence[str], name: str) -> None:
    """Raise ModelError in another process than the one that loaded the model, unless the model is on the CPU."""
    if os.getpid() != process and set(devices) != {"cpu"}:
        raise ModelError(
            f"{name} was loaded onto {', '.join(devices)} by process {process}, and a fork cannot use a parent's GPU: "
            f"load the embedder in this process ({os.getpid()}), after the fork."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice: CUDA has a type for it, MPS and the CPU only words."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = str(error).lower()
    phrases = ("out of memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, (RuntimeError, OSError)) and any(phrase in words for phrase in phrases)


def empty_cache(devices: Sequence[str]) -> None:
    """Give memory that torch keeps for later back, so that smaller batches find whole pieces of it."""
    import torch

    if any(device.startswith("cuda") for device in devices):
        torch.cuda.empty_cache()
    if "mps" in devices:
        torch.mps.empty_cache()
