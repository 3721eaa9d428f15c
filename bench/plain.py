"""An operator's work on rows of any format, and the paper's step, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.bench.ops import plain_combine, plain_dot
from mfac.bench.recurrence import DynamicRecurrence
from mfac.window.formats.base import Rows
from mfac.window.formats.int8 import Int8Rows
from mfac.window.formats.topk import TopKRows


class PaperStep(DynamicRecurrence):
    """The paper's step without a number that the host waits for."""

    def rebuild(self) -> tuple[Tensor, Tensor]:
        """As there."""
        rank = self.products.shape[0]
        D, B = self.products / self.damping, torch.eye(rank, dtype=torch.float64) / self.damping
        q = torch.empty(rank, dtype=torch.float64)
        for i in range(rank):
            q[i] = rank + D[i, i]
            D[i + 1 :, i + 1 :] -= torch.outer(D[i, i + 1 :] / q[i], D[i, i + 1 :])
            if i:
                B[i, :i] = -(B[:i, :i].T @ (D[:i, i] / q[:i]))
        return B, q


def dot(rows: Rows, v: Tensor) -> Tensor:
    """Plain torch for G v, [m]."""
    return plain_dot(rows, 0, v) if isinstance(rows, TopKRows) else rows.as_dense().to(v.dtype) @ v


def combine(rows: Rows, c: Tensor, dim: int) -> Tensor:
    """Plain torch for Gᵀ c, [d]."""
    return plain_combine(rows, 0, c, dim) if isinstance(rows, TopKRows) else c @ rows.as_dense().to(c.dtype)


def in_blocks(g: Tensor, width: int) -> Tensor:
    """[d] as [blocks, width], filled up with zeros."""
    return torch.nn.functional.pad(g, (0, -g.numel() % width)).view(-1, width)


def push(rows: Rows, row: int, g: Tensor) -> Tensor:
    """A push in plain torch: rounds g [d] into a row; returns its products with all rows, [m]."""
    if isinstance(rows, TopKRows):
        entered = in_blocks(rows.error.add_(g), rows.block_size)
        indices = entered.abs().topk(rows.shape[2], dim=1, sorted=False).indices
        rows.values[row] = entered.gather(1, indices)
        rows.indices[row] = indices.to(torch.uint16)
        rows.error.copy_(entered.scatter(1, indices, 0.0).flatten()[: rows.dim])
    elif isinstance(rows, Int8Rows):
        tiles = in_blocks(g, 1024)
        rows.scales[row] = tiles.abs().amax(1) / 127
        rows.stored[row] = (tiles / rows.scales[row, :, None]).round().flatten()[: g.numel()].to(torch.int8)
    else:
        rows.tensors()["rows"][row] = g
    return dot(rows, rows.as_dense(slice(row, row + 1))[0].float())
