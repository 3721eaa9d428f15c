"""Allocations: how many of the weights that a step keeps each parameter gets.

To add one, derive from `Allocation`, and give `prune` the object or add its name to `ALLOCATIONS`
(docs/extending/allocation.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mfac.core.checks.choices import check_flag
from mfac.core.checks.numbers import check_number
from mfac.core.named import resolve
from mfac.core.selection import highest, lowest
from mfac.gradients.naming import check_all_match, first_match
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Units
from mfac.pruning.chains import best_chains

_SHARE_OF_CHAINS = 10  # at most one in so many of the weights that are kept in the end

AllocationName = Literal["global", "uniform", "erk"]


@dataclass(frozen=True)
class AllocationContext:
    """What an allocation is told of a step (docs/extending/allocation.md).

    Attributes:
        weights: What is known of each parameter.
        live: How many weights of each parameter are alive before the step.
        least: How many weights of each parameter the step leaves at least, by the pattern.
        units: What the step may drop, with its saliencies.
        kept: How many weights are to be left after the step, in all.
        finally_kept: How many weights are to be left after the last step.
        alive: Which of the d weights of all parameters are alive before the step, [d] bool.
    """

    weights: Sequence[PrunableWeight]
    live: Sequence[int]
    least: Sequence[int]
    units: Units
    kept: int
    finally_kept: int
    alive: Tensor


class Allocation(ABC):
    """Says how many weights each parameter keeps. Derive from it: docs/extending/allocation.md.

    Attributes:
        shares_total: Whether counts follow from the number that all parameters keep together. Then
            parameters that go weight by weight make up for others' units that did not fit.
    """

    shares_total: bool = True

    @abstractmethod
    def kept(self, context: AllocationContext) -> list[int]:
        """How many weights each parameter keeps in this step.

        Args:
            context: The step.

        Returns:
            A count for each parameter, between `context.least` and `context.live`, that add up to
            `context.kept`.
        """

    def protected(self, context: AllocationContext) -> Tensor | None:
        """Units that are ranked above all others, whatever their scores.

        Args:
            context: The step.

        Returns:
            [u] bool; None for none, as by default.
        """
        return None


class Global(Allocation):
    """One ranking of saliencies over all parameters, with a floor for each.

    The floor keeps a parameter from being emptied: no gradient passes through an empty layer, and
    no fine-tuning can bring the layer back. A parameter of s weights keeps at least
    `floor` · density · s weights and at least one, with the density that all parameters together
    end at. Where all floors together are more than there is to keep, there is no floor.

    A few weights in each layer may still lead nowhere. So with a floor the best chains of weights
    from the first of successive layers to each output of the last are kept too
    (mfac/pruning/chains.py), as far as they take no more than a tenth of what is kept in the end.
    The chains count towards the floor.

    Args:
        floor: Share of the overall density that each parameter keeps at least, in [0, 1).
        chains: Whether chains of weights are kept; looking for them sorts all weights.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If `floor` is out of range.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> _ = torch.nn.init.constant_(model[1].weight, 1e-9)
        >>> report = mfac.prune(
        ...     model, lambda model, batch: 0, [], sparsity=0.5, saliency="magnitude", compensation="none",
        ...     allocation=mfac.Global(floor=0.5),
        ... )
        >>> int(report.masks["1.weight"].sum())
        4
    """

    def __init__(self, floor: float = 0.1, chains: bool = True) -> None:
        self.floor = check_number("floor", floor, least=0, below=1)
        self.chains = check_flag("chains", chains)

    def kept(self, context: AllocationContext) -> list[int]:
        """The counts of the lowest units of all parameters; protected units go last."""
        units, drop = context.units, sum(context.live) - context.kept
        sizes = units.sizes
        if sizes is None:
            chosen = lowest(units.ranking, drop)
        else:
            order = torch.argsort(units.ranking, stable=True)
            chosen = torch.zeros_like(units.scores, dtype=torch.bool)
            chosen[order[: int((sizes[order].cumsum(0) <= drop).sum())]] = True
        dropped = [
            int(torch.count_nonzero(piece) if sizes is None else piece.sum())
            for piece in units.by_parameter(chosen if sizes is None else torch.where(chosen, sizes, 0))
        ]
        return [live - gone for live, gone in zip(context.live, dropped, strict=True)]

    def protected(self, context: AllocationContext) -> Tensor | None:
        """Units of the best chains, and the highest up to each floor; None without a floor."""
        if self.floor == 0 or not context.units.ranking.numel():  # a pattern may leave nothing to drop in a step
            return None
        density = context.finally_kept / sum(weight.size for weight in context.weights)
        floors = [max(1, math.ceil(self.floor * density * weight.size)) for weight in context.weights]
        if sum(map(min, floors, context.live)) > context.finally_kept:
            return None
        units, ranking = context.units, context.units.ranking
        protected = self._chained(context) if self.chains else torch.zeros_like(units.scores, dtype=torch.bool)
        start = 0
        for count, floor, least in zip(units.counts, floors, context.least, strict=True):
            there = protected[start : start + count]
            sizes = None if units.sizes is None else units.sizes[start : start + count]
            missing = floor - least - int(torch.count_nonzero(there) if sizes is None else sizes[there].sum())
            if missing > 0 and count:
                others = ranking[start : start + count].masked_fill(there, -math.inf)
                if sizes is None:
                    there |= highest(others, missing)
                else:
                    order = torch.argsort(others, descending=True)
                    reached = sizes[order].cumsum(0) - sizes[order]  # before each
                    there[order[reached < missing]] = True
            start += count
        return protected

    def _chained(self, context: AllocationContext) -> Tensor:
        """Units that the best chains of weights go through, [u] bool."""
        units = context.units
        if units.unit_of is None:
            of_live = units.ranking.double()
        else:
            of_live = torch.where(units.unit_of >= 0, units.ranking.double()[units.unit_of.clamp(min=0)], math.inf)
        scores = torch.full(context.alive.shape, -math.inf, dtype=torch.float64, device=of_live.device)
        scores[context.alive] = of_live
        chains = best_chains(context.weights, scores, context.finally_kept // _SHARE_OF_CHAINS)[context.alive]  # [n]
        if units.unit_of is None:
            return chains
        protected = torch.zeros_like(units.scores, dtype=torch.bool)
        protected[units.unit_of[chains & (units.unit_of >= 0)]] = True
        return protected


class Uniform(Allocation):
    """The same density for every parameter, as far as its pattern and its live weights allow.

    A parameter that is sparser already stays so. The others go to the sparsity that is asked for,
    so that all together are sparser than that.
    """

    def kept(self, context: AllocationContext) -> list[int]:
        """Counts on the way to a uniform density."""
        return towards(shares(context, [float(weight.size) for weight in context.weights]), context)


class ERK(Allocation):
    """Erdős-Rényi-Kernel: densities in proportion to Σ shape / Π shape, and at most 1.

    Small layers keep more.

    Source: Evci et al., "Rigging the Lottery" (1911.11134), section 3; Mocanu et al. 2018.
    """

    def kept(self, context: AllocationContext) -> list[int]:
        """Counts on the way to densities by the sums of the shapes."""
        return towards(shares(context, [float(sum(weight.shape)) for weight in context.weights]), context)


class ByLayer(Allocation):
    """A sparsity for each parameter, by name or by the first shell-style pattern that matches.

    Args:
        sparsities: Name or pattern to share of zeros, in [0, 1).
    """

    shares_total = False

    def __init__(self, sparsities: Mapping[str, float]) -> None:
        self.sparsities = {
            name: check_number(f"allocation[{name!r}]", value, least=0, below=1) for name, value in sparsities.items()
        }

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses entries that name no parameter.

        Args:
            weights: What is known of all that are pruned.

        Raises:
            ValueError: If there is one.
        """
        check_all_match("allocation", self.sparsities, [weight.name for weight in weights])

    def final(self, weights: Sequence[PrunableWeight]) -> list[int]:
        """How many weights each parameter keeps in the end.

        Args:
            weights: What is known of each.

        Returns:
            A count for each.
        """
        return [weight.size - round(self.entry_of(weight.name)[1] * weight.size) for weight in weights]

    def entry_of(self, name: str) -> tuple[str, float]:
        """The entry of a parameter.

        Args:
            name: Of the parameter.

        Returns:
            The pattern that matches it first, and its sparsity.

        Raises:
            ValueError: If there is none.
        """
        if (pattern := first_match(name, self.sparsities)) is not None:
            return pattern, self.sparsities[pattern]
        raise ValueError(
            f"Parameter `allocation` should give every weight that is pruned a sparsity. Found none for {name!r}; "
            f"'*' stands for all others."
        )

    def kept(self, context: AllocationContext) -> list[int]:
        """Counts on the way to the sparsities given."""
        return towards(self.final(context.weights), context)


