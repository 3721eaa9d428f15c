"""The diagonal blocks of a Fisher over successive live weights, as dense matrices, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfac.curvature.fisher import EmpiricalFisher

_ENTRIES_AT_ONCE = 1 << 18  # of the blocks that are there together: 2 MiB in float64


def fisher_blocks(fisher: EmpiricalFisher, block_size: int) -> Iterator[tuple[slice, Tensor]]:
    """Goes over the diagonal blocks λI + G_bᵀG_b/m of F.

    Args:
        fisher: F, over n weights. A block-diagonal F is taken for the whole one: the blocks asked
            for count.
        block_size: B; the last block is narrower where B does not divide n, and comes alone.

    Yields:
        Columns of F, and their blocks in order, [c, B, B] float64.
    """
    size = min(block_size, fisher.dim)
    whole = fisher.dim // size
    step = max(1, _ENTRIES_AT_ONCE // size**2)
    bounds = [(first * size, min(first + step, whole) * size, size) for first in range(0, whole, step)]
    if whole * size < fisher.dim:
        bounds.append((whole * size, fisher.dim, fisher.dim - whole * size))
    for begin, end, width in bounds:
        columns = fisher.grads[:, begin:end].double().view(fisher.rank, -1, width).transpose(0, 1)  # [c, m, B]
        blocks = torch.bmm(columns.mT, columns).div_(fisher.rank)
        blocks.diagonal(dim1=1, dim2=2).add_(fisher.damping)
        yield slice(begin, end), blocks
