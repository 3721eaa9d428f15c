"""The sliding window: equal to the static Fisher of the same rows after any pushes and removals."""

import hypothesis.strategies as st
import oracle
import pytest
import torch
from hypothesis import given, settings
from rounding import U, relative_error
from samplers import normal, window

import mfac
from mfac.window.descent import Descent

F32, F64 = torch.float32, torch.float64


def static(W: mfac.GradientWindow) -> mfac.EmpiricalFisher:
    """The static Fisher, in float64, of the rows that a window holds."""
    rows = W.rows.double()
    held = (
        rows if W.normalize == "rank" else rows[torch.tensor(W.ring.written_by) >= 0]
    )  # an empty row adds nothing to the sum
    return mfac.EmpiricalFisher(held, W.damping)


def filled(rank: int, rows: torch.Tensor, **options: object) -> mfac.GradientWindow:
    W = mfac.GradientWindow(rank, rows.shape[1], dtype=rows.dtype, **options)
    for g in rows:
        W.push(g)
    return W


def precondition_bound(W: mfac.GradientWindow) -> float:
    """Relative error allowed to `precondition`: its rounding, and (m + d)·u·κ^{3/2} of the solve.

    K's entries are sums of d terms and the solve's of m, so c is off by C⁻¹Ec with ‖E‖ about
    (m + d)·u‖C‖, and n Gᵀc by at most n‖GᵀC⁻¹‖‖E‖‖c‖. Here ‖GᵀC⁻¹‖ <= 1/(2√(nλ)), ‖C‖ = nλκ, and
    where rows are dependent ‖c‖ may reach 1/(nλ) while n‖Gᵀc‖ is only n/‖G‖. At κ = 1e8 the 1e-4
    that holds for every window here is less.
    """
    kappa = oracle.condition(W.rows, W.damping, W.num_terms)
    return 2 * U[W.rows.dtype] + min(1e-4, (W.rank + W.dim) * U[F64] * kappa**1.5)


def assert_preconditions(W: mfac.GradientWindow) -> None:
    g = W.rows[W.newest]
    expected = oracle.ihvp(W.rows, g, W.damping, num_terms=W.num_terms)
    if not g.any():
        assert not W.precondition().any()
    else:
        assert relative_error(W.precondition(), expected) <= precondition_bound(W)


def assert_equals_static(W: mfac.GradientWindow, seed: int = 0) -> None:
    F, v = static(W), normal(2, W.dim, seed=seed, dtype=W.rows.dtype)
    # Both lose at most about u·κ, in sums of m and d terms; float32 results are rounded to it.
    bound = 2 * U[W.rows.dtype] + (W.rank + W.dim) * U[F64] * oracle.condition(W.rows, W.damping, W.num_terms)
    assert relative_error(W.ihvp(v), F.ihvp(v.double())) <= bound
    assert relative_error(W.matvec(v), F.matvec(v.double())) <= bound
    if W.newest is not None:
        assert_preconditions(W)


class Model:
    """The gradients a window should hold, oldest first; empty rows fill before any is replaced."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.held: list[torch.Tensor] = []

    def push(self, g: torch.Tensor) -> None:
        if len(self.held) == self.rank:
            self.held.pop(0)
        self.held.append(g)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Pushes, of all sizes and some repeated or zero, among them some removals."""
    step = st.tuples(st.sampled_from(["push", "push", "push", "repeat", "zero", "remove"]), st.integers(0, 999))
    return draw(st.lists(step, min_size=1, max_size=30))


@pytest.mark.parametrize("normalize", ["rank", "filled"])
@pytest.mark.parametrize("dtype", [F32, F64])
@settings(max_examples=60)
@given(
    rank=st.integers(1, 9),
    dim=st.integers(1, 12),
    history=histories(),
    damping=st.sampled_from([1e-3, 1.0, 0.1, "relative"]),
)
def test_any_history_equals_the_static_fisher_of_the_rows_held(
    normalize: str, dtype: torch.dtype, rank: int, dim: int, history: list[tuple[str, int]], damping: float | str
):
    chosen = mfac.relative(0.05) if damping == "relative" else damping
    W, model = mfac.GradientWindow(rank, dim, chosen, dtype, normalize=normalize), Model(rank)
    for kind, number in history:
        if kind == "remove":
            rows = (torch.tensor(W.ring.written_by) >= 0).nonzero()[:, 0].tolist()
            if rows:
                row = rows[number % len(rows)]
                older = sum(W.ring.written_by[other] < W.ring.written_by[row] for other in rows)
                assert torch.equal(W.rows[row], model.held.pop(older))
                W.remove(row)
        else:
            g = normal(dim, seed=number % 3 if kind == "repeat" else number, dtype=dtype) * (kind != "zero")
            W.push(g)
            model.push(g)
            assert torch.equal(W.rows[W.newest], g)
        assert W.num_filled == len(model.held)
    held = W.rows[torch.tensor(W.ring.written_by).argsort(stable=True)][W.rank - W.num_filled :]
    assert torch.equal(held, torch.stack(model.held) if model.held else held)
    if W.num_filled and W.rows.any():
        assert W.num_terms == (rank if normalize == "rank" else len(model.held))
        assert_equals_static(W)


