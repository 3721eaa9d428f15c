"""ALPS: the support found by the alternating direction method of multipliers."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.masks import magnitude, wanda
from mfac.layerwise.solvers.refit import refit
from mfac.layerwise.solvers.sweep import sparsegpt, sweep

_MOST, _CHECKED, _EARLIEST = 300, 3, 30
_START, _LOWERED = 0.1, 5.0
_LEAST = 1e-6  # of ρ: near the rounding of eigenvalues in float32, so that less changes nothing
_SMALL = 256  # columns: up to here exact weights on other supports cost less than the iteration
_WITHIN = 1.35  # what exact weights may gain over a sweep, where the iteration has found too little


def alps(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """ALPS, with exact weights on the support that it finds.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept.
        grid: Steps; kept weights are then swept onto them.

    Returns:
        The solution, of an error no greater than exact weights have on the support of "magnitude",
        "wanda" or "sparsegpt", up to 256 columns; of wider matrices these are solved only where
        their sweep comes near. One eigendecomposition, O(10 · columns³), up to 300 iterations of
        O(4 · rows · columns²), usually a third of them, and four sweeps.

    Source: ALPS (Meng et al., NeurIPS 2024, 2406.07831). Numbered differences: (1) weights on the
    support are exact, by Cholesky, not ten steps of conjugate gradients. (2) The support is looked
    for in float32; the eigendecomposition and the weights are float64. (3) Where columns hardly
    depend on one another, or few entries move, a simpler support may be better, and is taken.
    """
    if pattern.kept >= weight.numel():
        return sparsegpt(hessian, weight, pattern, grid)
    kept = support(hessian, weight, pattern)
    best = _best(hessian, weight, pattern, LayerSolution(refit(hessian, weight, kept), kept))
    if grid is None:
        return best
    return sweep(hessian, best.weight, pattern, grid, best.kept)


def _best(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, found: LayerSolution) -> LayerSolution:
    """What was found, or exact weights on a simpler support if their error is less."""
    least = float(hessian.error(found.weight - weight).sum())
    most = int(found.kept.sum())  # "sparsegpt" may keep a few units more, block by block
    supports = [solver(hessian, weight, pattern).kept for solver in (magnitude, wanda)]
    supports.append(pattern.choose(weight.abs() * hessian.scaled_eigen[0].masked_fill(hessian.dead, 0)))
    swept = [sweep(hessian, weight, pattern, None, kept) for kept in supports]
    for other in (*swept, sparsegpt(hessian, weight, pattern)):
        if int(other.kept.sum()) > most:
            continue
        if pattern.columns > _SMALL and float(hessian.error(other.weight - weight).sum()) > _WITHIN * least:
            continue
        solved = refit(hessian, weight, other.kept)
        if (error := float(hessian.error(solved - weight).sum())) < least:
            found, least = LayerSolution(solved, other.kept), error
    return found


def support(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> Tensor:
    """The entries that ALPS keeps, [rows, columns] bool."""
    scale, *eigen = hessian.scaled_eigen
    values, vectors = (part.float() for part in eigen)
    scaled = weight.masked_fill(hessian.dead, 0) * scale
    scaled = (scaled / scaled.abs().amax().clamp(min=torch.finfo(torch.float64).tiny)).float()  # no overflow
    target = (scaled @ vectors) * values  # C Q, with C = WH in the scaled columns
    dense = scaled
    kept = pattern.choose(dense.abs())
    decided, dual = dense * kept, torch.zeros_like(dense)
    rho, raised, before = _START, False, kept
    size = min(pattern.kept, weight.numel() - pattern.kept)  # what can move
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
            if rho < _LEAST:
                break
            if moved:
                kept = pattern.choose(dense.abs())
                decided, dual = dense * kept, torch.zeros_like(dense)
                before = kept
    return kept
