"""Swaps: a kept weight for a dropped one, wherever the layer's error falls by it."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.refit import refit

_FIRST = 0.05  # of a row's kept weights, swapped at once in the first round
_BYTES = 256 << 20


def swapped(hessian: Hessian, weight: Tensor, kept: Tensor, pattern: MatrixPattern, rounds: int = 10) -> LayerSolution:
    """Improves a mask by swaps within rows, and fits its weights exactly.

    At the exact weights of a mask S, dropping i costs ŵ_i²/((H_SS)⁻¹)_ii and keeping j gains
    g_j²/(H_jj - H_jS(H_SS)⁻¹H_Sj) with g = (W - Ŵ)H. Pairs of the greatest gain over cost are
    swapped together; a row whose true error did not fall goes back, and tries half as many.

    Args:
        hessian: Of the inputs.
        weight: The weights to stand in for, [rows, columns] float64.
        kept: A mask; its counts by row stay, and N:M groups stay N:M.
        pattern: Unstructured or N:M.
        rounds: At most.

    Returns:
        The solution, of an error no greater than the mask's with its exact weights.
        O(rounds · rows · columns³).

    Raises:
        ValueError: If the pattern is another.

    Source: the local search of CBS and CHITA, on H.
    """
    if not pattern.is_unstructured and (pattern.nm is None or pattern.channels % pattern.nm[1]):
        raise ValueError(
            f'Parameter `pattern` should be "unstructured", or N:M with M a divisor of the input channels, for swaps. '
            f"Found {str(pattern.pattern)!r}."
        )
    group = pattern.nm[1] if pattern.nm is not None else None
    kept = kept.clone()
    weight = weight.masked_fill(hessian.dead, 0)
    now = refit(hessian, weight, kept)
    error = hessian_error(hessian, now - weight)
    counts = kept.sum(1)
    pairs = (counts * _FIRST).ceil().long().clamp(max=(weight.shape[1] - counts).min())
    for _ in range(rounds):
        open_ = (pairs > 0).nonzero()[:, 0]
        if not len(open_):
            break
        tried = kept.clone()
        for part in open_.split(max(1, _BYTES // (16 * weight.shape[1] ** 2))):
            gain, cost = _prices(hessian, weight[part], now[part], kept[part])
            tried[part] = _exchange(kept[part], gain, cost, pairs[part], group)
        changed = (tried != kept).any(1)
        pairs[~changed] = 0
        rows = changed.nonzero()[:, 0]
        if not len(rows):
            break
        found = refit(hessian, weight[rows], tried[rows])
        lost = hessian_error(hessian, found - weight[rows])
        better = lost < error[rows] * (1 - 1e-12)
        kept[rows[better]], now[rows[better]], error[rows[better]] = tried[rows[better]], found[better], lost[better]
        pairs[rows[~better]] //= 2
    return LayerSolution(now, kept)


def hessian_error(hessian: Hessian, delta: Tensor) -> Tensor:
    """δHδᵀ of each row, with the damping."""
    return (delta @ hessian.matrix * delta).sum(1)


def _prices(hessian: Hessian, weight: Tensor, now: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """What keeping each dropped weight gains and dropping each kept one costs, [rows, columns]."""
    matrix = hessian.matrix
    columns = weight.shape[1]
    outside = ~(kept[:, :, None] & kept[:, None, :])
    squares = matrix.expand(len(weight), columns, columns).masked_fill(outside, 0)
    squares.diagonal(dim1=1, dim2=2).masked_fill_(~kept, 1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares))
    cost = now.square() / inverse.diagonal(dim1=1, dim2=2)
    inverse.masked_fill_(outside, 0)
    schur = matrix.diagonal() - ((matrix @ inverse) * matrix).sum(2)
    gradient = (weight - now) @ matrix
    gain = gradient.square() / schur.clamp(min=hessian.damping)
    return gain.masked_fill(kept | hessian.dead, -1), cost.masked_fill(~kept, float("inf"))


def _exchange(kept: Tensor, gain: Tensor, cost: Tensor, pairs: Tensor, group: int | None) -> Tensor:
    """The masks after each row's best pairs, the dearest gain with the cheapest loss."""
    rows, columns = kept.shape
    if group is not None:  # one pair a group, within it
        gain_of, add = gain.view(rows, -1, group).max(2)
        cost_of, drop = cost.view(rows, -1, group).min(2)
        first = torch.arange(columns // group, device=kept.device) * group
        net, order = (gain_of - cost_of).sort(1, descending=True)
        add, drop = (add + first).gather(1, order), (drop + first).gather(1, order)
    else:
        best, add = gain.sort(1, descending=True)
        least, drop = cost.sort(1)
        net = best - least
    chosen = (torch.arange(net.shape[1], device=kept.device) < pairs[:, None]) & (net > 0)
    result = kept.clone()
    row = torch.arange(rows, device=kept.device)[:, None].expand_as(add)
    result[row[chosen], add[chosen]] = True
    result[row[chosen], drop[chosen]] = False
    return result
