"""Groups of MFAC: options of their own, windows of their own, parameters that come and go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim.runs import OF_RULES, Bag, Kind, Run, assert_same, copied, give_gradients
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
    with pytest.raises(TypeError, match=r"real floating-point.*Found torch.complex64"):
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


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize("which", [0, 1])
def test_where_one_damping_is_too_small_no_weight_moves_and_all_windows_hold_the_gradient(rule: str, which: int):
    parameters = [nn.Parameter(torch.zeros(5)) for _ in range(2)]
    groups = [{"params": [p], "damping": 1e-140 if i == which else 1e-3} for i, p in enumerate(parameters)]
    opt = mfac.MFAC(groups, rule=rule, rank=4)
    before: list[Tensor] = []
    with pytest.raises(torch.linalg.LinAlgError, match="Increase `damping`"):
        for _ in range(4):  # the same gradient, so that their Gram matrix is singular
            before = [p.detach().clone() for p in parameters]
            for p in parameters:
                p.grad = 1e5 * torch.ones(5)
            opt.step()
    assert_same([p.detach() for p in parameters], before)
    first, second = opt.windows
    assert first.num_filled == second.num_filled > 1


def test_a_damping_of_numpys_kind_is_a_number():
    numpy = pytest.importorskip("numpy")
    p = nn.Parameter(torch.zeros(3))
    assert mfac.MFAC([p], damping=numpy.float32(0.01)).param_groups[0]["rule"] == "paper"
