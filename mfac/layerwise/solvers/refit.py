"""Exact weights on any mask: the least squares of each row over the weights that it keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.layerwise.hessian import Hessian

_BYTES = 256 << 20  # of matrices that are gathered at a time


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
    matrix = hessian.matrix
    weight = weight.double().masked_fill(hessian.dead, 0)
    target = weight @ matrix  # [rows, columns]
    solved = torch.zeros_like(weight)
    counts = kept.sum(1)
    order = counts.argsort()  # rows of like counts together, so that little is padded
    at = 0
    while at < len(order):
        size = int(counts[order[at]])
        most = max(1, _BYTES // (8 * max(1, int(counts[order[min(at + 64, len(order) - 1)]])) ** 2))
        rows = order[at : at + min(most, 64)]
        at += len(rows)
        size = int(counts[rows].max())
        if size == 0:
            continue
        here = kept[rows]
        # The columns that each row keeps, and then any that it does not, which stay out below.
        index = here.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        real = torch.arange(size, device=weight.device) < counts[rows][:, None]
        squares = matrix[index[:, :, None], index[:, None, :]]
        squares.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0)
        squares.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
        goal = target[rows].gather(1, index) * real
        found = torch.cholesky_solve(goal[:, :, None], torch.linalg.cholesky(squares))[:, :, 0]
        solved[rows[:, None], index] = found * real
    return solved
