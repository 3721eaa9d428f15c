"""Accuracy of the static Fisher against the reference, over shapes, blocks, dampings and norms.

Where the bound comes from. A backward stable solve is wrong by about u·κ with u = 2⁻⁵³. A Gaussian
window of row norm ρ has ‖G‖²/m <= ρ² (1/√m + 1/√d)², so for ρ = 10, λ = 1e-6, m = 7, d = 33, the
worst pair, κ <= 3.1e7 and u·κ = 3.4e-9. With m = 1 or d = 1 the system is a scalar and loses
nothing.
"""

import itertools

import oracle
import pytest
import torch
from rounding import U, entry_error, relative_error
from samplers import SCALES, SHAPES, normal, window

import mfac

RANKS = (1, 7, 64, 300)
BLOCK_SIZES = (None, 32, 100)
NORMS = (1e-3, 1.0, 10.0)
DAMPINGS = (1e-6, 1e-3, 1.0)
F32, F64 = torch.float32, torch.float64
F64_BOUND = 5e-9
# What is computed is float64 throughout, so a float32 result is wrong by its own rounding, 6e-8,
# alone. An accumulation in float32 anywhere would cost u32·κ >= 6e-8 · 1e3 in the cases held to
# this.
F32_BOUND = 1e-6


def assert_accurate(F: mfac.EmpiricalFisher, G: torch.Tensor, v: torch.Tensor, bound: float) -> None:
    """ihvp, diagonal, elements and a submatrix, on all of a small F⁻¹ or columns of a large one."""
    dim, (damping, block_size) = G.shape[1], (F.damping, F.block_size)
    some = torch.arange(dim) if dim <= 40 else torch.tensor([0, 1, 31, 32, 99, 100, dim // 2, dim - 1])
    unit = torch.zeros(len(some), dim, dtype=F64)
    unit[torch.arange(len(some)), some] = 1
    reference = oracle.ihvp(G, torch.cat([v.double()[None], unit]), damping, block_size)
    expected, columns = reference[0], reference[1:]  # F⁻¹v, and columns of F⁻¹ as rows
    assert relative_error(F.ihvp(v), expected) <= bound
    assert entry_error(F.inverse_diagonal()[some], columns[:, some].diagonal(), columns) <= bound
    assert entry_error(F.inverse_submatrix(some, some), columns[:, some], columns) <= bound
    everywhere = torch.arange(dim)[:: max(1, dim // 64)]
    i, j = some.repeat_interleave(len(everywhere)), everywhere.repeat(len(some))
    assert entry_error(F.inverse_element(i, j), columns[:, everywhere].reshape(-1), columns) <= bound


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("dim", [1, 33])
@pytest.mark.parametrize("rank", RANKS)
def test_accuracy_in_float64(rank: int, dim: int, block_size: int | None):
    for norm, damping in itertools.product(NORMS, DAMPINGS):
        G = window(rank, dim, norm)
        assert_accurate(mfac.EmpiricalFisher(G, damping, block_size), G, normal(dim), F64_BOUND)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("rank", RANKS)
def test_accuracy_in_float64_of_a_long_window(rank: int, block_size: int | None):
    for norm, damping in [(10.0, 1e-6), (1e-3, 1.0)]:
        G = window(rank, 4097, norm)
        assert_accurate(mfac.EmpiricalFisher(G, damping, block_size), G, normal(4097), F64_BOUND)


@pytest.mark.parametrize(("rank", "dim"), [(1, 33), (7, 33), (64, 33), (300, 33), (64, 1), (64, 1025)])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_accuracy_in_float32(rank: int, dim: int, block_size: int | None):
    held = 0
    for norm, damping in itertools.product(NORMS, DAMPINGS):
        G = window(rank, dim, norm, dtype=F32)
        if oracle.condition(G, damping) <= 1e6 + 1:  # damping >= 1e-6 · ‖G‖²/m
            held += 1
            assert_accurate(mfac.EmpiricalFisher(G, damping, block_size), G, normal(dim, dtype=F32), F32_BOUND)
    assert held >= 7


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("kind", "rank", "dim"), SHAPES)
def test_accuracy_of_every_kind_of_window_at_every_scale(kind: str, rank: int, dim: int, scale: float):
    G = window(rank, dim, scale, kind=kind)
    for block_size in (None, 8):
        F = mfac.EmpiricalFisher(G, mfac.relative(0.1), block_size)
        # ‖G‖² <= Σ‖g‖² = n·d·λ/0.1, so κ <= 1 + 10·d <= 2600 and u·κ = 3e-13; sums of up to 257
        # terms.
        assert_accurate(F, G, normal(dim), 257 * 3e-13)


@pytest.mark.parametrize("block_size", [None, 7, 20])
@pytest.mark.parametrize(("rank", "dim"), [(1, 1), (1, 20), (5, 33), (33, 33), (50, 33)])
def test_logdet(rank: int, dim: int, block_size: int | None):
    for norm, damping in itertools.product(NORMS, DAMPINGS):
        G = window(rank, dim, norm)
        F = mfac.EmpiricalFisher(G, damping, block_size)
        found = F.logdet()
        assert found.dtype == F64 and found.dim() == 0
        # Every log is wrong by the relative error of a pivot, at most u·κ with κ <= 1 + ρ²/λ, and
        # by u·|log|. The dual form adds and takes away m·log(nλ).
        kappa = 1 + norm**2 / damping
        scale = (rank + dim) * abs(torch.log(torch.tensor([damping, rank * damping])).abs().max())
        bound = 50 * U[F64] * (min(rank, dim) * kappa + float(scale) + 1)
        assert abs(float(found) - oracle.logdet(G, damping, block_size)) <= bound


@pytest.mark.parametrize("block_size", [None, 7, 100])
@pytest.mark.parametrize(("rank", "dim"), [(1, 1), (5, 33), (50, 33), (9, 2000)])
def test_matvec(rank: int, dim: int, block_size: int | None):
    G, v = window(rank, dim, 3.0), normal(3, dim)
    F = mfac.EmpiricalFisher(G, 0.01, block_size)
    # Two sums of m and d terms of random sign; Fv is as long as what is summed. 4·√(m+d)·u.
    assert relative_error(F.matvec(v), oracle.matvec(G, v, 0.01, block_size)) <= 4 * (rank + dim) ** 0.5 * U[F64]


def test_refinement_improves_a_hard_case():
    # x = a row, m nearly d, κ = 1e9: the subtraction x - GᵀC⁻¹Gx keeps one part in κ of x.
    G = window(40, 41, 10.0)
    expected = oracle.ihvp(G, G[1], 1e-8)
    F = mfac.EmpiricalFisher(G, 1e-8)
    plain, refined = (relative_error(F.ihvp(G[1], refine=steps), expected) for steps in (0, 2))
    # A step multiplies the error by that of the solve, until what is left is the rounding of the
    # residual, u·κ.
    assert refined <= U[F64] * oracle.condition(G, 1e-8)
    assert refined <= 0.1 * plain
    assert torch.equal(mfac.ihvp(G, G[1], 1e-8, refine=2), F.ihvp(G[1], refine=2))


def test_product_with_a_combination_is_accurate_where_the_subtractive_form_is_not():
    G = window(40, 41, 10.0)
    a = normal(3, 40)
    F = mfac.EmpiricalFisher(G, 1e-8)
    y = F.ihvp_of_combination(a)
    assert y.shape == (3, 41)
    assert F.ihvp_of_combination(a[1]).shape == (41,)
    for x, coefficients in zip(y, a, strict=True):
        combination = coefficients.double() @ G
        # The combination itself is rounded here, and F⁻¹ amplifies that by κ: u·κ again.
        assert relative_error(x, oracle.ihvp(G, combination, 1e-8)) <= 4 * U[F64] * oracle.condition(G, 1e-8)