@pytest.mark.parametrize("normalize", ["rank", "filled"])
@pytest.mark.parametrize(("rank", "dim"), [(6, 9), (9, 6)])
def test_ten_thousand_pushes_do_not_drift(rank: int, dim: int, normalize: str):
    W = mfac.GradientWindow(rank, dim, 1e-3, F64, normalize=normalize)
    gradients = normal(10_000, dim) * torch.logspace(-2, 1, 10_000, dtype=F64)[:, None]  # over three orders of size
    for i, g in enumerate(gradients, start=1):
        W.push(g)
        if i % 1000 == 0:
            assert_equals_static(W, seed=i)
    assert torch.equal(W.rows[torch.tensor(W.ring.written_by).argsort()], gradients[-rank:])


@pytest.mark.parametrize("kind", ["plain", "duplicate rows", "zero rows"])
@pytest.mark.parametrize(
    ("rank", "dim"), [(1, 1), (1, 40), (4, 50), (64, 3), (70, 257), (40, 41), (33, 33), (100, 400)]
)
def test_precondition_accuracy_in_float32(rank: int, dim: int, kind: str):
    for norm in (1e-3, 1.0, 10.0):
        for damping in (1e-6, 1e-2, 1.0):
            W = filled(rank, window(rank, dim, norm, dtype=F32, kind=kind), damping=damping)
            assert_preconditions(W)
            W.push(normal(dim, seed=3, dtype=F32) * (norm / dim**0.5))
            assert_preconditions(W)


@pytest.mark.parametrize("normalize", ["rank", "filled"])
@pytest.mark.parametrize("norm", [1e3, 1e5])
def test_precondition_is_accurate_at_any_scale_where_the_window_is_higher_than_wide(norm: float, normalize: str):
    W = filled(64, window(50, 4, norm, dtype=F32), damping=1e-6, normalize=normalize)
    expected = oracle.ihvp(W.rows, W.rows[W.newest], 1e-6, num_terms=W.num_terms)
    # The primal form: its condition number is that of 4 x 4 matrices of random rows, below 10.
    assert relative_error(W.precondition(), expected) <= 2 * U[F32]


@pytest.mark.parametrize("normalize", ["rank", "filled"])
def test_relative_damping_follows_the_window(normalize: str):
    W = mfac.GradientWindow(4, 30, mfac.relative(0.1), F64, normalize=normalize)
    for i, g in enumerate(window(9, 30) * torch.logspace(-4, 4, 9, dtype=F64)[:, None]):
        W.push(g)
        expected = oracle.relative_damping(W.rows, 0.1, W.num_terms)
        assert W.damping == pytest.approx(expected, rel=40 * U[F64])  # a sum of 30 squares, and one of 4
        assert_equals_static(W, seed=i)
    W.remove(W.newest)
    assert W.damping == pytest.approx(oracle.relative_damping(W.rows, 0.1, W.num_terms), rel=40 * U[F64])


@pytest.mark.parametrize(("rank", "dim"), [(9, 300), (30, 9), (5, 5)])
def test_many_vectors_and_refinement(rank: int, dim: int):
    W = filled(rank, window(rank, dim), damping=0.1)
    for count in (0, 1, 3, 9):
        V = normal(count, dim)
        together = W.ihvp(V, refine=1)
        assert together.shape == V.shape
        for y, v in zip(together, V, strict=True):
            assert relative_error(y, oracle.ihvp(W.rows, v, 0.1)) <= (rank + dim) * U[F64] * 11  # κ <= 1 + 1/λ
            assert relative_error(W.ihvp(v), y) <= 2 * (rank + dim) * U[F64] * 11


