"""Errors that depend on the numbers, and states that errors must leave as they were."""

# ruff: file-ignore[line-too-long]  messages stand whole

import re
from typing import Any

import pytest
import torch
from device import push
from samplers import normal

import mfac
from mfac.core.checks import choices, numbers

F64 = torch.float64


def duplicate_rows(columns: int) -> torch.Tensor:
    """Both rows are 2³⁰ in column 0: K is exact, nλ is rounded away, the second pivot is 0."""
    G = torch.zeros(2, columns, dtype=F64)
    G[:, 0] = 2.0**30
    return G


def test_a_failed_factorisation_says_where_and_names_the_damping():
    message = (
        "The capacitance nλI + GGᵀ is not numerically positive definite at row 1: the largest squared row norm is 1.15e+18, "
        "nλ only 2e-09. Increase `damping`."
    )
    with pytest.raises(torch.linalg.LinAlgError, match=f"^{re.escape(message)}$"):
        mfac.EmpiricalFisher(duplicate_rows(9), damping=1e-9)


def test_a_failed_factorisation_of_the_primal_form_says_where():
    G = torch.full((4, 2), 2.0**30, dtype=F64)
    with pytest.raises(torch.linalg.LinAlgError) as raised:
        mfac.EmpiricalFisher(G, damping=1e-9)
    words = str(raised.value)
    assert words.startswith("The Fisher λI + GᵀG/n is not numerically positive definite at row 1: ")
    assert "1.15e+18" in words and "1e-09" in words  # the largest entry and λ
    assert words.endswith(" Increase `damping`.")


def test_a_failed_factorisation_of_a_block_names_the_block():
    G = duplicate_rows(9).roll(3, dims=1)
    message = "Block 1 of the Fisher is not numerically positive definite at pivot 1. Increase `damping`; it is 1e-09."
    with pytest.raises(torch.linalg.LinAlgError, match=f"^{re.escape(message)}$"):
        mfac.EmpiricalFisher(G, damping=1e-9, block_size=3)


def test_a_window_that_cannot_be_factored_says_so_and_recovers():
    # 2⁵³ apart: the shift is lost in the diagonal, and the second of two equal rows has no pivot
    # left.
    W = mfac.GradientWindow(2, 9, 1e-9, F64)
    for g in duplicate_rows(9):
        W.push(g)
    with pytest.raises(torch.linalg.LinAlgError, match="The capacitance nλI"):
        W.precondition()
    with pytest.raises(torch.linalg.LinAlgError, match="The capacitance nλI"):
        W.ihvp(normal(9))
    for g in torch.eye(2, 9, dtype=F64):
        W.push(g)
    torch.testing.assert_close(W.precondition(), 2 * W.rows[1], rtol=1e-8, atol=0)  # n g/(nλ + 1), nλ = 2e-9


