"""SparseGPT's sweep: columns from left to right, each error made up for by the columns after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.selection import highest
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution

WIDTH = 128
"""Columns whose mask is chosen at a time."""


def sparsegpt(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """SparseGPT, and GPTQ where the pattern keeps everything.

    With H = R Rᵀ, R upper triangular, the error of deciding on Q for W is ‖(W - Q)R‖². Columns are
    decided from left to right; w_j then is what is best given the columns before,
    w_j + Σ_{i<j} (w - q)_i R_ij / R_jj. The published sweep does the same with U = R⁻¹, the factor
    of H⁻¹ = UᵀU; no inverse is needed here. In every block of 128 columns the weights of the least
    w²R_jj² drop, a share of each block that makes the count of the whole matrix exact; of N:M
    groups the weights are chosen when the sweep reaches them. Other patterns, and those whose units
    a group of the grid would cut in two, choose all at once, by w²/(H⁻¹)_jj, and then sweep.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept.
        grid: Steps that kept weights are rounded to, fitted when the sweep reaches a group.

    Returns:
        The solution. O(columns³/3 + rows · columns²).

    Source: SparseGPT (Frantar, Alistarh 2023, 2301.00774) and GPTQ (2210.17323). Numbered
    differences: (1) R in place of U. (2) The mask's count is exact in the whole matrix.
    """
    begins = [begin for begin, _ in grid.bounds(weight.shape[1])] if grid is not None else []
    if not all(pattern.may_part(begin) for begin in [0, *begins]):
        scores = weight.square() / hessian.inverse.diagonal()
        return sweep(hessian, weight, pattern, grid, pattern.choose(scores.masked_fill(hessian.dead, 0)))
    return sweep(hessian, weight, pattern, grid, None)


def keep_zeros(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """GPTQ on the weights that are not zero: zeros stay, so that a sparse layer can be rounded.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64; its zeros are the mask.
        pattern: Its cuts alone count.
        grid: Steps that the other weights are rounded to; without them, nothing changes.

    Returns:
        The solution. O(columns³/3 + rows · columns²).
    """
    return sweep(hessian, weight, pattern, grid, weight != 0)


def sweep(
    hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None, kept: Tensor | None
) -> LayerSolution:
    """The sweep, with a mask that is given or chosen on the way.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: What is kept; with a mask its cuts alone count.
        grid: Steps, or None.
        kept: A mask [rows, columns]; None to choose it.

    Returns:
        The solution.
    """
    factor, rows = hessian.upper_factor, weight.shape[0]
    start = weight.masked_fill(hessian.dead, 0).contiguous()
    solved = torch.empty_like(start)
    chosen = torch.ones_like(start, dtype=torch.bool) if kept is None else kept.clone()
    carried = torch.zeros_like(start)  # (W - Q)R of the columns decided
    fitted: list[tuple[Tensor, Tensor]] = []
    edges = grid.bounds(weight.shape[1]) if grid is not None else []
    done = 0
    for begin, end in _within(pattern.cuts(WIDTH), edges):
        block = slice(begin, end)
        part, errors = start[:, block].clone(memory_format=torch.contiguous_format), carried[:, block].contiguous()
        square = factor[block, block].contiguous()
        here = chosen[:, block].contiguous()
        keep, group = pattern.nm if kept is None and pattern.nm is not None else (0, 0)
        if kept is None and not keep:
            share = _share(pattern, done, end - begin)
            done += end - begin
            if share < here.numel():
                now = _conditional(part, errors, square)
                here = _choice(pattern, (now * square.diagonal()).square(), share)
        scale = zero = None
        if grid is not None:
            while len(fitted) < len(edges) and edges[len(fitted)][0] <= begin:
                of_group = slice(*edges[len(fitted)])
                now = _conditional(start[:, of_group], carried[:, of_group], factor[of_group, of_group])
                known = here if edges[len(fitted)] == (begin, end) else chosen[:, of_group]
                fitted.append(grid.fit_group(now * known))
            number = next(i for i, (first, last) in enumerate(edges) if first <= begin < last)
            scale, zero = (values.contiguous() for values in fitted[number])
        levels = grid.levels if grid is not None else 0
        ops.obs_sweep_(part, errors, square, here, keep, group, scale, zero, levels)
        solved[:, block], chosen[:, block] = part, here
        if end < weight.shape[1]:
            carried[:, end:].addmm_(start[:, block] - part, factor[block, end:])
    values = None
    if grid is not None:
        scales, zeros = (torch.stack(values_of, 1) for values_of in zip(*fitted, strict=True))
        values = GridValues(grid, scales.view(rows, -1), zeros.view(rows, -1))
    return LayerSolution(solved, chosen, values)


def _within(cuts: Iterable[tuple[int, int]], edges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cuts that end where groups of the grid end, too."""
    inner = sorted({begin for begin, _ in edges})
    for begin, end in cuts:
        for edge in [e for e in inner if begin < e < end]:
            yield begin, edge
            begin = edge
        yield begin, end


def _share(pattern: MatrixPattern, done: int, width: int) -> int:
    """How many weights the next `width` columns keep, so that all columns keep exactly enough."""
    upto = [pattern.kept * columns // pattern.columns for columns in (done, done + width)]
    return upto[1] - upto[0]


def _choice(pattern: MatrixPattern, scores: Tensor, share: int) -> Tensor:
    if pattern.is_unstructured:
        return highest(scores, share)
    return pattern.restricted(scores.shape[1], share).choose(scores)


def _conditional(weight: Tensor, carried: Tensor, factor: Tensor) -> Tensor:
    """What is best for these columns given those before: W + S R⁻¹."""
    return weight + torch.linalg.solve_triangular(factor, carried, upper=True, left=False)
