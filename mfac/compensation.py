"""Compensation: how the kept weights move when others are dropped, to keep the quadratic model's loss low.

All three work on the weights still alive, with F the Fisher over them: δ is the change of the weights, δ_D = -w_D on
the dropped set D, and the kept set S is what compensation is about (docs/derivation.md, "Pruning").
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfac import ops
from mfac.fisher import EmpiricalFisher

COMPENSATIONS = ("joint", "summed", "none")


def joint_update(grads: Tensor, weights: Tensor, dropped: Tensor, damping: float, block_size: int | None) -> Tensor:
    """The exact minimiser of ½ δᵀFδ over the kept weights: δ_S = F_SS⁻¹ F_SD w_D.

    For the full Fisher it is δ_S = G_Sᵀ (nλI + G_S G_Sᵀ)⁻¹ (G_D w_D), in the push-through form.

    Args:
        grads: G over the live weights, [m, d], d >= 1.
        weights: w, [d], in the same dtype.
        dropped: Mask of D, [d].
        damping: λ.
        block_size: Of a block-diagonal F, or None.

    Returns:
        δ, [d] float64. O(dm²).
    """
    delta = -weights.double() * dropped
    if bool(dropped.all()):
        return delta
    if block_size is None:
        effect = ops.window_dot(grads, torch.where(dropped, weights, 0)[None])[0]  # G_D w_D, [m]
        kept_fisher = EmpiricalFisher(grads[:, ~dropped], damping)
        delta[~dropped] = kept_fisher.ihvp_of_combination(effect).double() / grads.shape[0]
        return delta
    fisher = EmpiricalFisher(grads, damping, block_size)
    coupling = fisher.matvec(torch.where(dropped, weights, 0))  # on S: F_SD w_D
    kept_fisher = EmpiricalFisher(grads * ~dropped, damping, block_size)
    delta[~dropped] = kept_fisher.ihvp(torch.where(dropped, 0, coupling))[~dropped].double()
    return delta


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
