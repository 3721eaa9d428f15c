"""Values of the pass that moves weights by its own result: weights, average, their neighbours."""

import pytest
import torch
from rounding import U
from samplers import normal
from stored import BF16, F16, F32, F64, INT8, sample, widened
from torch import Tensor

from mfac.core import ops

FORMATS = [(F32, F32), (F64, F64), (BF16, F32), (F16, F32), (INT8, F32), (F32, F64), (BF16, F64), (INT8, F64)]
BETA, MOMENTUM = 3.0, 0.75


def shapes_of(dim: int) -> list[tuple[int, ...]]:
    """Parameters of all sizes, also scalars and empty ones, that fill two thirds of the columns."""
    shapes: list[tuple[int, ...]] = [(), (0, 3), (1, 1)]
    left = 2 * dim // 3 - 2
    for size in (1, 2, 31, 1000, 40_000):
        if size <= left:
            shapes.append((size,))
            left -= size
    return [*shapes, (max(0, left), 1)] if dim > 2 else [()]


def columns_of(shapes: list[tuple[int, ...]], dim: int) -> list[int]:
    """First columns with gaps between them, the last parameter at the very end."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    gap, columns, column = (dim - sum(sizes)) // len(sizes), [], 0
    for size in sizes:
        column += gap
        columns.append(column)
        column += size
    return [column + dim - columns[-1] - sizes[-1] for column in columns]


def assert_moved(rank: int, dim: int, dtype: torch.dtype, vector_dtype: torch.dtype, shapes, averaged: bool) -> None:
    """Every weight and average to its sum's and dtype's rounding; nothing else touched."""
    G, scales = sample(rank, dim, dtype)
    c, columns = normal(1, rank, seed=7), columns_of(shapes, dim)
    parameters = [normal(*shape, seed=i, dtype=vector_dtype) for i, shape in enumerate(shapes)]
    rates, decays = [0.5 / (i + 1) for i in range(len(shapes))], [1.0 - 0.125 * (i % 3) for i in range(len(shapes))]
    average = normal(dim, seed=8, dtype=vector_dtype) if averaged else None
    before = [p.double().clone() for p in parameters]
    average_before = None if average is None else average.double().clone()

    ops.window_descend_(parameters, average, G, c, BETA, MOMENTUM if averaged else 0.0, columns, rates, decays, scales)

    wide = widened(G, scales)
    u, absolute = BETA * (c @ wide)[0], BETA * (c.abs() @ wide.abs())[0]
    if average_before is not None:
        u = MOMENTUM * average_before + (1 - MOMENTUM) * u
        absolute = MOMENTUM * average_before.abs() + (1 - MOMENTUM) * absolute
    if dtype == INT8:  # a coefficient is off by 2^-54 of the largest times its scale
        absolute = absolute + BETA * float(c.abs().max() * scales.max()) * 127
    error = 2 * (rank + 4) * U[F64] * absolute + U[vector_dtype] * u.abs() + torch.finfo(vector_dtype).tiny
    if average is not None:
        assert bool(((average.double() - u).abs() <= error).all())
    for p, w, column, rate, decay in zip(parameters, before, columns, rates, decays, strict=True):
        part = slice(column, column + p.numel())
        expected = decay * w - rate * u[part].view(p.shape)
        bound = rate * error[part].view(p.shape) + U[vector_dtype] * expected.abs()
        bound += 4 * U[F64] * (w.abs() + rate * u[part].view(p.shape).abs())
        assert bool(((p.double() - expected).abs() <= bound).all())


@pytest.mark.parametrize("dim", [1, 3, 33, 127, 1025, 8193, 70_001])
@pytest.mark.parametrize(("dtype", "vector_dtype"), FORMATS)
@pytest.mark.parametrize("averaged", [True, False])
def test_descend_values(dim: int, dtype: torch.dtype, vector_dtype: torch.dtype, averaged: bool):
    for rank in (1, 2, 9, 17):
        assert_moved(rank, dim, dtype, vector_dtype, shapes_of(dim), averaged)


@pytest.mark.parametrize("averaged", [True, False])
def test_descend_values_of_more_parameters_than_one_launch_takes(averaged: bool):
    """A GPU gets 96 at a time; 300 scalars lie in one block of columns."""
    assert_moved(3, 1000, F32, F32, [()] * 300, averaged)
    assert_moved(3, 5000, F32, F32, [()] * 96 + [(7, 3)] * 96 + [(1500,)], averaged)
    assert_moved(3, 5000, INT8, F32, [(2,)] * 97, averaged)


def sparse_rows(rank: int, dim: int, block_size: int, kept: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Values, offsets and the same rows in float64; the first row was never written."""
    blocks = -(-dim // block_size)
    values, offsets = torch.zeros(rank, blocks, kept, dtype=dtype), torch.zeros(rank, blocks, kept, dtype=torch.int64)
    dense = torch.zeros(rank, dim, dtype=F64)
    for r in range(1, rank):
        for b in range(blocks):
            cols = min(block_size, dim - b * block_size)
            count = min(cols, kept)
            some = normal(cols, seed=100 * r + b).argsort()[:count].sort().values
            values[r, b, :count], offsets[r, b, :count] = normal(count, seed=r + b).to(dtype), some
            dense[r, b * block_size + some] = values[r, b, :count].double()
    return values, offsets.to(torch.uint16), dense


@pytest.mark.parametrize(("dtype", "vector_dtype"), [(F32, F32), (F64, F64), (BF16, F32), (F16, F64)])
@pytest.mark.parametrize(("dim", "block_size", "kept"), [(1, 1, 1), (33, 7, 3), (40, 13, 13), (5001, 1667, 17)])
def test_descend_values_of_sparse_rows(dtype, vector_dtype, dim: int, block_size: int, kept: int):
    """What the newest row carries moves at once and starts with no average."""
    rank, newest = 5, 2
    values, offsets, dense = sparse_rows(rank, dim, block_size, kept, dtype)
    c = normal(1, rank, seed=7)
    u, absolute = BETA * (c @ dense)[0], BETA * (c.abs() @ dense.abs())[0]
    for averaged in (True, False):
        w, average = normal(dim, seed=1, dtype=vector_dtype), normal(dim, seed=2, dtype=vector_dtype)
        before, average_before = w.double().clone(), average.double().clone()
        ops.topk_descend_(
            *([w], average if averaged else None, values, offsets, c, BETA, MOMENTUM if averaged else 0.0, newest),
            *([0], [0.5], [0.875], dim, block_size),
        )
        carried = dense[newest] != 0
        v = torch.where(carried, u, MOMENTUM * average_before + (1 - MOMENTUM) * u) if averaged else u
        error = 2 * (rank + 4) * U[F64] * (absolute + average_before.abs()) + U[vector_dtype] * v.abs()
        expected = 0.875 * before - 0.5 * v
        assert bool(((w.double() - expected).abs() <= error + 2 * U[vector_dtype] * expected.abs() + 1e-300).all())
        if averaged:
            kept_average = torch.where(carried, 0.0, v)
            assert bool(((average.double() - kept_average).abs() <= error).all()) and bool(
                (average[carried] == 0).all()
            )
        else:
            assert torch.equal(average.double(), average_before)


def test_descend_values_without_momentum_read_no_average():
    G, c = normal(5, 40), normal(1, 5)
    w, average = torch.zeros(40, dtype=F64), torch.full((40,), float("nan"), dtype=F64)
    ops.window_descend_([w], average, G, c, 1.0, 0.0, [0], [1.0], [1.0])
    assert torch.equal(w, -average) and bool(w.isfinite().all())


def test_descend_values_lie_in_the_parameters_alone():
    memory = torch.full((50,), 77.0)
    w = memory[3:43].view(5, 8)
    G, c = normal(4, 100, dtype=F32), normal(1, 4)
    ops.window_descend_([w], None, G, c, 1.0, 0.0, [11], [1.0], [0.0])
    expected: Tensor = -(c @ G.double())[0, 11:51]
    assert bool((memory[:3] == 77).all()) and bool((memory[43:] == 77).all())
    assert torch.allclose(w.reshape(-1).double(), expected, rtol=1e-6, atol=1e-7)
