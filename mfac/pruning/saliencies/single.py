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
        sums = [tile.square_().sum(0) for grads in context.fisher.tiles() for _, tile in column_tiles(grads)]
        return torch.cat(sums).mul_(0.5 / context.fisher.rank).mul_(context.weights.double().square())


class SNIP(Saliency):
    """|w_p ḡ_p|, with ḡ the mean gradient: how much the loss changes to first order.

    Source: SNIP (Lee, Ajanthan, Torr 2019), equation 5. SNIP is meant for weights at
    initialisation; at a minimum ḡ is mostly noise.
    """

    def scores(self, context: StepContext) -> Tensor:
        """|w · ḡ|, [n] float64, in units of the loss. One pass over the gradients."""
        means = [tile.mean(0) for grads in context.fisher.tiles() for _, tile in column_tiles(grads)]
        return torch.cat(means).mul_(context.weights).abs_()
