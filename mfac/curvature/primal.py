"""The full Fisher in its primal form, for m >= d: d x d is smaller and more exact than GGᵀ."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mfac.core import ops


class PrimalFisher:
    """F = λI + GᵀG/n as a d x d matrix and its Cholesky factor.

    Args:
        window: G, [m, d] with m >= d.
        damping: λ.
        num_terms: n.

    Raises:
        torch.linalg.LinAlgError: If F is not numerically positive definite.
    """

    def __init__(self, window: Tensor, damping: float, num_terms: float) -> None:
        self.damping = damping
        self.num_terms = num_terms
        self.window = window
        self.matrix = ops.gram(window.T.contiguous()) / num_terms  # [d, d]
        self.matrix.diagonal().add_(damping)
        self.factor, failed = torch.linalg.cholesky_ex(self.matrix)
        if int(failed) != 0:
            raise torch.linalg.LinAlgError(
                f"The Fisher λI + GᵀG/n is not numerically positive definite at row {int(failed) - 1}: its largest "
                f"entry is {float(self.matrix.diagonal().max()):.3g}, λ only {damping:.3g}. Increase `damping`."
            )

    @cached_property
    def inverse(self) -> Tensor:
        """F⁻¹, [d, d]."""
        return torch.cholesky_inverse(self.factor)

    def ihvp(self, v: Tensor) -> Tensor:
        """F⁻¹v for float64 v [k, d]."""
        return torch.cholesky_solve(v.T, self.factor).T.contiguous()

    def ihvp_of_combination(self, a: Tensor) -> Tensor:
        """F⁻¹Gᵀa for float64 a [k, m]."""
        return self.ihvp(a @ self.window.double())

    def matvec(self, v: Tensor) -> Tensor:
        """Fv for float64 v [k, d]."""
        return v @ self.matrix

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), [d]."""
        return self.inverse.diagonal().clone()

    def inverse_elements(self, i: Tensor, j: Tensor) -> Tensor:
        """(F⁻¹)_ij for index vectors of one length."""
        return self.inverse[i, j]

    def inverse_submatrix(self, rows: Tensor, cols: Tensor) -> Tensor:
        """F⁻¹[rows][:, cols]."""
        return self.inverse[rows[:, None], cols[None, :]]

    def logdet(self) -> float:
        """Log det F."""
        return 2 * float(self.factor.diagonal().log().sum())
