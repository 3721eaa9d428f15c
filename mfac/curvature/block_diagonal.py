"""The block-diagonal Fisher: blocks of B columns, each dual where m < B and primal where m >= B."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfac.core import ops


class BlockDiagonalFisher:
    """F as ceil(d/B) diagonal blocks, each factored in cache by one thread.

    Args:
        window: G, [m, d], kept by reference.
        block_size: B <= d; the last block may be narrower.
        damping: λ.
        num_terms: n.

    Raises:
        torch.linalg.LinAlgError: If a block is not numerically positive definite.
    """

    def __init__(self, window: Tensor, block_size: int, damping: float, num_terms: float) -> None:
        self.window = window
        self.damping = damping
        self.num_terms = num_terms
        self.block_size = block_size
        self.factors, failed = ops.block_factor(window, block_size, damping, num_terms)  # R of RᵀR, [blocks, r, r]
        if bool((failed >= 0).any()):
            block = int((failed >= 0).nonzero()[0])
            raise torch.linalg.LinAlgError(
                f"Block {block} of the Fisher is not numerically positive definite at pivot {int(failed[block])}. "
                f"Increase `damping`; it is {damping:.3g}."
            )

    def ihvp(self, v: Tensor) -> Tensor:
        """F⁻¹v for float64 v [k, d]; one pass."""
        return ops.block_ihvp(self.window, self.factors, v.contiguous(), self.block_size, self.damping, self.num_terms)

    def matvec(self, v: Tensor) -> Tensor:
        """Fv for float64 v [k, d]; one pass."""
        return ops.block_matvec(self.window, v.contiguous(), self.block_size, self.damping, self.num_terms)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), [d] float64."""
        return ops.block_inverse_diagonal(self.window, self.factors, self.block_size, self.damping, self.num_terms)

    def _block(self, number: int) -> tuple[int, Tensor, Tensor]:
        """First column, columns of the window in float64, and lower factor of one block."""
        begin = number * self.block_size
        columns = self.window[:, begin : begin + self.block_size].double()  # [m, b]
        order = min(columns.shape)
        return begin, columns, self.factors[number, :order, :order].mT

    def _inverse_within(self, number: int, i: Tensor, j: Tensor) -> Tensor:
        """F⁻¹[i][:, j] for columns of one block."""
        begin, columns, factor = self._block(number)
        rank, size = columns.shape
        if rank < size:
            u_i, u_j = (torch.linalg.solve_triangular(factor, columns[:, k - begin], upper=False) for k in (i, j))
            return ((i[:, None] == j[None, :]).double() - u_i.T @ u_j) / self.damping
        unit = factor.new_zeros((size, j.numel()))
        unit.index_put_((j - begin, (j >= 0).cumsum(0) - 1), unit.new_ones(()))
        return torch.cholesky_solve(unit, factor)[i - begin]

    def inverse_elements(self, i: Tensor, j: Tensor) -> Tensor:
        """(F⁻¹)_ij for index vectors of one length; zero across blocks."""
        result = self.factors.new_zeros(i.numel())
        block_i, block_j = i // self.block_size, j // self.block_size
        for number in block_i[block_i == block_j].unique().tolist():
            pairs = ((block_i == number) & (block_j == number)).nonzero()[:, 0]
            columns, inverse = torch.cat([i[pairs], j[pairs]]).unique(return_inverse=True)
            within = self._inverse_within(number, columns, columns)
            result[pairs] = within[inverse[: pairs.numel()], inverse[pairs.numel() :]]
        return result

    def inverse_submatrix(self, rows: Tensor, cols: Tensor) -> Tensor:
        """F⁻¹[rows][:, cols]; zero across blocks."""
        result = self.factors.new_zeros((rows.numel(), cols.numel()))
        block_of_row, block_of_col = rows // self.block_size, cols // self.block_size
        for number in block_of_row.unique().tolist():
            r, c = (block_of_row == number).nonzero()[:, 0], (block_of_col == number).nonzero()[:, 0]
            if c.numel():
                result[r[:, None], c[None, :]] = self._inverse_within(number, rows[r], cols[c])
        return result

    def logdet(self) -> float:
        """Log det F, the sum over the blocks."""
        rank, dim = self.window.shape
        total = 0.0
        for number in range(self.factors.shape[0]):
            size = min(self.block_size, dim - number * self.block_size)
            order = min(rank, size)
            total += 2 * float(self.factors[number].diagonal()[:order].log().sum())
            if rank < size:
                total += size * math.log(self.damping) - rank * math.log(self.num_terms * self.damping)
        return total
