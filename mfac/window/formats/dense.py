"""Rows stored as they are, or rounded to 16 bits."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.devices import capabilities
from mfac.curvature.dual import window_combine_, window_dot
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows, zeros


def row_stride(dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Entries from one row to the next: every row begins at a packet of the device's loads."""
    packet = max(1, capabilities(device).packet_bytes // dtype.itemsize)
    return -(-dim // packet) * packet


class DenseRows(Rows):
    """Rows in float64, float32, bfloat16 or float16."""

    scales: Tensor | None = None  # of rows in int8

    @property
    def nbytes(self) -> int:
        return self.rank * row_stride(self.dim, self.dtype, self.device) * self.dtype.itemsize

    @cached_property
    def stored(self) -> Tensor:
        """G, [m, d]."""
        stride = row_stride(self.dim, self.dtype, self.device)
        return zeros((self.rank, stride), self.dtype, self.device).narrow(1, 0, self.dim)

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.stored}

    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        return self.stored[index]

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.window_push_(self.stored, row, gradient, self.scales)

    def clear_(self, row: int, where: Tensor) -> None:
        self.stored.select(0, row).masked_fill_(where, 0)

    def dot(self, vectors: Tensor) -> Tensor:
        if self.dtype.itemsize >= 4:
            return window_dot(self.stored, vectors)
        return ops.window_dot(self.stored, vectors, self.scales)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        if self.dtype.itemsize >= 4:
            return window_combine_(out, self.stored, coefficients, alpha, beta)
        return ops.window_combine_(out, self.stored, coefficients, alpha, beta, self.scales)

    def descend_(self, descent: Descent, coefficients: Tensor, beta: float, newest: int) -> None:
        weights, average = descent.moved
        factors = (descent.columns, descent.rates, descent.decays)
        ops.window_descend_(weights, average, self.stored, coefficients, beta, descent.momentum, *factors, self.scales)
