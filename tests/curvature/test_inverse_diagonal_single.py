"""The diagonal of F⁻¹ of a float32 window, which is whitened in float32 where a bound allows it."""

import oracle
import pytest
import torch
from rounding import U
from samplers import normal, window

import mfac
from mfac.core import ops
from mfac.curvature import diagonal as whitening

F32, F64 = torch.float32, torch.float64
SAMPLE = 256  # columns, for 64 rows at most: 16 pieces of a line


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Records the arithmetic and the number of columns of every call of the operator."""
    calls: list[tuple[bool, int]] = []

    def recording(G: torch.Tensor, inverse: torch.Tensor, single: bool) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((single, G.shape[1]))
        return torch.ops.mfac.whitened_norms(G, inverse, single)

    monkeypatch.setattr(ops, "whitened_norms", recording)
    return calls


def assert_diagonal_is_right(G: torch.Tensor, damping: float) -> None:
    found = mfac.EmpiricalFisher(G, damping).inverse_diagonal()
    expected = oracle.inverse(G, damping).diagonal()
    # The float32 bound of 1 - ‖U‖², the rounding of the result, and in float64 the conditioning of
    # the problem.
    limit = whitening._SINGLE_ERROR + U[F32] + 10 * sum(G.shape) * U[F64] * oracle.condition(G, damping)
    assert float(((found.double() - expected) / expected).abs().max()) <= limit


def test_a_wide_window_is_whitened_in_float32(precisions: list[tuple[bool, int]]):
    G = window(4, 3000, dtype=F32)
    assert_diagonal_is_right(G, 0.1)
    assert precisions == [(True, SAMPLE), (True, 3000)]
    precisions.clear()
    assert_diagonal_is_right(G[:, :500].contiguous(), 0.1)
    assert precisions == [(True, 500)]  # a sample would be half of it


def test_columns_above_the_limit_are_whitened_once_more_in_float64(precisions: list[tuple[bool, int]]):
    G = window(4, 3000, dtype=F32) * 0.01
    G[:, [7, 2999]] = torch.tensor([[3.0, -1.0], [0.5, 2.0], [1.0, 1.0], [0.0, -2.0]])
    assert_diagonal_is_right(G, 0.1)
    assert precisions == [(True, SAMPLE), (True, 3000), (False, 2)]


def test_gradients_of_layers_that_differ_in_size_are_whitened_in_float32_but_for_the_largest(
    precisions: list[tuple[bool, int]],
):
    # As in networks: rows share directions, so that C has a wide spectrum, and a tenth of the
    # columns is large.
    rank, dim = 64, 20_000
    G = normal(rank, dim, dtype=F32) + 3 * normal(rank, 4, seed=1, dtype=F32) @ normal(4, dim, seed=2, dtype=F32)
    G *= torch.logspace(0, -2, rank)[:, None] * 0.01
    G[:, ::10] *= 10
    damping = 1e-6
    found = mfac.EmpiricalFisher(G, damping).inverse_diagonal()
    (sampled, in_float32, *in_float64) = precisions
    assert sampled == (True, 4 * rank)
    assert in_float32 == (True, dim)
    assert 0 < sum(columns for _, columns in in_float64) < dim // 4
    assert not any(single for single, _ in in_float64)
    expected = diagonal_by_woodbury(G, damping)  # κ(C) is about 1e8: 1e-8
    assert float(((found.double() - expected) / expected).abs().max()) <= whitening._SINGLE_ERROR + U[F32] + 1e-8


def test_a_window_that_float32_would_spoil_is_whitened_in_float64(precisions: list[tuple[bool, int]]):
    shared = normal(1, 500, dtype=F32)
    G = shared + 1e-3 * normal(6, 500, seed=1, dtype=F32)  # nearly dependent rows: the factor is ill-conditioned
    assert_diagonal_is_right(G, 1e-5)
    assert precisions[-1] == (False, 500)


def diagonal_by_woodbury(G: torch.Tensor, damping: float) -> torch.Tensor:
    """diag(F⁻¹) of windows too wide for the dense oracle, in float64: right to about u·κ(C)."""
    wide = G.double()
    capacitance = wide @ wide.T + G.shape[0] * damping * torch.eye(G.shape[0], dtype=F64)
    return (1 - (wide * torch.linalg.solve(capacitance, wide)).sum(0)) / damping


def test_columns_that_the_sample_does_not_show_cost_time_but_not_digits(precisions: list[tuple[bool, int]]):
    shared, dim = normal(1, 40_000, dtype=F32), 40_000
    G = shared + 1e-3 * normal(32, dim, seed=1, dtype=F32)  # an ill-conditioned factor
    G[:, whitening._sample(torch.arange(dim).expand(32, dim))[0]] *= 1e-6  # the sample sees small columns alone
    found = mfac.EmpiricalFisher(G, 1e-5).inverse_diagonal()
    assert precisions == [(True, SAMPLE), (True, dim), (False, dim)]
    expected = diagonal_by_woodbury(G, 1e-5)  # κ(C) is about 1e8: 1e-8
    assert float(((found.double() - expected) / expected).abs().max()) <= whitening._SINGLE_ERROR + U[F32] + 1e-8


def test_a_wide_window_is_refused_when_it_is_given_and_not_later():
    G = window(32, 40_000, dtype=F32, kind="duplicate rows")
    with pytest.raises(torch.linalg.LinAlgError, match="not numerically positive definite at row"):
        mfac.EmpiricalFisher(G, 1e-30)
    G[3, 7] = float("nan")
    with pytest.raises(ValueError, match="`grads` should be finite"):
        mfac.EmpiricalFisher(G, 1e-2)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e18])
def test_scales_beyond_float32_are_left_to_float64(scale: float):
    G = (window(5, 400) * scale).float()
    assert_diagonal_is_right(G, scale * scale if 1e-30 < scale * scale < 1e30 else 1e-30 if scale < 1 else 1e30)
