"""The full Fisher in its dual form: the m x m C = nλI + GGᵀ (docs/derivation.md, "Static")."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mfac.core import ops
from mfac.curvature.diagonal import whitened_norms

_TILE_ENTRIES = 1 << 19  # of a float64 column tile: 4 MiB
_CANCELLED = 1e-6  # of 1 - ‖U_:i‖²: below this a bound is looked at
_NORMS_AT_ONCE = 1024  # columns gathered at a time
_LEFT = 1e-3  # of nλ + ‖g‖²: at least three digits of float64 are lost below
_MOST_FUSED_VECTORS = 4  # from 8 on a matrix product over tiles is faster (python -m mfac.bench --ops vectors)


def column_tiles(window: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Goes over a window in tiles of columns, widened to float64.

    Args:
        window: [m, d].

    Yields:
        The columns, and the tile [m, columns] in float64; its storage may be overwritten by the
        next.
    """
    rank, dim = window.shape
    width = max(1, min(dim, _TILE_ENTRIES // rank))
    buffer = window.new_empty((rank, width), dtype=torch.float64)
    for start in range(0, dim, width):
        columns = slice(start, min(start + width, dim))
        tile = buffer[:, : columns.stop - start]
        tile.copy_(window[:, columns])
        yield columns, tile


def window_dot(window: Tensor, vectors: Tensor) -> Tensor:
    """`vectors` [k, d] times Gᵀ, summed in float64: [k, m]; a fused pass, or GEMM for large k."""
    if vectors.shape[0] <= _MOST_FUSED_VECTORS:
        return ops.window_dot(window, vectors)
    result = vectors.new_zeros((vectors.shape[0], window.shape[0]), dtype=torch.float64)
    for columns, tile in column_tiles(window):
        result.addmm_(vectors[:, columns].double(), tile.T)
    return result


def window_combine_(out: Tensor, window: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
    """In place: out [k, d] <- alpha·out + beta·coefficients [k, m] G; fused, or GEMM at large k."""
    if out.shape[0] <= _MOST_FUSED_VECTORS:
        return ops.window_combine_(out, window, coefficients, alpha, beta)
    for columns, tile in column_tiles(window):
        product = coefficients @ tile
        out[:, columns] = (
            product.mul_(beta) if alpha == 0 else product.mul_(beta).add_(out[:, columns], alpha=alpha)
        ).to(out.dtype)
    return out


def factor_capacitance(gram: Tensor, shift: float) -> Tensor:
    """The lower Cholesky factor of shift·I + K.

    Args:
        gram: K = GGᵀ, [m, m] float64; only the lower triangle is read.
        shift: nλ.

    Returns:
        L, [m, m] float64. O(m³/3).

    Raises:
        torch.linalg.LinAlgError: If the matrix is not numerically positive definite.
    """
    capacitance = gram.clone()
    capacitance.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(capacitance)
    if int(failed) != 0:
        raise torch.linalg.LinAlgError(
            f"The capacitance nλI + GGᵀ is not numerically positive definite at row {int(failed) - 1}: the largest "
            f"squared row norm is {float(gram.diagonal().max()):.3g}, nλ only {shift:.3g}. Increase `damping`."
        )
    return factor


class DualFisher:
    """F⁻¹ = (I - Gᵀ C⁻¹ G)/λ for m < d.

    What goes over the gradients stands in `dot`, `combine_`, `_whitened_norms` and `_gather`; a
    subclass that has its gradients elsewhere replaces these.

    Args:
        window: G, [m, d], kept by reference.
        damping: λ.
        num_terms: n.
        gram: K = GGᵀ, [m, m] float64.
        store_columns: Whether to hold U = L⁻¹G, [m, d] float64.

    Raises:
        torch.linalg.LinAlgError: If C is not numerically positive definite.
    """

    def __init__(
        self,
        window: Tensor,
        damping: float,
        num_terms: float,
        gram: Tensor,
        store_columns: bool,
    ) -> None:
        self.window = window
        self.stored: Tensor | None = None  # U
        self._factor(window.shape[1], damping, num_terms, gram)
        if store_columns:
            self.stored = torch.empty_like(window, dtype=torch.float64)
            for columns, tile in column_tiles(window):
                self.stored[:, columns] = self._whiten(tile)

    def _factor(self, dim: int, damping: float, num_terms: float, gram: Tensor) -> None:
        """Sets all but the gradients."""
        self.rank, self.dim = gram.shape[0], dim
        self.damping = damping
        self.num_terms = num_terms
        self.gram = gram
        self.factor = factor_capacitance(gram, num_terms * damping)  # L, [m, m]

    def gram_without(self, dropped: Tensor) -> Tensor | None:
        """GGᵀ without some columns.

        Args:
            dropped: G_D G_Dᵀ of these, [m, m] float64; it is overwritten.

        Returns:
            [m, m] float64; None where so little of a row is left that digits are lost.
        """
        gram = dropped.neg_().add_(self.gram)
        shift = self.num_terms * self.damping
        left, before = (matrix.diagonal() + shift for matrix in (gram, self.gram))
        return gram if bool((left >= _LEFT * before).all()) else None

    def dot(self, v: Tensor) -> Tensor:
        """GV for float64 v [k, d]: [k, m] float64; one pass."""
        return window_dot(self.window, v)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        """In place: out [k, d] <- alpha·out + beta·coefficients [k, m] G; one pass."""
        return window_combine_(out, self.window, coefficients, alpha, beta)

    def _whitened_norms(self) -> Tensor:
        """‖(L⁻¹G)_:i‖² for every column, [d] float64."""
        return whitened_norms(self.window, self.factor)

    def _gather(self, index: Tensor) -> Tensor:
        """G[:, index] in float64."""
        return self.window[:, index].double()

    def _whiten(self, tile: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, tile, upper=False)

    def ihvp(self, v: Tensor) -> Tensor:
        """F⁻¹v for float64 v [k, d]; two passes."""
        c = torch.cholesky_solve(self.dot(v).T, self.factor)  # [m, k]
        return self.combine_(v.clone(), c.T.contiguous(), 1 / self.damping, -1 / self.damping)

    def ihvp_of_combination(self, a: Tensor) -> Tensor:
        """F⁻¹Gᵀa = n Gᵀ C⁻¹ a for float64 a [k, m]: the push-through form, without subtraction."""
        c = torch.cholesky_solve(a.T, self.factor)  # [m, k]
        out = a.new_empty((a.shape[0], self.dim))
        return self.combine_(out, c.T.contiguous(), 0.0, self.num_terms)

    def matvec(self, v: Tensor) -> Tensor:
        """Fv for float64 v [k, d]; two passes."""
        return self.combine_(v.clone(), self.dot(v), self.damping, 1 / self.num_terms)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), [d] float64, from the squared column norms of L⁻¹G; m²d flops."""
        if self.stored is not None:
            norms = torch.cat([tile.square().sum(0) for tile in self.stored.split(_NORMS_AT_ONCE, dim=1)])
        else:
            norms = self._whitened_norms()
        rest = norms.neg_().add_(1)
        cancelled = (rest < _CANCELLED).nonzero()[:, 0]
        for columns in cancelled.split(_NORMS_AT_ONCE):  # (F⁻¹)_ii >= 1/F_ii, which does not subtract
            squares = self._gather(columns).square_().sum(0)
            rest[columns] = torch.maximum(rest[columns], self.damping / (self.damping + squares / self.num_terms))
        return rest.div_(self.damping)

    def _columns(self, index: Tensor) -> Tensor:
        """U[:, index], [m, len(index)]."""
        if self.stored is not None:
            return self.stored[:, index]
        return self._whiten(self._gather(index))

    def inverse_elements(self, i: Tensor, j: Tensor) -> Tensor:
        """(F⁻¹)_ij for index vectors of one length."""
        dots = (self._columns(i) * self._columns(j)).sum(0)
        return ((i == j).double() - dots) / self.damping

    def inverse_submatrix(self, rows: Tensor, cols: Tensor) -> Tensor:
        """F⁻¹[rows][:, cols]."""
        dots = self._columns(rows).T @ self._columns(cols)
        return ((rows[:, None] == cols[None, :]).double() - dots) / self.damping

    def logdet(self) -> float:
        """Log det F = d log λ + log det C - m log(nλ)."""
        log_det_capacitance = 2 * float(self.factor.diagonal().log().sum())
        shift = self.num_terms * self.damping
        return self.dim * math.log(self.damping) + log_det_capacitance - self.rank * math.log(shift)
