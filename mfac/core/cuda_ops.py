"""Operators whose CUDA twin is made of ATen's: large products and batched factorisations."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE_ENTRIES = 1 << 22  # of a float64 tile of columns: 32 MiB
_SQUARE_ENTRIES = 1 << 27  # of matrices that are factored at a time: 1 GiB


def gram(window: Tensor) -> Tensor:
    """G Gᵀ in float64 by matrix products over tiles of columns.

    Args:
        window: G, [m, d] float32 or float64.

    Returns:
        [m, m] float64. 2m²d flops, twice those of the triangle; extra memory of a tile.
    """
    rank, dim = window.shape
    width = max(1, min(dim, _TILE_ENTRIES // max(1, rank)))
    result = window.new_zeros((rank, rank), dtype=torch.float64)
    buffer = window.new_empty((rank, width), dtype=torch.float64)  # the same alignment, and last bits, for any window
    for start in range(0, dim, width):
        tile = buffer[:, : min(width, dim - start)]
        tile.copy_(window[:, start : start + width])
        result.addmm_(tile, tile.T)
    return result.tril().add_(result.tril(-1).T)  # the last bits of the two triangles may differ


def restricted_solve(matrix: Tensor, target: Tensor, kept: Tensor) -> Tensor:
    """Exact weights on any mask, by batches of Cholesky factors.

    Args:
        matrix: [n, n] float64, symmetric.
        target: [rows, n] float64.
        kept: [rows, n] bool.

    Returns:
        [rows, n] float64: x_S with matrix_SS x_S = target_S, 0 elsewhere; NaN where matrix_SS is
        not positive definite. O(Σ|S|³/3), but for rows padded to the most that a batch keeps.
    """
    solved, counts = torch.zeros_like(target), kept.sum(1)
    order = counts.argsort()  # rows of like counts together, so that little is padded
    if not len(counts):
        return solved
    most = max(1, int(counts.max()))
    for rows in order.split(max(1, _SQUARE_ENTRIES // most**2)):
        size = int(counts[rows].max())
        # The columns that each row keeps, and then any that it does not, which count for nothing.
        index = kept[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        real = torch.arange(size, device=target.device) < counts[rows][:, None]
        squares = matrix[index[:, :, None], index[:, None, :]]
        squares.masked_fill_(~(real[:, :, None] & real[:, None, :]), 0)
        squares.diagonal(dim1=1, dim2=2).masked_fill_(~real, 1)
        goal = target[rows].gather(1, index) * real
        factor, failed = torch.linalg.cholesky_ex(squares)
        found = torch.cholesky_solve(goal[:, :, None], factor)[:, :, 0]
        found = found.masked_fill((failed != 0)[:, None] & real, torch.nan)
        solved[rows[:, None], index] = found * real
    return solved
