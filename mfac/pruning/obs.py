"""One pruning step: scores, units, counts, a choice, and the update of the weights that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.masks.patterns import Candidates, Pattern, Units
from mfac.pruning.allocation import Allocation, AllocationContext
from mfac.pruning.compensation import Compensation, predicted_increase
from mfac.pruning.context import StepContext
from mfac.pruning.saliency import Saliency


@dataclass(frozen=True)
class Rules:
    """The choices that a step is made of, independent of one another.

    Attributes:
        saliency: What each weight is worth.
        pattern: Which weights go together.
        allocation: How many of each parameter.
        compensation: How the others move.
    """

    saliency: Saliency
    pattern: Pattern
    allocation: Allocation
    compensation: Compensation

    @property
    def needs_fisher(self) -> bool:
        """Whether a step needs gradients."""
        return self.saliency.needs_fisher or self.compensation.needs_fisher


@dataclass(frozen=True)
class Outcome:
    """What a step does to the n live weights.

    Attributes:
        dropped: Which go, [n] bool.
        delta: δ, [n] float64.
        predicted_increase: ½ δᵀFδ, or None without a Fisher.
    """

    dropped: Tensor
    delta: Tensor
    predicted_increase: float | None


def prune_step(rules: Rules, context: StepContext, kept: int, finally_kept: int) -> Outcome:
    """Decides which of the live weights go, and how the others move.

    Args:
        rules: How.
        context: The live weights and their Fisher; keeps what was derived from it for the next step.
        kept: How many weights are left after the step.
        finally_kept: How many are left after the last.

    Returns:
        What to do. Nothing is changed.

    Raises:
        ValueError: If a saliency, an allocation or a compensation returns what it should not.
    """
    scores = rules.saliency.scores(context)
    _check_scores(rules.saliency, scores, context.weights)
    units = rules.pattern.units(Candidates(context.parameters, context.live, scores))
    context.decide(units.lowest(_counts(rules.allocation, context, units, kept, finally_kept)))
    delta = rules.compensation.update(context)
    _check_update(rules.compensation, delta, context)
    increase = predicted_increase(context.fisher, delta) if context.has_fisher else None
    return Outcome(context.dropped, delta, increase)


def _counts(allocation: Allocation, context: StepContext, units: Units, kept: int, finally_kept: int) -> list[int]:
    """How many weights of each parameter go."""
    live = [int(piece.sum()) for piece in context.live.split([weight.size for weight in context.parameters])]
    least = [alive - open_ for alive, open_ in zip(live, units.droppable(), strict=True)]
    kept = max(kept, sum(least))
    of_each = allocation.kept(AllocationContext(context.parameters, live, least, units, kept, finally_kept))
    bounds = zip(of_each, least, live, strict=False)
    whole = units.sizes is None  # of units of several weights the nearest number that they allow
    if len(of_each) != len(live) or (whole and sum(of_each) != kept) or any(not a <= n <= b for n, a, b in bounds):
        raise ValueError(
            f"Parameter `allocation` should return a count between {least} and {live} for each parameter, "
            f"in all {kept}. Found {list(of_each)} from {type(allocation).__name__}."
        )
    return [alive - stay for alive, stay in zip(live, of_each, strict=True)]


def _check_scores(saliency: Saliency, scores: Tensor, weights: Tensor) -> None:
    if scores.shape != weights.shape:
        raise ValueError(
            f"Parameter `saliency` should return a score for each of the {weights.numel()} live weights. "
            f"Found shape {list(scores.shape)} from {type(saliency).__name__}."
        )
    if not bool((scores >= 0).all()) or not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"Parameter `saliency` should return finite scores >= 0. Found others from {type(saliency).__name__}."
        )


def _check_update(compensation: Compensation, delta: Tensor, context: StepContext) -> None:
    if delta.shape != context.weights.shape or not bool(torch.isfinite(delta).all()):
        raise ValueError(
            f"Parameter `compensation` should return a finite change of each of the {context.weights.numel()} live "
            f"weights. Found shape {list(delta.shape)}{'' if delta.shape != context.weights.shape else ', not finite'} "
            f"from {type(compensation).__name__}."
        )
