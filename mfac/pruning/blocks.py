"""The diagonal blocks of a Fisher over successive live weights, as dense matrices, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfac.curvature.fisher import EmpiricalFisher

_ENTRIES_AT_ONCE = 1 << 19  # of the blocks that are there together: 4 MiB in float64


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
    step = max(1, _ENTRIES_AT_ONCE // size**2) * size
    for begin, tile in _whole_blocks(fisher, size):
        for start in range(0, tile.shape[1], step):
            columns = tile[:, start : start + step].double()
            width = min(size, columns.shape[1])
            columns = columns.view(fisher.rank, -1, width).transpose(0, 1)  # [c, m, B]
            blocks = torch.bmm(columns.mT, columns).div_(fisher.rank)
            blocks.diagonal(dim1=1, dim2=2).add_(fisher.damping)
            yield slice(begin + start, begin + start + columns.shape[0] * width), blocks


def factored(blocks: Tensor, damping: float) -> Tensor:
    """Cholesky factors of blocks of a Fisher.

    Args:
        blocks: [c, B, B] float64.
        damping: λ, for the message.

    Returns:
        Lower factors, [c, B, B].

    Raises:
        torch.linalg.LinAlgError: If a block is not numerically positive definite.
    """
    factors, failed = torch.linalg.cholesky_ex(blocks)
    if bool((failed > 0).any()):
        bad = int((failed > 0).nonzero()[0])
        raise torch.linalg.LinAlgError(
            f"A block of {blocks.shape[1]} weights of the Fisher λI + GᵀG/n is not numerically positive definite: its "
            f"largest entry is {float(blocks[bad].max()):.3g}, λ only {damping:.3g}. Increase `damping`."
        )
    return factors


def _whole_blocks(fisher: EmpiricalFisher, size: int) -> Iterator[tuple[int, Tensor]]:
    """First columns and tiles of whole blocks of gradients; the last tile may hold less."""
    begin, rest = 0, None
    for tile in fisher.tiles():
        if rest is not None and rest.shape[1]:
            tile = torch.cat([rest, tile], 1)
        whole = tile.shape[1] // size * size
        if whole:
            yield begin, tile[:, :whole]
        begin, rest = begin + whole, tile[:, whole:].clone()
    if rest is not None and rest.shape[1]:
        yield begin, rest
