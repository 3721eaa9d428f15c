"""How many weights of each parameter a step drops, by allocation, pattern and schedule together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mfac.core.selection import highest
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern, Units
from mfac.pruning.allocation import Allocation, AllocationContext
from mfac.pruning.budget import Budget
from mfac.pruning.context import StepContext
from mfac.pruning.returned import check_choice_of, check_counts

_FLOOR = 0.1  # of the density: as of `Global`


def choose_units(
    allocation: Allocation, pattern: Pattern, context: StepContext, units: Units, kept: int, finally_kept: int
) -> Tensor:
    """What a step drops.

    Args:
        allocation: How many of each parameter.
        pattern: Whose units these are.
        context: The step.
        units: What may go, with its scores.
        kept: How many weights are left after the step.
        finally_kept: How many after the last.

    Returns:
        [n] bool.

    Raises:
        ValueError: If the allocation returns counts that cannot be.
    """
    groups = pattern.together(context.parameters)
    pieces = [int(torch.count_nonzero(p)) for p in context.live.split([weight.size for weight in context.parameters])]
    live = [sum(pieces[i] for i in group) for group in groups]
    least = [alive - open_ for alive, open_ in zip(live, units.droppable(), strict=True)]
    weights = [_joined([context.parameters[i] for i in group]) for group in groups]
    whole = AllocationContext(weights, live, least, units, max(kept, sum(least)), finally_kept, context.live)
    protected = allocation.protected(whole) if groups == [[i] for i in range(len(groups))] else None
    if protected is not None:
        wanted = f"which of the {units.scores.numel()} units are protected"
        check_choice_of("allocation", allocation, "protected", protected, units.scores.numel(), wanted)
        units = replace(units, scores=units.scores.double().masked_fill(protected, math.inf))
        whole = replace(whole, units=units)
    counts = _given(pattern, context, groups, whole)
    free = [i for i, count in enumerate(counts) if count is None]
    if free:
        part = _restricted(whole, free, sum(count for count in counts if count is not None))
        for index, count in zip(free, _allocated(allocation, part), strict=True):
            counts[index] = count
    dropped = units.lowest([alive - (count or 0) for alive, count in zip(live, counts, strict=True)])
    singles = _of_single_weights(units, free) if kept == finally_kept and allocation.shares_total else []
    if singles and len(singles) < len(live):
        # Whole units may not have used up their counts: in the end single weights make up for them.
        gone = [int(piece.sum()) for piece in _by_group(dropped, pieces, groups)]
        kept_else = sum(alive - gone[i] for i, alive in enumerate(live) if i not in singles)
        part = _with_floors(_restricted(whole, singles, kept_else), finally_kept / sum(w.size for w in weights))
        again = [alive - number for alive, number in zip(live, gone, strict=True)]
        for index, count in zip(singles, _allocated(allocation, part), strict=True):
            again[index] = count
        dropped = units.lowest([alive - count for alive, count in zip(live, again, strict=True)])
    return dropped


def _with_floors(part: AllocationContext, density: float) -> AllocationContext:
    """The same with a tenth of the density protected in each, so that none is emptied."""
    scores = part.units.scores.double().clone()
    for piece, weight, least in zip(scores.split(list(part.units.counts)), part.weights, part.least, strict=True):
        floor = max(1, math.ceil(_FLOOR * density * weight.size)) - least
        if floor > 0 and piece.numel():
            piece[highest(piece, min(floor, piece.numel()))] = math.inf
    kept = max(part.kept, sum(part.live) - int(torch.isfinite(scores).sum()))
    return replace(part, units=replace(part.units, scores=scores), kept=kept, finally_kept=kept)


def _of_single_weights(units: Units, free: Sequence[int]) -> list[int]:
    """The groups, of those whose counts are free, that go weight by weight."""
    if units.sizes is None:
        return []
    sizes = units.by_parameter(units.sizes)
    return [i for i in free if sizes[i].numel() and bool((sizes[i] == 1).all())]


def _by_group(dropped: Tensor, pieces: Sequence[int], groups: list[list[int]]) -> list[Tensor]:
    """What is dropped of the live weights, [n] bool, by groups of parameters."""
    of_each = dropped.split(list(pieces))
    return [torch.cat([of_each[i] for i in group]) for group in groups]


def settle(allocation: Allocation, context: StepContext, units: Units) -> int | None:
    """How many weights are kept in the end, where the first scores of a run decide that.

    Args:
        allocation: A `Budget` chooses its levels here; any other has its number from the start.
        context: The first step.
        units: What may go, with its scores.

    Returns:
        The number, or None.
    """
    if not isinstance(allocation, Budget):
        return None
    live = [int(piece.sum()) for piece in context.live.split([weight.size for weight in context.parameters])]
    return allocation.choose(context.parameters, live, units)


def _given(
    pattern: Pattern, context: StepContext, groups: list[list[int]], whole: AllocationContext
) -> list[int | None]:
    """Counts where the pattern leaves no choice: a parameter has gone the same share of its way."""
    most = pattern.most_kept(context.parameters, context.live)
    ends = [sum(most[i] for i in group) for group in groups]
    if pattern.sparsity is not None or ends == list(whole.live):
        return [None] * len(groups)  # nothing is given, or everything by the pattern's units
    way = sum(whole.live) - whole.finally_kept
    left = (whole.kept - whole.finally_kept) / way if way > 0 else 0.0
    return [
        None if end == alive else max(low, end + math.ceil(max(0.0, left) * (alive - end)))
        for end, alive, low in zip(ends, whole.live, whole.least, strict=True)
    ]


def _restricted(whole: AllocationContext, free: Sequence[int], taken: int) -> AllocationContext:
    """The same step for some of the parameters."""
    if len(free) == len(whole.live):
        return whole
    units = whole.units
    scores, sizes = units.by_parameter(units.scores), units.sizes
    pieces = None if sizes is None else torch.cat([units.by_parameter(sizes)[i] for i in free])
    mine = Units(torch.cat([scores[i] for i in free]), [units.counts[i] for i in free], None, pieces)
    live, least = [whole.live[i] for i in free], [whole.least[i] for i in free]
    final = [bound for i, bound in enumerate(whole.least) if i not in free]
    kept = min(max(whole.kept - taken, sum(least)), sum(live))
    finally_kept = min(max(whole.finally_kept - sum(final), 0), kept)
    return AllocationContext([whole.weights[i] for i in free], live, least, mine, kept, finally_kept, whole.alive)


def _allocated(allocation: Allocation, context: AllocationContext) -> list[int]:
    counts = check_counts("allocation", allocation, "kept", allocation.kept(context), len(context.live))
    live, least, kept = context.live, context.least, context.kept
    whole = context.units.sizes is None  # of units of several weights the nearest number that they allow
    inside = all(a <= n <= b for n, a, b in zip(counts, least, live, strict=True))
    if not inside or (whole and sum(counts) != kept):
        raise ValueError(
            f"Parameter `allocation` should return a count between {least} and {live} for each parameter, "
            f"in all {kept}. Found {list(counts)} from {type(allocation).__name__}."
        )
    return counts


def _joined(weights: Sequence[PrunableWeight]) -> PrunableWeight:
    """Parameters that share units, as one, under the name of the first."""
    if len(weights) == 1:
        return weights[0]
    return PrunableWeight(weights[0].name, torch.Size([sum(weight.size for weight in weights)]), None, "")
