"""A budget of FLOPs, bytes or measured time: a sparsity for each layer by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_count, check_number
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Units
from mfac.pruning.allocation import Allocation, AllocationContext, towards

Table = Mapping[str, Mapping[float, float]]
"""Layer to level of sparsity to a number, its error or its cost."""

Level = TypeVar("Level", bound=Hashable)


def allocate(
    errors: Mapping[str, Mapping[Level, float]],
    costs: Mapping[str, Mapping[Level, float]],
    budget: float,
    buckets: int = 10_000,
) -> dict[str, Level]:
    """The level of each layer that makes the sum of errors least within a budget of costs.

    A dynamic programme over buckets of the budget that is left when each layer has its cheapest
    level. Costs above the cheapest level are rounded up to whole buckets, so that the budget always
    holds; the error is at most that of the best choice within a budget smaller by one bucket a
    layer.

    Args:
        errors: {layer: {level: error}}; finite. Levels are sparsities, or any names.
        costs: {layer: {level: cost}}, of the same layers and levels; >= 0, in any unit.
        budget: Of the sum of costs.
        buckets: Into how many parts the rest of the budget is divided. Time
            O(layers · levels · buckets).

    Returns:
        {layer: level}. Ties go to the level that comes first.

    Raises:
        ValueError: If layers or levels differ, a number is not finite, or even the cheapest levels
            cost more.

    Source: SPDY (Frantar, Alistarh 2022, 2201.13096), section 3.1.

    Example:
        >>> import mfac
        >>> errors = {"a": {0.0: 0.0, 0.5: 1.0}, "b": {0.0: 0.0, 0.5: 3.0}}
        >>> costs = {"a": {0.0: 10.0, 0.5: 5.0}, "b": {0.0: 10.0, 0.5: 5.0}}
        >>> mfac.allocate(errors, costs, budget=15.0)
        {'a': 0.5, 'b': 0.0}
    """
    _check_tables(errors, costs)
    check_number("budget", budget, least=0)
    check_count("buckets", buckets, least=1)
    cheapest = {layer: min(of_layer.values()) for layer, of_layer in costs.items()}
    rest = budget - sum(cheapest.values())
    if rest < 0:
        raise ValueError(
            f"Parameter `budget` should be at least {sum(cheapest.values()):g}, what the cheapest levels cost. "
            f"Found {budget:g}."
        )
    best = torch.zeros(buckets + 1, dtype=torch.float64)  # the least error with at most so many buckets
    choices: list[tuple[str, list[Level], list[int], Tensor]] = []
    for layer, of_layer in errors.items():
        levels = list(of_layer)
        above = [costs[layer][level] - cheapest[layer] for level in levels]
        steps = [0 if a <= 0 else buckets + 1 if a > rest else math.ceil(a * buckets / rest) for a in above]
        candidates = torch.full((len(levels), buckets + 1), math.inf, dtype=torch.float64)
        for row, (level, step) in enumerate(zip(levels, steps, strict=True)):
            if step <= buckets:
                candidates[row, step:] = best[: buckets + 1 - step] + of_layer[level]
        best, choice = candidates.min(0)
        choices.append((layer, levels, steps, choice))
    left = buckets
    chosen: dict[str, Level] = {}
    for layer, levels, steps, choice in reversed(choices):
        number = int(choice[left])
        chosen[layer] = levels[number]
        left -= steps[number]
    return {layer: chosen[layer] for layer in errors}


def _check_tables(errors: Mapping[str, Mapping[Level, float]], costs: Mapping[str, Mapping[Level, float]]) -> None:
    if not errors or set(errors) != set(costs):
        raise ValueError(
            f"Parameter `costs` should have the layers of `errors`, {sorted(errors)}. Found {sorted(costs)}."
        )
    for layer, of_layer in errors.items():
        if not of_layer or set(of_layer) != set(costs[layer]):
            raise ValueError(
                f"Parameter `costs` should have the levels of `errors` for {layer!r}, {list(of_layer)}. "
                f"Found {list(costs[layer])}."
            )
        for name, table, least in (("errors", of_layer, None), ("costs", costs[layer], 0.0)):
            for level, value in table.items():
                check_number(f"{name}[{layer!r}][{_shown(level)}]", value, least=least)


def _shown(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else repr(level)


class Budget(Allocation):
    """Sparsities by cost: the dynamic programme of `allocate`, with errors from the saliencies.

    The error of a parameter at a level is the sum of its lowest scores down to that level. A
    pattern of units drops as many whole units as reach the level, so that the budget holds. Levels
    are chosen once, before the first step of a run; `chosen` holds them. Every parameter then goes
    the same share of its way in each step.

    Args:
        costs: {parameter: {sparsity: cost}} for every parameter that is pruned: FLOPs, bytes, or
            milliseconds measured.
        budget: Of the sum of costs.

    Raises:
        ValueError: If a level is not in [0, 1), a cost is negative, or the cheapest levels cost
            more than the budget.

    Source: SPDY (Frantar, Alistarh 2022, 2201.13096). Numbered differences: (1) errors are the
    saliencies' own sums, not a quadratic prior whose weights are searched.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> costs = {name: {s: (1 - s) * 8 * rows for s in (0.0, 0.25, 0.5, 0.75)}
        ...          for name, rows in (("0.weight", 8), ("2.weight", 4))}
        >>> report = mfac.prune(model, loss_fn, data, allocation=mfac.Budget(costs, 48), num_gradients=16, stages=1)
        >>> sum(int(mask.sum()) for mask in report.masks.values()) <= 48
        True
    """

    shares_total = False

    def __init__(self, costs: Table, budget: float) -> None:
        self.costs = {name: dict(of_layer) for name, of_layer in costs.items()}
        for name, of_layer in self.costs.items():
            for level, cost in of_layer.items():
                check_number(f"costs[{name!r}]", level, least=0, below=1)
                check_number(f"costs[{name!r}][{level:g}]", cost, least=0)
        self.budget = check_number("budget", budget, least=0)
        cheapest = sum(min(of_layer.values(), default=0.0) for of_layer in self.costs.values())
        if self.budget < cheapest:
            raise ValueError(
                f"Parameter `budget` should be at least {cheapest:g}, what the cheapest levels cost. Found {budget:g}."
            )
        self.chosen: dict[str, float] | None = None
        self.chosen_kept: dict[str, int] = {}

    def least(self, weights: Sequence[PrunableWeight], live: Sequence[int]) -> int:
        """How many weights are kept at the highest levels, the fewest that a run may end with.

        Args:
            weights: What is pruned.
            live: How many weights of each parameter are alive.

        Returns:
            The number.

        Raises:
            ValueError: If a weight has no costs, or costs name no weight.
        """
        if {weight.name for weight in weights} != set(self.costs):
            raise ValueError(
                f"Parameter `costs` should have the weights that are pruned, {[weight.name for weight in weights]}. "
                f"Found {list(self.costs)}."
            )
        return sum(
            min(alive, _kept_at(weight, max(self.costs[weight.name])))
            for weight, alive in zip(weights, live, strict=True)
        )

    def holds(self) -> bool:
        """Whether the highest levels of all parameters cost no more than the budget."""
        return sum(of_layer[max(of_layer)] for of_layer in self.costs.values()) <= self.budget

    def choose(self, weights: Sequence[PrunableWeight], live: Sequence[int], units: Units) -> int:
        """Chooses the levels of a run by its first scores.

        Args:
            weights: What is pruned.
            live: How many weights of each parameter are alive.
            units: The units that the pattern lets go, with their scores.

        Returns:
            How many weights are kept in the end.

        Raises:
            ValueError: If the units of the pattern reach no level of a parameter, or only levels
                that cost more than the budget.
        """
        sizes = torch.ones_like(units.scores, dtype=torch.int64) if units.sizes is None else units.sizes
        errors: dict[str, dict[float, float]] = {}
        left: dict[str, dict[float, int]] = {}
        ranked = units.by_parameter(units.ranking)
        for weight, alive, ranking, scores, size in zip(
            weights, live, ranked, units.by_parameter(units.scores), units.by_parameter(sizes), strict=True
        ):
            order = torch.argsort(ranking, stable=True)
            gone, lost = size[order].cumsum(0), scores.double()[order].cumsum(0)
            errors[weight.name], left[weight.name] = {}, {}
            for level in self.costs[weight.name]:
                drop = alive - min(alive, _kept_at(weight, level))
                whole = 0 if drop == 0 else 1 + int((gone < drop).sum())  # the fewest units that reach the level
                kept = alive - int(gone[whole - 1]) if 0 < whole <= gone.numel() else alive
                if drop == 0 or 0 < kept < alive:  # no level empties a weight, and none is missed
                    errors[weight.name][level] = float(lost[whole - 1]) if whole else 0.0
                    left[weight.name][level] = kept
            if not errors[weight.name]:
                raise ValueError(
                    f"Parameter `costs` should have a level for each weight that the units of the pattern can "
                    f"reach, and that does not empty it. Found {list(self.costs[weight.name])} for {weight.name!r}, "
                    f"whose units have up to {int(size.max()) if size.numel() else 0} of its {alive} weights."
                )
        costs = {name: {level: self.costs[name][level] for level in of_layer} for name, of_layer in errors.items()}
        self.chosen = allocate(errors, costs, self.budget)
        self.chosen_kept = {name: left[name][level] for name, level in self.chosen.items()}
        return sum(self._final(weights, live))

    def kept(self, context: AllocationContext) -> list[int]:
        """Counts on the way to the levels chosen."""
        if self.chosen is None:
            raise RuntimeError("A budget has no levels before the first scores of a run.")
        return towards(self._final(context.weights, context.live), context)

    def _final(self, weights: Sequence[PrunableWeight], live: Sequence[int]) -> list[int]:
        return [min(alive, self.chosen_kept[weight.name]) for weight, alive in zip(weights, live, strict=True)]


def _kept_at(weight: PrunableWeight, level: float) -> int:
    return weight.size - round(level * weight.size)
