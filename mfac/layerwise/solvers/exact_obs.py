"""ExactOBS and OBQ: weights go one at a time, each the one that costs its row least."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.refit import refit


def exact_obs(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """Each row is pruned greedily to its end; one ranking of all losses says how far each row goes.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: "unstructured" or N:M on a layer with one kernel position.
        grid: Steps; kept weights are then rounded one at a time, as OBQ does.

    Returns:
        The solution. O(rows · columns³/3), and memory of columns² a thread.

    Raises:
        ValueError: If the pattern is another.

    Source: OBC (Frantar, Singh, Alistarh 2022, 2208.11580). Numbered differences: (1) the order and
    the losses of each row are kept, not its weights after each step; weights are then solved for.
    (2) Weights of a row that are dropped go by one exact solve.
    """
    weight = weight.masked_fill(hessian.dead, 0).contiguous()
    return obs_on_mask(hessian, weight, obs_mask(hessian, weight, pattern), grid)


def obs_on_mask(hessian: Hessian, weight: Tensor, kept: Tensor, grid: Grid | None) -> LayerSolution:
    """The weights on a mask: exact, and then rounded one at a time where there is a grid.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64; 0 in dead columns.
        kept: The mask.
        grid: Steps, or None.

    Returns:
        The solution.
    """
    solved = weight if bool(kept.all()) else refit(hessian, weight, kept)
    if grid is None:
        return LayerSolution(solved, kept)
    values = grid.fit(solved)
    scales, zeros = values.expanded(weight.shape[1])
    _, _, rounded = ops.obs_eliminate(
        solved, hessian.inverse, ~kept, weight.shape[1], 0, 0, scales.contiguous(), zeros.contiguous(), grid.levels
    )
    return LayerSolution(rounded, kept, values)


def obs_order(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> tuple[Tensor, Tensor]:
    """The order in which each row loses its weights, and what each costs.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: N:M, or any entries.

    Returns:
        Columns [rows, steps], -1 after a row's end, and the rise of its error [rows, steps], inf
        there.
    """
    check_obs_pattern(pattern)
    keep, group = pattern.nm or (0, 0)
    none = torch.zeros_like(weight, dtype=torch.bool)
    order, losses, _ = ops.obs_eliminate(weight, hessian.inverse, none, weight.shape[1], keep, group)
    return order, losses


def check_obs_pattern(pattern: MatrixPattern) -> None:
    """Refuses patterns that rows cannot follow one weight at a time.

    Args:
        pattern: On a matrix.

    Raises:
        ValueError: If it is neither N:M nor any entries.
    """
    keep, group = pattern.nm or (0, 0)
    if not (pattern.is_unstructured or (keep and (pattern.positions == 1 or pattern.channels % group == 0))):
        raise ValueError(
            f'Parameter `pattern` should be "unstructured" or N:M with method="exact_obs", and M should divide the '
            f"input channels of a convolution. Found {str(pattern.pattern)!r} with {pattern.channels} channels."
        )


def obs_mask(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> Tensor:
    """The entries that are kept, [rows, columns] bool."""
    drop = weight.numel() - pattern.kept
    if drop == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    order, losses = obs_order(hessian, weight, pattern)
    return mask_of_order(order, losses, drop)


def mask_of_order(order: Tensor, losses: Tensor, drop: int) -> Tensor:
    """The mask after `drop` steps of all rows together, the cheapest first.

    Losses of a row never fall in exact arithmetic; where rounding lets them, a step still comes
    after the steps before it.

    Args:
        order: Of `obs_order`.
        losses: Of `obs_order`.
        drop: How many entries go.

    Returns:
        [rows, columns] bool, True = kept.
    """
    rows, columns = order.shape
    rising = losses.cummax(1).values
    ranked = rising.reshape(-1).argsort(stable=True)[:drop]
    counts = torch.bincount(ranked // columns, minlength=rows)
    gone = torch.arange(columns, device=order.device) < counts[:, None]
    kept = torch.ones(rows, columns, dtype=torch.bool, device=order.device)
    row = torch.arange(rows, device=order.device)[:, None].expand_as(order)
    kept[row[gone], order[gone]] = False
    return kept
