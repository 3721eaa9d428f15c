"""ExactOBS and OBQ: weights go one at a time, each the one that costs its row least."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solution import LayerSolution
from mfac.layerwise.solvers.blocks import block_members, block_order
from mfac.layerwise.solvers.refit import refit
from mfac.masks.patterns import Blocks


def exact_obs(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, grid: Grid | None = None) -> LayerSolution:
    """Each row is pruned greedily to its end; one ranking of all losses says how far each row goes.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        pattern: Unstructured, N:M or blocks.
        grid: Steps; kept weights are then rounded one at a time, as OBQ does.

    Returns:
        The solution. O(rows · columns³/3), and memory of columns² a thread.

    Raises:
        ValueError: If the pattern is another.

    Source: OBC (Frantar, Singh, Alistarh 2022, 2208.11580). Numbered differences: (1) the order and
    the losses of each row are kept, not its weights after each step; weights are then solved for.
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
        pattern: Unstructured or N:M.

    Returns:
        Columns [rows, steps], -1 after a row's end, and the rise of its error [rows, steps], inf
        there.
    """
    none = torch.zeros_like(weight, dtype=torch.bool)
    keep, group = pattern.nm or (0, 0)
    if keep and pattern.positions > 1 and pattern.channels % group:  # groups that end with a position
        return _by_position(hessian, weight, pattern)
    order, losses, _ = ops.obs_eliminate(weight, hessian.inverse, none, weight.shape[1], keep, group)
    return order, losses


def check_obs_pattern(pattern: MatrixPattern) -> None:
    """Refuses patterns that rows cannot follow.

    Args:
        pattern: On a matrix.

    Raises:
        ValueError: If it is none of those that `exact_obs` takes.
    """
    if not pattern.is_unstructured and pattern.nm is None and not isinstance(pattern.pattern, Blocks):
        raise ValueError(
            f'Parameter `pattern` should be "unstructured", N:M or blocks with method="exact_obs". '
            f"Found {str(pattern.pattern)!r}."
        )


def obs_mask(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> Tensor:
    """The entries that are kept, [rows, columns] bool."""
    check_obs_pattern(pattern)
    drop = weight.numel() - pattern.kept
    if drop == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    if isinstance(pattern.pattern, Blocks):
        return _mask_of_blocks(hessian, weight, pattern, drop)
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


def _mask_of_blocks(hessian: Hessian, weight: Tensor, pattern: MatrixPattern, drop: int) -> Tensor:
    """As many whole blocks go, the cheapest a weight first, as `drop` has room for."""
    assert isinstance(pattern.pattern, Blocks)
    outputs, inputs = pattern.pattern.outputs, pattern.pattern.inputs
    order, losses = block_order(hessian, weight, outputs, inputs, pattern.channels)
    members = block_members(weight.shape[1], inputs, pattern.channels, weight.device)
    heights = torch.full((len(order),), outputs, device=weight.device)
    heights[-1] = weight.shape[0] - (len(order) - 1) * outputs
    sizes = (members >= 0).sum(1)[order] * heights[:, None]  # of each step, [bands, blocks]
    ranked = (losses / sizes).cummax(1).values.reshape(-1).argsort(stable=True)
    taken = ranked[: int((sizes.reshape(-1)[ranked].cumsum(0) <= drop).sum())]
    kept = torch.ones_like(weight, dtype=torch.bool)
    for band, block in zip((taken // order.shape[1]).tolist(), order.reshape(-1)[taken].tolist(), strict=True):
        columns = members[block][members[block] >= 0]
        kept[band * outputs : (band + 1) * outputs, columns] = False
    return kept


def _by_position(hessian: Hessian, weight: Tensor, pattern: MatrixPattern) -> tuple[Tensor, Tensor]:
    """N:M where a group at the end of each position is smaller.

    Columns that no input drives fill it up; they are gone beforehand.

    Returns:
        As `obs_order`.
    """
    assert pattern.nm is not None
    keep, group = pattern.nm
    width = -(-pattern.channels // group) * group
    place = torch.arange(pattern.columns, device=weight.device)
    place = place // pattern.channels * width + place % pattern.channels
    # Each group that is filled up keeps `keep` of its real columns, or all of them.
    size = pattern.positions * width
    inverse = torch.eye(size, dtype=weight.dtype, device=weight.device)
    inverse[place[:, None], place] = hessian.inverse
    wide = torch.zeros(weight.shape[0], size, dtype=weight.dtype, device=weight.device)
    wide[:, place] = weight
    filled = torch.ones(size, dtype=torch.bool, device=weight.device)
    filled[place] = False
    order, losses, _ = ops.obs_eliminate(wide, inverse, filled.expand_as(wide).contiguous(), size, keep, group)
    back = torch.full((size + 1,), -1, dtype=torch.int64, device=weight.device)
    back[place] = torch.arange(pattern.columns, device=weight.device)
    return back[order][:, : pattern.columns], losses[:, : pattern.columns]
