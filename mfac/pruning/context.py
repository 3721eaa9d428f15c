"""One pruning step, as saliencies and compensations see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from torch import Tensor

from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.prunable import PrunableWeight


class StepContext:
    """The n weights alive before a step, and the Fisher over them, for saliencies and compensations.

    What is derived is computed once, when it is asked for (docs/extending/saliency.md).

    Args:
        weights: w, [n], in the gradients' dtype.
        fisher: F over the live weights; None where nothing in the step asked for gradients.
        parameters: What is known of each parameter that is pruned.
        live: Weights that are alive, [d] bool: n of the d weights of all parameters.
        evaluate: The loss after a change δ [n] of the live weights, on a few batches that the gradients are not of.
    """

    def __init__(
        self,
        weights: Tensor,
        fisher: EmpiricalFisher | None,
        parameters: Sequence[PrunableWeight],
        live: Tensor,
        evaluate: Callable[[Tensor], float] | None = None,
    ) -> None:
        self.weights = weights
        self.parameters = parameters
        self.live = live
        self.evaluate = evaluate
        self._fisher = fisher
        self._dropped: Tensor | None = None

    @property
    def has_fisher(self) -> bool:
        """Whether gradients were collected."""
        return self._fisher is not None

    @property
    def fisher(self) -> EmpiricalFisher:
        """F over the live weights; its `grads` are the gradients, [m, n].

        Raises:
            RuntimeError: If no part of the step has declared that it needs F.
        """
        if self._fisher is None:
            raise RuntimeError("The step has no Fisher: its saliency and its compensation both say needs_fisher=False.")
        return self._fisher

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), [n] in the gradients' dtype."""
        return self.fisher.inverse_diagonal()

    @property
    def dropped(self) -> Tensor:
        """Which live weights the step drops, [n] bool.

        Raises:
            RuntimeError: If that is not decided yet.
        """
        if self._dropped is None:
            raise RuntimeError("What a step drops is not known before its saliencies are.")
        return self._dropped

    def decide(self, dropped: Tensor) -> None:
        """Sets what the step drops."""
        self._dropped = dropped

    @cached_property
    def kept_fisher(self) -> EmpiricalFisher:
        """F over the kept weights alone, with the same gradients and λ: a joint update and the next step need it."""
        return self.fisher.restricted(~self.dropped)
