"""Every operator's CUDA twin, executed on the CPU, equals its CPU kernel to rounding.

Each instance of each kernel is reached by a test of its own; MFAC_TWIN_SHAPES sets how many shapes
each draws.
"""

import os
import random
from collections.abc import Iterator

import pytest
import torch
from emulation.build import build
from rounding import U, relative_error
from samplers import normal, window
from torch import Tensor

pytestmark = pytest.mark.cpu_only("CUDA kernels executed on the CPU")

F32, F64, BF16, F16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8
SHAPES = int(os.environ.get("MFAC_TWIN_SHAPES", "3"))
RANKS = (1, 2, 7, 8, 9, 31, 32, 33, 64, 65)
DIMS = (1, 31, 32, 33, 127, 1000, 1024, 1025, 2049)
TILE = 1024  # columns of an int8 row that share a scale

every_format = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16, INT8], ids=str)
every_vector = pytest.mark.parametrize("vector_dtype", [F32, F64], ids=str)
every_layout = pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "unaligned"])
every_count = pytest.mark.parametrize("count", [1, 6])  # two groups of vectors, or three

cpu = torch.ops.mfac


@pytest.fixture(scope="module")
def cuda() -> object:
    """The twins under the CPU's signatures."""
    torch.ops.load_library(str(build(os.environ.get("MFAC_TEST_KERNELS", "plain"))))
    return torch.ops.mfac_emulated


def shapes(*instance: object) -> Iterator[tuple[int, int]]:
    """(m, d), sizes around warps and tiles or any others; the same for the same instance."""
    draw = random.Random(str(instance))
    for _ in range(SHAPES):
        rank = draw.choice([*RANKS, draw.randint(1, 80)])
        yield rank, draw.choice([*DIMS, *(draw.randint(1, 3000) for _ in DIMS)])


