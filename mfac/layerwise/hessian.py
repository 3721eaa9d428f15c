"""The Hessian of a layer's inputs, H = XᵀX/n + λI, and its factors, each computed once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mfac.curvature.damping import Damping, check_damping, relative, resolve_damping

DAMPING = relative(0.01)
"""What is taken where nothing is given, as in SparseGPT and ALPS."""
RAISED = 10.0
"""What the damping is multiplied by where a factorisation fails."""
MOST_RAISED = 1.0
"""Up to how many times the mean of the diagonal the damping is raised."""
_PANEL = 256
"""Columns of a factor that are computed at a time."""


class NotPositiveDefiniteError(ArithmeticError):
    """A Hessian that is not positive definite at the highest damping that is allowed.

    Example:
        >>> import torch, mfac
        >>> no_gram = torch.tensor([[1.0, -9.0], [-9.0, 1.0]])
        >>> try:
        ...     mfac.solve_layer(no_gram, torch.ones(1, 2))
        ... except mfac.NotPositiveDefiniteError as error:
        ...     print(str(error)[:60].rstrip())
        The Hessian of a layer's inputs should be positive definite
    """


class Hessian:
    """H = XᵀX/n + λI of the inputs X [n, columns] of a layer, in float64.

    A column whose inputs are all zero, H_jj = 0, is dead: its diagonal entry becomes 1, and solvers
    give it weights of zero. Where a Cholesky factorisation fails, λ is raised tenfold, up to the
    mean of the diagonal, and `damping` is what was taken in the end.

    Args:
        gram: XᵀX/n, [columns, columns]; symmetric.
        damping: λ, or relative to the mean of the live diagonal.

    Raises:
        ValueError: If `gram` is not square, not finite or not of a floating-point dtype, or if a
            relative damping meets inputs that are all zero.
        NotPositiveDefiniteError: From what takes a factor, if the highest damping does not help.

    Attributes:
        gram: XᵀX/n, float64.
        dead: Columns whose inputs are all zero, [columns] bool.
        damping: λ.
        asked: The λ that was asked for.
    """

    def __init__(self, gram: Tensor, damping: Damping = DAMPING) -> None:
        if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not gram.is_floating_point():
            raise ValueError(
                f"Parameter `hessian` should be a square floating-point matrix. Found {gram.dtype}, {list(gram.shape)}."
            )
        self.gram = gram.double()
        diagonal = self.gram.diagonal()
        # A sum is one pass. It may overflow where no entry does, and then all are looked at.
        if not bool(torch.isfinite(self.gram.sum())) and not bool(torch.isfinite(self.gram).all()):
            raise ValueError("Parameter `hessian` should be finite. Found entries that are not.")
        if bool((diagonal < 0).any()):
            raise ValueError("Parameter `hessian` should have a diagonal that is not negative. Found one that is.")
        self.dead = diagonal == 0
        live = int((~self.dead).sum())
        self.asked = resolve_damping(check_damping(damping), float(diagonal.sum()), 1.0, max(1, live)) if live else 1.0
        self.damping = self.asked
        self._most = max(self.asked, MOST_RAISED * float(diagonal.sum()) / max(1, live))

    @property
    def columns(self) -> int:
        """How many inputs."""
        return self.gram.shape[0]

    @property
    def matrix(self) -> Tensor:
        """H with its damping, [columns, columns]; a copy."""
        matrix = self.gram.clone()
        matrix.diagonal().add_(self.damping)
        matrix.diagonal().masked_fill_(self.dead, 1.0)
        return matrix

    @cached_property
    def upper_factor(self) -> Tensor:
        """R, upper triangular with a positive diagonal, H = R Rᵀ; no inverse, O(columns³/3).

        1/R_jj² is (H⁻¹)_jj once all columns before j are decided.
        """
        while True:
            diagonal = (self.gram.diagonal() + self.damping).masked_fill(self.dead, 1.0)
            if (factor := upper_cholesky(self.gram, diagonal)) is not None:
                return factor
            self._raise_damping()

    @cached_property
    def inverse(self) -> Tensor:
        """H⁻¹, [columns, columns], symmetric."""
        factor = self.upper_factor
        return torch.cholesky_inverse(factor.flip(0, 1)).flip(0, 1).contiguous()

    @cached_property
    def scaled_eigen(self) -> tuple[Tensor, Tensor, Tensor]:
        """√diag H = e, and the eigenvalues and eigenvectors of H/(e eᵀ); O(10 · columns³)."""
        _ = self.upper_factor  # so that the damping is settled
        matrix = self.matrix
        scale = matrix.diagonal().sqrt()
        values, vectors = torch.linalg.eigh(matrix / scale[:, None] / scale)
        return scale, values.clamp(min=torch.finfo(torch.float64).tiny), vectors

    def error(self, delta: Tensor) -> Tensor:
        """δ XᵀX δᵀ/n of each row, without the damping, [rows] float64; O(rows · columns²)."""
        delta = delta.double()
        return (delta @ self.gram * delta).sum(1)

    def relative_error(self, weight: Tensor, solved: Tensor) -> float:
        """Σ of the errors over that of dropping the layer whole; 0 where that is 0."""
        whole = float(self.error(weight).sum())
        return float(self.error(solved.double() - weight.double()).sum()) / whole if whole > 0 else 0.0

    def _raise_damping(self) -> None:
        if self.damping >= self._most:
            raise NotPositiveDefiniteError(
                f"The Hessian of a layer's inputs should be positive definite at a damping of {self.damping:g}, "
                f"{self.damping / self.asked:g} times what was asked for. Found that it is not; inputs that "
                f"overflow or a matrix that is not of the form XᵀX are the usual reasons."
            )
        self.damping = min(self._most, self.damping * RAISED)


def upper_cholesky(matrix: Tensor, diagonal: Tensor) -> Tensor | None:
    """R, upper triangular with a positive diagonal, R Rᵀ = a symmetric matrix; O(n³/3).

    Panels of columns are computed from right to left. Nearly all of the work is products of
    matrices, which run at twice the speed of LAPACK's factorisation on the CPUs that were tried.

    Args:
        matrix: [n, n] float64; its upper triangle counts, without the diagonal.
        diagonal: What stands on the diagonal in its place, [n].

    Returns:
        R; None where the matrix is not positive definite.
    """
    n = matrix.shape[0]
    width = _PANEL if n > 2 * _PANEL else max(1, n)
    factor = matrix.new_zeros(n, n)
    for end in range(n, 0, -width):
        begin = max(0, end - width)
        panel = torch.addmm(matrix[:end, begin:end], factor[:end, end:], factor[begin:end, end:].T, alpha=-1)
        panel[begin:].diagonal().add_(diagonal[begin:end] - matrix.diagonal()[begin:end])
        lower, failed = torch.linalg.cholesky_ex(panel[begin:].flip(0, 1))
        if bool(failed):
            return None
        square = lower.flip(0, 1)
        factor[begin:end, begin:end] = square
        if begin:
            factor[:begin, begin:end] = torch.linalg.solve_triangular(square, panel[:begin].T, upper=True).T
    return factor
