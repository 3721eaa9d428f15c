"""Masks (True = kept) and which weights a global threshold drops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def num_dropped_at(sparsity: float, dim: int) -> int:
    """How many of d weights are zero at a sparsity: the nearest integer."""
    return round(sparsity * dim)


def lowest(saliency: Tensor, count: int) -> Tensor:
    """The `count` lowest saliencies; ties go to the lower index, so that the choice is reproducible.

    Args:
        saliency: [d].
        count: 0 <= count <= d.

    Returns:
        Mask [d], True = among the lowest.
    """
    chosen = torch.zeros_like(saliency, dtype=torch.bool)
    chosen[torch.argsort(saliency, stable=True)[:count]] = True
    return chosen


def unflatten_mask(kept: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat mask [d] as one mask for each parameter, in the parameter's shape."""
    pieces = kept.split([parameter.numel() for parameter in parameters.values()])
    return {
        name: piece.view(parameter.shape).clone()
        for piece, (name, parameter) in zip(pieces, parameters.items(), strict=True)
    }