def laid_out(G: Tensor, aligned: bool) -> Tensor:
    """The same rows, where each begins at a packet of sixteen bytes or where none needs to."""
    rank, dim = G.shape
    memory = G.new_zeros(rank, -(-dim // 16) * 16 if aligned else dim + 5)
    rows = memory[:, :dim] if aligned else memory[:, 1 : dim + 1]
    rows.copy_(G)
    return rows


def sample(rank: int, dim: int, dtype: torch.dtype, aligned: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """A window, its scales, and its rows in float64."""
    if dtype != INT8:
        G = window(rank, dim, norm=3.0, dtype=F32 if dtype != F64 else F64, seed=rank).to(dtype)
        return laid_out(G, aligned), None, G.double()
    generator = torch.Generator().manual_seed(rank * 100_003 + dim)
    G = torch.randint(-128, 128, (rank, dim), generator=generator, dtype=torch.int16).to(INT8)
    scales = torch.rand(rank, -(-dim // TILE), generator=generator)
    return laid_out(G, aligned), scales, G.double() * scales.double().repeat_interleave(TILE, 1)[:, :dim]


def assert_equal_to_rounding(one: Tensor, other: Tensor, terms: int, absolute_sums: Tensor) -> None:
    """Two sums of as many products: each is off by (terms + 2)u of magnitudes and one rounding."""
    bound = 2 * (terms + 4) * U[F64] * absolute_sums + 2 * U[one.dtype] * other.abs().double()
    assert one.dtype == other.dtype
    assert bool(((one.double() - other.double()).abs() <= bound + torch.finfo(one.dtype).tiny).all())


@every_format
@every_vector
@every_layout
@every_count
def test_dot_and_combine(cuda, dtype: torch.dtype, vector_dtype: torch.dtype, aligned: bool, count: int):
    for rank, dim in shapes("dot", dtype, vector_dtype, aligned, count):
        G, scales, wide = sample(rank, dim, dtype, aligned)
        v, c = normal(count, dim, seed=1, dtype=vector_dtype), normal(count, rank, seed=2)
        absolute = v.double().abs() @ wide.abs().T
        assert_equal_to_rounding(cuda.window_dot(G, v, scales), cpu.window_dot(G, v, scales), dim, absolute)
        for alpha in (0.0, -0.5):
            out, other = normal(count, dim, seed=3, dtype=vector_dtype), normal(count, dim, seed=3, dtype=vector_dtype)
            # On the CPU coefficients of int8 rows are digits of the largest.
            size = c.abs().amax(1, keepdim=True).expand_as(c) if dtype == INT8 else c.abs()
            absolute = abs(alpha) * out.double().abs() + 3 * (size @ wide.abs())
            cuda.window_combine_(out, G, c, alpha, 3.0, scales)
            cpu.window_combine_(other, G, c, alpha, 3.0, scales)
            assert_equal_to_rounding(out, other, rank + 2, absolute)


@every_format
@every_vector
@every_layout
@pytest.mark.parametrize("averaged", [True, False])
def test_descend(cuda, dtype: torch.dtype, vector_dtype: torch.dtype, aligned: bool, averaged: bool):
    for rank, dim in shapes("descend", dtype, vector_dtype, aligned, averaged):
        G, scales, wide = sample(rank, dim, dtype, aligned)
        c, size = normal(1, rank, seed=2), dim // 3 + 1
        columns = [0, dim - size] if dim > 2 * size else [dim - size]
        results = []
        for ops in (cuda, cpu):
            parameters = [normal(size, seed=4 + i, dtype=vector_dtype) for i in range(len(columns))]
            average = normal(dim, seed=3, dtype=vector_dtype) if averaged else None
            factors = ([0.5, 0.25][: len(columns)], [1.0, 0.875][: len(columns)])
            ops.window_descend_(parameters, average, G, c, 3.0, 0.5 * averaged, columns, *factors, scales)
            results.append([*parameters, *([average] if averaged else [])])
        of_rows = 3 * (c.abs().amax() if dtype == INT8 else c.abs()) * torch.ones(1, rank).double() @ wide.abs()
        for one, other in zip(*results, strict=True):  # the direction's rounding and the weight's; factors below 1
            largest = of_rows.amax() + 4 * (1 + other.double().abs())
            assert_equal_to_rounding(one, other, rank + 4, largest * (1 + U[vector_dtype] / U[F64] / (rank + 8)))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@every_layout
def test_squared_norms(cuda, dtype: torch.dtype, aligned: bool):
    for rank, dim in shapes("norms", dtype, aligned):
        G, _, wide = sample(rank, dim, dtype, aligned)
        assert_equal_to_rounding(cuda.squared_norms(G), cpu.squared_norms(G), dim, wide.square().sum(1))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("diagonal_dtype", [F32, F64], ids=str)
@every_layout
def test_obs_saliency(cuda, dtype: torch.dtype, diagonal_dtype: torch.dtype, aligned: bool):
    for _, dim in shapes("saliency", dtype, diagonal_dtype, aligned):
        w = laid_out(normal(1, dim, dtype=dtype), aligned)[0]
        diagonal = normal(dim, seed=1, dtype=diagonal_dtype).abs() + 0.1
        assert torch.equal(cuda.obs_saliency(w, diagonal), cpu.obs_saliency(w, diagonal))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("inner", [1, 9, 700])
def test_nm_mask(cuda, dtype: torch.dtype, inner: int):
    for outer, dim in shapes("nm", dtype, inner):
        axis, group = 1 + dim % 200, 1 + dim % 64
        keep = outer % (group + 1)
        scores = normal(1 + outer % 5, axis, inner, seed=dim, dtype=dtype)
        for some in (scores, scores.mul(2).round(), scores.log()):  # equal ones; NaN
            assert torch.equal(cuda.nm_mask(some, keep, group), cpu.nm_mask(some, keep, group))


def related(n: int) -> Tensor:
    """A Hessian of condition below 50."""
    rows = window(2 * n, n, norm=1.0)
    return rows.T @ rows * (n / (2 * n)) + 0.1 * torch.eye(n, dtype=F64)


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("levels", [0, 15])
def test_obs_sweep(cuda, keep: int, levels: int):
    for rank, dim in shapes("sweep", keep, levels):
        n, group = 1 + dim % 150, max(keep, 1) + dim % 40
        R = torch.linalg.cholesky(related(n).flip(0, 1)).flip(0, 1)
        R, W, S = R.contiguous(), normal(rank, n, seed=1), normal(rank, n, seed=2)
        grid = (torch.full((rank,), 0.3, dtype=F64), torch.full((rank,), 7.0, dtype=F64)) if levels else (None, None)
        results = []
        for op in (cuda, cpu):
            q, e, kept = laid_out(W, False), laid_out(S, False), laid_out(W > S, False)
            op.obs_sweep_(q, e, R, kept, keep, group, *grid, levels)
            results.append((q, e, kept))
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)  # n·u·κ is below 1e-11
        assert torch.equal(results[0][2], W > S) or keep > 0


@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("levels", [0, 15])
def test_obs_eliminate(cuda, keep: int, levels: int):
    for rank, dim in shapes("eliminate", keep, levels):
        rows, n = 1 + rank % 4, 1 + dim % 100
        W, dropped = normal(rows, n, seed=1), normal(rows, n, seed=2) > 0.8
        inverse = torch.linalg.inv(related(n))
        inverse = laid_out((inverse + inverse.T) / 2, False)
        grid = (torch.full((rows, n), 0.3, dtype=F64), torch.full((rows, n), 7.0, dtype=F64))
        arguments = (n - rank % n, keep, max(keep, 1) + dim % 20, *(grid if levels else (None, None)), levels)
        for some in (dropped, torch.zeros_like(dropped)):
            found, expected = (op.obs_eliminate(W, inverse, some, *arguments) for op in (cuda, cpu))
            assert torch.equal(found[0], expected[0])
            for one, other in zip(found[1:], expected[1:], strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@every_format
@every_vector
@every_layout
def test_push(cuda, dtype: torch.dtype, vector_dtype: torch.dtype, aligned: bool):
    if dtype == INT8 and vector_dtype == F64:
        pytest.skip("int8 rows take float32 gradients")
    for rank, dim in shapes("push", dtype, vector_dtype, aligned):
        G, scales, _ = sample(rank, dim, dtype, aligned)
        other, other_scales = laid_out(G, aligned), None if scales is None else scales.clone()
        g, row = normal(dim + 1, seed=5, dtype=vector_dtype)[0 if aligned else 1 :][:dim], rank // 2
        found = cuda.window_push_(G, row, g, scales)
        expected = cpu.window_push_(other, row, g, other_scales)
        # Without FMA a quotient half way between two integers may round to the other one.
        assert torch.equal(G, other) if dtype != INT8 else int((other != G).sum()) <= 1 + dim // 1000
        if torch.equal(G, other):
            wide = G.double()
            if scales is not None:
                assert torch.equal(scales, other_scales)
                wide = wide * scales.double().repeat_interleave(TILE, 1)[:, :dim]
            assert_equal_to_rounding(found, expected, dim, wide.abs() @ wide[row].abs())

        g[-1], before = float("nan"), G.clone()
        assert cuda.window_push_(G, row, g, scales).isnan().all() and torch.equal(G, before)


@pytest.mark.parametrize(("dtype", "single"), [(F32, True), (F32, False), (F64, False)])
def test_whitened_norms(cuda, dtype: torch.dtype, single: bool):
    for rank, dim in shapes("whitened", dtype, single):
        G = window(rank, dim, norm=3.0, dtype=dtype)
        inverse = normal(rank, rank, seed=3).tril() + 2 * torch.eye(rank, dtype=F64)
        (found, errors), (expected, other) = (op.whitened_norms(G, inverse, single) for op in (cuda, cpu))
        assert bool(((found - expected).abs() <= errors + other).all())


def test_capacitance(cuda):
    for rank, _ in [*shapes("capacitance"), (65, 1), (130, 1), (1025, 1)]:
        rows = window(rank + 1, 4 * rank + 3, norm=2.0)  # of condition at most 20 with a shift of ½
        gram, products = rows[:rank] @ rows[:rank].T, rows[:rank] @ rows[rank]
        inverse = torch.linalg.inv(gram + 0.5 * torch.eye(rank, dtype=F64)).contiguous()
        bound = 20 * 8 * (rank + 4) * U[F64]
        b = normal(3, rank, seed=4)
        for vectors in (b[:1], b):
            found, expected = (op.capacitance_solve(inverse, gram, vectors, 0.5)[0] for op in (cuda, cpu))
            assert relative_error(found, expected) <= bound
        row = rank // 2
        products[row] = 4.0
        results = []
        for op in (cuda, cpu):
            A, K = inverse.clone(), gram.clone()
            pivot = op.capacitance_replace_(A, K, row, products, 0.5)
            results.append((A.tril(), K.tril(), pivot))
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) <= bound


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("block_size", [7, 33, 70])
def test_blocks(cuda, dtype: torch.dtype, block_size: int):
    for rank, dim in shapes("blocks", dtype, block_size):
        G, v = window(rank, dim % 400 + 1, dtype=dtype), normal(2, dim % 400 + 1, seed=5)
        arguments = (block_size, 0.1, float(rank))
        bound = 4 * 1000**0.5 * U[F64] * 11  # rows have norm 1: κ <= 11 (test_ops_block.py)
        results = []
        for op in (cuda, cpu):
            factors, failed = op.block_factor(G, *arguments)
            assert bool((failed == -1).all())
            products = [op.block_ihvp(G, factors, v, *arguments), op.block_matvec(G, v, *arguments)]
            results.append((factors, *products, op.block_inverse_diagonal(G, factors, *arguments)))
        for found, expected in zip(*results, strict=True):
            assert relative_error(found, expected) <= bound


@pytest.mark.parametrize(
    ("dtype", "vector_dtype"),
    [(F32, F32), (F64, F64), (BF16, F32), (F16, F32), (F32, F64), (BF16, F64), (F16, F64), (F64, F32)],
)
@pytest.mark.parametrize("block_size", [97, 1500])
def test_topk(cuda, dtype: torch.dtype, vector_dtype: torch.dtype, block_size: int):
    for rank, dim in shapes("topk", dtype, vector_dtype, block_size):
        kept, blocks, tiles = max(1, block_size // 20), -(-dim // block_size), -(-block_size // TILE)
        states = []
        for op in (cuda, cpu):
            values, indices = torch.zeros(rank, blocks, kept, dtype=dtype), torch.zeros(rank, blocks, kept)
            boundaries = torch.zeros(blocks, tiles - 1, rank).to(torch.uint16)
            error = torch.zeros(dim, dtype=vector_dtype)
            states.append((op, values, indices.to(torch.uint16), error, boundaries))
        for number in range(3):
            g = normal(dim + 1, seed=number, dtype=vector_dtype)
            g = g[1:] if number == 2 else g[:-1]  # a gradient that begins at no packet
            found, expected = (
                op.topk_push_(*state, number % rank, g, block_size, boundaries) for op, *state, boundaries in states
            )
            for one, other in zip(states[0][1:], states[1][1:], strict=True):
                assert torch.equal(one, other)  # the very same entries
        _, values, indices, _, boundaries = states[1]
        dense = torch.zeros(rank, blocks * block_size, dtype=F64)
        columns = indices.long() + block_size * torch.arange(blocks)[:, None]
        dense.scatter_add_(1, columns.flatten(1), values.double().flatten(1))
        dense = dense[:, :dim]
        assert_equal_to_rounding(found, expected, dim, dense.abs() @ dense[2 % rank].abs())
        for count in (1, 3):
            v, c = normal(count, dim, seed=7, dtype=vector_dtype), normal(count, rank, seed=8)
            found, expected = (op.topk_dot(values, indices, v, block_size) for op, *_ in states)
            assert_equal_to_rounding(found, expected, dim, v.double().abs() @ dense.abs().T)
            for alpha, known in ((0.0, boundaries), (-0.5, None)):
                outs = [normal(count, dim, seed=9, dtype=vector_dtype) for _ in states]
                for (op, *_), out in zip(states, outs, strict=True):
                    op.topk_combine_(out, values, indices, c, alpha, 3.0, block_size, known)
                absolute = abs(alpha) * normal(count, dim, seed=9).abs() + 3 * (c.abs() @ dense.abs())
                assert_equal_to_rounding(*outs, rank + 2, absolute)
        c = normal(1, rank, seed=8)
        for averaged, known in ((True, boundaries), (False, None)):
            results = []
            for op, *_ in states:
                w = normal(dim, seed=4, dtype=vector_dtype)
                average = normal(dim, seed=3, dtype=vector_dtype) if averaged else None
                op.topk_descend_(
                    *([w], average, values, indices, c, 3.0, 0.5 * averaged, 2 % rank),
                    *([0], [0.5], [0.875], dim, block_size, known),
                )
                results.append([w, *([average] if averaged else [])])
            for one, other in zip(*results, strict=True):  # as in test_descend
                largest = 3 * (c.abs() @ dense.abs()).amax() + 4 * (1 + other.double().abs())
                assert_equal_to_rounding(one, other, rank + 4, largest * (1 + U[vector_dtype] / U[F64] / (rank + 8)))


@every_vector
def test_topk_of_a_block_of_several_stretches(cuda, vector_dtype: torch.dtype):
    dim, kept, states = 17_000, 8700, []  # a thread holds 16 columns in float32, 8 in float64
    j = torch.arange(dim)
    g = torch.where(j % 29 == 0, 2, j % 2 == 0).to(vector_dtype) * (1 - j // 2 % 2 * 2)
    # Of the equal ones that are in every stretch nearly all are kept: which, is decided in the
    # last.
    assert kept < int(g.count_nonzero()) and dim - 250 < int(j[g != 0][kept])
    for op in (cuda, cpu):
        values, indices = torch.zeros(2, 1, kept), torch.zeros(2, 1, kept, dtype=torch.uint16)
        boundaries, error = torch.zeros(1, 16, 2, dtype=torch.uint16), torch.zeros(dim, dtype=vector_dtype)
        products = op.topk_push_(values, indices, error, 1, g, dim, boundaries)
        states.append((values, indices, error, boundaries, products))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))  # sums of integers are exact