def test_products_modify_no_argument_and_no_state():
    W = filled(5, window(7, 30), damping=0.1)
    before, v = W.state_dict(), normal(30)
    kept = v.clone()
    first = W.ihvp(v, refine=2), W.matvec(v), W.precondition()
    assert torch.equal(v, kept)
    assert all(
        torch.equal(a, b) for a, b in zip(first, (W.ihvp(v, refine=2), W.matvec(v), W.precondition()), strict=True)
    )
    assert torch.equal(W.rows, before["rows"])
    assert torch.equal(W.capacitance.gram.tril(), before["gram"].tril())


@pytest.mark.parametrize("damping", [1e-3, 1e-9, 1e-12])
def test_a_window_higher_than_wide_is_accurate_while_it_fills(damping: float):
    W, rows = mfac.GradientWindow(8, 4, damping, F64), normal(2, 4)
    for held in (rows[:1], rows):
        W.push(held[-1])
        # Rows that are far from dependent: the push-through form is as well conditioned as their
        # Gram matrix.
        capacitance = held @ held.T + 8 * damping * torch.eye(len(held), dtype=F64)
        expected = 8 * held.T @ torch.linalg.inv(capacitance)[-1]
        assert relative_error(W.precondition(), expected) <= 1e-13


def test_what_is_written_is_known_to_autograd():
    W, w, y = mfac.GradientWindow(3, 5, 0.1), torch.ones(5, requires_grad=True), torch.ones(5)
    W.push(torch.full((5,), 3.0))
    loss = (w * y).sum()
    W.precondition(out=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("tall", [False, True])  # of full rank the primal form, and torch moves the weights
def test_descend_moves_weights_along_the_average(dtype: torch.dtype, tall: bool):
    W = mfac.GradientWindow(60 if tall else 3, 50, 1e-2, dtype)
    for g in normal(60 if tall else 2, 50, dtype=dtype):
        W.push(g)
    weights, before = torch.ones(50, dtype=dtype), normal(50, seed=3, dtype=dtype)
    descent = Descent(before.clone(), momentum=0.9)
    descent.add(weights, 0, rate=0.1)
    newest = W.newest
    c = W.algebra.newest_coefficients(newest)
    W.descend_(descent, None if c is None else c[0], 3)
    average = 0.9 * before + 0.1 * W.precondition()
    torch.testing.assert_close(descent.average, average)
    torch.testing.assert_close(weights, 1 - 0.1 * average)


def test_columns_of_no_parameter_keep_their_average():
    W = mfac.GradientWindow(3, 50, 1e-2)
    W.push(normal(50, dtype=F32))
    before = normal(50, seed=3, dtype=F32)
    descent = Descent(before.clone(), momentum=0.9)
    for column in (5, 30):
        descent.add(torch.zeros(10), column, rate=1.0)
    c = W.algebra.newest_coefficients(W.newest)
    W.descend_(descent, c[0], 3)
    expected = before.clone()
    for columns in (slice(5, 15), slice(30, 40)):
        expected[columns] = 0.9 * before[columns] + 0.1 * W.precondition()[columns]
    torch.testing.assert_close(descent.average, expected)
    torch.testing.assert_close(descent.parameters[1], -expected[30:40])


def test_precondition_writes_where_it_is_told():
    W = mfac.GradientWindow(3, 50, 1e-2)
    W.push(normal(50, dtype=torch.float32))
    out = torch.full((50,), float("nan"))
    assert W.precondition(out=out) is out
    assert torch.equal(out, W.precondition())
    W.push(torch.zeros(50))
    assert torch.equal(W.precondition(out=out), torch.zeros(50))
    tall = mfac.GradientWindow(60, 50, 1e-2)
    tall.push(normal(50, dtype=torch.float32))
    assert torch.equal(tall.precondition(out=out), tall.precondition())


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (torch.zeros(49), ValueError, r"`out` should be contiguous of shape \[d=50\]. Found shape \[49\]"),
        (torch.zeros(100)[::2], ValueError, r"Found shape \[50\], not contiguous"),
        (
            torch.zeros(50, dtype=torch.float64),
            TypeError,
            r"`out` should be a tensor of torch.float32",
        ),
        ([0.0], TypeError, r"Found list"),
        (torch.zeros(50, requires_grad=True), ValueError, r"`out` should not require a gradient"),
    ],
)
def test_precondition_refuses_what_it_cannot_write_to(out: object, error: type[Exception], message: str):
    W = mfac.GradientWindow(3, 50, 1e-2)
    W.push(torch.ones(50))
    with pytest.raises(error, match=message):
        W.precondition(out=out)
    with pytest.raises(ValueError, match=r"`out` should have memory of its own"):
        W.precondition(out=W.rows[0])
