"""‖(L⁻¹G)_:i‖² for every column of a window; in float32 where a bound on the errors allows it.

With s = ‖(L⁻¹G)_:i‖² the diagonal is (1 - s)/λ, and s is small where d is much larger than m, as
Σ s <= m. Float32 arithmetic is then enough, at twice the speed of float64. The kernel bounds its
errors on the way (docs/derivation.md, "Precision"). A sample says whether the bound will cover most
columns; the other columns follow in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.core import ops

_SINGLE_ERROR = 2.0**-18  # relative error of 1 - s that float32 arithmetic may have by its bound
_ONE_UNCERTAIN_IN = 8  # columns, at most, or all are done in float64
_COLUMNS_AT_ONCE = 1024  # gathered at a time
_SAMPLED_COLUMNS = 4  # for every row of the window, in pieces
_PIECE, _FEWEST_PIECES = 16, 16  # columns of a piece, a line of cache; pieces of a sample


def whitened_norms(window: Tensor, factor: Tensor) -> Tensor:
    """‖(L⁻¹G)_:i‖² for every column.

    Args:
        window: G, [m, d].
        factor: L, the lower Cholesky factor of C, [m, m] float64.

    Returns:
        [d] float64; m²d flops. Of a float32 window in float32 where the error of 1 - s is bounded
        by 2⁻¹⁸ of it.
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


def _inverse(factor: Tensor) -> Tensor:
    """L⁻¹, [m, m]."""
    eye = torch.eye(factor.shape[0], dtype=torch.float64, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).contiguous()


def _uncertain(norms: Tensor, errors: Tensor) -> Tensor:
    """Where 1 - s may be off by more than its bound, or is NaN: [d] bool; overwrites `errors`."""
    return ~(errors.add_(norms, alpha=_SINGLE_ERROR) <= _SINGLE_ERROR)


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
    """Whether few columns need float64, by a sample; true if the sample would be the window."""
    sample = _sample(window)
    if sample is window:
        return True
    norms, errors = ops.whitened_norms(sample, inverse, True)
    return _are_few(int(_uncertain(norms, errors).sum()), norms.numel())


def _fits_single(matrix: Tensor) -> bool:
    """Whether products of the largest entries fit float32, so that its errors are relative."""
    return bool((matrix.abs().max() < 1e15) & (matrix.diagonal().abs().min() > 1e-15))
