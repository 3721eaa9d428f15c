"""‖(L⁻¹G)_:i‖² for every column of a window, which the diagonal of F⁻¹ is made of; in float32 where a bound allows it.

With s = ‖(L⁻¹G)_:i‖² the diagonal is (1 - s)/λ, and s is small where d is much larger than m, as Σ s <= m. It can then
be computed in float32, and from a capacitance whose products were summed in float32, at twice the speed of float64.
Both errors are bounded beforehand or on the way (docs/derivation.md, "Precision"); what the bound does not cover is
done in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfac import ops

_U = 2.0**-24  # unit roundoff of float32
_SMALLEST_NORMAL = 2.0**-126
_SINGLE_ERROR = 2.0**-18  # relative error of 1 - s that float32 arithmetic may have by its bound
_SINGLE_DEPTH = 64  # kSingleDepth in csrc/isa/kernels.h
_SMALLEST_LIMIT = 1e-4  # of s: where d is 10 000 times m, as far as it goes, the mean is at most that
_MOST_UNCERTAIN = 8  # where more than one in so many columns is above the limit, all are done in float64
_COLUMNS_AT_ONCE = 1024  # gathered at a time
_SAMPLED_COLUMNS, _SAMPLES = 4, 4  # for every row of the window; pieces that they come in
# The smallest eigenvalue of a Gram matrix of m independent rows of 4m columns is (1 - √¼)² = ¼ of the mean one, that of
# many more columns close to the mean; row sums of the inverse add another factor of about 2.
_SAMPLE_IS_WORSE = 8


def whitened_norms(window: Tensor, factor: Tensor) -> Tensor:
    """‖(L⁻¹G)_:i‖² for every column.

    Args:
        window: G, [m, d].
        factor: L, the lower Cholesky factor of C, [m, m] float64.

    Returns:
        [d] float64; m²d flops. Of a float32 window in float32 where the error of 1 - s is bounded by 2⁻¹⁸ of it.
    """
    inverse = _inverse(factor)
    if window.dtype == torch.float32:
        limit = _limit(_product_error(factor, inverse), 0.0)
        if limit >= _SMALLEST_LIMIT and _fits_single(inverse):
            norms = ops.whitened_norms(window, inverse, True)
            uncertain = _above(norms, limit)
            if uncertain.numel() <= window.shape[1] // _MOST_UNCERTAIN:
                for columns in uncertain.split(_COLUMNS_AT_ONCE) if uncertain.numel() else ():
                    norms[columns] = ops.whitened_norms(window[:, columns].contiguous(), inverse, False)
                return norms
    return ops.whitened_norms(window, inverse, False)


class SingleFactor(NamedTuple):
    """L⁻¹ of a C formed in float32, [m, m] float64, and the largest s that it gives within the bound."""

    inverse: Tensor
    limit: float

    def whitened_norms(self, window: Tensor) -> Tensor | None:
        """‖(L⁻¹G)_:i‖², [d] float64, m²d flops in float32; None where a column's is above the limit."""
        norms = ops.whitened_norms(window, self.inverse, True)
        return norms if bool(norms.max() <= self.limit) else None  # a NaN is not


def single_factor(window: Tensor, squared_norms: Tensor, shift: float) -> SingleFactor | None:
    """What `whitened_norms` takes, with C formed in float32 too.

    Args:
        window: G, [m, d] float32.
        squared_norms: ‖g_i‖², [m] float64.
        shift: nλ.

    Returns:
        The factor, m²d flops in float32; or None where it would bound the error of 1 - s by 2⁻¹⁸ of it for few columns,
        if any. Whether that is so is mostly found out first, from a sample of columns.
    """
    trace = float(squared_norms.sum())
    if not _sample_allows(window, trace, shift):
        return None
    factor, failed = shifted_cholesky(ops.gram(window, True), shift)
    if int(failed):
        return None
    inverse = _inverse(factor)
    limit = _limit(_product_error(factor, inverse), _gram_error(factor, trace, window.shape[1]))
    return SingleFactor(inverse, limit) if limit >= _SMALLEST_LIMIT and _fits_single(inverse) else None


