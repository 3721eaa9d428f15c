"""ExactOBS for blocks of weights: the block that costs least goes, until none is left."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.layerwise.hessian import Hessian

_BYTES = 256 << 20  # of inverses at a time


def block_order(hessian: Hessian, weight: Tensor, outputs: int, inputs: int, channels: int) -> tuple[Tensor, Tensor]:
    """The order in which each band of rows loses its blocks, and what each costs.

    With Q the columns of a block, a band of rows pays Σ w_Q (H⁻¹_QQ)⁻¹ w_Qᵀ for it. All rows of a
    band lose the same columns, so they share H⁻¹.

    Args:
        hessian: Of the inputs.
        weight: [rows, columns] float64.
        outputs: Rows of a block; the last band may have fewer.
        inputs: Columns of a block; the last of each kernel position may have fewer.
        channels: Columns of a kernel position.

    Returns:
        Numbers of blocks, [bands, blocks], and losses, [bands, blocks] float64. O(bands · columns³)
        and columns² floats for each band that is worked on.
    """
    rows, columns = weight.shape
    bands = -(-rows // outputs)
    padded = torch.zeros(bands * outputs, columns, dtype=weight.dtype, device=weight.device)
    padded[:rows] = weight
    members = block_members(columns, inputs, channels, weight.device)
    size = max(1, _BYTES // (8 * columns * columns))
    found = [_bands(hessian, part, members) for part in padded.view(bands, outputs, columns).split(size)]
    order, losses = (torch.cat(part) for part in zip(*found, strict=True))
    return order, losses


def block_members(columns: int, inputs: int, channels: int, device: torch.device) -> Tensor:
    """The columns of each block, [blocks, inputs]; -1 where a block is smaller."""
    starts = [begin for first in range(0, columns, channels) for begin in range(first, first + channels, inputs)]
    members = torch.tensor(starts)[:, None] + torch.arange(inputs)
    ends = torch.tensor([(start // channels + 1) * channels for start in starts])
    return members.masked_fill(members >= ends[:, None], -1).to(device)


def _bands(hessian: Hessian, weight: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    bands, _, columns = weight.shape
    weight = weight.clone()
    inverse = hessian.inverse.expand(bands, columns, columns).clone()
    real = members >= 0
    index = members.clamp(min=0)
    alive = torch.ones(bands, len(members), dtype=torch.bool, device=weight.device)
    order = torch.empty(bands, len(members), dtype=torch.int64, device=weight.device)
    losses = torch.empty(bands, len(members), dtype=torch.float64, device=weight.device)
    band = torch.arange(bands, device=weight.device)
    hidden = ~(real[:, :, None] & real[:, None, :])
    for step in range(len(members)):
        squares = inverse[:, index[:, :, None], index[:, None, :]]  # [bands, blocks, inputs, inputs]
        squares.masked_fill_(hidden, 0)
        squares.diagonal(dim1=2, dim2=3).masked_fill_(~real, 1)
        squares[~alive] = torch.eye(squares.shape[-1], dtype=weight.dtype, device=weight.device)
        w = (weight[:, :, index] * real).movedim(1, 3)  # [bands, blocks, inputs, outputs]
        solved = torch.cholesky_solve(w, torch.linalg.cholesky(squares))
        scores = (w * solved).sum((2, 3)).masked_fill_(~alive, float("inf"))
        losses[:, step], chosen = scores.min(1)
        order[:, step] = chosen
        alive[band, chosen] = False
        columns_of = index[chosen]  # [bands, inputs]
        keep = real[chosen].to(weight.dtype)
        rows_of = inverse[band[:, None], columns_of] * keep[:, :, None]  # [bands, inputs, columns]
        weight -= solved[band, chosen].transpose(1, 2) @ rows_of
        square = squares[band, chosen]
        inverse -= rows_of.transpose(1, 2) @ torch.linalg.solve(square, rows_of)
    return order, losses
