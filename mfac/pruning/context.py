"""One pruning step, as saliencies and compensations see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

from torch import Tensor

from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.prunable import PrunableWeight


class StepContext:
    """The n live weights before a step, and the Fisher over them, for saliencies and compensations.

    Derived values are computed once, at the first request (docs/extending/saliency.md).

    Args:
        weights: w, [n], in the gradients' dtype.
        fisher: F over the live weights; None where nothing in the step asked for gradients.
        parameters: What is known of each parameter that is pruned.
        live: Weights that are alive, [d] bool: n of the d weights of all parameters.
        evaluate: The loss on held-out batches with a change δ of the live weights, [n]; None where
            nothing asks for it.
        input_norms: Norms of the input channels that each weight is multiplied with, by the
            parameter's name; None where the run looks at no activations.
    """

    def __init__(
        self,
        weights: Tensor,
        fisher: EmpiricalFisher | None,
        parameters: Sequence[PrunableWeight],
        live: Tensor,
        evaluate: Callable[[Tensor], float] | None = None,
        input_norms: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.weights = weights
        self._evaluate = evaluate
        self._input_norms = input_norms
        self.parameters = parameters
        self.live = live
        self._fisher = fisher
        self._dropped: Tensor | None = None

    def loss_after(self, delta: Tensor) -> float:
        """The loss on held-out batches with a change of the live weights.

        Args:
            delta: δ, [n].

        Returns:
            The mean loss, the same batches and random numbers in the whole step.

        Raises:
            RuntimeError: If no part of the step has declared that it needs the loss.
        """
        if self._evaluate is None:
            raise RuntimeError("The step has no held-out loss: its compensation says evaluations=0.")
        return self._evaluate(delta)

    def least_loss(self, updates: Iterable[Tensor]) -> tuple[Tensor, int]:
        """The update with the least loss on held-out batches.

        Args:
            updates: Changes δ of the live weights, [n], at least one; each is asked for after the
                loss of the one before is known.

        Returns:
            The update and its number; of equal ones the first. A loss that is not finite is as bad
            as can be.

        Raises:
            RuntimeError: As `loss_after`.
        """
        found: tuple[Tensor, int] | None = None
        least = math.inf
        for number, delta in enumerate(updates):
            loss = self.loss_after(delta)
            if not math.isfinite(loss):
                loss = math.inf
            if found is None or loss < least:
                found, least = (delta, number), loss
        assert found is not None
        return found

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

    def input_norms(self) -> Mapping[str, Tensor]:
        """‖X_j‖₂ of the input channel of each weight, by the parameter's name and in its shape.

        Returns:
            What `mfac.gradients.input_norms.input_norms` found.

        Raises:
            ValueError: If the run looks at no activations.
        """
        if self._input_norms is None:
            raise ValueError(
                "Parameter `saliency` should bring its activations, as mfac.Wanda(model, batches). Found one without, "
                "in a run that looks at none."
            )
        return self._input_norms()

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), [n] in the gradients' dtype."""
        return self.fisher.inverse_diagonal()

    @property
    def dropped(self) -> Tensor:
        """Which live weights the step drops, [n] bool.

        Raises:
            RuntimeError: If the dropped weights are not decided yet.
        """
        if self._dropped is None:
            raise RuntimeError("What a step drops is not known before its saliencies are.")
        return self._dropped

    def decide(self, dropped: Tensor) -> None:
        """Sets what the step drops."""
        self._dropped = dropped

    @cached_property
    def kept_fisher(self) -> EmpiricalFisher:
        """F over the kept weights alone, with the same gradients and λ."""
        return self.fisher.restricted(~self.dropped)
