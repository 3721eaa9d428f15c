"""Rows in 8 bits, with a scale for every tile of columns."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.limits import SCALE_COLUMNS
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows, row_stride, zero_rows


class Int8Rows(Rows):
    """Rows in int8, with a float32 scale for every 1024 columns of a row: the largest entry there is ±127 scales."""

    def __init__(self, rank: int, dim: int, device: torch.device) -> None:
        super().__init__(rank, dim, torch.int8, device)
        self.num_scales = -(-dim // SCALE_COLUMNS)  # of a row

    @property
    def nbytes(self) -> int:
        return self.rank * (row_stride(self.dim, self.dtype, self.device) + 4 * self.num_scales)

    @cached_property
    def stored(self) -> Tensor:
        """The integers, [m, d]."""
        return zero_rows((self.rank, self.dim), self.dtype, self.device)

    @cached_property
    def scales(self) -> Tensor:
        """[m, ceil(d / 1024)]."""
        return torch.zeros((self.rank, self.num_scales), dtype=torch.float32, device=self.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.stored, "scales": self.scales}

    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        scales = self.scales[index].repeat_interleave(SCALE_COLUMNS, dim=-1)[..., : self.dim]
        return self.stored[index].float() * scales  # exact: the scales have 16 significant bits

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.window_push_(self.stored, row, gradient, self.scales)

    def clear_(self, row: int, where: Tensor) -> None:
        self.stored[row].masked_fill_(where, 0)
        self.scales[row].masked_fill_(where, 0)

    def dot(self, vectors: Tensor) -> Tensor:
        return ops.window_dot(self.stored, vectors, self.scales)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        return ops.window_combine_(out, self.stored, coefficients, alpha, beta, self.scales)

    def descend_(self, descent: Descent, coefficients: Tensor, beta: float, newest: int) -> None:
        weights, average = descent.moved
        factors = (descent.columns, descent.rates, descent.decays)
        ops.window_descend_(weights, average, self.stored, coefficients, beta, descent.momentum, *factors, self.scales)
