"""Greedy Optimal Brain Surgeon in blocks of the Fisher: a score says when each weight goes."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice
from mfac.core.checks.numbers import check_count
from mfac.gradients.threads import one_thread
from mfac.masks.patterns import Units
from mfac.pruning.blocks import block_factors
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.base import Saliency
from mfac.pruning.saliencies.obs import OBS

_PARTS = 8  # of a block: after each the inverse is copied without the weights that went


class Greedy(Saliency):
    """Weights of a block go one by one, each time the cheapest, and the others adapt exactly.

    A weight's score is the largest increase that the block has seen when the weight is gone, so
    that scores never fall along the block's order. One ranking of the scores over all blocks is the
    choice. Blocks are `block_size` successive live weights.

    Source: CAP (Kuznedelev et al. 2022, 2210.09223), section 3. Numbered differences: (1) blocks of
    the live weights, so that they stay full as pruning goes on; (2) the largest increase in place
    of the sum of all, which `ranking="cumulative"` takes as CAP does.

    Args:
        block_size: B; a few dozen, and less than half of the gradients' number. Larger blocks are
            known less well, and cost more.
        ranking: "marginal", the largest single increase so far; "cumulative", the block's loss so
            far.

    Raises:
        ValueError: If the block has no weight, or there is no such ranking.

    Example:
        >>> import torch, mfac
        >>> from mfac.pruning.saliencies.greedy import Greedy
        >>> model = torch.nn.Linear(8, 2)
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> settings = {"num_gradients": 16, "stages": 1, "compensation": "greedy"}
        >>> mfac.prune(model, loss_fn, data, sparsity=0.5, saliency=Greedy(block_size=8), **settings).sparsity
        0.5
    """

    def __init__(self, block_size: int = 64, ranking: str = "marginal") -> None:
        self.block_size = check_count("block_size", block_size, least=1)
        self.ranking = check_choice("ranking", ranking, ("cumulative", "marginal"))

    def scores(self, context: StepContext) -> Tensor:
        """The loss of the block when each weight goes, [n] float64. O(nB² + nmB) time."""
        scores = torch.empty_like(context.weights, dtype=torch.float64)
        with one_thread():
            for columns, _, factors in block_factors(context.fisher, self.block_size):
                w = context.weights[columns].to(torch.float64, copy=True).view(-1, factors.shape[1])
                inverse = torch.cholesky_inverse(factors, upper=True)
                scores[columns] = self._exhaust(inverse, w).view(-1)
        return scores

    def unit_scores(self, context: StepContext, units: Units) -> Tensor | None:
        """Scores of units of several weights, [u] float64: those of "obs", which are exact."""
        return OBS().unit_scores(context, units)

    def _exhaust(self, inverse: Tensor, w: Tensor) -> Tensor:
        """Scores of blocks [c, B] by their inverses [c, B, B]; both are overwritten."""
        blocks, width = w.shape
        each = torch.arange(blocks, device=w.device)
        left = torch.arange(width, device=w.device).expand(blocks, width)  # columns of the block
        scores, reached = torch.zeros_like(w), w.new_zeros(blocks)
        while left.shape[1]:
            gone = torch.zeros_like(w, dtype=torch.bool)
            for _ in range(min(left.shape[1], -(-width // _PARTS))):
                diagonal = inverse.diagonal(dim1=1, dim2=2)
                cost, p = (w.square() / (2 * diagonal)).masked_fill_(gone, torch.inf).min(1)
                reached = reached + cost if self.ranking == "cumulative" else torch.maximum(reached, cost)
                scores[each, left[each, p]] = reached
                gone[each, p] = True
                row = inverse[each, p]  # [c, B]
                pivot = row[each, p].rsqrt()
                w -= (w[each, p] * pivot.square())[:, None] * row
                row = row * pivot[:, None]
                inverse.baddbmm_(row[:, :, None], row[:, None, :], alpha=-1)
            stay = (~gone).nonzero()[:, 1].view(blocks, -1)
            inverse = inverse.gather(1, stay[:, :, None].expand(-1, -1, inverse.shape[2]))
            inverse = inverse.gather(2, stay[:, None, :].expand(-1, inverse.shape[1], -1))
            w, left = w.gather(1, stay), left.gather(1, stay)
        return scores
