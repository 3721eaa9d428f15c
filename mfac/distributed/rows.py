"""Rows whose columns are spread over processes: each has a slice, and products are summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mfac.core.devices import capabilities
from mfac.distributed.pieces import Whole
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows


class SummedRows(Rows):
    """This process's columns of every row, in some format; products with rows are of all columns.

    A push sends m numbers to the other processes, whatever d is. A gradient that one process cannot
    hold is refused by all: each puts back the row that it had.

    Args:
        inner: This process's columns.
        pieces: What sums over processes.
        total_dim: d over all processes.
    """

    is_whole = False

    def __init__(self, inner: Rows, pieces: Whole, total_dim: int) -> None:
        super().__init__(inner.rank, inner.dim, inner.dtype, inner.device)
        self.inner, self.pieces = inner, pieces
        self.density = inner.density
        self.vector_dtype = inner.vector_dtype
        self.total_dim = total_dim
        self._defers = capabilities(inner.device).defers
        self._has_refused = torch.zeros(())

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()

    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        return self.inner.as_dense(index)

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        written = self.inner.written_by_push(row)
        before = [tensor.clone() for tensor in written]
        products = self.inner.push_(row, gradient).contiguous()
        self._has_refused = products[row].isnan()
        products = self.pieces.sum_(products)
        refused = products[row].isfinite().logical_not()
        if self._defers or bool(refused):  # the host does not wait for a GPU to see which it is
            for tensor, old in zip(written, before, strict=True):
                tensor.copy_(torch.where(refused, old, tensor))
            products[row].masked_fill_(refused, torch.nan)
        return products

    def written_by_push(self, row: int) -> list[Tensor]:
        return self.inner.written_by_push(row)

    def clear_(self, row: int, where: Tensor) -> None:
        self.inner.clear_(row, where)

    def dot(self, vectors: Tensor) -> Tensor:
        return self.pieces.sum_(self.inner.dot(vectors).contiguous())

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        return self.inner.combine_(out, coefficients, alpha, beta)

    def descend_(self, descent: Descent, coefficients: Tensor, beta: float, newest: int) -> None:
        self.inner.descend_(descent, coefficients, beta, newest)

    def take_residue_(self, other: Rows, columns: list[tuple[Tensor, Tensor]]) -> None:
        assert isinstance(other, SummedRows)
        self.inner.take_residue_(other.inner, columns)

    def holds(self, gradient: Tensor) -> bool:
        return self.inner.holds(gradient)

    def carried(self, row: int) -> Tensor | None:
        return self.inner.carried(row)

    def why_refused(self, gradient: Tensor) -> str:
        if bool(self._has_refused) or not self.inner.holds(gradient):
            return self.inner.why_refused(gradient)
        return "a gradient that another process cannot hold"

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.inner.check_tensors(tensors)

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        self.inner.load_(tensors)
