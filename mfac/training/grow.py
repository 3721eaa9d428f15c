"""Which dropped weights come back where weights are exchanged.

To add a way, derive from `Grow` (docs/extending/recipe.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_number
from mfac.training.context import ChangeContext


class Grow(ABC):
    """Scores the dropped weights; the highest come back, at zero.

    Attributes:
        needs_gradient: Whether it asks for the gradients of a step that changes masks.
        watches: Whether it is shown the gradients of every step.
    """

    needs_gradient = False
    watches = False

    @abstractmethod
    def scores(self, context: ChangeContext) -> Tensor:
        """What each weight would be worth.

        Args:
            context: The change.

        Returns:
            [d] floats; those of kept weights do not count.
        """

    def watch(self, gradients: Sequence[Tensor], memory: MutableMapping[str, Any]) -> None:
        """Sees the gradients of a step before masks are applied to them.

        Args:
            gradients: Of each parameter, [size]; not to be changed.
            memory: As `ChangeContext.memory`.
        """
        return


class Random(Grow):
    """Any, with equal chances."""

    def scores(self, context: ChangeContext) -> Tensor:
        """Random numbers, [d]."""
        return context.random()


class Gradient(Grow):
    """Those with the largest gradient in this step."""

    needs_gradient = True

    def scores(self, context: ChangeContext) -> Tensor:
        """|g|, [d]; 0 where the gradient of a dropped weight is not finite, which moves nothing."""
        return context.gradient.abs().nan_to_num(nan=0.0, posinf=0.0)


class Momentum(Grow):
    """Those with the largest average gradient; the average is of all weights and stays dense.

    Memory is a number a weight.

    Args:
        decay: β of the average b ← βb + (1 - β)g, in [0, 1).

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """

    watches = True

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = check_number("decay", decay, least=0, below=1)

    def watch(self, gradients: Sequence[Tensor], memory: MutableMapping[str, Any]) -> None:
        """Takes the gradients of a step into the average."""
        averages = memory.get("momentum")
        if averages is None:
            averages = memory["momentum"] = [torch.zeros_like(gradient) for gradient in gradients]
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, list(gradients), alpha=1 - self.decay)

    def scores(self, context: ChangeContext) -> Tensor:
        """|b|, [d]."""
        return average_of(context).abs()


def average_of(context: ChangeContext) -> Tensor:
    """The average gradients that `Momentum` keeps, [d]."""
    averages = context.memory.get("momentum")
    if averages is None:
        return torch.zeros(context.kept.shape, device=context.kept.device)
    return torch.cat([average.reshape(-1) for average in averages])
