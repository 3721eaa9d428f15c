"""Values of the window operators against float64 in torch, around vectors, tiles and chunks."""

import pytest
import torch
from rounding import U, assert_sums_agree
from samplers import KINDS, normal, strided, window

from mfac.core import ops

SIZES = (1, 3, 4, 5, 31, 32, 33, 257, 1000, 2049)
RANKS = (1, 2, 3, 4, 5, 8, 15, 33, 70)
COUNTS = (1, 2, 3, 8)
LONG = 70_001  # more than two chunks of window_dot, many tiles and slabs of the others
F32, F64 = torch.float32, torch.float64
DTYPES = [(F32, F32), (F32, F64), (F64, F32), (F64, F64)]


def assert_gram_is_right(G: torch.Tensor) -> None:
    wide = G.double()
    K = ops.gram(G)
    assert K.dtype == F64
    assert torch.equal(K, K.T)
    assert_sums_agree(K, wide @ wide.T, G.shape[1], wide.abs() @ wide.abs().T)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_gram_values(dim: int, dtype: torch.dtype):
    for rank in RANKS:
        assert_gram_is_right(window(rank, dim, norm=3.0, dtype=dtype, seed=rank))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_gram_values_of_every_kind_of_window(kind: str, scale: float):
    assert_gram_is_right(window(37, 301, norm=scale, dtype=F32, kind=kind))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_gram_values_of_rows_of_unlike_norms(dtype: torch.dtype):
    assert_gram_is_right(window(200, 700, dtype=dtype) * torch.logspace(-12, 12, 200, dtype=dtype)[:, None])


@pytest.mark.parametrize(("dtype", "single"), [(F32, True), (F32, False), (F64, False)])
def test_whitened_norms_values_where_units_are_far_apart(dtype: torch.dtype, single: bool):
    for rank, entry, diagonal in ((8, 5e18, 2e-23), (256, 1e18, 1e-21), (8, 1e-20, 1e20)):
        G = torch.full((rank, 16), entry, dtype=dtype)
        found, bound = ops.whitened_norms(G, diagonal * torch.eye(rank, dtype=F64), single)
        expected = rank * (G[0, 0].double() * diagonal) ** 2
        assert bool(((found - expected).abs() <= bound).all())
        assert bool((bound <= 1e-3 * expected).all()) or entry < 1e-19  # below it float32 squares of columns vanish


@pytest.mark.parametrize("dtype", [F32, F64])
def test_gram_values_of_long_and_of_tall_windows(dtype: torch.dtype):
    assert_gram_is_right(window(9, LONG, dtype=dtype))
    assert_gram_is_right(window(300, 1100, dtype=dtype))
    assert_gram_is_right(window(1, 3, dtype=dtype).expand(6, 3))  # stride 0


def assert_squared_norms_are_right(G: torch.Tensor) -> None:
    squares, found = G.double().square().sum(1), ops.squared_norms(G)
    assert found.dtype == F64
    assert_sums_agree(found, squares, G.shape[1], squares)


