"""Windows of gradients to draw from: by rank, dim, row norm, dtype and kind."""

import torch
from torch import Tensor

KINDS = ("plain", "zero rows", "duplicate rows", "every second row", "columns of a wider matrix")

# (kind, m, d): m = 1, m > d, m = d, odd sizes, one column, and every kind in a wide and a tall
# shape.
SHAPES = [
    ("plain", 1, 1),
    ("plain", 1, 33),
    ("plain", 7, 1),
    ("plain", 33, 33),
    ("zero rows", 7, 33),
    ("zero rows", 64, 31),
    ("duplicate rows", 8, 257),
    ("duplicate rows", 65, 32),
    ("every second row", 5, 101),
    ("every second row", 40, 17),
    ("columns of a wider matrix", 31, 130),
    ("columns of a wider matrix", 70, 13),
]

SCALES = (1e-10, 1e-3, 1.0, 1e4, 1e10)


_WINDOW_SEEDS = 1_000_000  # apart from those of vectors: a vector of the same draws would be a row of the window


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def window(
    rank: int, dim: int, norm: float = 1.0, *, dtype: torch.dtype = torch.float64, kind: str = "plain", seed: int = 0
) -> Tensor:
    """[rank, dim], every row (but zero rows) of the given Euclidean norm up to rounding."""
    rows, columns = (
        (2 * rank if kind == "every second row" else rank),
        (dim + 7 if kind == "columns of a wider matrix" else dim),
    )
    whole = normal(rows, columns, seed=_WINDOW_SEEDS + seed)
    view = whole[::2] if kind == "every second row" else whole[:, 3 : 3 + dim] if columns > dim else whole
    view *= norm / view.norm(dim=1, keepdim=True)
    if kind == "zero rows":
        view[rank // 2] = 0
        view[rank - 1] = 0
    if kind == "duplicate rows":
        view[rank // 2] = view[0]
        view[rank - 1] = view[0]
    if dtype == torch.float64:
        return view
    whole = whole.to(dtype)  # keeps the strides
    return whole[::2] if kind == "every second row" else whole[:, 3 : 3 + dim] if columns > dim else whole


def strided(tensor: Tensor) -> Tensor:
    """Equal to a matrix, with rows that lie further apart than they are long."""
    rows, columns = tensor.shape
    wide = torch.full((rows, columns + 5), float("nan"), dtype=tensor.dtype)
    wide[:, 2 : 2 + columns] = tensor
    return wide[:, 2 : 2 + columns]
