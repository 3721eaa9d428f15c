"""Every rule against its dense definition in float64, and the identities that rules promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import fisher as dense_fisher
from torch import Tensor

import mfac
from mfac.optim.orthogonal import orthogonalized

DIM, RANK, STEPS = 13, 5, 14
BETA, BETA2, EPS = 0.8, 0.99, 1e-8


def gradients(count: int = STEPS, dim: int = DIM, seed: int = 0) -> Tensor:
    """With a mean, so that momentum, centring and leaving out all matter."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(dim, generator=generator, dtype=torch.float64)
    return mean + torch.randn(count, dim, generator=generator, dtype=torch.float64)


class Dense:
    """The rules by d x d matrices, one gradient after the other."""

    def __init__(self, shift: float | None, rho: float | None, metric: bool, centred: bool, nesterov: bool) -> None:
        self.shift, self.rho = shift, rho
        self.metric, self.centred, self.nesterov = metric, centred, nesterov
        self.rows: list[Tensor] = []
        self.v, self.t = torch.zeros(DIM, dtype=torch.float64), 0

    def update(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u in the weights' coordinates, u in the window's, and the gradient that it answers."""
        self.t += 1
        self.v = BETA2 * self.v + (1 - BETA2) * g**2
        root = ((self.v / (1 - BETA2**self.t)).sqrt() + EPS).sqrt() if self.metric else torch.ones_like(g)
        self.rows = [*self.rows, g / root][-RANK:]
        h = torch.stack(self.rows)
        if self.rho is not None:
            wanted = self.rho * float(h.square().sum()) / len(h)
            if self.shift is None or not 0.5 * self.shift <= wanted <= 2 * self.shift:
                self.shift = wanted
        a = torch.tensor([BETA**k for k in reversed(range(len(h)))], dtype=torch.float64)
        a = a / a.sum() * (1 - BETA**self.t) / (1 - BETA)  # what the window has lost counts as what it holds
        if self.nesterov:
            a = BETA * a
            a[-1] += 1
        if self.metric:
            a = a * (1 - BETA) / (1 - BETA**self.t)
        damping = self.shift / RANK
        left_out = []  # λF₋ₖ⁻¹ of each row, without itself
        for k in range(len(h)):
            others = torch.cat([h[:k], h[k + 1 :]])
            eye = damping * torch.eye(DIM, dtype=torch.float64)
            without = dense_fisher(others, damping, num_terms=RANK) if len(others) else eye
            left_out.append(damping * torch.linalg.solve(without, h[k]))
        gains = [1 / (self.shift + row @ u) for row, u in zip(h, left_out, strict=True)]  # A_kk
        answered = h.T @ a
        if self.centred:
            rows = h - (a / a.sum()) @ h
            u = torch.linalg.solve(dense_fisher(rows, damping, num_terms=RANK), h.T @ (a / torch.stack(gains))) / RANK
        else:
            u = a @ torch.stack(left_out)
        return u / root, u, answered


@pytest.mark.parametrize("rule", ["leave_one_out", "adam"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("damping", [0.7, mfac.row_relative(0.3)])
def test_steps_are_those_of_the_dense_definition(rule, centred, nesterov, damping):
    w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    options = {"rule": rule, "centred": centred, "nesterov": nesterov, "damping": damping, "momentum": BETA}
    opt = mfac.MFAC([w], 0.1, RANK, window_dtype=torch.float64, beta2=BETA2, eps=EPS, grafting=0.0, **options)
    fixed = isinstance(damping, float)
    dense = Dense(
        RANK * damping if fixed else None, None if fixed else damping.scale, rule == "adam", centred, nesterov
    )
    expected = torch.zeros(DIM, dtype=torch.float64)
    for t, g in enumerate(gradients()):
        g = g * (3.0 if t == 7 else 1.0)  # a jump that a held damping has to follow
        w.grad = g.clone()
        opt.step()
        expected -= 0.1 * dense.update(g)[0]
        # Solves of 13 x 13 and 5 x 5 matrices at condition < 1e3: 1e-12 relative, with room.
        torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("rule", ["leave_one_out", "adam"])
@pytest.mark.parametrize("grafting", [0.5, 1.0])
def test_grafting_takes_the_length_of_the_gradient(rule, grafting):
    w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    opt = mfac.MFAC(
        [w], 1.0, RANK, 0.7, BETA, window_dtype=torch.float64, rule=rule, grafting=grafting, beta2=BETA2, eps=EPS
    )
    dense = Dense(RANK * 0.7, None, rule == "adam", False, False)
    for g in gradients():
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
        step, u, answered = dense.update(g)
        expected = step * (answered.norm() / u.norm()) ** grafting
        torch.testing.assert_close(before - w.detach(), expected, rtol=1e-9, atol=1e-11)


def test_a_trust_region_bounds_the_curvature_of_a_step():
    w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    options = {"rule": "leave_one_out", "trust_region": 0.02}
    opt = mfac.MFAC([w], 0.3, RANK, 0.7, BETA, window_dtype=torch.float64, **options)
    dense = Dense(RANK * 0.7, None, False, False, False)
    shortened = 0
    for g in gradients() * torch.logspace(-2, 0, STEPS).unsqueeze(1):
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
        u = dense.update(g)[1]
        F = dense_fisher(torch.stack(dense.rows), 0.7, num_terms=RANK)
        factor = min(1.0, (0.02 / float(0.09 * u @ F @ u)) ** 0.5)
        shortened += factor < 1
        torch.testing.assert_close(before - w.detach(), 0.3 * factor * u, rtol=1e-9, atol=1e-12)
    assert 0 < shortened < STEPS


def test_an_update_may_have_a_fixed_size():
    w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    opt = mfac.MFAC([w], 0.5, RANK, rule="leave_one_out", update_rms=0.2, window_dtype=torch.float64)
    for g in gradients():
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
        assert float((before - w.detach()).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rank=st.integers(1, 9),
    dim=st.integers(1, 30),
    damping=st.floats(1e-4, 10),
    count=st.integers(1, 12),
)
def test_a_left_out_gradient_is_never_lengthened_nor_turned_round(seed, rank, dim, damping, count):
    """‖u‖ <= ‖g‖, and gᵀu = 1/A_jj - nλ >= 0, without momentum."""
    w = torch.nn.Parameter(torch.zeros(dim, dtype=torch.float64))
    opt = mfac.MFAC([w], 1.0, rank, damping, 0.0, window_dtype=torch.float64, rule="leave_one_out")
    for g in gradients(count, dim, seed):
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
        u = before - w.detach()
        assert float(u.norm()) <= float(g.norm()) * (1 + 1e-9)
        newest, shift = opt.window.newest, rank * damping
        pivot = 1 / float(opt.window.capacitance.inverse[newest, newest])
        # 1/A_jj - nλ subtracts, to about 1e-12 of ‖g‖² + nλ.
        assert float(g @ u) == pytest.approx(pivot - shift, abs=1e-9 * (float(g @ g) + shift))
        assert float(g @ u) >= -1e-12 * float(g @ g)
        found = opt.diagnostics()
        assert found["update_norm"] == pytest.approx(float(u.norm()), rel=1e-6, abs=1e-12)
        assert found["slope"] == pytest.approx(float(g @ u), rel=1e-6, abs=1e-9 * float(g @ g))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-6, 1e-2, 8.0, 1e5]))
def test_steps_scale_with_the_loss_under_a_row_relative_damping(seed, scale):
    weights = []
    for factor in (1.0, scale):
        w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
        opt = mfac.MFAC([w], 1.0, RANK, rule="leave_one_out", window_dtype=torch.float64)
        for g in gradients(seed=seed):
            w.grad = factor * g
            opt.step()
        weights.append(w.detach() / factor)
    torch.testing.assert_close(*weights, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_large_damping_gives_sgd(nesterov):
    both = []
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=BETA, nesterov=nesterov, weight_decay=0.01),
        lambda p: mfac.MFAC(
            p, 0.1, 40, mfac.row_relative(1e9), BETA, 0.01, torch.float64, rule="leave_one_out", nesterov=nesterov
        ),
    ):
        w = torch.nn.Parameter(torch.ones(DIM, dtype=torch.float64))
        opt = make([w])
        for g in gradients(40):
            w.grad = g.clone()
            opt.step()
        both.append(w.detach())
    torch.testing.assert_close(*both, rtol=1e-6, atol=1e-7)  # off by about m/ρ


def test_a_large_damping_in_adams_metric_gives_adamw_where_the_metric_stands_still():
    both = []
    for make in (
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(BETA, BETA2), weight_decay=0.01),
        lambda p: mfac.MFAC(
            p, 0.1, 40, mfac.row_relative(1e9), BETA, 0.01, torch.float64,
            rule="adam", decoupled_weight_decay=True, beta2=BETA2, grafting=0.0,
        ),
    ):  # fmt: skip
        w = torch.nn.Parameter(torch.ones(DIM, dtype=torch.float64))
        opt = make([w])
        signs = torch.randint(2, (40, DIM), generator=torch.Generator().manual_seed(3)).double() * 2 - 1
        for sign in signs:  # squares are all one
            w.grad = sign.clone()
            opt.step()
        both.append(w.detach())
    torch.testing.assert_close(*both, rtol=1e-6, atol=1e-7)


def test_orthogonal_updates_are_those_of_the_singular_vectors():
    """Same norm and singular vectors; singular values within the iteration's band."""
    weights = []
    for orthogonal in (False, True):
        w = torch.nn.Parameter(torch.zeros(6, 2, 5, dtype=torch.float64))
        opt = mfac.MFAC([w], 1.0, 8, rule="adam", orthogonal=orthogonal, window_dtype=torch.float64)
        w.grad = gradients(1, 60)[0].view(6, 2, 5)
        opt.step()
        weights.append(-w.detach().flatten(1))
    plain, turned = weights
    assert float(turned.norm()) == pytest.approx(float(plain.norm()), rel=1e-12)
    u, s, vh = torch.linalg.svd(plain, full_matrices=False)
    inside = u.T @ turned @ vh.T
    assert float((inside - inside.diagonal().diag()).abs().max()) < 1e-10 * float(s.max())
    values = inside.diagonal() / inside.diagonal().mean()
    assert float(values.min()) > 0.55 and float(values.max()) < 1.5


def test_vectors_are_not_orthogonalised():
    weights = []
    for rule in ("adam", "spectral"):
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((7,), (1, 7), (7, 1))]
        opt = mfac.MFAC(parameters, 1.0, 8, mfac.row_relative(1.0), rule=rule, window_dtype=torch.float64)
        for g in gradients(3, 21):
            for p, piece in zip(parameters, g.split(7), strict=True):
                p.grad = piece.view(p.shape).clone()
            opt.step()
        weights.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert torch.equal(*weights)


