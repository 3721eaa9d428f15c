"""Compensation: how kept weights move when others drop, to keep the quadratic model's loss low.

All work on the weights still alive, with F the Fisher over them: δ is the change of the weights,
δ_D = -w_D on the dropped set D, and the kept set S is what compensation is about
(docs/derivation.md, "Pruning"). To add one, derive from `Compensation`, and give `prune` the object
or add its name to `COMPENSATIONS` (docs/extending/compensation.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.numbers import check_count, check_number
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.threads import one_thread
from mfac.pruning.blocks import COLUMNS_AT_ONCE, block_factors, factored
from mfac.pruning.context import StepContext
from mfac.pruning.returned import check_update

CompensationName = Literal["auto", "joint", "summed", "greedy", "shrunk", "none"]


class Compensation(ABC):
    """Says how the weights of a step move. Derive from it: docs/extending/compensation.md.

    Attributes:
        needs_fisher: Whether gradients have to be collected for the compensation.
        evaluations: How often a step asks for the loss on held-out batches, with
            `StepContext.loss_after`.
    """

    needs_fisher: bool = True
    evaluations: int = 0

    @abstractmethod
    def update(self, context: StepContext) -> Tensor:
        """The change of the live weights.

        Args:
            context: The step, with what it drops.

        Returns:
            δ, [n] float64, with δ = -w where a weight is dropped.
        """


class Joint(Compensation):
    """The exact minimiser of ½ δᵀFδ over the kept weights: δ_S = F_SS⁻¹ F_SD w_D.

    A full F takes the push-through form δ_S = G_Sᵀ (nλI + G_S G_Sᵀ)⁻¹ (G_D w_D), one product with a
    combination of the kept columns. In a block-diagonal F the blocks stay where they are: dropped
    columns are zeroed within them.
    """

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64. O(nm), beyond factoring F over the kept weights."""
        fisher, weights, dropped = context.fisher, context.weights, context.dropped
        if fisher.block_size is not None:
            return _joint_update_of_blocks(fisher, weights, dropped)
        effect = fisher.dot(torch.where(dropped, weights, 0))  # G_D w_D, [m]
        delta = -weights.double() * dropped
        delta[~dropped] = context.kept_fisher.ihvp_of_combination(effect).double() / fisher.rank
        return delta


def _joint_update_of_blocks(fisher: EmpiricalFisher, weights: Tensor, dropped: Tensor) -> Tensor:
    coupling = fisher.matvec(torch.where(dropped, weights, 0))  # on S: F_SD w_D
    kept_fisher = EmpiricalFisher(fisher.grads * ~dropped, fisher.damping, fisher.block_size)
    moved = kept_fisher.ihvp(torch.where(dropped, 0, coupling))
    return torch.where(dropped, -weights, moved).double()


class Summed(Compensation):
    """The sum of single-weight OBS updates: δ = -F⁻¹ Σ_p (w_p/(F⁻¹)_pp) e_p.

    Dropped weights are taken for independent of each other.

    Source: M-FAC's own pruner; WoodFisher and oBERT use the same sum.
    """

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64. O(nm)."""
        weights, dropped = context.weights, context.dropped
        delta = context.fisher.ihvp(torch.where(dropped, -weights / context.inverse_diagonal, 0)).double()
        return torch.where(dropped, -weights.double(), delta)


class GreedyInBlocks(Compensation):
    """Weights drop one by one inside blocks of the Fisher; the block's others adapt exactly.

    The exact elimination of one weight after the other ends at the block's own joint minimiser, in
    whatever order. So the minimiser is computed: δ_S = F_SS⁻¹ F_SD w_D in each block. The
    compensation goes with saliency "greedy" of the same blocks.

    Source: CAP (Kuznedelev et al. 2022, 2210.09223), section 3.

    Args:
        block_size: B, successive live weights.
    """

    def __init__(self, block_size: int = 64) -> None:
        self.block_size = check_count("block_size", block_size, least=1)

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64. O(nmB + nB²)."""
        weights, dropped = context.weights.double(), context.dropped
        delta = -weights * dropped
        with one_thread():
            for columns, _, factors in block_factors(context.fisher, self.block_size):
                gone = dropped[columns].view(-1, factors.shape[1])
                if not bool(gone.any()):
                    continue
                blocks = torch.bmm(factors.mT, factors)
                lost = (weights[columns] * dropped[columns]).view_as(gone)
                coupling = torch.bmm(blocks, lost[:, :, None]).masked_fill_(gone[:, :, None], 0)  # on S: F_SD w_D
                factors = _factored_on_kept_(blocks, gone, context.fisher.damping)
                delta[columns] += torch.cholesky_solve(coupling, factors).view(-1)
        return delta


