"""A window's state: saving and going on, bad gradients, removals, repair of a drifted inverse."""

import io
import re
from typing import Any

import oracle
import pytest
import torch
from device import DEVICE, push, refusal
from rounding import U, relative_error
from samplers import normal, window

import mfac

F32, F64 = torch.float32, torch.float64
VARIANTS = [
    {"dtype": F32, "normalize": "rank", "damping": 1e-3},
    {"dtype": F64, "normalize": "filled", "damping": 1e-3},
    {"dtype": F32, "normalize": "filled", "damping": mfac.relative(0.01)},
]
RANK, DIM = 5, 30

every_variant = pytest.mark.parametrize("options", VARIANTS)


def pushed(count: int, options: dict[str, Any], seed: int = 0) -> mfac.GradientWindow:
    W = mfac.GradientWindow(RANK, DIM, **options)
    for g in normal(count, DIM, seed=seed, dtype=options["dtype"]):
        W.push(g)
    return W


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_variant
@pytest.mark.parametrize("count", [0, 1, 3, 5, 8, 12])
@pytest.mark.parametrize("carry", [dict, through_a_file])
def test_a_loaded_window_goes_on_bit_by_bit(count: int, carry: Any, options: dict[str, Any]):
    one = pushed(count, options)
    if count > 2:
        one.ihvp(one.rows[0].clone())  # so that, with a relative damping too, the inverse is one that was updated
    other = pushed(3, options, seed=9)
    other.load_state_dict(carry(one.state_dict()))
    assert same(one.state_dict(), other.state_dict())
    assert (one.newest, one.num_filled) == (other.newest, other.num_filled)
    for step, g in enumerate(normal(7, DIM, seed=4, dtype=options["dtype"])):
        one.push(g)
        other.push(g)
        if step == 2:
            one.remove(1)
            other.remove(1)
        if step % 2 == 0:
            assert torch.equal(one.ihvp(g), other.ihvp(g))
            if one.newest is not None:
                assert torch.equal(one.precondition(), other.precondition())
        assert same(one.state_dict(), other.state_dict())


def test_state_is_a_copy_unless_asked_otherwise():
    W = pushed(3, VARIANTS[0])
    copied, shared = W.state_dict(), W.state_dict(copy=False)
    before = copied["rows"].clone()
    assert shared["rows"].data_ptr() == W.rows.data_ptr()
    W.push(torch.ones(DIM))
    assert torch.equal(copied["rows"], before)
    other = pushed(0, VARIANTS[0])
    other.load_state_dict(copied)
    other.push(torch.ones(DIM))
    assert torch.equal(copied["rows"], before)


@every_variant
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 17, DIM - 1])
@pytest.mark.parametrize("count", [0, 3, 7])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(
    bad: float, where: int, count: int, options: dict[str, Any]
):
    W = pushed(count, options)
    before = W.state_dict()
    g = torch.ones(DIM, dtype=options["dtype"])
    g[where] = bad
    message = "Parameter `gradient` should be finite. Found a NaN or infinity; the window is unchanged."
    with pytest.raises(ValueError, match=refusal(re.escape(message))):
        push(W, g)
    assert same(before, W.state_dict())
    W.push(torch.ones(DIM, dtype=options["dtype"]))
    assert bool(torch.isfinite(W.precondition()).all())


def test_pushed_gradients_are_copied_and_not_modified():
    W = mfac.GradientWindow(2, 4, dtype=F64)
    g = normal(4)
    kept = g.clone()
    W.push(g.requires_grad_())
    assert torch.equal(g.detach(), kept)
    with torch.no_grad():
        g.zero_()
    assert torch.equal(W.rows[0], kept)
    assert not W.rows.requires_grad


def test_removal_empties_a_row_that_is_written_next():
    W = mfac.GradientWindow(4, DIM, 0.1, F64)
    G = normal(6, DIM)
    for g in G[:4]:
        W.push(g)
    assert (W.num_filled, W.newest) == (4, 3)
    W.remove(2)
    assert (W.num_filled, W.newest) == (3, 3)
    assert not W.rows[2].any()
    W.push(G[4])
    assert (W.num_filled, W.newest) == (4, 2)  # the empty row, though row 0 is older
    W.push(G[5])
    assert (W.num_filled, W.newest) == (4, 0)  # then the oldest
    assert torch.equal(W.rows, torch.stack([G[5], G[1], G[4], G[3]]))
    W.remove(0)
    assert W.newest is None
    with pytest.raises(RuntimeError, match="no newest gradient"):
        W.precondition()
    v = normal(DIM, seed=1)
    # κ <= 1 + Σ‖g‖²/(4λ) is about 1 + 90/0.4; sums of DIM terms.
    assert relative_error(W.ihvp(v), oracle.ihvp(W.rows, v, 0.1)) <= DIM * U[F64] * 400


@pytest.mark.cpu_only("a GPU notices at the next push")
@pytest.mark.parametrize("corruption", ["scaled", "shifted", "nan", "zero"])
def test_a_wrong_inverse_is_noticed_and_computed_anew(corruption: str):
    W = mfac.GradientWindow(RANK, DIM, 1e-2, F64)
    for g in window(RANK + 2, DIM):
        W.push(g)
    W.precondition()  # computes the inverse anew where it is due
    W.push(normal(DIM, seed=1))  # and one update of it
    before = W.capacitance.refactorisations
    inverse = W.capacitance.inverse
    if corruption == "scaled":
        inverse *= 3
    elif corruption == "shifted":
        inverse += 10
    else:
        inverse.fill_(float("nan") if corruption == "nan" else 0)
    y = W.precondition()
    assert W.capacitance.refactorisations == before + 1
    expected = oracle.ihvp(W.rows, W.rows[W.newest], 1e-2)
    kappa = oracle.condition(W.rows, 1e-2)
    assert relative_error(y, expected) <= 2 * U[F64] + U[F64] * kappa**1.5
    W.precondition()
    assert W.capacitance.refactorisations == before + 1  # once was enough


def test_a_slightly_wrong_inverse_is_refined_away():
    W = mfac.GradientWindow(RANK, DIM, 1e-2, F64)
    for g in window(RANK - 2, DIM):
        W.push(g)
    W.capacitance.inverse *= 1 + 1e-6  # each refinement squares it: 1e-12, then below rounding
    expected = oracle.ihvp(W.rows, W.rows[W.newest], 1e-2)
    assert relative_error(W.precondition(), expected) <= U[F64] * oracle.condition(W.rows, 1e-2) ** 1.5


def test_the_inverse_is_computed_anew_every_rank_pushes():
    W = mfac.GradientWindow(RANK, DIM, 1e-2, F64)
    for number, g in enumerate(normal(4 * RANK, DIM), start=1):
        W.push(g)
        W.precondition()
        assert W.capacitance.refactorisations == number // RANK


def test_size_in_bytes():
    W = mfac.GradientWindow(RANK, DIM)
    stride = DIM if DEVICE.type == "cpu" else -(-DIM // 4) * 4  # rows of whole packets of 16 bytes
    assert W.nbytes == RANK * stride * 4 + 2 * RANK * RANK * 8
