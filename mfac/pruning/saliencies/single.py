"""Saliencies of single weights, from first-order information or none: magnitude, OBD, SNIP."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.curvature.dual import column_tiles
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.base import Saliency


class Magnitude(Saliency):
    """|w_p|."""

    needs_fisher = False

    def scores(self, context: StepContext) -> Tensor:
        """|w|, [n]."""
        return context.weights.abs()


class OBD(Saliency):
    """½ F_pp w_p² by the undamped diagonal of F: the cost of weight p if no other weight moves.

    Source: Optimal Brain Damage (LeCun, Denker, Solla 1990), equation 4, on the empirical Fisher.
    """

    def scores(self, context: StepContext) -> Tensor:
        """½ w² · mean of g², [n] float64, in units of the loss. One pass over the gradients."""
        grads, scores = context.fisher.grads, context.weights.double().square()
        for columns, tile in column_tiles(grads):
            scores[columns] *= tile.square_().sum(0).mul_(0.5 / grads.shape[0])
        return scores


class SNIP(Saliency):
    """|w_p ḡ_p|, with ḡ the mean gradient: how much the loss changes to first order.

    Source: SNIP (Lee, Ajanthan, Torr 2019), equation 5. SNIP is meant for weights at
    initialisation; at a minimum ḡ is mostly noise.
    """

    def scores(self, context: StepContext) -> Tensor:
        """|w · ḡ|, [n] float64, in units of the loss. One pass over the gradients."""
        grads = context.fisher.grads
        mean = torch.empty(grads.shape[1], dtype=torch.float64, device=grads.device)
        for columns, tile in column_tiles(grads):
            mean[columns] = tile.mean(0)
        return mean.mul_(context.weights).abs_()