def test_relative_damping_of_an_empty_or_zero_window():
    W = mfac.GradientWindow(2, 4, mfac.relative(0.5), F64)
    message = "Parameter `damping` should be a positive number where all gradients are zero. Found relative(0.5), which would be 0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = W.damping
    W.push(torch.zeros(4, dtype=F64))
    assert not W.precondition().any()  # F⁻¹0 = 0, whatever λ would be
    for product in (
        lambda: W.ihvp(torch.ones(4, dtype=F64)),
        lambda: W.matvec(torch.ones(4, dtype=F64)),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            product()
    W.push(torch.ones(4, dtype=F64))
    # λ = 0.5 · 4/(2·4) = 1/4, and F⁻¹g = n g/(nλ + 4) = 2g/4.5; a few roundings.
    torch.testing.assert_close(W.precondition(), torch.full((4,), 2 / 4.5, dtype=F64), rtol=1e-15, atol=0)


def unchanged(before: dict[str, Any], W: mfac.GradientWindow) -> bool:
    after = W.state_dict()
    return all(torch.equal(v, after[k]) if isinstance(v, torch.Tensor) else v == after[k] for k, v in before.items())


def filled_window(rank: int = 3, dim: int = 5, dtype: torch.dtype = F64) -> mfac.GradientWindow:
    W = mfac.GradientWindow(rank, dim, 0.5, dtype)
    for g in normal(rank, dim, seed=rank + dim, dtype=dtype):
        W.push(g)
    return W


@pytest.mark.parametrize("name", ["rows", "gram", "inverse", "ages", "shift", "replaced", "pushes", "newest"])
def test_a_state_with_an_entry_missing_is_refused_whole(name: str):
    W = filled_window()
    before, given = W.state_dict(), mfac.GradientWindow(3, 5, 0.5, F64).state_dict()
    del given[name]
    with pytest.raises(KeyError) as raised:
        W.load_state_dict(given)
    assert raised.value.args == (f"Parameter `state` should have an entry {name!r}. Found {sorted(given)}.",)
    assert unchanged(before, W)


def test_a_state_of_another_shape_or_dtype_is_refused_whole():
    W = filled_window()
    before = W.state_dict()
    for other, message in [
        (filled_window(dim=6), "Parameter `state` should have 'rows' of shape [3, 5] and torch.float64. Found shape [3, 6] and torch.float64."),
        (filled_window(dtype=torch.float32), "Parameter `state` should have 'rows' of shape [3, 5] and torch.float64. Found shape [3, 5] and torch.float32."),
        (filled_window(rank=4), "Parameter `state` should have 'rows' of shape [3, 5] and torch.float64. Found shape [4, 5] and torch.float64."),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            W.load_state_dict(other.state_dict())
        assert unchanged(before, W)
    bad = filled_window().state_dict()
    bad["gram"] = bad["gram"].float()
    with pytest.raises(ValueError, match=re.escape("should have 'gram' of shape [3, 3] and torch.float64.")):
        W.load_state_dict(bad)
    assert unchanged(before, W)


@pytest.mark.parametrize("name", ["shift", "replaced", "pushes", "newest"])
def test_a_state_with_something_else_for_a_number_is_refused_whole(name: str):
    W = filled_window()
    before, given = W.state_dict(), mfac.GradientWindow(3, 5, 0.5, F64).state_dict()
    for wrong in ("many", float("nan")) if name == "shift" else ("many", 0.5, -2):
        given[name] = wrong
        with pytest.raises((TypeError, ValueError)):
            W.load_state_dict(given)
        assert unchanged(before, W)


def test_a_state_with_something_else_for_a_tensor_is_refused():
    W = filled_window()
    before, given = W.state_dict(), filled_window().state_dict()
    given["ages"] = [0, 1, 2]
    with pytest.raises((TypeError, ValueError)):
        W.load_state_dict(given)
    assert unchanged(before, W)


def test_refused_calls_leave_a_window_as_it_was():
    W = filled_window()
    before = W.state_dict()
    for call in (
        lambda: W.push(torch.ones(4, dtype=F64)),
        lambda: W.push(torch.ones(5)),
        lambda: push(W, torch.full((5,), float("nan"), dtype=F64)),
        lambda: W.remove(3),
        lambda: W.remove(-1),
        lambda: W.ihvp(torch.ones(4, dtype=F64)),
        lambda: W.ihvp(torch.ones(5, dtype=F64), refine=-1),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()
        assert unchanged(before, W)


@pytest.mark.parametrize(
    ("bounds", "refused", "words"),
    [
        ({"above": 0}, 0, "> 0"),
        ({"least": 0}, -0.5, ">= 0"),
        ({"above": 0, "below": 1}, 1, "> 0 and < 1"),
        ({"least": 0.5, "below": 1}, 0.25, ">= 0.5 and < 1"),
    ],
)
def test_numbers_out_of_range_are_told_the_range(bounds: dict[str, float], refused: float, words: str):
    message = f"Parameter `p` should be finite and {words}. Found {refused!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        numbers.check_number("p", refused, **bounds)
    assert numbers.check_number("p", 0.75, **bounds) == pytest.approx(0.75, abs=0)
    assert type(numbers.check_number("p", 1, least=0)) is float


def test_choices_are_told_all():
    assert choices.names_of(["a"]) == "'a'"
    assert choices.names_of(["a", "b", "c"]) == "'a', 'b' or 'c'"
    with pytest.raises(ValueError, match=re.escape("Parameter `p` should be 'a', 'b' or 'c'. Found 'd'.")):
        choices.check_choice("p", "d", ["a", "b", "c"])


@pytest.mark.cpu_only("of a GPU torch says it")
def test_a_window_that_the_machine_cannot_hold_is_refused_before_it_is_allocated():
    W = mfac.GradientWindow(10**6, 10)  # 16 TB of capacitance
    assert "nbytes=1.6e+13" in repr(W)
    message = r"Parameters `rank` and `dim` should leave a window that the .* GB of this machine can hold\. Found 16000\.0 GB\."
    with pytest.raises(MemoryError, match=message):
        W.push(torch.ones(10))
    assert W.num_filled == 0
