"""The step-size check: how far the kept weights move is decided by the loss on held-out batches."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.pruning.context import StepContext

SCALES = (1.0, 0.5, 0.25, 0.0)
"""What the change of the kept weights is tried with; 0 is no compensation."""


def checked_update(context: StepContext, delta: Tensor) -> tuple[Tensor, float]:
    """The update, with the change of the kept weights scaled by the factor of least loss.

    So no step is worse than dropping its weights alone, on the batches that are looked at.

    Args:
        context: The step, with what it drops; dropped weights always go.
        delta: δ, [n] float64.

    Returns:
        The update, and its scale out of `SCALES`. Ties go to the larger. Four evaluations, none
        where nothing moves.
    """
    if not bool(torch.where(context.dropped, 0, delta).any()):
        return delta, 1.0
    best, number = context.least_loss(torch.where(context.dropped, delta, scale * delta) for scale in SCALES)
    return best, SCALES[number]


def refit_update(context: StepContext) -> tuple[Tensor, float]:
    """One solve of the kept weights against the loss itself, after the last stage: δ = -F⁻¹ḡ.

    ḡ is the mean gradient.

    The steps of a run keep ½ δᵀFδ low around the weights that they began with. The loss that
    remains shows in gradients at the weights that are left, and one solve on fresh gradients takes
    a Gauss-Newton step against it.

    Args:
        context: The live weights, with fresh gradients of them; none is dropped. The step's size
            is checked.

    Returns:
        δ, [n] float64, and its scale. O(nm).
    """
    fisher = context.fisher
    context.decide(torch.zeros_like(context.weights, dtype=torch.bool))
    if fisher.block_size is None:
        ones = torch.full((fisher.rank,), -1 / fisher.rank, dtype=torch.float64, device=context.weights.device)
        delta = fisher.ihvp_of_combination(ones).double()
    else:
        delta = fisher.ihvp(-fisher.grads.mean(0)).double()
    return checked_update(context, delta)
