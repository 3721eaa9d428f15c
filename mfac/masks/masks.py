"""Masks, True = kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def num_dropped_at(sparsity: float, dim: int) -> int:
    """How many of d weights are zero at a sparsity: the nearest integer."""
    return round(sparsity * dim)


def unflatten_mask(kept: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat mask [d] as one mask for each parameter, in the parameter's shape."""
    pieces = kept.split([parameter.numel() for parameter in parameters.values()])
    return {
        name: piece.view(parameter.shape).clone()
        for piece, (name, parameter) in zip(pieces, parameters.items(), strict=True)
    }
