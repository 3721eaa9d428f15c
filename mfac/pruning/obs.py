"""One pruning step: scores, units, counts, a choice, and the update of the weights that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfac.core.memory import release_freed
from mfac.masks.patterns import Candidates, Pattern, Units
from mfac.pruning.allocation import Allocation
from mfac.pruning.checked import SCALES, checked_update
from mfac.pruning.compensation import Compensation, predicted_increase
from mfac.pruning.context import StepContext
from mfac.pruning.counts import choose_units
from mfac.pruning.saliency import Saliency


@dataclass(frozen=True)
class Rules:
    """The choices that a step is made of, independent of one another.

    Attributes:
        saliency: What each weight is worth.
        pattern: Which weights go together.
        allocation: How many of each parameter.
        compensation: How the others move.
        step_check: Whether the size of the others' move is checked on held-out batches.
    """

    saliency: Saliency
    pattern: Pattern
    allocation: Allocation
    compensation: Compensation
    step_check: bool = False

    @property
    def evaluations(self) -> int:
        """How often a step asks for the loss on held-out batches."""
        return self.compensation.evaluations + (len(SCALES) if self.step_check else 0)

    @property
    def needs_loss(self) -> bool:
        """Whether a step calls the loss: for gradients, for activations or on held-out batches."""
        return self.needs_fisher or self.saliency.needs_inputs or self.evaluations > 0

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
        scale: What the change of the kept weights was scaled with by the step-size check.
    """

    dropped: Tensor
    delta: Tensor
    predicted_increase: float | None
    scale: float = 1.0


def prune_step(rules: Rules, context: StepContext, kept: int, finally_kept: int) -> Outcome:
    """Decides which of the live weights go, and how the others move.

    Args:
        rules: How.
        context: The live weights and their Fisher; keeps what was derived from it for the next
            step.
        kept: How many weights are left after the step.
        finally_kept: How many are left after the last.

    Returns:
        What to do. Nothing is changed.

    Raises:
        ValueError: If a saliency, an allocation or a compensation returns what it should not.
    """

    def choose(scores: Tensor) -> Tensor:
        _check_scores(rules.saliency, scores, context.weights)
        units = scored_units(rules, context, scores)
        return choose_units(rules.allocation, rules.pattern, context, units, kept, finally_kept)

    context.decide(rules.saliency.select(context, choose))
    release_freed()  # vectors that were sorted, before the gradients of the kept weights are copied
    delta = rules.compensation.update(context)
    _check_update(rules.compensation, delta, context)
    scale = 1.0
    if rules.step_check:
        delta, scale = checked_update(context, delta)
    increase = predicted_increase(context.fisher, delta) if context.has_fisher else None
    return Outcome(context.dropped, delta, increase, scale)


def scored_units(rules: Rules, context: StepContext, scores: Tensor) -> Units:
    """The units that the pattern offers, with the saliency's own scores of units, if any.

    Args:
        rules: Of the step.
        context: The step.
        scores: Of the live weights, [n].

    Returns:
        The units.

    Raises:
        ValueError: If the saliency returns scores that cannot be.
    """
    units = rules.pattern.units(Candidates(context.parameters, context.live, scores))
    own = rules.saliency.unit_scores(context, units) if units.sizes is not None else None
    if own is None:
        return units
    if own.shape != units.scores.shape or not bool((own >= 0).all()) or not bool(torch.isfinite(own).all()):
        raise ValueError(
            f"Parameter `saliency` should return finite scores >= 0 for each of the {units.scores.numel()} units. "
            f"Found others from {type(rules.saliency).__name__}."
        )
    return replace(units, scores=own)


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