def _factored_on_kept_(blocks: Tensor, gone: Tensor, damping: float) -> Tensor:
    """Lower factors of blocks [c, B, B] over their kept weights; ones for those that are gone."""
    blocks.masked_fill_(gone[:, :, None] | gone[:, None, :], 0)
    blocks.diagonal(dim1=1, dim2=2).masked_fill_(gone, 1)
    return factored(blocks, damping)


class Shrunk(Compensation):
    """The exact minimiser of ½ δᵀMδ over the kept weights, for M between F and its diagonal blocks.

    M = sF + (1 - s)F_B, with F_B the blocks of F and nothing between them. m gradients of far more
    weights say little of what joins one block to another, and that little is mostly chance:
    shrinking it towards zero is what Ledoit and Wolf do to covariances. s = 1 is `Joint`, s = 0 is
    `GreedyInBlocks`. A block-diagonal F, and one of a single block, have nothing to shrink.

    Source: Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
    (2004). Numbered differences: (1) the target is block diagonal; (2) s is given, as their
    estimate of it did no better than one half.

    Args:
        share: s, in (0, 1).
        block_size: B, successive live weights.

    Raises:
        ValueError: If the share is out of range, or the block has no weight.
    """

    def __init__(self, share: float = 0.5, block_size: int = 64) -> None:
        self.share = check_number("share", share, above=0.0, below=1.0)
        self.block_size = check_count("block_size", block_size, least=1)

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64. O(nm² + nmB + nB²), in two passes."""
        fisher, dropped = context.fisher, context.dropped
        if fisher.block_size is not None or fisher.dim <= self.block_size:
            return Joint().update(context)
        share, weights = self.share / fisher.rank, context.weights.double()
        # With A the inverse of (1 - s)F_B + sλI over S, and U = √(s/m) G_S:
        # M_SS⁻¹ = A - AUᵀ(I + UAUᵀ)⁻¹UA, and M_SD w_D is (1 - s)(F_B)_SD w_D + s/m G_Sᵀ(G_D w_D).
        effect = fisher.dot(torch.where(dropped, context.weights, 0))  # G_D w_D, [m]
        moved = torch.zeros_like(weights)
        inner = weights.new_zeros(fisher.rank, fisher.rank)  # G_S A G_Sᵀ
        seen = torch.zeros_like(effect)  # G_S A M_SD w_D
        for columns, tile, blocks, factors, gone in self._parts(fisher, dropped):
            with one_thread():
                lost = (weights[columns] * dropped[columns]).view_as(gone)
                coupling = torch.bmm(blocks, lost[:, :, None])[:, :, 0]
                coupling += share * (effect @ tile).view_as(gone)
                moved[columns] = _solved(coupling, factors, gone)
                seen += tile @ moved[columns]
                rows = tile.masked_fill(dropped[columns], 0).view(fisher.rank, *gone.shape).transpose(0, 1)
                halves = torch.linalg.solve_triangular(factors.mT, rows, upper=True, left=False)  # [c, m, B]
                halves = halves.transpose(0, 1).reshape(fisher.rank, -1).contiguous()
            inner += ops.gram(halves)
        inner.mul_(share).diagonal().add_(1)
        combination = torch.cholesky_solve(seen[:, None], torch.linalg.cholesky(inner))[:, 0]
        for columns, tile, _, factors, gone in self._parts(fisher, dropped):
            with one_thread():
                moved[columns] -= share * _solved((combination @ tile).view_as(gone), factors, gone)
        return torch.where(dropped, -weights, moved)

    def _parts(
        self, fisher: EmpiricalFisher, dropped: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """Columns, their gradients in float64, (1 - s)F_B, lower factors of A⁻¹, what is gone."""
        for all_columns, tile, upper in block_factors(fisher, self.block_size):
            width = upper.shape[1]
            step = max(1, COLUMNS_AT_ONCE // width)
            for first, some in zip(range(0, len(upper), step), upper.split(step), strict=True):
                begin, size = first * width, len(some) * width
                columns = slice(all_columns.start + begin, all_columns.start + begin + size)
                gone = dropped[columns].view(-1, width)
                with one_thread():
                    blocks = torch.bmm(some.mT, some).mul_(1 - self.share)
                    own = blocks.clone()
                    own.diagonal(dim1=1, dim2=2).add_(self.share * fisher.damping)
                    factors = _factored_on_kept_(own, gone, fisher.damping)
                yield columns, tile[:, begin : begin + size].double(), blocks, factors, gone


def _solved(right: Tensor, factors: Tensor, gone: Tensor) -> Tensor:
    """Solutions within blocks, [c·B], for right-hand sides [c, B]; zero for what is gone."""
    return torch.cholesky_solve(right.masked_fill(gone, 0)[:, :, None], factors).view(-1)


class NoCompensation(Compensation):
    """δ = -w on the dropped weights alone, as Optimal Brain Damage."""

    needs_fisher = False

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64."""
        return -context.weights.double() * context.dropped


