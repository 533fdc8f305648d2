"""A query multi-vector and pages' multi-vectors -> MaxSim scores, on the device that a model computes on.

The same scores as `late_interaction.maxsim`'s, which is faster on a CPU. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llama_index_colqwen.late_interaction.maxsim import as_encoded
from llama_index_colqwen.late_interaction.multivectors import EncodedVectors, MultiVector

if TYPE_CHECKING:
    import torch

__all__ = ["maxsim_on_device"]

# Some 300 pages of ColQwen2's: 134 MB as float32, beside a model.
_BLOCK_ROWS = 1 << 18


def maxsim_on_device(
    query: MultiVector, pages: Sequence[MultiVector | EncodedVectors], device: str
) -> npt.NDArray[np.float32]:
    """Score pages as `maxsim_scores` does; they go to the device as they are kept, and are decoded there.

    With `late-interaction-kernels` (extra `[kernels]`), NVIDIA GPUs since Ampere write no similarities down; they
    multiply in TF32 then, which moves an inner product by some .0005, less than int8 vectors do.

    Args:
        query: Float32, shape (num_query_tokens, dim).
        pages: Each float32, shape (its num_tokens, dim), or encoded.
        device: A device's name for torch.

    Returns:
        Float32, shape (len(pages),), in the order of `pages`; those of `maxsim_scores` but for the order of sums.

    Raises:
        DimensionMismatchError: If dims differ, or the query or a page has no rows.
    """
    import torch

    encoded = as_encoded(query, pages)
    scores = np.empty(len(encoded), np.float32)
    with torch.inference_mode():
        asked = torch.from_numpy(np.array(query, np.float32)).to(device)
        start = 0
        while start < len(encoded):
            stop, rows = start, 0
            while stop < len(encoded) and (stop == start or rows + len(encoded[stop].values) <= _BLOCK_ROWS):
                rows += len(encoded[stop].values)
                stop += 1
            block = encoded[start:stop]
            lengths = torch.tensor([len(page.values) for page in block], device=device)
            scores[start:stop] = _scores(asked, _decoded(block, device), lengths).cpu().numpy()
            start = stop
    return scores


def _decoded(pages: Sequence[EncodedVectors], device: str) -> torch.Tensor:
    """Lay pages end to end: float32, shape (all rows, dim)."""
    import torch

    scales = [page.scales for page in pages if page.scales is not None]
    if 0 < len(scales) < len(pages):
        return torch.from_numpy(np.concatenate([page.decode() for page in pages])).to(device)
    rows = torch.from_numpy(np.concatenate([page.values for page in pages])).to(device).float()
    return rows * torch.from_numpy(np.concatenate(scales)).to(device)[:, None] if scales else rows


def _scores(query: torch.Tensor, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    import torch

    kernel = _kernel(query)
    if kernel is not None:
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        whole = torch.tensor([0, len(query)], dtype=torch.int32, device=query.device)
        found: torch.Tensor = kernel(query, rows, whole, ends, len(query), int(lengths.max()))[0]
        return found
    return torch.segment_reduce(rows @ query.T, "max", lengths=lengths, axis=0).sum(dim=1)


def _kernel(query: torch.Tensor) -> Any:  # noqa: ANN401 - an optional package's function
    """Return `maxsim_varlen` where it is installed and the GPU runs it."""
    import torch

    if not query.is_cuda or torch.cuda.get_device_capability(query.device)[0] < 8:
        return None
    try:
        from late_interaction_kernels import maxsim_varlen
    except ImportError:
        return None
    return maxsim_varlen
