"""One pruning step: scores, units, counts, a choice, and the update of the weights that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from mfac.core.memory import release_freed
from mfac.masks.patterns import Candidates, Pattern, Units
from mfac.pruning.allocation import Allocation
from mfac.pruning.checked import SCALES, checked_update
from mfac.pruning.compensation import Compensation, predicted_increase
from mfac.pruning.context import StepContext
from mfac.pruning.counts import choose_units
from mfac.pruning.returned import check_choice_of, check_scores, check_units, check_update
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
        scale: What the change of the kept weights was scaled with by the step-size check; None
            without one.
    """

    dropped: Tensor
    delta: Tensor
    predicted_increase: float | None
    scale: float | None = None


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
        TypeError: If a saliency, a pattern, an allocation or a compensation returns something of
            another type than it should.
        ValueError: If one returns what it should not.
    """
    dropped = choose_dropped(rules, context, kept, finally_kept)
    size = context.weights.numel()
    context.decide(dropped)
    release_freed()  # vectors that were sorted, before the gradients of the kept weights are copied
    delta = check_update(rules.compensation, rules.compensation.update(context), size)
    scale: float | None = None
    if rules.step_check:
        delta, scale = checked_update(context, delta)
    increase = predicted_increase(context.fisher, delta) if context.has_fisher else None
    return Outcome(context.dropped, delta, increase, scale)


def choose_dropped(rules: Rules, context: StepContext, kept: int, finally_kept: int) -> Tensor:
    """Which of the live weights go.

    Args:
        rules: Saliency, pattern and allocation.
        context: The live weights, and their Fisher if the saliency needs one.
        kept: How many weights are left after the step.
        finally_kept: How many are left after the last.

    Returns:
        [n] bool.

    Raises:
        TypeError: If a saliency, a pattern or an allocation returns something of another type than
            it should.
        ValueError: If one returns what it should not.
    """

    def choose(scores: Tensor) -> Tensor:
        check_scores(rules.saliency, "scores", scores, context.weights.numel(), "live weights")
        units = scored_units(rules, context, scores)
        return choose_units(rules.allocation, rules.pattern, context, units, kept, finally_kept)

    size = context.weights.numel()
    dropped = rules.saliency.select(context, choose)
    wanted = f"which of the {size} live weights go"
    return check_choice_of("saliency", rules.saliency, "select", dropped, size, wanted)


def scored_units(rules: Rules, context: StepContext, scores: Tensor) -> Units:
    """The units that the pattern offers, with the saliency's own scores of units, if any.

    Args:
        rules: Of the step.
        context: The step.
        scores: Of the live weights, [n].

    Returns:
        The units.

    Raises:
        TypeError: If the pattern or the saliency returns something of another type.
        ValueError: If one returns units or scores that cannot be.
    """
    groups = len(rules.pattern.together(context.parameters))
    found = rules.pattern.units(Candidates(context.parameters, context.live, scores))
    units = check_units(rules.pattern, found, context.weights.numel(), groups)
    own = rules.saliency.unit_scores(context, units) if units.sizes is not None else None
    if own is None:
        return units
    return replace(units, scores=check_scores(rules.saliency, "unit_scores", own, units.scores.numel(), "units"))
