"""What a saliency is: scores of weights or of units, or a choice of its own among the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from mfac.masks.patterns import Units
from mfac.pruning.context import StepContext

Choose = Callable[[Tensor], Tensor]
"""Scores [n] to the dropped weights, [n] bool, by pattern and allocation."""


class Saliency(ABC):
    """Scores the live weights of a step; the lowest go. Derive from it: docs/extending/saliency.md.

    Attributes:
        needs_fisher: Whether gradients have to be collected for the saliency.
        needs_inputs: Whether the saliency asks for `StepContext.input_norms`.
    """

    needs_fisher: bool = True
    needs_inputs: bool = False

    @abstractmethod
    def scores(self, context: StepContext) -> Tensor:
        """What each live weight is worth.

        Args:
            context: The step; its `dropped` is not known yet.

        Returns:
            [n], >= 0 and finite.
        """

    def unit_scores(self, context: StepContext, units: Units) -> Tensor | None:
        """Scores of whole units of several weights, for a saliency that knows better than the sum.

        Args:
            context: The step.
            units: What the pattern lets go together.

        Returns:
            [u], >= 0 and finite; None for the sums of the weights' scores.
        """
        return None

    def select(self, context: StepContext, choose: Choose) -> Tensor:
        """Which weights the step drops. Override the method to improve on a single ranking.

        Args:
            context: The step.
            choose: Says which weights pattern and allocation drop by some scores; `choose` may be
                called again and again, with other scores.

        Returns:
            [n] bool, a result of `choose`.
        """
        return choose(self.scores(context))
