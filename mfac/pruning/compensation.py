"""Compensation: how the kept weights move when others are dropped, to keep the quadratic model's loss low.

All three work on the weights still alive, with F the Fisher over them: δ is the change of the weights, δ_D = -w_D on
the dropped set D, and the kept set S is what compensation is about (docs/derivation.md, "Pruning").
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops
from mfac.curvature.fisher import EmpiricalFisher

COMPENSATIONS = ("joint", "summed", "none")


def joint_update(fisher: EmpiricalFisher, kept_fisher: EmpiricalFisher, weights: Tensor, dropped: Tensor) -> Tensor:
    """The exact minimiser of ½ δᵀFδ over the kept weights: δ_S = F_SS⁻¹ F_SD w_D.

    By push-through it is δ_S = G_Sᵀ (nλI + G_S G_Sᵀ)⁻¹ (G_D w_D), one product with a combination of the kept columns.

    Args:
        fisher: F over the live weights, full.
        kept_fisher: F_SS: the same gradients and λ, restricted to the kept weights.
        weights: w, [d], in the gradients' dtype.
        dropped: Mask of D, [d].

    Returns:
        δ, [d] float64, with δ_D = -w_D. O(dm).
    """
    effect = ops.window_dot(fisher.grads, torch.where(dropped, weights, 0)[None])[0]  # G_D w_D, [m]
    delta = -weights.double() * dropped
    delta[~dropped] = kept_fisher.ihvp_of_combination(effect).double() / fisher.rank
    return delta


def joint_update_of_blocks(fisher: EmpiricalFisher, weights: Tensor, dropped: Tensor) -> Tensor:
    """`joint_update` for a block-diagonal F: the blocks stay where they are, dropped columns are zeroed within them.

    Args:
        fisher: F over the live weights, block-diagonal.
        weights: w, [d], in the gradients' dtype.
        dropped: Mask of D, [d].

    Returns:
        δ, [d] float64, with δ_D = -w_D. O(dm · min(m, B)).
    """
    coupling = fisher.matvec(torch.where(dropped, weights, 0))  # on S: F_SD w_D
    kept_fisher = EmpiricalFisher(fisher.grads * ~dropped, fisher.damping, fisher.block_size)
    moved = kept_fisher.ihvp(torch.where(dropped, 0, coupling))
    return torch.where(dropped, -weights, moved).double()


def summed_update(fisher: EmpiricalFisher, inverse_diagonal: Tensor, weights: Tensor, dropped: Tensor) -> Tensor:
    """The sum of single-weight OBS updates, as if dropped weights were independent: δ = -F⁻¹ Σ_p (w_p/(F⁻¹)_pp) e_p.

    Source: M-FAC's own pruner; WoodFisher and oBERT use the same sum.

    Args:
        fisher: F over the live weights.
        inverse_diagonal: diag(F⁻¹), [d].
        weights: w, [d].
        dropped: Mask of D, [d].

    Returns:
        δ, [d] float64, with δ_D = -w_D. O(dm).
    """
    delta = fisher.ihvp(torch.where(dropped, -weights / inverse_diagonal, 0)).double()
    return torch.where(dropped, -weights.double(), delta)


def no_update(weights: Tensor, dropped: Tensor) -> Tensor:
    """δ = -w_D alone, as Optimal Brain Damage: [d] float64."""
    return -weights.double() * dropped


def predicted_increase(fisher: EmpiricalFisher, delta: Tensor) -> float:
    """½ δᵀFδ, what the quadratic model says that δ costs, in units of the loss. O(dm)."""
    d = delta.to(fisher.dtype)
    return 0.5 * float(d.double() @ fisher.matvec(d).double())
