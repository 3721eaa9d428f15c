"""ALPS: the support found by the alternating direction method of multipliers."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.refit import refit
from mfac.layerwise.solvers.sweep import sparsegpt, sweep

_MOST, _CHECKED, _EARLIEST = 300, 3, 30
_START, _LOWERED = 0.1, 5.0


def alps(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """ALPS, with exact weights on the support that it finds.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept.
        grid: Steps; kept weights are then swept onto them.

    Returns:
        The solution. One eigendecomposition, O(10 · columns³), and up to 300 iterations of
        O(4 · rows · columns²), usually a third of them.

    Source: ALPS (Meng et al., NeurIPS 2024, 2406.07831). Numbered differences: (1) weights on the
    support are exact, by Cholesky, not ten steps of conjugate gradients. (2) The support is looked
    for in float32; the eigendecomposition and the weights are float64.
    """
    if pattern.kept >= weight.numel():
        return sparsegpt(hessian, weight, pattern, grid)
    kept = support(hessian, weight, pattern)
    solved = refit(hessian, weight, kept)
    if grid is None:
        return LayerSolution(solved, kept)
    return sweep(hessian, solved, pattern, grid, kept)


def support(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> Tensor:
    """The entries that ALPS keeps, [rows, columns] bool."""
    scale, *eigen = hessian.scaled_eigen
    values, vectors = (part.float() for part in eigen)
    scaled = (weight.masked_fill(hessian.dead, 0) * scale).float()
    target = (scaled @ vectors) * values  # C Q, with C = WH in the scaled columns
    dense = scaled
    kept = pattern.choose(dense.abs())
    decided, dual = dense * kept, torch.zeros_like(dense)
    rho, raised, before = _START, False, kept
    size = pattern.kept
    for number in range(1, _MOST + 1):
        right = target + (rho * decided - dual) @ vectors
        free = (right / (values + rho)) @ vectors.T
        guess = free + dual / rho
        kept = pattern.choose(guess.abs())
        decided = guess * kept
        dual = dual + rho * (free - decided)
        if number % _CHECKED:
            continue
        moved = int((kept ^ before).sum())
        before = kept
        if moved > 0.1 * size:
            rho, raised = rho * 1.3, True
        elif moved > 0.005 * size:
            rho, raised = rho * 1.2, True
        elif raised:
            if moved == 0 or (number >= _EARLIEST and moved < 0.0003 * size):
                break
            rho *= 1.1
        else:  # ρ began too high: the support stands still before it has been looked for
            rho /= _LOWERED
            if moved:
                kept = pattern.choose(dense.abs())
                decided, dual = dense * kept, torch.zeros_like(dense)
                before = kept
    return kept