def test_the_default_rule_follows_from_the_kind_of_damping():
    w = [torch.nn.Parameter(torch.zeros(3))]
    for damping, rule in (
        (None, "spectral"),
        (mfac.row_relative(2.0), "spectral"),
        (0.1, "paper"),
        (mfac.relative(1.0), "paper"),
    ):
        assert mfac.MFAC(w, damping=damping).param_groups[0]["rule"] == rule


def test_diagnostics_are_those_of_the_dense_fisher():
    w = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    opt = mfac.MFAC([w], 1.0, RANK, 0.3, rule="paper", window_dtype=torch.float64)
    for g in gradients():
        before = w.detach().clone()
        w.grad = g.clone()
        opt.step()
    u, rows = before - w.detach(), opt.window.rows
    F = dense_fisher(rows, 0.3, num_terms=RANK)
    values = torch.linalg.eigvalsh(rows @ rows.T)
    found = opt.diagnostics()
    expected = {
        "rows": RANK,
        "damping": 0.3,
        "gradient_norm": float(g.norm()),
        "update_norm": float(u.norm()),
        "curvature": float(u @ F @ u),
        "slope": float(g @ u),
        "effective_rank": float(values.sum() ** 2 / values.square().sum()),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert found["largest_eigenvalue"] == pytest.approx(float(values.max()), rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-32, 1e-20, 1e20, 1e37])
