"""One change of masks, as recipes and their parts see it."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mfac.core.named import resolve
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.prunable import PrunableWeight
from mfac.pruning.context import StepContext
from mfac.pruning.returned import check_scores
from mfac.pruning.saliency import SALIENCIES, Saliency


class ChangeContext:
    """The d weights with masks after a step, each parameter row-major, one after the other.

    Args:
        step: Steps of the optimizer so far; 0 before the first.
        weights: What is known of each parameter.
        kept: The masks, [d] bool.
        values: Gives the weights, [d].
        gradient: Gives their gradients in this step, [d], dropped weights too.
        fisher: Gives the Fisher over the kept weights.
        memory: What the recipe remembers from one change to the next: tensors and numbers by name,
            saved with the training.
        generator: For random choices, on the CPU.
    """

    def __init__(
        self,
        step: int,
        weights: Sequence[PrunableWeight],
        kept: Tensor,
        *,
        values: Callable[[], Tensor],
        gradient: Callable[[], Tensor],
        fisher: Callable[[], EmpiricalFisher],
        memory: MutableMapping[str, Any],
        generator: torch.Generator,
    ) -> None:
        self.step, self.weights, self.kept = step, weights, kept
        self.memory, self.generator = memory, generator
        self._values, self._gradient, self._fisher = values, gradient, fisher

    @cached_property
    def values(self) -> Tensor:
        """The weights, [d] floats."""
        return self._values()

    @cached_property
    def gradient(self) -> Tensor:
        """Gradients of all d weights in this step, [d].

        Raises:
            RuntimeError: If the recipe has not said that it needs them.
        """
        return self._gradient()

    @property
    def sizes(self) -> list[int]:
        """How many weights each parameter has."""
        return [weight.size for weight in self.weights]

    def counts(self, mask: Tensor) -> list[int]:
        """How many entries of a mask [d] are true in each parameter."""
        return torch.stack([torch.count_nonzero(piece) for piece in mask.split(self.sizes)]).tolist()

    def step_context(self, with_fisher: bool) -> StepContext:
        """The kept weights as the saliencies and compensations of a pruning step see them.

        Args:
            with_fisher: Whether they need the Fisher.

        Returns:
            The context.

        Raises:
            ValueError: If a weight is not finite.
        """
        fisher = self._fisher() if with_fisher else None
        values = self.values[self.kept]
        if not bool(torch.isfinite(values).all()):
            pieces = zip(self.weights, (~torch.isfinite(self.values)).split(self.sizes), strict=True)
            names = [weight.name for weight, bad in pieces if bool(bad.any())]
            raise ValueError(f"Weights should be finite at the change after step {self.step}. Found others in {names}.")
        return StepContext(values if fisher is None else values.to(fisher.dtype), fisher, self.weights, self.kept)

    def scores(self, saliency: Saliency) -> Tensor:
        """What each kept weight is worth, [d]; 0 where there is none.

        Args:
            saliency: Which scores it.

        Returns:
            [d] floats.
        """
        step = self.step_context(saliency.needs_fisher)
        found = check_scores(saliency, "scores", saliency.scores(step), step.weights.numel(), "live weights")
        scores = torch.zeros(self.kept.shape, dtype=found.dtype, device=found.device)
        scores[self.kept] = found
        return scores

    def random(self) -> Tensor:
        """A number in [0, 1) for each weight, [d] float32; the same on every kind of device."""
        return torch.rand(self.kept.numel(), generator=self.generator).to(self.kept.device)


def resolve_saliency(saliency: str | Saliency) -> Saliency:
    """The saliency that a name stands for, or the object itself.

    Args:
        saliency: As of `mfac.prune`.

    Returns:
        The object.

    Raises:
        TypeError: If it is neither.
        ValueError: If nothing has the name, or the saliency asks for activations.
    """
    found: Saliency = resolve("saliency", saliency, SALIENCIES, Saliency)  # type: ignore[type-abstract]
    if found.needs_inputs:
        raise ValueError(
            f"Parameter `saliency` should ask for no activations in training. Found {type(found).__name__}."
        )
    return found