@pytest.mark.parametrize("dim", (*SIZES, LONG))
@pytest.mark.parametrize("dtype", [F32, F64])
def test_squared_norms_values(dim: int, dtype: torch.dtype):
    for rank in RANKS if dim < LONG else (9,):
        assert_squared_norms_are_right(window(rank, dim, norm=3.0, dtype=dtype, seed=rank))
        assert_squared_norms_are_right(window(rank, dim, norm=3.0, dtype=dtype, kind="every second row"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_squared_norms_values_show_what_is_not_finite(dtype: torch.dtype, bad: float):
    for column in (0, 37, 300):
        G = window(9, 301, dtype=dtype)
        G[8, column] = bad
        assert ops.squared_norms(G).isfinite().tolist() == 8 * [True] + [False]


def assert_norms_are_right(G: torch.Tensor, single: bool) -> None:
    # An entry of L⁻¹G is off by at most (m + 2)u of the sum of magnitudes, the rounding of L⁻¹
    # included; its square by twice that, and the sum of m squares by m·u more.
    m = G.shape[0]
    factor = normal(m, m, seed=3).tril() + 2 * torch.eye(m, dtype=F64)
    u = U[F32] if single else U[F64]
    roundings = 1 + min(m, 64) + -(-m // 64)  # the longest chain
    terms, magnitudes = 3 * m + 8, (factor.abs() @ G.double().abs()).square().sum(0)
    found, bound = ops.whitened_norms(G, factor, single)
    assert found.dtype == bound.dtype == F64
    error = (found - (factor @ G.double()).square().sum(0)).abs()
    assert bool((error <= terms * u * magnitudes + torch.finfo(G.dtype).tiny).all())
    if single:  # in float64 the expected values are no better
        assert bool((error <= bound + torch.finfo(G.dtype).tiny).all())
    assert bool((bound >= m * u * found).all())
    # By Cauchy and Schwarz, and twice what may be lost to γ_i <= γ_m and to the squares of errors.
    largest = 4 * roundings * u * factor.norm() * G.double().norm(dim=0) * found.sqrt() + 2 * m * u * found
    assert bool((bound <= largest + 2 * (roundings * u * factor.norm() * G.double().norm(dim=0)).square()).all())


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize(("dtype", "single"), [(F32, True), (F32, False), (F64, False)])
def test_whitened_norms_values(dim: int, dtype: torch.dtype, single: bool):
    for rank in RANKS:
        assert_norms_are_right(window(rank, dim, norm=3.0, dtype=dtype, seed=rank), single)


@pytest.mark.parametrize("rank", [63, 64, 65, 130, 200, 256, 257, 530])
@pytest.mark.parametrize(("dtype", "single"), [(F32, True), (F32, False), (F64, False)])
def test_whitened_norms_values_of_several_tiles_of_rows(rank: int, dtype: torch.dtype, single: bool):
    for dim in (1, 64, 131):
        assert_norms_are_right(window(rank, dim, norm=3.0, dtype=dtype), single)


@pytest.mark.parametrize(("dtype", "single"), [(F32, True), (F32, False), (F64, False)])
def test_whitened_norms_values_of_columns_of_unlike_norms(dtype: torch.dtype, single: bool):
    assert_norms_are_right(window(70, 301, dtype=dtype) * torch.logspace(-12, 12, 301, dtype=dtype), single)


@pytest.mark.parametrize("kind", KINDS)
def test_whitened_norms_values_of_every_kind_of_window(kind: str):
    for scale in (1e-10, 1e10):
        assert_norms_are_right(window(37, 301, norm=scale, dtype=F32, kind=kind), single=True)
        assert_norms_are_right(window(37, 301, norm=scale, dtype=F64, kind=kind), single=False)


def assert_dot_is_right(G: torch.Tensor, v: torch.Tensor) -> None:
    found = ops.window_dot(G, v)
    assert found.dtype == F64
    wide, vectors = G.double(), v.double()
    assert_sums_agree(found, vectors @ wide.T, G.shape[1], vectors.abs() @ wide.abs().T)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize(("dtype", "vector_dtype"), DTYPES)
def test_window_dot_values(dim: int, dtype: torch.dtype, vector_dtype: torch.dtype):
    for rank in RANKS:
        G = window(rank, dim, dtype=dtype)
        for count in COUNTS:
            assert_dot_is_right(G, normal(count, dim, seed=count, dtype=vector_dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_window_dot_values_of_every_kind_of_window(kind: str, scale: float):
    v = normal(3, 301)
    for vectors in (v, strided(v)):
        assert_dot_is_right(window(37, 301, norm=scale, dtype=F32, kind=kind), vectors)


@pytest.mark.parametrize(("dtype", "vector_dtype"), DTYPES)
def test_window_dot_values_of_long_windows(dtype: torch.dtype, vector_dtype: torch.dtype):
    assert_dot_is_right(window(6, LONG, dtype=dtype), normal(2, LONG, dtype=vector_dtype))


def test_window_dot_of_no_vector_is_empty():
    assert ops.window_dot(window(3, 5), torch.empty(0, 5)).shape == (0, 3)


def assert_combine_is_right(G: torch.Tensor, out: torch.Tensor, alpha: float, beta: float) -> None:
    coefficients = normal(out.shape[0], G.shape[0], seed=7)
    before, wide = out.double(), G.double()
    expected = alpha * before + beta * (coefficients @ wide)
    absolute = abs(alpha) * before.abs() + abs(beta) * (coefficients.abs() @ wide.abs())
    address = out.data_ptr()
    assert ops.window_combine_(out, G, coefficients, alpha, beta).data_ptr() == address
    assert_sums_agree(out, expected, G.shape[0] + 2, absolute)


@pytest.mark.parametrize("dim", SIZES)
@pytest.mark.parametrize(("dtype", "out_dtype"), DTYPES)
def test_window_combine_values(dim: int, dtype: torch.dtype, out_dtype: torch.dtype):
    for rank in RANKS:
        G = window(rank, dim, dtype=dtype)
        for count in COUNTS:
            assert_combine_is_right(G, normal(count, dim, seed=count, dtype=out_dtype), 0.5, -3.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1e-10), (-2.0, 1e10), (0.0, 1.0), (1.0, 0.0)])
def test_window_combine_values_of_every_kind_of_window(kind: str, alpha: float, beta: float):
    G = window(37, 301, dtype=F32, kind=kind)
    assert_combine_is_right(G, normal(3, 301), alpha, beta)
    wide = strided(normal(3, 301))
    around = wide._base
    assert_combine_is_right(G, wide, alpha, beta)
    assert bool(around[:, :2].isnan().all()) and bool(around[:, -3:].isnan().all())  # nothing written beside the rows


@pytest.mark.parametrize(("dtype", "out_dtype"), DTYPES)
def test_window_combine_values_of_long_windows(dtype: torch.dtype, out_dtype: torch.dtype):
    assert_combine_is_right(window(6, LONG, dtype=dtype), normal(2, LONG, dtype=out_dtype), 2.0, 0.5)


def test_window_combine_with_alpha_zero_reads_no_output():
    G, c = window(5, 40), normal(2, 5)
    out = torch.full((2, 40), float("nan"), dtype=F64)
    ops.window_combine_(out, G, c, 0.0, 2.0)
    assert_sums_agree(out, 2 * c @ G, 5, 2 * c.abs() @ G.abs())


def test_reading_operators_change_no_argument():
    G, v = window(9, 300, dtype=F32), normal(2, 300)
    before = G.clone(), v.clone()
    ops.gram(G)
    ops.window_dot(G, v)
    factors, _ = ops.block_factor(G, 32, 0.1, 9.0)
    kept = factors.clone()
    ops.block_ihvp(G, factors, v, 32, 0.1, 9.0)
    ops.block_matvec(G, v, 32, 0.1, 9.0)
    ops.block_inverse_diagonal(G, factors, 32, 0.1, 9.0)
    assert torch.equal(G, before[0]) and torch.equal(v, before[1]) and torch.equal(factors, kept)
