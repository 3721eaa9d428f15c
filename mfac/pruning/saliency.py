"""Saliencies: what the loss is thought to lose with each weight.

To add one, derive from `Saliency`, and give `prune` the object or add its name to `SALIENCIES`
(docs/extending/saliency.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from mfac.core import ops
from mfac.pruning.context import StepContext

SaliencyName = Literal["obs", "magnitude"]


class Saliency(ABC):
    """Scores the live weights of a step; the lowest go. Derive from it: docs/extending/saliency.md.

    Attributes:
        needs_fisher: Whether gradients have to be collected for it.
    """

    needs_fisher: bool = True

    @abstractmethod
    def scores(self, context: StepContext) -> Tensor:
        """What each live weight is worth.

        Args:
            context: The step; its `dropped` is not known yet.

        Returns:
            [n], >= 0 and finite.
        """


class OBS(Saliency):
    """ρ_p = w_p² / (2 (F⁻¹)_pp): the quadratic model's increase when weight p alone goes and the others adapt.

    Source: Optimal Brain Surgeon (Hassibi, Stork 1992), equation 5.
    """

    def scores(self, context: StepContext) -> Tensor:
        """ρ, [n] float64, in units of the loss. One pass beyond the diagonal of F⁻¹."""
        return ops.obs_saliency(context.weights, context.inverse_diagonal.contiguous())


class Magnitude(Saliency):
    """|w_p|."""

    needs_fisher = False

    def scores(self, context: StepContext) -> Tensor:
        """|w|, [n]."""
        return context.weights.abs()


SALIENCIES: Mapping[str, Callable[[], Saliency]] = {"obs": OBS, "magnitude": Magnitude}
"""By name; a saliency of your own is added here, or given as an object."""
