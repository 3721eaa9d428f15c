"""Compensation: how kept weights move when others drop, to keep the quadratic model's loss low.

All work on the weights still alive, with F the Fisher over them: δ is the change of the weights,
δ_D = -w_D on the dropped set D, and the kept set S is what compensation is about
(docs/derivation.md, "Pruning"). To add one, derive from `Compensation`, and give `prune` the object
or add its name to `COMPENSATIONS` (docs/extending/compensation.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_count
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.threads import one_thread
from mfac.pruning.blocks import block_factors, factored
from mfac.pruning.context import StepContext
from mfac.pruning.returned import check_update

CompensationName = Literal["auto", "joint", "summed", "greedy", "none"]


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
            for columns, factors in block_factors(context.fisher, self.block_size):
                gone = dropped[columns].view(-1, factors.shape[1])
                if not bool(gone.any()):
                    continue
                blocks = torch.bmm(factors.mT, factors)
                lost = (weights[columns] * dropped[columns]).view_as(gone)
                coupling = torch.bmm(blocks, lost[:, :, None]).masked_fill_(gone[:, :, None], 0)  # on S: F_SD w_D
                blocks.masked_fill_(gone[:, :, None] | gone[:, None, :], 0)
                blocks.diagonal(dim1=1, dim2=2).masked_fill_(gone, 1)
                delta[columns] += torch.cholesky_solve(coupling, factored(blocks, context.fisher.damping)).view(-1)
        return delta


class NoCompensation(Compensation):
    """δ = -w on the dropped weights alone, as Optimal Brain Damage."""

    needs_fisher = False

    def update(self, context: StepContext) -> Tensor:
        """δ, [n] float64."""
        return -context.weights.double() * context.dropped


class LeastLoss(Compensation):
    """At every step the candidate with the least loss on held-out batches.

    m gradients say little of the whole F of far more weights. They say much of its blocks, which
    leave out what joins one block to another. Which of the two serves a step better differs between
    networks, and from step to step. Where few weights are left for each gradient, or F is block
    diagonal, F is known well, and the first candidate is taken without a look at the loss.

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
    "none": NoCompensation,
}
"""By name; a compensation of your own is added here, or given as an object."""


def predicted_increase(fisher: EmpiricalFisher, delta: Tensor) -> float:
    """½ δᵀFδ, what the quadratic model says that δ costs, in units of the loss. O(nm)."""
    d = delta.to(fisher.dtype)
    return 0.5 * float(d.double() @ fisher.matvec(d).double())
