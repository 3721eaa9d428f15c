"""How a window stores its rows: as they are, in 16 or 8 bits, or by their largest entries alone.

Whatever the format, the window *is* the rounded rows: `push_` returns the products of the row as it was rounded, so the
Gram matrix made of them is that of what is stored (docs/derivation.md, "Compressed windows"). Storage is allocated on
first use; `nbytes` is known before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.tensors import vector_dtype
from mfac.curvature.dual import window_combine_, window_dot
from mfac.window.descent import Descent

_SCALE_COLUMNS = 1024  # kScaleColumns in csrc/common/formats.h
_PACKET_BYTES = 16  # kPacketBytes in csrc/cuda/packet.cuh
_TILE_COLUMNS = 1024  # kTopKTileColumns in csrc/window/topk/topk_layout.h
_BLOCK_COLUMNS = 16384  # widest block of a sparse row: a block of float64 sums is 128 KiB


def row_stride(dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """Entries from one row to the next: whole packets on a GPU, where aligned rows are read by sixteen bytes."""
    packet = _PACKET_BYTES // dtype.itemsize if device.type == "cuda" else 1
    return -(-dim // packet) * packet


def zero_rows(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of zeros, [m, d], laid out for their device."""
    rank, dim = shape
    return _zeros((rank, row_stride(dim, dtype, device)), dtype, device).narrow(1, 0, dim)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return ops.zeros_in_huge_pages(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def _descend_(
    descent: Descent,
    average: Tensor | None,
    stored: Tensor,
    coefficients: Tensor,
    beta: float,
    momentum: float,
    scales: Tensor | None = None,
) -> None:
    factors = (descent.columns, descent.rates, descent.decays)
    ops.window_descend_(descent.parameters, average, stored, coefficients, beta, momentum, *factors, scales)


def _with_dtype(value: object, dtype: torch.dtype, other: torch.dtype) -> object:
    """A tensor of one dtype as the other; anything else as it is."""
    return value.view(other) if isinstance(value, Tensor) and value.dtype == dtype else value


class Rows(Protocol):
    """Rows g_1 ... g_m of length d in some format. Vectors are float32, or float64 where the rows are."""

    @property
    def nbytes(self) -> int:
        """Bytes they take once allocated."""

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        """Writes a gradient [d] and returns its products with every row, [m] float64; NaN if nothing was written."""

    def clear_(self, row: int) -> None:
        """Makes a row zero."""

    def dot(self, vectors: Tensor) -> Tensor:
        """`vectors` [k, d] times Gᵀ: [k, m] float64."""

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        """In place: out [k, d] <- alpha·out + beta·coefficients [k, m] G."""

    def descend_(
        self, descent: Descent, average: Tensor | None, coefficients: Tensor, beta: float, momentum: float, newest: int
    ) -> None:
        """Moves weights along v = beta·cG, c [1, m], or `average` [d] <- momentum·average + (1 - momentum)·v.

        What a sparse row `newest` carries moves along v itself, and its average becomes 0.
        """
        raise NotImplementedError

    def dense(self, index: Tensor | slice) -> Tensor:
        """The rows asked for, [k, d], in the vectors' dtype: exactly what is stored."""

    def tensors(self) -> dict[str, Tensor]:
        """The storage by name, by reference."""

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuses storage, of the right shapes, that this format cannot hold. Most hold whatever has their shapes."""
        return

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a copy of storage that `check_tensors` accepts."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])


class DenseRows(Rows):
    """Rows in float64, float32, bfloat16 or float16."""

    def __init__(self, rank: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = (rank, dim)
        self.dtype = dtype
        self.device = device

    @property
    def nbytes(self) -> int:
        return self.shape[0] * row_stride(self.shape[1], self.dtype, self.device) * self.dtype.itemsize

    @cached_property
    def stored(self) -> Tensor:
        """G, [m, d]."""
        return zero_rows(self.shape, self.dtype, self.device)

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.window_push_(self.stored, row, gradient)

    def clear_(self, row: int) -> None:
        self.stored[row] = 0

    def dot(self, vectors: Tensor) -> Tensor:
        if self.dtype.itemsize >= 4:
            return window_dot(self.stored, vectors)
        return ops.window_dot(self.stored, vectors)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        if self.dtype.itemsize >= 4:
            return window_combine_(out, self.stored, coefficients, alpha, beta)
        return ops.window_combine_(out, self.stored, coefficients, alpha, beta)

    def descend_(
        self, descent: Descent, average: Tensor | None, coefficients: Tensor, beta: float, momentum: float, newest: int
    ) -> None:
        _descend_(descent, average, self.stored, coefficients, beta, momentum)

    def dense(self, index: Tensor | slice) -> Tensor:
        rows = self.stored[index]
        return rows if self.dtype.itemsize >= 4 else rows.float()

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.stored}


class Int8Rows(Rows):
    """Rows in int8, with a float32 scale for every 1024 columns of a row: the largest entry there is ±127 scales."""

    def __init__(self, rank: int, dim: int, device: torch.device) -> None:
        self.shape = (rank, dim)
        self.scales_shape = (rank, -(-dim // _SCALE_COLUMNS))
        self.device = device

    @property
    def nbytes(self) -> int:
        return self.shape[0] * row_stride(self.shape[1], torch.int8, self.device) + 4 * math.prod(self.scales_shape)

    @cached_property
    def stored(self) -> Tensor:
        """The integers, [m, d]."""
        return zero_rows(self.shape, torch.int8, self.device)

    @cached_property
    def scales(self) -> Tensor:
        """[m, ceil(d / 1024)]."""
        return torch.zeros(self.scales_shape, dtype=torch.float32, device=self.device)

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.window_push_(self.stored, row, gradient, self.scales)

    def clear_(self, row: int) -> None:
        self.stored[row] = 0
        self.scales[row] = 0

    def dot(self, vectors: Tensor) -> Tensor:
        return ops.window_dot(self.stored, vectors, self.scales)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        return ops.window_combine_(out, self.stored, coefficients, alpha, beta, self.scales)

    def descend_(
        self, descent: Descent, average: Tensor | None, coefficients: Tensor, beta: float, momentum: float, newest: int
    ) -> None:
        _descend_(descent, average, self.stored, coefficients, beta, momentum, self.scales)

    def dense(self, index: Tensor | slice) -> Tensor:
        scales = self.scales[index].repeat_interleave(_SCALE_COLUMNS, dim=-1)[..., : self.shape[1]]
        return self.stored[index].float() * scales  # exact: the scales have 16 significant bits

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.stored, "scales": self.scales}


class TopKRows(Rows):
    """Sparse rows: of every block of columns the share `density` of entries that is largest in magnitude.

    What a row leaves out, and what its values lose in rounding, is added to the next gradient (error feedback).

    Source: Modoranu et al., "Error Feedback Can Accurately Compress Preconditioners" (EFCP, 2306.06098).

    Args:
        rank: m.
        dim: d.
        dtype: Of the values.
        density: Share of the entries kept, in (0, 1); at least one a block.
        device: Where.
    """

    def __init__(self, rank: int, dim: int, dtype: torch.dtype, density: float, device: torch.device) -> None:
        self.device = device
        blocks = -(-dim // _BLOCK_COLUMNS)
        self.dim = dim
        self.dtype = dtype
        self.vector_dtype = vector_dtype(dtype)  # of the error
        self.block_size = -(-dim // blocks)
        self.shape = (rank, -(-dim // self.block_size), math.ceil(density * self.block_size))
        self.boundaries_shape = (self.shape[1], -(-self.block_size // _TILE_COLUMNS) - 1, rank)
        self.keeps_boundaries = device.type != "cpu"  # whose kernels take whole blocks

    @property
    def nbytes(self) -> int:
        entries = math.prod(self.shape) * (self.dtype.itemsize + 2)
        boundaries = 2 * math.prod(self.boundaries_shape) if self.keeps_boundaries else 0
        return entries + boundaries + self.dim * self.vector_dtype.itemsize

    @cached_property
    def values(self) -> Tensor:
        """[m, blocks, kept]."""
        return _zeros(self.shape, self.dtype, self.device)

    @cached_property
    def indices(self) -> Tensor:
        """Offsets within the block, [m, blocks, kept] uint16."""
        return _zeros(self.shape, torch.uint16, self.device)

    @cached_property
    def error(self) -> Tensor:
        """What has not entered the window yet, [d]."""
        return torch.zeros(self.dim, dtype=self.vector_dtype, device=self.device)

    @cached_property
    def boundaries(self) -> Tensor | None:
        """Entries of a row before each tile of 1024 columns of a block but the first, [blocks, tiles - 1, m] uint16.

        They follow from the indices: every push writes its row's, and they are no part of a state.
        """
        return _zeros(self.boundaries_shape, torch.uint16, self.device) if self.keeps_boundaries else None

    @property
    def _starts(self) -> Tensor:
        """First column of each block, [blocks]."""
        return torch.arange(0, self.dim, self.block_size, device=self.device)

    def columns(self, index: Tensor | slice) -> Tensor:
        """Columns of the entries of the rows asked for, [k, blocks, kept]."""
        offsets = self.indices.view(torch.int16)  # below 2**15; torch does not index uint16 on a GPU
        return offsets[index].long() + self._starts[:, None]

    def columns_of(self, row: int) -> Tensor:
        """Columns of one row's entries, [k] ascending, without zeros, which may only fill up a last block."""
        return self.columns(slice(row, row + 1))[self.values[row : row + 1] != 0]

    def push_(self, row: int, gradient: Tensor) -> Tensor:
        return ops.topk_push_(self.values, self.indices, self.error, row, gradient, self.block_size, self.boundaries)

    def clear_(self, row: int) -> None:
        self.values[row] = 0

    def dot(self, vectors: Tensor) -> Tensor:
        return ops.topk_dot(self.values, self.indices, vectors, self.block_size)

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        return ops.topk_combine_(
            out, self.values, self.indices, coefficients, alpha, beta, self.block_size, self.boundaries
        )

    def descend_(
        self, descent: Descent, average: Tensor | None, coefficients: Tensor, beta: float, momentum: float, newest: int
    ) -> None:
        ops.topk_descend_(
            *(descent.parameters, average, self.values, self.indices, coefficients, beta, momentum, newest),
            *(descent.columns, descent.rates, descent.decays, self.dim, self.block_size, self.boundaries),
        )

    def dense(self, index: Tensor | slice) -> Tensor:
        values = self.values[index].reshape(-1, *self.shape[1:]).to(self.vector_dtype)  # [k, blocks, kept]
        rows = values.new_zeros((values.shape[0], self.dim))
        rows.scatter_add_(1, self.columns(index).reshape(values.shape[0], -1), values.flatten(1))
        return rows if self.values[index].dim() == 3 else rows[0]

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values, "indices": self.indices, "error": self.error}

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        columns = (self.dim - self._starts).clamp(max=self.block_size)  # of each block
        if bool((tensors["indices"].to(self.device).long() >= columns[:, None]).any()):
            raise ValueError("Parameter `state` should have 'indices' below the columns of their block. Found others.")

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_(tensors)
        if self.boundaries is not None:
            offsets, boundaries = self.indices.view(torch.int16), self.boundaries.view(torch.int16)  # as in `columns`
            # A last block with fewer columns than entries is filled up with zeros at offset 0, which do not count.
            columns = (self.dim - self._starts).clamp(max=self.block_size)
            counts = torch.arange(self.shape[2], device=self.device) < columns[:, None]  # [blocks, kept]
            for tile in range(boundaries.shape[1]):
                before = (offsets < (tile + 1) * _TILE_COLUMNS) & counts  # [m, blocks, kept]
                boundaries[:, tile] = before.sum(2, dtype=torch.int16).T

    def __getstate__(self) -> dict[str, object]:
        """Integers as int16: torch cannot pickle uint16."""
        return {name: _with_dtype(value, torch.uint16, torch.int16) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update({name: _with_dtype(value, torch.int16, torch.uint16) for name, value in state.items()})


def make_rows(rank: int, dim: int, dtype: torch.dtype, density: float, device: torch.device) -> Rows:
    """The storage for a window of these parameters."""
    if density < 1:
        return TopKRows(rank, dim, dtype, density, device)
    if dtype == torch.int8:
        return Int8Rows(rank, dim, device)
    return DenseRows(rank, dim, dtype, device)
