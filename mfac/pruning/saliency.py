"""Saliencies: what the loss is thought to lose with each weight."""

from __future__ import annotations

from torch import Tensor

from mfac.core import ops

SALIENCIES = ("obs", "magnitude")


def obs_saliency(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """ρ_p = w_p² / (2 (F⁻¹)_pp), the quadratic model's increase when weight p alone goes and the others adapt.

    Source: Optimal Brain Surgeon (Hassibi, Stork 1992), equation 5.

    Args:
        weights: w, [d].
        inverse_diagonal: diag(F⁻¹), [d].

    Returns:
        ρ >= 0, [d] float64, in units of the loss.
    """
    return ops.obs_saliency(weights, inverse_diagonal.contiguous())


def magnitude_saliency(weights: Tensor) -> Tensor:
    """|w_p|, [d]."""
    return weights.abs()
