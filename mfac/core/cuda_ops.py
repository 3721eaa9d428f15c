"""Operators whose CUDA twin is made of ATen's: large dense products, which cuBLAS does best."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE_ENTRIES = 1 << 22  # of a float64 tile of columns: 32 MiB


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
