"""Groups of MFAC: options of their own, windows of their own, parameters that come and go."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from optim.runs import OF_RULES, Bag, Kind, Run, assert_same, copied, give_gradients
from oracle import fisher as dense_fisher
from torch import Tensor, nn

import mfac

F64 = torch.float64
DEFAULTS: dict[str, Any] = {"rule": "leave_one_out", "rank": 3, "lr": 0.02}
OF_GROUPS: list[dict[str, Any]] = [
    {"lr": 0.005},
    {"rank": 5},
    {"damping": 0.3},
    {"damping": mfac.relative(0.5)},
    {"damping": mfac.row_relative(0.1)},
    {"momentum": 0.3},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"window_dtype": torch.bfloat16},
    {"window_dtype": torch.int8},
    {"window_dtype": F64},
    {"density": 0.2},
    {"rule": "adam"},
    {"rule": "adam", "beta2": 0.9},
    {"rule": "adam", "eps": 0.1},
    {"rule": "paper", "damping": 0.1, "momentum": 0.9},
    {"rule": "paper", "damping": 0.1, "normalize": "filled"},
    {"nesterov": True},
    {"maximize": True},
    {"centred": True},
    {"trust_region": 1e-5},
    {"grafting": 1.0},
    {"update_rms": 0.2},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()).replace("torch.", "")


def halves(model: Bag) -> tuple[list[Tensor], list[Tensor]]:
    everything = list(model.parameters())
    return everything[:2], everything[2:]


def go(model: nn.Module, opts: list[mfac.MFAC], first: int, steps: int) -> list[Tensor]:
    for t in range(first, first + steps):
        give_gradients(model, t)
        for opt in opts:
            opt.step()
        for opt in opts:
            opt.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("options", OF_GROUPS, ids=named)
def test_a_group_with_options_of_its_own_is_an_optimizer_of_its_own(options: dict[str, Any]):
    """Bit by bit, as windows know nothing of one another; and the options do something."""
    together, apart, plain = Bag(), Bag(), Bag()
    first, second = halves(together)
    one = mfac.MFAC([{"params": first, **options}, {"params": second}], **DEFAULTS)
    first, second = halves(apart)
    two = [mfac.MFAC(first, **{**DEFAULTS, **options}), mfac.MFAC(second, **DEFAULTS)]
    first, second = halves(plain)
    without = mfac.MFAC([{"params": first}, {"params": second}], **DEFAULTS)
    found, expected, default = go(together, [one], 0, 6), go(apart, two, 0, 6), go(plain, [without], 0, 6)
    assert_same(found, expected)
    assert not torch.equal(found[0], default[0]) or options.get("window_dtype") == F64
    assert_same(found[2:], default[2:])
    assert {name: one.param_groups[0][name] for name in options} == options


def test_rounding_is_an_option_of_a_group():
    parameters = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(3)]
    roundings = ("nearest", "compensated", "stochastic")
    groups = [{"params": [p], "rounding": rounding} for p, rounding in zip(parameters, roundings, strict=True)]
    opt = mfac.MFAC(groups, rule="paper", lr=1e-3, damping=1.0, rank=2)
    for p in parameters:
        p.grad = torch.full_like(p, 0.1)
    opt.step()
    assert torch.equal(parameters[0], parameters[1]) and not torch.equal(parameters[1], parameters[2])
    assert ["compensation" in opt.state[p] for p in parameters] == [False, True, False]


@pytest.mark.parametrize(
    ("key", "hint"),
    [("dampign", "damping"), ("weight_decya", "weight_decay"), ("Rank", "rank"), ("learning_rate", None)],
)
def test_a_misspelt_option_is_refused_with_the_nearest_that_is_one(key: str, hint: str | None):
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    message = rf"`params` should have groups with the options \[.*\]. Found '{key}'."
    message += rf" Did you mean '{hint}'\?" if hint else ""
    with pytest.raises(TypeError, match=message):
        mfac.MFAC([{"params": parameters, key: 1.0}])
    opt = mfac.MFAC(parameters[:1])
    with pytest.raises(TypeError, match=message):
        opt.add_param_group({"params": parameters[1:], key: 1.0})
    assert len(opt.param_groups) == len(opt.windows) == 1


@pytest.mark.parametrize("key", ["nonfinite", "process_group"])
def test_what_is_of_the_optimizer_is_no_option_of_a_group(key: str):
    with pytest.raises(TypeError, match=rf"Found '{key}'"):
        mfac.MFAC([{"params": [nn.Parameter(torch.ones(2))], key: None}])


BAD: list[tuple[str, Any, type[Exception]]] = [
    ("lr", -1.0, ValueError),
    ("lr", float("nan"), ValueError),
    ("lr", "fast", TypeError),
    ("lr", torch.ones(2), ValueError),
    ("damping", 0.0, ValueError),
    ("damping", None, TypeError),
    ("momentum", 1.0, ValueError),
    ("weight_decay", -0.1, ValueError),
    ("decoupled_weight_decay", 1, TypeError),
    ("nesterov", "yes", TypeError),
    ("trust_region", 0.0, ValueError),
    ("grafting", 2.0, ValueError),
    ("update_rms", -1.0, ValueError),
    ("beta2", 1.0, ValueError),
    ("eps", 0.0, ValueError),
    ("rounding", "up", ValueError),
]
FIXED: list[tuple[str, Any]] = [
    ("rank", 5),
    ("window_dtype", torch.bfloat16),
    ("density", 0.5),
    ("rule", "adam"),
    ("normalize", "filled"),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_a_bad_value_in_a_group_is_refused_at_once(name: str, value: Any, error: type[Exception]):
    if value is not None:
        with pytest.raises(error, match=rf"`{name}`"):
            mfac.MFAC([{"params": [nn.Parameter(torch.ones(2))], name: value}], **DEFAULTS)


@pytest.mark.parametrize(("name", "value", "error"), [*BAD, *((n, v, ValueError) for n, v in FIXED)])
def test_a_bad_value_in_the_midst_of_training_is_refused_and_nothing_has_changed(
    name: str, value: Any, error: type[Exception]
):
    number = 1  # after a group that could have stepped already
    run, calm = Run(Kind("leave_one_out")).go(0, 4), Run(Kind("leave_one_out")).go(0, 4)
    give_gradients(run.model, 4)
    run.opt.param_groups[number][name], was = value, run.opt.param_groups[number][name]
    weights, rows = copied(run.model.state_dict()), [window.rows.clone() for window in run.opt.windows]
    with pytest.raises(error, match=rf"`{name}`"):
        run.opt.step()
    assert_same(weights, copied(run.model.state_dict()))
    assert_same(rows, [window.rows for window in run.opt.windows])
    run.opt.param_groups[number][name] = was
    assert_same(calm.go(4, 3).everything(), run.go(4, 3).everything())


def test_a_rate_in_a_tensor_that_turns_bad_in_place_is_refused():
    p = nn.Parameter(torch.ones(2))
    opt = mfac.MFAC([p], lr=torch.tensor(0.1), rank=2)
    for rate in (0.1, float("nan")):
        opt.param_groups[0]["lr"].fill_(rate)
        p.grad, before = torch.ones(2), p.detach().clone()
        if rate == 0.1:
            opt.step()
    with pytest.raises(ValueError, match=r"`lr` should be finite"):
        opt.step()
    assert torch.equal(before, p)


def test_the_window_is_that_of_one_group():
    model = Bag()
    first, second = halves(model)
    opt = mfac.MFAC([{"params": first}, {"params": second}], rank=2)
    with pytest.raises(RuntimeError, match=r"should have one window. Found 2: see `windows`"):
        _ = opt.window
    assert [window.dim for window in opt.windows] == [sum(p.numel() for p in half) for half in (first, second)]
    model.requires_grad_(False)
    opt.step()
    with pytest.raises(RuntimeError, match=r"should have one window. Found 0"):
        _ = opt.window


@pytest.mark.parametrize("rule", OF_RULES)
def test_a_group_added_in_the_midst_of_training_starts_anew_and_the_others_go_on(rule: str):
    model, apart = Bag(), Bag()
    options = Kind(rule).options
    first, second = halves(model)
    opt = mfac.MFAC(first, **options)
    mine, others = halves(apart)
    two = [mfac.MFAC(mine, **options), mfac.MFAC(others, **{**options, "rank": 2})]
    go(model, [opt], 0, 5)
    model.zero_grad()  # those of no group yet
    opt.add_param_group({"params": second, "rank": 2})
    assert [window.num_filled for window in opt.windows] == [4, 0]
    go(apart, two[:1], 0, 5)
    apart.zero_grad()
    assert_same(go(model, [opt], 5, 5), go(apart, two, 5, 5))
    with pytest.raises(ValueError, match=r"`rank` should be at least 1"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rank": 0})
    with pytest.raises(TypeError, match=r"real floating-point. Found torch.complex64"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(opt.param_groups) == len(opt.windows) == 2
    assert_same(go(model, [opt], 10, 2), go(apart, two, 10, 2))


def test_a_group_that_does_not_train_takes_no_memory_until_it_does():
    model = Bag()
    first, second = halves(model)
    for p in first:
        p.requires_grad_(False)
    opt = mfac.MFAC([{"params": first}, {"params": second}], **DEFAULTS)
    before = copied(model.state_dict())
    go(model, [opt], 0, 3)
    assert len(opt.windows) == 1 and opt.window.dim == sum(p.numel() for p in second)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in ("wide", "bias"))
    assert all(p not in opt.state or not opt.state[p] for p in first)
    opt.load_state_dict(copied(opt.state_dict()))
    for p in first:
        p.requires_grad_(True)
    go(model, [opt], 3, 2)
    assert [window.num_filled for window in opt.windows] == [2, 3]


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


@pytest.mark.parametrize("rule", OF_RULES)
def test_a_parameter_without_a_gradient_keeps_all_that_is_its_own(rule: str):
    run = Run(Kind(rule), groups=1).go(0, 5)
    give_gradients(run.model, 5)
    run.model.bias.grad = None
    run.opt.state_dict()
    before, weight = copied(run.opt.state[run.model.bias]), run.model.bias.detach().clone()
    run.opt.step()
    run.opt.state_dict()
    after = run.opt.state[run.model.bias]
    assert torch.equal(weight, run.model.bias)
    for name in ("momentum", "square_average", "step"):
        assert name not in before or torch.equal(before[name], after[name])
    newest = run.opt.window.newest
    assert not bool(after["rows"][newest].any()) and bool(run.opt.state[run.model.wide]["rows"][newest].any())


def test_an_option_out_of_range_is_refused_in_a_group_that_has_no_window_yet():
    p, q = (nn.Parameter(torch.ones(5)) for _ in range(2))
    q.requires_grad_(False)
    opt = mfac.MFAC([{"params": [p]}, {"params": [q]}])
    opt.param_groups[1]["momentum"] = 1.5
    q.requires_grad_(True)
    p.grad = q.grad = torch.ones(5)
    with pytest.raises(ValueError, match=r"`momentum` .* Found 1.5. It is in group 1."):
        opt.step()
    assert torch.equal(p, torch.ones(5)) and torch.equal(q, torch.ones(5))


@pytest.mark.parametrize("rule", ["adam", "spectral"])
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_the_length_of_a_step_does_not_depend_on_the_rank(rule: str, rank: int):
    """Of gradients that are all the same, with a damping that leaves the window no say."""
    p = nn.Parameter(torch.zeros(6, dtype=F64))
    opt = mfac.MFAC([p], 1e-2, rank, mfac.row_relative(1e9), rule=rule, window_dtype=F64)
    for _ in range(100):
        before = p.detach().clone()
        p.grad = torch.ones_like(p)
        opt.step()
    torch.testing.assert_close(before - p.detach(), torch.full_like(before, 1e-2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("rule", ["adam", "spectral"])
def test_a_parameter_with_few_gradients_moves_by_the_average_of_those(rule: str):
    p, seldom = (nn.Parameter(torch.zeros(6, dtype=F64)) for _ in range(2))
    opt = mfac.MFAC([p, seldom], 1e-2, 64, mfac.row_relative(1e9), rule=rule, window_dtype=F64)
    for step in range(60):
        before = seldom.detach().clone()
        p.grad = torch.ones_like(p)
        seldom.grad = torch.ones_like(p) if step % 20 == 0 else None
        opt.step()
        moved = before - seldom.detach()
        expected = torch.full_like(moved, 0.0 if step % 20 else 1e-2)
        # The metric takes the seldom one's own steps; gradients are all one.
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-12)


def test_a_parameter_of_another_size_starts_anew():
    p, q = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))
    opt = mfac.MFAC([p, q], rule="adam", rank=4)
    p.grad, q.grad = torch.ones(3, 2), torch.ones(4)
    opt.step()
    p.data = torch.zeros(3, 3)
    p.grad = torch.ones(3, 3)
    opt.step()
    rows = opt.state_dict()["state"][0]["rows"]
    assert not bool(rows[0].any()) and bool(rows[1].all())
    assert bool(opt.state_dict()["state"][1]["rows"][:2].all())


def test_a_damping_of_numpys_kind_is_a_number():
    numpy = pytest.importorskip("numpy")
    p = nn.Parameter(torch.zeros(3))
    assert mfac.MFAC([p], damping=numpy.float32(0.01)).param_groups[0]["rule"] == "paper"
