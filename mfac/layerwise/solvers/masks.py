"""Masks that need no sweep: magnitude, and Wanda's, each with the weights as they are."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from mfac.core.selection import highest
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.sweep import sweep


def magnitude(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """The largest weights stay as they are.

    Args:
        hessian: Of the inputs; used where there is a grid.
        weight: [rows, columns] float64.
        pattern: What is kept.
        grid: Steps; kept weights are then swept onto them.

    Returns:
        The solution. O(size).
    """
    return _finished(hessian, weight, pattern.choose(weight.abs()), pattern, grid)


def wanda(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """The largest |w| ‖X_j‖ of each output stay as they are.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept; unstructured, each row keeps as many as any other, to within one.
        grid: Steps; kept weights are then swept onto them.

    Returns:
        The solution. O(size).

    Source: Wanda (Sun et al. 2023, 2306.11695).
    """
    scores = weight.abs() * hessian.gram.diagonal().sqrt()
    if not pattern.is_unstructured:
        return _finished(hessian, weight, pattern.choose(scores), pattern, grid)
    ends = [pattern.kept * row // pattern.rows for row in range(pattern.rows + 1)]
    counts = [after - before for before, after in pairwise(ends)]
    kept = torch.stack([highest(row, count) for row, count in zip(scores, counts, strict=True)])
    return _finished(hessian, weight, kept, pattern, grid)


def _finished(
    hessian: Hessian, weight: Tensor, kept: Tensor, pattern: MatrixPattern, grid: Grid | None
) -> LayerSolution:
    if grid is not None:
        return sweep(hessian, weight, pattern, grid, kept)
    return LayerSolution(weight * kept, kept)
