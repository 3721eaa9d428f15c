"""Exact weights on any mask: the least squares of each row over the weights that it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops
from mfac.layerwise.hessian import Hessian


def refit(hessian: Hessian, weight: Tensor, kept: Tensor) -> Tensor:
    """The kept weights that make the layer's error least.

    For each row S is what it keeps and C = WH: Ŵ_S = C_S (H_SS)⁻¹.

    Args:
        hessian: Of the inputs.
        weight: The weights to stand in for, [rows, columns].
        kept: Any mask of that shape.

    Returns:
        [rows, columns] float64, 0 outside the mask. O(Σ|S|³/3 + rows · columns²).

    Source: the normal equations.
    """
    _ = hessian.upper_factor  # so that the damping is settled: what all of H has, each part has
    matrix = hessian.matrix
    target = weight.double().masked_fill(hessian.dead, 0) @ matrix  # [rows, columns]
    solved = ops.restricted_solve(matrix, target, kept.to(torch.bool).contiguous())
    whole = kept.all(1)  # whose weights are theirs already, to the last bit
    solved[whole] = weight[whole].double().masked_fill(hessian.dead, 0)
    return solved
