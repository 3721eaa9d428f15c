"""Windows as operators take them: every format, with scales if any, and its exact values."""

import torch
from samplers import window
from torch import Tensor

F32, F64, BF16, F16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8
TILE = 1024  # columns of an int8 row that share a scale


def tile_count(dim: int) -> int:
    return -(-dim // TILE)


def sample(rank: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A window of a format, and its scales; in int8 all integers, -128 too."""
    if dtype != INT8:
        return window(rank, dim, norm=3.0, dtype=F32, seed=rank).to(dtype), None
    generator = torch.Generator().manual_seed(rank * 100_003 + dim)
    integers = torch.randint(-128, 128, (rank, dim), generator=generator, dtype=torch.int16).to(INT8)
    scales = torch.rand(rank, tile_count(dim), generator=generator)
    return integers, scales


def widened(G: Tensor, scales: Tensor | None) -> Tensor:
    """The rows in float64, exactly: int8 times float32 has 31 bits."""
    if scales is None:
        return G.double()
    return G.double() * scales.double().repeat_interleave(TILE, dim=1)[:, : G.shape[1]]
