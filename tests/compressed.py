"""Compressed windows that their tests share: every format, filled windows, and equal states."""

import torch
from samplers import window
from torch import Tensor

import mfac

F32, F64, BF16, F16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8
DENSE = [(BF16, 1.0), (F16, 1.0), (INT8, 1.0)]
SPARSE = [(dtype, density) for dtype in (F32, BF16, F64) for density in (0.01, 0.1, 0.5)]
FORMATS = [*DENSE, *SPARSE]
SOME = [*DENSE, (F32, 0.1), (BF16, 0.01), (F64, 0.5), (F16, 0.1)]


def gradients(W: mfac.GradientWindow, count: int, seed: int = 0) -> Tensor:
    """[count, d] of norm 1 in the window's vector dtype."""
    return window(count, W.dim, dtype=W.vector_dtype, seed=seed)


def made(rank: int, dim: int, dtype: torch.dtype, density: float, pushes: int = 0, **options: object):
    W = mfac.GradientWindow(rank, dim, **{"damping": 1e-3, "dtype": dtype, "density": density, **options})
    for g in gradients(W, pushes) if pushes else ():
        W.push(g)
    return W


def tensors(W: mfac.GradientWindow) -> dict[str, Tensor]:
    return {name: value for name, value in W.state_dict().items() if isinstance(value, Tensor)}


def assert_same_state(a: mfac.GradientWindow, b: dict[str, object]) -> None:
    for name, mine in a.state_dict(copy=False).items():
        if name in {"gram", "inverse"}:  # of which only the lower triangles count
            assert torch.equal(mine.tril(), b[name].tril())
        elif isinstance(mine, Tensor):
            assert mine.dtype == b[name].dtype and torch.equal(mine, b[name]), name
        else:
            assert mine == b[name], name
