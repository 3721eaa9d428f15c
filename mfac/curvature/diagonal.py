"""‖(L⁻¹G)_:i‖² for every column of a window, which the diagonal of F⁻¹ is made of; in float32 where a bound allows it.

With s = ‖(L⁻¹G)_:i‖² the diagonal is (1 - s)/λ, and s is small where d is much larger than m, as Σ s <= m. It can then
be computed in float32, and from a capacitance whose products were summed in float32, at twice the speed of float64.
The errors are bounded on the way (docs/derivation.md, "Precision"); what the bound does not cover is done in float64.

What `DualFisher` decides with this, in turn:
1. `single_may_do`: by shape and dtype, whether C is not formed at once, in case the diagonal alone is asked for.
2. `single_factor`: where a sample of columns allows it, C and its factor from a float32 Gram matrix.
3. `SingleFactor.whitened_norms`: with that factor; None if the bound does not cover every column.
4. `whitened_norms`: otherwise, with the float64 factor. A sample says whether most columns may be done in float32; the
   others follow in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfac.core import ops

_U = 2.0**-24  # unit roundoff of float32
_SMALLEST_NORMAL = 2.0**-126
_SINGLE_ERROR = 2.0**-18  # relative error of 1 - s that float32 arithmetic may have by its bound
# The longest chain in float32 is one of 64 products and four sums of them (csrc/curvature/gram/), 68 roundings. In
# pairs (csrc/cpu/paired.inl) it is one of 20 terms, two additions in one and seven sums, 29, relative to at most
# ½‖a‖² + ‖a‖ ‖b‖ + ½‖b‖² <= 9/4 ‖a‖ ‖b‖, as norms are scaled into [√½, √2).
_GRAM_ROUNDINGS = 68
_SMALLEST_LIMIT = 1e-4  # of s, below which a float32 C is not tried
_ONE_UNCERTAIN_IN = 8  # columns, at most, or all are done in float64
_COLUMNS_AT_ONCE = 1024  # gathered at a time
_SAMPLED_COLUMNS = 4  # for every row of the window, in pieces
_PIECE, _FEWEST_PIECES = 16, 16  # columns of a piece, a line of cache; pieces of a sample
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
    if window.dtype == torch.float32 and _fits_single(inverse) and _most_are_certain(window, inverse):
        norms, errors = ops.whitened_norms(window, inverse, True)
        uncertain = _uncertain(norms, errors).nonzero()[:, 0]
        if _are_few(uncertain.numel(), norms.numel()):
            for columns in uncertain.split(_COLUMNS_AT_ONCE) if uncertain.numel() else ():
                norms[columns] = ops.whitened_norms(window.index_select(1, columns), inverse, False)[0]
            return norms
    return ops.whitened_norms(window, inverse, False)[0]


class SingleFactor(NamedTuple):
    """L⁻¹ of a C formed in float32, [m, m] float64, and the error of s relative to it that comes with that."""

    inverse: Tensor
    error: float

    def whitened_norms(self, window: Tensor) -> Tensor | None:
        """‖(L⁻¹G)_:i‖², [d] float64, m²d flops in float32; None where 1 - s may be off by more than 2⁻¹⁸ of it."""
        norms, errors = ops.whitened_norms(window, self.inverse, True)
        return None if bool(_uncertain(norms, errors, self.error).any()) else norms


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
    factor, failed = shifted_cholesky(ops.gram(window, True, squared_norms), shift)
    if int(failed):
        return None
    inverse = _inverse(factor)
    error = _gram_error(factor, trace, window.shape[1])
    return SingleFactor(inverse, error) if _limit(error) >= _SMALLEST_LIMIT and _fits_single(inverse) else None


def single_may_do(window: Tensor) -> bool:
    """Whether the shape, dtype and device are such that `single_factor` can be of use."""
    rank, dim = window.shape
    if window.device.type != "cpu":  # cuBLAS does not say in which order it sums, so no bound holds (cuda_ops.py)
        return False
    # For few rows a float32 Gram matrix takes longer than a float64 one, as its panels are wider.
    return window.dtype == torch.float32 and rank >= 32 and dim >= 16 * rank and rank * dim >= 1 << 20


def shifted_cholesky(gram: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor of shift·I + K, and 0 or the number of the row where it failed, counted from 1."""
    capacitance = gram.clone()
    capacitance.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(capacitance)
    return factor, failed