def single_may_do(window: Tensor) -> bool:
    """Whether the shape and dtype are such that `single_factor` can be of use."""
    rank, dim = window.shape
    return window.dtype == torch.float32 and dim >= 16 * rank and rank * dim >= 1 << 20


def shifted_cholesky(gram: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of shift·I + K, and 0 or the number of the row where it failed, counted from 1."""
    capacitance = gram.clone()
    capacitance.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(capacitance)
    return factor, failed


def _inverse(factor: Tensor) -> Tensor:
    """L⁻¹, [m, m]."""
    eye = torch.eye(factor.shape[0], dtype=torch.float64, device="cpu")
    return torch.linalg.solve_triangular(factor, eye, upper=False).contiguous()


def _product_error(factor: Tensor, inverse: Tensor) -> float:
    """ρ: s = ‖(L⁻¹G)_:i‖² in float32 is off by at most ρs."""
    # A sum of m products is off by at most (m + 2)u of the sum of their magnitudes, so that with κ >= ‖|L⁻¹|‖ ‖|L|‖
    # ρ = (m + 2)u(2κ + 1).
    condition = _norm_of_magnitudes(factor) * _norm_of_magnitudes(inverse)
    return (factor.shape[0] + 2) * _U * (2 * condition + 1)


def _gram_error(factor: Tensor, trace: float, dim: int) -> float:
    """ε: s from a C whose products were summed in float32 is off by at most εs."""
    # Sums of 64 products are off by at most 64u Σ|g_ik g_jk| <= 64u ‖g_i‖ ‖g_j‖, K therefore by at most 64u tr K in the
    # Frobenius norm; s = gᵀC⁻¹g by at most that times ‖C⁻¹‖ of itself, ‖C⁻¹‖ being known from the C that was formed.
    # Where the processor takes subnormal numbers for zero, each of the d products may lose 2⁻¹²⁶ besides.
    error = (_SINGLE_DEPTH + 1) * _U * trace + factor.shape[0] * dim * _SMALLEST_NORMAL
    inverse_norm = float(torch.cholesky_inverse(factor).abs().sum(0).max())  # >= its 2-norm, as it is symmetric
    left = 1 - error * inverse_norm
    return error * inverse_norm / left if left > 0 else float("inf")


def _limit(rho: float, epsilon: float) -> float:
    """The largest s for which an error of (ρ + ε)s, to first order, is within the bound on 1 - s."""
    return _SINGLE_ERROR / (_SINGLE_ERROR + rho + epsilon + rho * epsilon)


def _sample_allows(window: Tensor, trace: float, shift: float) -> bool:
    """Whether columns taken here and there say that most of s will be below the limit."""
    rank, dim = window.shape
    width = _SAMPLED_COLUMNS * rank // _SAMPLES
    starts = range(0, dim - width + 1, (dim - width) // (_SAMPLES - 1))
    sample = torch.cat([window[:, start : start + width] for start in starts], dim=1)
    factor, failed = shifted_cholesky(ops.gram(sample, True).mul_(dim / sample.shape[1]), shift)
    if int(failed):
        return False
    epsilon = _gram_error(factor, trace / _SAMPLE_IS_WORSE, dim)
    return _limit(0.0, epsilon) >= max(_SMALLEST_LIMIT, rank / dim)


def _above(norms: Tensor, limit: float) -> Tensor:
    """The columns whose s is above the limit or not a number."""
    return (~(norms <= limit)).nonzero()[:, 0]


def _norm_of_magnitudes(matrix: Tensor) -> float:
    """A bound on the spectral norm of |A|: the geometric mean of the largest row and column sums."""
    magnitudes = matrix.abs()
    return float(magnitudes.sum(0).max() * magnitudes.sum(1).max()) ** 0.5


def _fits_single(matrix: Tensor) -> bool:
    """Whether products with the largest entries are far from float32's range, so that its relative errors hold."""
    return bool((matrix.abs().max() < 1e15) & (matrix.diagonal().abs().min() > 1e-15))
