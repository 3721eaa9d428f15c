"""What a rule is: it turns a window of gradients into the coefficients of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mfac.window.combination import Combination
from mfac.window.ring import Ring
from mfac.window.sliding import SlidingFisher


class Rule(ABC):
    """Turns a window of gradients into a direction u = Gᵀc; weights move by -lr · u.

    docs/extending/rule.md shows one from end to end.

    Attributes:
        defaults: The options that a group has where it gives none: lr, rank, damping, momentum,
            grafting and orthogonal, or some of them.
        averages_updates: Whether momentum is an exponential average of the updates, [d] numbers; if
            not, a rule takes its weights of the window's gradients from `gradient_weights`.
        metric: Whether gradients enter the window divided by the root of Adam's √v̂, and updates
            leave it so.
    """

    defaults: ClassVar[Mapping[str, Any]]
    averages_updates: ClassVar[bool] = False
    metric: ClassVar[bool] = False

    @abstractmethod
    def combination(self, fisher: SlidingFisher, options: Mapping[str, Any]) -> Combination | None:
        """The direction of this step.

        Args:
            fisher: The window; its newest row is this step's gradient.
            options: Of the parameter group.

        Returns:
            Coefficients and what is known of them, O(m²); None for F⁻¹g in its primal form.

        Raises:
            torch.linalg.LinAlgError: If λ is too small for float64.
        """


def gradient_weights(ring: Ring, momentum: float, nesterov: bool, averaged: bool) -> Tensor:
    """How much each row counts in the momentum of gradients, [m] float64: no buffer of size d.

    Momentum β sums βᵏ g over the gradients k steps back, as `torch.optim.SGD` does. Where the
    window holds fewer than there were, those that it holds count for the others too, so that the
    sum of the weights, (1 - βᵗ)/(1 - β) after t steps, does not depend on the rank. Averaged, the
    weights are divided by that sum, as Adam's are.

    Args:
        ring: Which row holds which push.
        momentum: β.
        nesterov: Whether the newest gradient is added once more, as SGD's.
        averaged: Whether to divide.

    Returns:
        The weights in ring order, zero for empty rows.
    """
    newest = ring.pushes - 1
    if momentum == 0:
        weights = [float(push == newest) for push in ring.written_by]
    else:
        total = (1 - momentum**ring.pushes) / (1 - momentum)
        weights = [momentum ** (newest - push) if push >= 0 else 0.0 for push in ring.written_by]
        scale = total / sum(weights)
        weights = [w * scale for w in weights]
        if nesterov:
            weights = [momentum * w + float(p == newest) for w, p in zip(weights, ring.written_by, strict=True)]
        if averaged:
            weights = [w / total for w in weights]
    return torch.tensor(weights, dtype=torch.float64, device="cpu")