def shares(context: AllocationContext, proportions: Sequence[float]) -> list[int]:
    """Final counts in proportion to given numbers, each at most what is alive.

    Args:
        context: The step.
        proportions: A positive number for each parameter.

    Returns:
        Counts that add up to `context.finally_kept`.
    """
    return apportion(context.finally_kept, proportions, [0] * len(context.live), context.live)


def towards(final: Sequence[int], context: AllocationContext) -> list[int]:
    """Counts of this step on the way to final counts: all go an equal share of their way.

    Args:
        final: Of each parameter after the last step.
        context: The step.

    Returns:
        Counts that add up to `context.kept`.
    """
    goal = [min(count, live) for count, live in zip(final, context.live, strict=True)]
    ways = [live - count for live, count in zip(context.live, goal, strict=True)]
    least = [most - count for most, count in zip(context.least, goal, strict=True)]
    rest = apportion(context.kept - sum(goal), ways, least, ways)
    return [count + more for count, more in zip(goal, rest, strict=True)]


def apportion(total: int, proportions: Sequence[float], least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Integers in proportion to given numbers, within bounds, that add up to a total.

    Args:
        total: Their sum; what the bounds allow where that is less or more.
        proportions: Numbers >= 0.
        least: Lower bounds.
        most: Upper bounds, none below its lower bound.

    Returns:
        min(max(t · proportion, least), most) for the t that fits, rounded by largest remainder;
        ties go to the earlier.
    """
    total = max(sum(least), min(total, sum(most)))

    def at(scale: float) -> list[float]:
        return [min(max(scale * p, low), high) for p, low, high in zip(proportions, least, most, strict=True)]

    low, high = 0.0, 1.0
    positive = [p for p in proportions if p > 0]
    while positive and sum(at(high)) < total and high < max(map(float, most)) / min(positive):
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) < total else (low, middle)
    wanted = at(high)
    counts = [max(bound, math.floor(x)) for x, bound in zip(wanted, least, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - wanted[i], i))
    left = total - sum(counts)
    for sign in (1, -1):  # by rounding `high` may be a little too much
        while left * sign > 0:
            before = left
            for i in order if sign > 0 else reversed(order):
                if left * sign > 0 and (counts[i] < most[i] if sign > 0 else counts[i] > least[i]):
                    counts[i] += sign
                    left -= sign
            if left == before:
                break
    return counts


ALLOCATIONS: Mapping[str, Callable[[], Allocation]] = {"global": Global, "uniform": Uniform, "erk": ERK}
"""By name; an allocation of your own is added here, or given as an object."""


def resolve_allocation(allocation: str | Allocation | Mapping[str, float]) -> Allocation:
    """The allocation that was asked for.

    Args:
        allocation: A name, a sparsity for each parameter, or an object.

    Returns:
        The object.
    """
    if isinstance(allocation, Mapping):
        return ByLayer(allocation)
    return resolve("allocation", allocation, ALLOCATIONS, Allocation)  # type: ignore[type-abstract]