@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (2, 9), (6, 2, 2)])
def test_orthogonal_factors_of_tiny_and_huge_updates_are_finite(shape: tuple[int, ...], scale: float):
    torch.manual_seed(0)
    update = torch.randn(shape)
    found = orthogonalized(update * scale)
    assert bool(torch.isfinite(found).all())
    if scale > 1e-38:  # of whole float32 numbers
        assert torch.allclose(found / scale, orthogonalized(update), atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 4), (4, 11), (4, 12), (5, 60), (60, 5), (6, 3, 8), (40, 2, 2)])
def test_the_orthogonal_factor_is_that_of_five_quintic_steps_whatever_the_shape(shape: tuple[int, ...]):
    torch.manual_seed(0)
    update = torch.randn(shape, dtype=torch.float64)
    u, values, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = (u * (values * update.norm() / values.norm())) @ v
    assert torch.allclose(orthogonalized(update).flatten(1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-45, 1e-32, 1e-30, 1e-20])
def test_gradients_that_vanish_leave_weights_finite(scale: float):
    torch.manual_seed(0)
    first, second = (torch.nn.Parameter(torch.randn(6, 6)) for _ in range(2))
    optimizer = mfac.MFAC([{"params": [first]}, {"params": [second]}], momentum=0.5)
    for step in range(80):
        first.grad = torch.randn(6, 6) * (1.0 if step < 3 else 0.0)  # what is left of them halves in each step
        second.grad = torch.randn(6, 6) * scale
        optimizer.step()
        assert bool(torch.isfinite(first).all() and torch.isfinite(second).all())
