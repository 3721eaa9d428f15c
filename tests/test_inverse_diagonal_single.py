"""The diagonal of F⁻¹ of a float32 window, which is whitened in float32 where a bound allows it."""

import oracle
import pytest
import torch
from rounding import U
from samplers import normal, window

import mfac
from mfac import ops, whitening

F32, F64 = torch.float32, torch.float64


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Records the arithmetic and the number of columns of every call of the operator."""
    calls: list[tuple[bool, int]] = []

    def recording(G: torch.Tensor, inverse: torch.Tensor, single: bool) -> torch.Tensor:
        calls.append((single, G.shape[1]))
        return torch.ops.mfac.whitened_norms(G, inverse, single)

    monkeypatch.setattr(ops, "whitened_norms", recording)
    return calls


def assert_diagonal_is_right(G: torch.Tensor, damping: float) -> None:
    found = mfac.EmpiricalFisher(G, damping).inverse_diagonal()
    expected = oracle.inverse(G, damping).diagonal()
    # The float32 bound of 1 - ‖U‖², the rounding of the result, and in float64 the conditioning of the problem.
    limit = whitening._SINGLE_ERROR + U[F32] + 10 * sum(G.shape) * U[F64] * oracle.condition(G, damping)
    assert float(((found.double() - expected) / expected).abs().max()) <= limit


def test_a_wide_window_is_whitened_in_float32(precisions: list[tuple[bool, int]]):
    G = window(4, 3000, dtype=F32)
    assert_diagonal_is_right(G, 0.1)
    assert precisions == [(True, 3000)]


def test_columns_above_the_limit_are_whitened_once_more_in_float64(precisions: list[tuple[bool, int]]):
    G = window(4, 3000, dtype=F32) * 0.01
    G[:, [7, 2999]] = torch.tensor([[3.0, -1.0], [0.5, 2.0], [1.0, 1.0], [0.0, -2.0]])
    assert_diagonal_is_right(G, 0.1)
    assert precisions == [(True, 3000), (False, 2)]


def test_a_window_that_float32_would_spoil_is_whitened_in_float64(precisions: list[tuple[bool, int]]):
    shared = normal(1, 500, dtype=F32)
    G = shared + 1e-3 * normal(6, 500, seed=1, dtype=F32)  # nearly dependent rows: the factor is ill-conditioned
    assert_diagonal_is_right(G, 1e-5)
    assert precisions[-1] == (False, 500)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e18])
def test_scales_beyond_float32_are_left_to_float64(scale: float):
    G = (window(5, 400) * scale).float()
    assert_diagonal_is_right(G, scale * scale if 1e-30 < scale * scale < 1e30 else 1e-30 if scale < 1 else 1e30)