class LeastLoss(Compensation):
    """At every step the candidate with the least loss on held-out batches.

    m gradients say little of the whole F of far more weights, and much of its blocks. How far what
    joins one block to another serves a step differs between networks, and from step to step. Where
    few weights are left for each gradient, or F is block diagonal, F is known well, and the first
    candidate is taken without a look at the loss.

    The loss has to rise as the network gets worse. With a loss that does not, such as a random
    projection of the outputs, choose a compensation by name.

    Args:
        *candidates: Compensations; none for `Joint` and `GreedyInBlocks`.
        known: Up to how many live weights for each gradient the first candidate is taken.

    Raises:
        TypeError: If a candidate is something else.
    """

    def __init__(self, *candidates: Compensation, known: int = 8) -> None:
        for candidate in candidates:
            if not isinstance(candidate, Compensation):
                raise TypeError(
                    f"Parameter `candidates` should be mfac.Compensation objects. Found {type(candidate).__name__}."
                )
        self.candidates, self.known = candidates or (Joint(), GreedyInBlocks()), check_count("known", known)
        self.needs_fisher = any(candidate.needs_fisher for candidate in self.candidates)
        self.evaluations = len(self.candidates) + sum(candidate.evaluations for candidate in self.candidates)

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64. The cost of all candidates, and of the loss after each."""
        if context.has_fisher and _is_known(context.fisher, self.known):
            return self.candidates[0].update(context)
        size = context.weights.numel()
        updates = (check_update(candidate, candidate.update(context), size) for candidate in self.candidates)
        return context.least_loss(updates)[0]


def _is_known(fisher: EmpiricalFisher, weights_a_gradient: int) -> bool:
    return fisher.block_size is not None or fisher.dim <= weights_a_gradient * fisher.rank


COMPENSATIONS: Mapping[str, Callable[[], Compensation]] = {
    "auto": LeastLoss,
    "joint": Joint,
    "summed": Summed,
    "greedy": GreedyInBlocks,
    "shrunk": Shrunk,
    "none": NoCompensation,
}
"""By name; a compensation of your own is added here, or given as an object."""


def predicted_increase(fisher: EmpiricalFisher, delta: Tensor) -> float:
    """½ δᵀFδ, what the quadratic model says that δ costs, in units of the loss. O(nm)."""
    d = delta.to(fisher.dtype)
    return 0.5 * float(d.double() @ fisher.matvec(d).double())
