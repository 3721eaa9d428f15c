"""Optimal Brain Surgeon's saliency, of weights and of units of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops
from mfac.curvature.dual import factor_capacitance
from mfac.curvature.fisher import EmpiricalFisher
from mfac.masks.patterns import Units
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.base import Saliency

_WEIGHTS_AT_ONCE = 256  # whose entries of F⁻¹ are computed together: [256, 256], small beside m columns


class OBS(Saliency):
    """ρ_p = w_p² / (2 (F⁻¹)_pp): the rise of the quadratic model when p goes and others adapt.

    A unit Q of several weights, such as a block or a filter, has ρ_Q = ½ w_Qᵀ ((F⁻¹)_QQ)⁻¹ w_Q,
    exactly.

    Source: Optimal Brain Surgeon (Hassibi, Stork 1992), equation 5; for units oBERT (Kurtic et al.
    2022), equation 4.
    """

    def scores(self, context: StepContext) -> Tensor:
        """ρ, [n] float64, in units of the loss. One pass beyond the diagonal of F⁻¹."""
        return ops.obs_saliency(context.weights, context.inverse_diagonal.contiguous())

    def unit_scores(self, context: StepContext, units: Units) -> Tensor | None:
        """ρ of every unit, [u] float64; O(m²) a weight, and O(s³ + ms²) a unit of s < m weights."""
        if units.unit_of is None or units.sizes is None:
            return None
        return group_scores(context.fisher, context.weights, units.unit_of, units.scores.numel())


def group_scores(fisher: EmpiricalFisher, weights: Tensor, unit_of: Tensor, count: int) -> Tensor:
    """½ w_Qᵀ ((F⁻¹)_QQ)⁻¹ w_Q for every unit.

    In a block-diagonal F a unit is the sum of its parts in the blocks.

    Args:
        fisher: F over the n live weights.
        weights: w, [n].
        unit_of: The unit of each weight, [n] int64, -1 for none.
        count: How many units there are.

    Returns:
        [count] float64, >= 0.
    """
    members = (unit_of >= 0).nonzero()[:, 0]
    part = unit_of[members]
    if fisher.block_size is not None:
        blocks = -(-fisher.dim // fisher.block_size)
        part = part * blocks + members // fisher.block_size
    order = torch.argsort(part, stable=True)
    members = members[order]
    lengths = part[order].unique_consecutive(return_counts=True)[1]
    starts = lengths.cumsum(0) - lengths
    scores = torch.zeros(count, dtype=torch.float64, device=weights.device)
    gram: Tensor | None = None
    for length in lengths.unique().tolist():
        begin = starts[lengths == length]
        index = members[begin[:, None] + torch.arange(length, device=begin.device)]  # [units, length]
        if length > fisher.rank and fisher.block_size is None:
            gram = fisher.gram() if gram is None else gram
            found = torch.stack([_wide_unit(fisher, gram, weights, unit) for unit in index])
        else:
            pieces = index.split(max(1, _WEIGHTS_AT_ONCE // length))
            found = torch.cat([_narrow_units(fisher, weights, piece) for piece in pieces])
        scores.index_add_(0, unit_of[index[:, 0]], found)
    return scores


def _narrow_units(fisher: EmpiricalFisher, weights: Tensor, index: Tensor) -> Tensor:
    """ρ of units of s weights, index [k, s]: the diagonal blocks of one submatrix of F⁻¹."""
    k, s = index.shape
    flat = index.reshape(-1)
    inverse = fisher.inverse_submatrix(flat, flat).double().view(k, s, k, s)
    blocks = inverse.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [k, s, s]
    w = weights[index].double()
    factor, failed = torch.linalg.cholesky_ex(blocks)
    if bool((failed > 0).any()):  # F⁻¹ cancels below the rounding of float32: its diagonal alone is still known
        bad = failed > 0
        factor[bad] = torch.diag_embed(blocks[bad].diagonal(dim1=1, dim2=2).clamp(min=1e-300).sqrt())
    half = torch.linalg.solve_triangular(factor, w[:, :, None], upper=False)[:, :, 0]
    return 0.5 * half.square().sum(1)


def _wide_unit(fisher: EmpiricalFisher, gram: Tensor, weights: Tensor, unit: Tensor) -> Tensor:
    """ρ of a unit of > m weights: λ/2 (‖w_Q‖² + uᵀ C_S⁻¹ u), u = G_Q w_Q, C_S without Q."""
    columns, w = fisher.columns(unit), weights[unit].double()
    factor = factor_capacitance(gram - ops.gram(columns), fisher.rank * fisher.damping)
    half = torch.linalg.solve_triangular(factor, (columns.double() @ w)[:, None], upper=False)
    return 0.5 * fisher.damping * (w.square().sum() + half.square().sum())
