"""Selection on the true objective: exchanges improve the kept set until none lowers ½ δᵀFδ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.numbers import check_count
from mfac.curvature.diagonal import whitened_norms
from mfac.curvature.dual import factor_capacitance
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.base import Choose, Saliency
from mfac.pruning.saliencies.greedy import Greedy
from mfac.pruning.saliencies.obs import OBS

_COLUMNS_AT_ONCE = 4096  # gathered at a time
_MOST_RELUCTANT = 1e6
_ENOUGH = 1e-3  # of the objective: rounds that gain less end the search


@dataclass(frozen=True)
class _Kept:
    """A set of kept weights, and the objective at the exact joint refit on it.

    Attributes:
        dropped: The others, [n] bool.
        gram: G_S G_Sᵀ, [m, m].
        effect: u = G_D w_D, [m].
        factor: Of C_S = nλI + G_S G_Sᵀ.
        solved: C_S⁻¹ u, [m].
        objective: min over δ_S of ½ δᵀFδ, λ/2 (‖w_D‖² + uᵀ C_S⁻¹ u).
    """

    dropped: Tensor
    gram: Tensor
    effect: Tensor
    factor: Tensor
    solved: Tensor
    objective: float


class Refined(OBS):
    """The lowest scores of another saliency, improved by exchanges that lower the joint objective.

    The objective of a kept set S is min ½ δᵀFδ with δ_D = -w_D, at the exact joint refit. With
    C_S = nλI + G_S G_Sᵀ, u = G_D w_D, h = Gᵀ C_S⁻¹ u and s_p = ‖(L_S⁻¹ G)_:p‖² it changes, for one
    weight at a time and exactly, by

    * λ (w_p + h_p)² / (2 (1 - s_p)) more, when a kept weight goes and the others adapt;
    * λ (w_q + h_q)² / (2 (1 + s_q)) less, when a dropped weight comes back.

    Each round thresholds these numbers, as pattern and allocation have it. Exchanging all at once
    overshoots, so that kept weights are favoured by a factor, which is doubled until the objective
    falls: the line search. The search ends where even few exchanges gain nothing. With compensation
    "joint" the refit of the last set is the update.

    Source: the problem of CBS (Yu et al. 2022) and CHITA (Benbaki et al. 2023). Numbered
    differences: (1) thresholds act on exact one-weight changes at the exact refit, not on a
    gradient step; (2) any pattern and allocation.

    Args:
        rounds: At most; each costs what an OBS step costs, O(nm²).
        start: Whose lowest scores the search begins with; None for `Greedy()`.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 2)
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> settings = {"num_gradients": 16, "stages": 1, "recomputations": 1}
        >>> mfac.prune(model, loss_fn, data, sparsity=0.5, saliency="refined", **settings).sparsity
        0.5
    """

    def __init__(self, rounds: int = 20, start: Saliency | None = None) -> None:
        self.rounds = check_count("rounds", rounds)
        self.start = Greedy() if start is None else start

    def scores(self, context: StepContext) -> Tensor:
        """The scores that the search begins with, [n]."""
        return self.start.scores(context)

    def select(self, context: StepContext, choose: Choose) -> Tensor:
        """The set that no exchange improves, [n] bool."""
        if context.fisher.block_size is not None:
            raise ValueError(
                "Parameter `block_size` should be None with saliency='refined', whose objective is that of the whole "
                f"Fisher. Found {context.fisher.block_size}."
            )
        kept = self._begin(context, choose(self.scores(context)))
        reluctance = 1.0
        for _ in range(self.rounds):
            scores = self._changes(context, kept)
            better = None
            while better is None and reluctance < _MOST_RELUCTANT:
                candidate = choose(torch.where(kept.dropped, scores, reluctance * scores))
                if bool((candidate == kept.dropped).all()):
                    break
                better = self._exchanged(context, kept, candidate)
                if better.objective >= kept.objective:
                    better, reluctance = None, 2 * reluctance
            if better is None:
                break
            gained, kept = kept.objective - better.objective, better
            if gained < _ENOUGH * kept.objective:
                break
            reluctance = max(1.0, reluctance / 2)
        return kept.dropped

    def _begin(self, context: StepContext, dropped: Tensor) -> _Kept:
        columns = (~dropped).nonzero()[:, 0]
        effect = ops.window_dot(context.fisher.grads, torch.where(dropped, context.weights, 0)[None])[0]
        return self._solve(context, dropped, self._gram(context, columns), effect)

    def _exchanged(self, context: StepContext, kept: _Kept, dropped: Tensor) -> _Kept:
        come, go = (kept.dropped & ~dropped).nonzero()[:, 0], (dropped & ~kept.dropped).nonzero()[:, 0]
        gram = kept.gram + self._gram(context, come) - self._gram(context, go)
        effect = kept.effect.clone()
        for columns, sign in ((come, -1.0), (go, 1.0)):
            for piece in columns.split(_COLUMNS_AT_ONCE):
                effect += sign * (context.fisher.grads.index_select(1, piece) @ context.weights[piece]).double()
        return self._solve(context, dropped, gram, effect)

    def _solve(self, context: StepContext, dropped: Tensor, gram: Tensor, effect: Tensor) -> _Kept:
        fisher = context.fisher
        factor = factor_capacitance(gram, fisher.rank * fisher.damping)
        solved = torch.cholesky_solve(effect[:, None], factor)[:, 0]
        lost = context.weights[dropped].double().square().sum() + effect @ solved
        return _Kept(dropped, gram, effect, factor, solved, 0.5 * fisher.damping * float(lost))

    def _gram(self, context: StepContext, columns: Tensor) -> Tensor:
        grads = context.fisher.grads
        total = torch.zeros((grads.shape[0], grads.shape[0]), dtype=torch.float64, device=grads.device)
        for piece in columns.split(_COLUMNS_AT_ONCE) if columns.numel() else ():
            total += ops.gram(grads.index_select(1, piece))
        return total

    def _changes(self, context: StepContext, kept: _Kept) -> Tensor:
        """By how much the objective changes when each weight alone changes sides, [n] float64."""
        fisher = context.fisher
        moved = context.weights.double()[None].clone()
        ops.window_combine_(moved, fisher.grads, kept.solved[None].contiguous(), 1.0, 1.0)  # w + Gᵀ C_S⁻¹ u
        norms = whitened_norms(fisher.grads, kept.factor)
        left = torch.where(kept.dropped, 1 + norms, (1 - norms).clamp(min=1e-9))
        return moved[0].square() * (0.5 * fisher.damping) / left