def _inverse(factor: Tensor) -> Tensor:
    """L⁻¹, [m, m]."""
    eye = torch.eye(factor.shape[0], dtype=torch.float64, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).contiguous()


def _gram_error(factor: Tensor, trace: float, dim: int) -> float:
    """ε: s from a C whose products were summed in float32 is off by at most εs."""
    # Sums are off by at most 68u ‖g_i‖ ‖g_j‖, K therefore by 68u tr K in the Frobenius norm; s = gᵀC⁻¹g by at most that
    # times ‖C⁻¹‖ of itself, ‖C⁻¹‖ being known from the C that was formed.
    # Where the processor takes subnormal numbers for zero, each of the d products may lose 2⁻¹²⁶ besides.
    error = (_GRAM_ROUNDINGS + 1) * _U * trace + factor.shape[0] * dim * _SMALLEST_NORMAL
    inverse_norm = float(torch.cholesky_inverse(factor).abs().sum(0).max())  # >= its 2-norm, as it is symmetric
    left = 1 - error * inverse_norm
    return error * inverse_norm / left if left > 0 else float("inf")


def _limit(error: float) -> float:
    """The largest s for which an error of that share of it is within the bound on 1 - s."""
    return _SINGLE_ERROR / (_SINGLE_ERROR + error)


def _uncertain(norms: Tensor, errors: Tensor, relative_error: float = 0.0) -> Tensor:
    """Where 1 - s may be off by more than its bound, or is not a number: [d] bool. Overwrites `errors`."""
    # The relative error is one of the s that C as it was formed gives exactly, at most norms + errors.
    off = errors.mul_(1 + relative_error).add_(norms, alpha=relative_error)
    return ~(off.add_(norms, alpha=_SINGLE_ERROR) <= _SINGLE_ERROR)


def _are_few(count: int, of: int) -> bool:
    return count <= of // _ONE_UNCERTAIN_IN


def _sample(window: Tensor) -> Tensor:
    """Columns taken here and there, or all where d is small."""
    rank, dim = window.shape
    pieces = max(_FEWEST_PIECES, _SAMPLED_COLUMNS * rank // _PIECE)
    if dim < 2 * pieces * _PIECE:
        return window
    starts = range(0, dim - _PIECE + 1, (dim - _PIECE) // (pieces - 1))
    return torch.cat([window[:, start : start + _PIECE] for start in starts], dim=1)


def _most_are_certain(window: Tensor, inverse: Tensor) -> bool:
    """Whether few columns will have to be done in float64, by a sample; true where that would take too long to say."""
    sample = _sample(window)
    if sample is window:
        return True
    norms, errors = ops.whitened_norms(sample, inverse, True)
    return _are_few(int(_uncertain(norms, errors).sum()), norms.numel())


def _sample_allows(window: Tensor, trace: float, shift: float) -> bool:
    """Whether columns taken here and there say that all of s will be below the limit."""
    rank, dim = window.shape
    sample = _sample(window)
    factor, failed = shifted_cholesky(ops.gram(sample, True).mul_(dim / sample.shape[1]), shift)
    if int(failed):
        return False
    # The mean of s is at most m/d. Of the columns that were not looked at the largest may exceed the largest sampled as
    # that exceeds the mean.
    squares = sample.double().square_().sum(0)
    spread = float(squares.max() / squares.mean())
    limit = _limit(_gram_error(factor, trace / _SAMPLE_IS_WORSE, dim))
    return limit >= max(_SMALLEST_LIMIT, rank / dim * spread**2)


def _fits_single(matrix: Tensor) -> bool:
    """Whether products with the largest entries are far from float32's range, so that its relative errors hold."""
    return bool((matrix.abs().max() < 1e15) & (matrix.diagonal().abs().min() > 1e-15))
