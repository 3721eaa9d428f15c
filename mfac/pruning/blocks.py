"""The diagonal blocks of a Fisher over successive live weights, as dense matrices, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfac.core import ops
from mfac.curvature.fisher import EmpiricalFisher

_ENTRIES_AT_ONCE = 1 << 19  # of the blocks that are there together: 4 MiB in float64
COLUMNS_AT_ONCE = 1 << 10  # of gradients that are there in float64, with what is computed from them
_COPIES = 5  # of the blocks that are there together: factors, inverses, and copies of these; as measured


def block_factors(fisher: EmpiricalFisher, block_size: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Goes over Cholesky factors of the diagonal blocks λI + G_bᵀG_b/m of F.

    Args:
        fisher: F, over n weights. A block-diagonal F is taken for the whole one: the blocks asked
            for count.
        block_size: B; the last block is narrower where B does not divide n, and comes alone.

    Yields:
        Columns of F, their gradients [m, c·B], and upper factors R of their blocks RᵀR in order,
        [c, B, B] float64.

    Raises:
        torch.linalg.LinAlgError: If a block is not numerically positive definite.
    """
    size = min(block_size, fisher.dim)
    step = max(1, _ENTRIES_AT_ONCE // size**2) * size
    for begin, tile in _whole_blocks(fisher, size):
        for start in range(0, tile.shape[1], step):
            columns = tile[:, start : start + step]
            width = min(size, columns.shape[1])
            if fisher.rank >= width:
                rank, damping = float(fisher.rank), fisher.damping
                factors, failed = ops.block_factor(columns, width, damping, rank)
                if bool((failed >= 0).any()):
                    trace = float(ops.squared_norms(columns).sum()) / rank
                    raise torch.linalg.LinAlgError(_not_definite(trace, width, damping))
            else:  # whose own factor would be the smaller one of the dual form
                factors = factored(_blocks(columns, width, fisher), fisher.damping).mT
            yield slice(begin + start, begin + start + columns.shape[1]), columns, factors


def _blocks(columns: Tensor, width: int, fisher: EmpiricalFisher) -> Tensor:
    """Blocks λI + G_bᵀG_b/m of columns [m, n], [n/B, B, B] float64."""
    double = columns.double().view(fisher.rank, -1, width).transpose(0, 1)  # [c, m, B]
    blocks = torch.bmm(double.mT, double).div_(fisher.rank)
    blocks.diagonal(dim1=1, dim2=2).add_(fisher.damping)
    return blocks


def working_bytes(count: int, block_size: int) -> int:
    """What pruning within blocks takes at once.

    Args:
        count: Weights.
        block_size: B.

    Returns:
        Bytes.
    """
    size = min(block_size, count)
    at_once = max(size * size, min(_ENTRIES_AT_ONCE, count * size))
    return 8 * _COPIES * at_once


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
        trace = float(blocks[bad].diagonal().sum())
        raise torch.linalg.LinAlgError(_not_definite(trace, blocks.shape[1], damping))
    return factors


def _not_definite(trace: float, width: int, damping: float) -> str:
    return (
        f"A block of {width} weights of the Fisher λI + GᵀG/n is not numerically positive definite: its diagonal sums "
        f"up to at most {trace:.3g}, λ is only {damping:.3g}. Increase `damping`."
    )


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
