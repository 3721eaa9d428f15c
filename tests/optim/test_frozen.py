"""Parameters of MFAC that are frozen and unfrozen on the way."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from optim.runs import OF_RULES, Kind, Run
from oracle import fisher as dense_fisher
from torch import Tensor, nn

import mfac

F64 = torch.float64


class Oracle:
    """Of one group in float64: rows of gradients, of which frozen columns become zero."""

    def __init__(self, rule: str, rank: int, dim: int, damping: float, momentum: float, lr: float) -> None:
        self.rule, self.rank, self.damping, self.momentum, self.lr = rule, rank, damping, momentum, lr
        self.rows: list[Tensor] = []
        self.average = torch.zeros(dim, dtype=F64)
        self.t = 0

    def forget(self, columns: slice) -> None:
        for row in self.rows:
            row[columns] = 0
        self.average[columns] = 0

    def update(self, g: Tensor, moves: Tensor) -> Tensor:
        self.t += 1
        self.rows = [*self.rows, g.clone()][-self.rank :]
        window = torch.stack(self.rows)
        if self.rule == "paper":
            u = torch.linalg.solve(dense_fisher(window, self.damping, num_terms=self.rank), g)
            self.average[moves] = (self.momentum * self.average + (1 - self.momentum) * u)[moves]
            return self.lr * self.average * moves
        # Σ βᵏ λF₋ₖ⁻¹gₖ, each gradient preconditioned by the others.
        u = torch.zeros_like(g)
        for k, row in enumerate(reversed(self.rows)):
            others = window[[i for i in range(len(self.rows)) if i != len(self.rows) - 1 - k]]
            others = torch.cat([others, torch.zeros(1, len(g), dtype=F64)])
            F = dense_fisher(others, self.damping, num_terms=self.rank)
            u += self.momentum**k * self.damping * torch.linalg.solve(F, row)
        # The rows that are held count for those that are not any more.
        tail = (1 - self.momentum**self.t) / (1 - self.momentum ** len(self.rows))
        return self.lr * tail * u * moves


@pytest.mark.parametrize("rule", ["paper", "leave_one_out"])
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_parameters_are_frozen_and_unfrozen_as_the_dense_fisher_has_it(rule: str, frozen: int):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n, dtype=F64)) for n in (5, 7, 4)]
    options = {"rank": 4, "damping": 0.1, "momentum": 0.9, "lr": 0.05}
    opt = mfac.MFAC(parameters, rule=rule, window_dtype=F64, **options)
    oracle = Oracle(rule, dim=16, **options)
    starts = [0, 5, 12, 16]
    columns = slice(starts[frozen], starts[frozen + 1])
    w = torch.cat([p.detach() for p in parameters])
    for t in range(15):
        if t in (6, 10):
            parameters[frozen].requires_grad_(t == 10)
            oracle.forget(columns)
        moves = torch.ones(16, dtype=torch.bool)
        if 6 <= t < 10:
            moves[columns] = False
        for p in parameters:
            p.grad = torch.randn(p.shape, dtype=F64) if p.requires_grad else None
        if t in (3, 12):  # no gradient, and yet a column
            parameters[1 - frozen // 2].grad = None
            moves[slice(starts[1 - frozen // 2], starts[2 - frozen // 2])] = False
        g = torch.cat([torch.zeros_like(p).detach() if p.grad is None else p.grad for p in parameters])
        opt.step()
        w = w - oracle.update(g, moves)
        # Dense 16 x 16 solves at condition < 1e3, and fifteen steps: 1e-12 relative, with room.
        torch.testing.assert_close(torch.cat([p.detach() for p in parameters]), w, rtol=1e-9, atol=1e-11)
        assert opt.window.dim == (16 - (starts[frozen + 1] - starts[frozen]) if 6 <= t < 10 else 16)


@pytest.mark.parametrize("rule", OF_RULES)
def test_the_memory_of_a_frozen_parameter_is_given_back(rule: str):
    run = Run(Kind(rule), groups=1).go(0, 5)
    before, known = run.opt.window.nbytes, weakref.ref(run.opt.window)
    run.model.wide.requires_grad_(False)
    run.go(5, 1)
    gc.collect()
    assert known() is None and run.opt.window.nbytes <= before - 4 * 4 * 72
    assert not run.opt.state.get(run.model.wide)
    rows = run.opt.window.rows
    inside = range(rows.data_ptr(), rows.data_ptr() + rows.element_size() * rows.shape[0] * rows.stride(0))
    assert all(run.opt.state[p]["rows"].data_ptr() in inside for p in run.model.parameters() if p.requires_grad)
    run.model.wide.requires_grad_(True)
    run.go(6, 1)
    assert run.opt.window.nbytes == before and run.opt.window.num_filled == 4
    assert run.opt.state[run.model.wide]["rows"].shape == (4, 6, 12)


@pytest.mark.parametrize("density", [1.0, 0.2])
@pytest.mark.parametrize("window_dtype", [torch.float32, torch.bfloat16])
def test_what_a_window_knows_of_the_others_is_kept_as_one_is_frozen(density: float, window_dtype: torch.dtype):
    kind = Kind("leave_one_out", window_dtype, density)
    run = Run(kind, groups=1).go(0, 6)
    wide = run.model.wide.numel()
    before = run.opt.window.rows[:, wide:].float().clone()
    error = None if density == 1 else run.opt.window.format.error[wide:].clone()
    newest = run.opt.window.newest
    run.model.wide.requires_grad_(False)
    follower = run.opt._window_of(run.opt.param_groups[0], run.opt._windows[0])
    assert follower is not None and follower.window.newest == newest
    found = follower.window.rows.float()
    if density == 1:
        assert torch.equal(found, before)
    else:  # rows of fewer columns may hold fewer entries: the largest are kept
        kept = found != 0
        assert torch.equal(found[kept], before[kept]) and int(kept.sum()) >= 0.5 * int((before != 0).sum())
        for row, held in zip(before, kept, strict=True):
            assert float((row * ~held).abs().max()) <= float(row[held].abs().min())
        assert torch.equal(follower.window.format.error, error)
