"""Sparse rows: their largest entries alone, with error feedback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from mfac import _C
from mfac.core import ops
from mfac.core.devices import capabilities
from mfac.window.descent import Descent
from mfac.window.formats.base import Rows, zeros

_BLOCK_COLUMNS = _C.limits()["topk_block_columns"]  # of the widest block
_TILE_COLUMNS = _C.limits()["topk_tile_columns"]


class TopKRows(Rows):
    """Sparse rows: of every block of columns the share `density` of entries, the largest.

    What a row leaves out, and what its values lose in rounding, is added to the next gradient
    (error feedback).

    Source: Modoranu et al., "Error Feedback Can Accurately Compress Preconditioners" (EFCP,
    2306.06098).

    Args:
        rank: m.
        dim: d.
        dtype: Of the values.
        density: Share of the entries kept, in (0, 1); at least one a block.
        device: Where.
    """

    def __init__(self, rank: int, dim: int, dtype: torch.dtype, density: float, device: torch.device) -> None:
        super().__init__(rank, dim, dtype, device)
        self.density = density
        self.block_size = -(-dim // -(-dim // _BLOCK_COLUMNS))
        self.shape = (rank, -(-dim // self.block_size), math.ceil(density * self.block_size))
        self.boundaries_shape = (self.shape[1], -(-self.block_size // _TILE_COLUMNS) - 1, rank)
        self.keeps_boundaries = capabilities(device).keeps_boundaries

    @property
    def nbytes(self) -> int:
        entries = math.prod(self.shape) * (self.dtype.itemsize + 2)
        boundaries = 2 * math.prod(self.boundaries_shape) if self.keeps_boundaries else 0
        return entries + boundaries + self.dim * self.vector_dtype.itemsize

    @cached_property
    def values(self) -> Tensor:
        """[m, blocks, kept]."""
        return zeros(self.shape, self.dtype, self.device)

    @cached_property
    def indices(self) -> Tensor:
        """Offsets within the block, [m, blocks, kept] uint16."""
        return zeros(self.shape, torch.uint16, self.device)

    @cached_property
    def error(self) -> Tensor:
        """What has not entered the window yet, [d]."""
        return torch.zeros(self.dim, dtype=self.vector_dtype, device=self.device)

    @cached_property
    def boundaries(self) -> Tensor | None:
        """Entries of a row before each tile but a block's first, [blocks, tiles - 1, m] uint16.

        They follow from the indices: every push writes its row's, and they are no part of a state.
        """
        return zeros(self.boundaries_shape, torch.uint16, self.device) if self.keeps_boundaries else None

    @property
    def _starts(self) -> Tensor:
        """First column of each block, [blocks]."""
        return torch.arange(0, self.dim, self.block_size, device=self.device)

    @property
    def _widths(self) -> Tensor:
        """Columns of each block, [blocks]: the last may have fewer."""
        return (self.dim - self._starts).clamp(max=self.block_size)

    def columns(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Columns of the entries of the rows asked for, [k, blocks, kept]."""
        offsets = self.indices.view(torch.int16)  # torch does not index uint16 on a GPU
        return offsets[index].long() + self._starts[:, None]

    def carried(self, row: int) -> Tensor:
        return self.columns(slice(row, row + 1))[self.values[row : row + 1] != 0]  # zeros fill up

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "indices": self.indices, "error": self.error}

    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        values = self.values[index].to(self.vector_dtype)  # [k, blocks, kept]
        rows = values.new_zeros((values.shape[0], self.dim))
        return rows.scatter_add_(1, self.columns(index).flatten(1), values.flatten(1))

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.topk_push_(self.values, self.indices, self.error, row, gradient, self.block_size, self.boundaries)

    def take_residue_(self, other: Rows, columns: list[tuple[Tensor, Tensor]]) -> None:
        assert isinstance(other, TopKRows)
        self.error.zero_()
        for theirs, mine in columns:
            self.error[mine] = other.error[theirs]

    def holds(self, gradient: Tensor) -> bool:
        return super().holds(gradient + self.error)

    def written_by_push(self, row: int) -> list[Tensor]:
        # As int16: torch has few operations of uint16.
        written = [self.values[row], self.indices[row].view(torch.int16), self.error]
        if self.boundaries is not None:
            written.append(self.boundaries[..., row].view(torch.int16))
        return written

    def why_refused(self, gradient: Tensor) -> str:
        return super().why_refused(gradient + self.error)

    def clear_(self, row: int, where: Tensor) -> None:
        self.values.select(0, row).masked_fill_(where, 0)

    def dot(self, vectors: Tensor) -> Tensor:
        return ops.topk_dot(self.values, self.indices, vectors, self.block_size)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        return ops.topk_combine_(
            out, self.values, self.indices, coefficients, alpha, beta, self.block_size, self.boundaries
        )

    def descend_(self, descent: Descent, coefficients: Tensor, beta: float, newest: int) -> None:
        weights, average = descent.moved
        ops.topk_descend_(
            *(weights, average, self.values, self.indices, coefficients, beta, descent.momentum, newest),
            *(descent.columns, descent.rates, descent.decays, self.dim, self.block_size, self.boundaries),
        )

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        if bool((tensors["indices"].to(self.device).long() >= self._widths[:, None]).any()):
            raise ValueError("Parameter `state` should have 'indices' below the columns of their block. Found others.")

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_(tensors)
        if self.boundaries is not None:
            offsets, boundaries = (t.view(torch.int16) for t in (self.indices, self.boundaries))
            # A last block with fewer columns than entries is filled up with zeros at offset 0,
            # which do not count.
            counts = torch.arange(self.shape[2], device=self.device) < self._widths[:, None]
            for tile in range(boundaries.shape[1]):
                before = (offsets < (tile + 1) * _TILE_COLUMNS) & counts  # [m, blocks, kept]
                boundaries[:, tile] = before.sum(2, dtype=torch.int16).T

    def __getstate__(self) -> dict[str, object]:
        """Integers as int16: torch cannot pickle uint16."""
        return {name: _with_dtype(value, torch.uint16, torch.int16) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({name: _with_dtype(value, torch.int16, torch.uint16) for name, value in state.items()})


def _with_dtype(value: object, dtype: torch.dtype, other: torch.dtype) -> object:
    """A tensor of one dtype as the other; anything else as it is."""
    return value.view(other) if isinstance(value, Tensor) and value.dtype == dtype else value
