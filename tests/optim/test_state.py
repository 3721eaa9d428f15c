"""Stored runs of MFAC go on bit by bit; what does not fit is refused, and nothing has changed."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from optim.runs import FORMATS, KINDS, SOME_KINDS, Bag, Kind, Run, assert_same, copied

import mfac
from mfac.optim.rules.leave_one_out import Adam

BEFORE, AFTER = 7, 5  # past where windows of 3 and 4 rows are overwritten


def stored(value: Any) -> Any:
    """What a file gives back."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(saved: dict[str, Any], kind: Kind, **options: Any) -> Run:
    run = Run(kind, seed=1, **options)
    run.model.load_state_dict(saved["model"])
    run.opt.load_state_dict(saved["opt"])
    return run


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_stored_run_is_the_run_that_never_stopped(kind: Kind):
    run = Run(kind).go(0, BEFORE)
    saved = stored({"model": run.model.state_dict(), "opt": run.opt.state_dict()})
    again = resumed(saved, kind)
    assert_same(run.everything(), again.everything())
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_is_stored_after_every_step_is_the_run_that_is_not(kind: Kind, steps: int):
    run = Run(kind).go(0, 3 * steps)
    again = Run(kind)
    for part in range(3):
        again = resumed(again.go(part * steps, steps).everything(), kind)
    assert_same(run.everything(), again.everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_reading_the_state_changes_no_step(kind: Kind):
    run, read = Run(kind).go(0, BEFORE), Run(kind)
    for t in range(BEFORE):
        read.opt.state_dict()
        read.go(t, 1)
    assert_same(run.everything(), read.everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_a_state_from_another_device_is_taken_up(kind: Kind):
    run = Run(kind).go(0, BEFORE)
    file = io.BytesIO()
    torch.save(run.everything(), file)
    file.seek(0)
    again = resumed(torch.load(file, map_location="cpu", weights_only=True), kind)
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_what_an_optimizer_has_seen_gives_way_to_the_state(kind: Kind):
    saved = Run(kind).go(0, BEFORE).everything()
    again = Run(kind, seed=1).go(50, 6)
    again.model.load_state_dict(saved["model"])
    again.opt.load_state_dict(saved["opt"])
    assert_same(saved, again.everything())
    assert_same(resumed(saved, kind).go(9, 3).everything(), again.go(9, 3).everything())


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_the_state_before_the_first_step_starts_anew(kind: Kind):
    fresh, run = Run(kind), Run(kind).go(0, BEFORE)
    run.model.load_state_dict(fresh.model.state_dict())
    run.opt.load_state_dict(stored(fresh.opt.state_dict()))
    assert [window.num_filled for window in run.opt.windows] == [0, 0]
    assert_same(fresh.go(0, AFTER).everything(), run.go(0, AFTER).everything())


def test_a_state_is_copied():
    kind = Kind("paper")
    run = Run(kind).go(0, BEFORE)
    again = resumed({"model": run.model.state_dict(), "opt": run.opt.state_dict()}, kind)
    before = again.everything()
    run.go(BEFORE, 3)
    assert_same(before, again.everything())


def test_a_rate_in_a_tensor_is_copied():
    model = Bag()
    opt = mfac.MFAC(model.parameters(), lr=torch.tensor(0.1), rank=4)
    other = mfac.MFAC(Bag().parameters(), lr=torch.tensor(0.5), rank=4)
    other.load_state_dict(opt.state_dict())
    opt.param_groups[0]["lr"].fill_(0.2)
    assert float(other.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_every_option_comes_with_the_state():
    options = {
        "damping": mfac.row_relative(3.0),
        "momentum": 0.5,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "nesterov": True,
        "maximize": True,
        "trust_region": 0.1,
        "grafting": 0.5,
        "normalize": "filled",
        "rule": "leave_one_out",
        "centred": True,
        "rounding": "nearest",
        "lr": 0.5,
    }
    parameters = [torch.nn.Parameter(torch.ones(3))]
    opt = mfac.MFAC(parameters, rank=3, **options)
    other = mfac.MFAC([torch.nn.Parameter(torch.ones(3))], rank=3, damping=mfac.relative(0.1))
    other.load_state_dict(stored(opt.state_dict()))
    assert {name: other.param_groups[0][name] for name in options} == options
    for name, damping in (("relative", mfac.relative(0.3)), ("number", 0.25)):
        opt.param_groups[0]["damping"] = damping
        other.load_state_dict(stored(opt.state_dict()))
        assert other.param_groups[0]["damping"] == damping, name


def test_a_state_of_a_group_that_has_not_stepped_beside_one_that_has():
    kind = Kind()
    run = Run(kind)
    for t in range(BEFORE):
        for p in run.opt.param_groups[1]["params"]:
            p.grad = torch.full_like(p, 1.0 + t)
        run.opt.step()
    run.opt.zero_grad()
    again = resumed(stored(run.everything()), kind)
    assert [window.num_filled for window in again.opt.windows] == [0, 3]
    assert_same(run.go(0, AFTER).everything(), again.go(0, AFTER).everything())


def test_a_state_with_frozen_parameters_goes_on():
    kind = Kind("paper")
    run = Run(kind)
    run.model.wide.requires_grad_(False)
    run.go(0, BEFORE)
    again = Run(kind, seed=1)
    again.model.wide.requires_grad_(False)
    saved = stored(run.everything())
    again.model.load_state_dict(saved["model"])
    again.opt.load_state_dict(saved["opt"])
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


def named(order: list[str], **options: Any) -> mfac.MFAC:
    model = Bag()
    return mfac.MFAC([(name, getattr(model, name)) for name in order], **{"rank": 4, "rule": "paper", **options})


def stepped(opt: mfac.MFAC) -> mfac.MFAC:
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    opt.step()
    return opt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: named(["wide", "bias"], rank=5), r"should have rank 4 in group 0.* Found 5"),
        (lambda: named(["bias", "wide"]), r"group 0 in the order \['wide', 'bias'\]. Found \['bias', 'wide'\]"),
        (lambda: named(["wide"]), r"parameter groups of this optimizer, \[2\] parameters. Found \[1\]"),
        (lambda: named(["wide", "bias"], window_dtype=torch.bfloat16), r"window_dtype torch.float32 in group 0"),
        (lambda: named(["wide", "bias"], density=0.5), r"density 1.0 in group 0.* Found 0.5"),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(change: Any, message: str, started: bool):
    opt = stepped(named(["wide", "bias"])) if started else named(["wide", "bias"])
    before = copied(opt.state_dict())
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(stepped(change()).state_dict())
    assert_same(before, opt.state_dict())


@pytest.mark.parametrize(
    ("entry", "value", "error", "message"),
    [
        ("rows", torch.zeros(4, 3), ValueError, r"'rows' of shape \[4, 6\] .*\[4, 3\] .* parameter 1 of group 0"),
        ("rows", torch.zeros(4, 6, dtype=torch.float64), ValueError, r"torch.float32.* torch.float64.* parameter 1"),
        ("rows", ..., KeyError, r"parameter 1 of group 0 should have an entry 'rows'"),
        ("momentum", torch.zeros(7), ValueError, r"'momentum' of shape \[6\] .* parameter 1 of group 0"),
        ("columns", 7, ValueError, r"parameter 1 of group 0 should have 6 columns. Found 7"),
        ("momentum", torch.full((6,), math.nan), ValueError, r"finite numbers as 'momentum'.* parameter 1 of group 0"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_by_name_and_changes_nothing(
    entry: str, value: Any, error: type[Exception], message: str
):
    opt = stepped(named(["wide", "bias"], momentum=0.9))
    before = copied(opt.state_dict())
    saved = stored(stepped(named(["wide", "bias"], momentum=0.9)).state_dict())
    saved["state"][1][entry] = value
    if value is ...:
        del saved["state"][1][entry]
    with pytest.raises(error, match=message):
        opt.load_state_dict(saved)
    assert_same(before, opt.state_dict())


@pytest.mark.parametrize(("value", "message"), [(math.inf, "finite numbers"), (-1.0, "squares")])
def test_squares_that_are_none_are_refused(value: float, message: str):
    opt = stepped(named(["wide", "bias"], rule="adam"))
    before, saved = copied(opt.state_dict()), stored(opt.state_dict())
    saved["state"][1]["square_average"][2] = value
    with pytest.raises(ValueError, match=f"{message}.* as 'square_average'.* parameter 1 of group 0"):
        opt.load_state_dict(saved)
    assert_same(before, opt.state_dict())


@pytest.mark.parametrize(
    ("entry", "value"), [("window_counts", torch.tensor([5, 3, 0])), ("window_counts", torch.tensor([5, 9, 0]))]
)
def test_a_newest_row_that_is_not_filled_is_refused(entry: str, value: torch.Tensor):
    opt, saved = named(["wide", "bias"]), copied(stepped(named(["wide", "bias"])).state_dict())
    saved["state"][0][entry] = value
    with pytest.raises(ValueError, match=r"should have a filled row as the newest. Found"):
        opt.load_state_dict(saved)
    assert opt.window.num_filled == 0


def of_version_1(opt: mfac.MFAC) -> dict[str, Any]:
    """The state of an optimizer with one group, as version 0.1 would have stored it."""
    found, group = opt.state_dict(), opt.param_groups[0]
    options = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
    params = found["param_groups"][0]["params"]
    window = opt.window.state_dict()
    return {
        "state": {},
        "param_groups": [{**options, "params": params}],
        "window": window,
        "momentum": found["momentum"],
    }


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("window_dtype", "density"), [*FORMATS, (torch.float64, 1.0), (torch.bfloat16, 0.3)])
def test_a_state_of_version_0_1_goes_on_bit_by_bit(momentum: float, window_dtype: torch.dtype, density: float):
    kind = Kind("paper", window_dtype, density)
    run = Run(kind, groups=1, momentum=momentum).go(0, BEFORE)
    again = Run(kind, 1, 1, momentum=0.3, lr=1.0)
    again.model.load_state_dict(run.model.state_dict())
    again.opt.load_state_dict(stored(of_version_1(run.opt)))
    assert (
        again.opt.param_groups[0]["momentum"] == momentum and again.opt.param_groups[0]["lr"] == run.kind.options["lr"]
    )
    assert_same(run.everything(), again.everything())
    assert_same(run.go(BEFORE, AFTER).everything(), again.go(BEFORE, AFTER).everything())


def test_a_state_of_version_0_1_before_its_first_step_starts_anew():
    run = Run(Kind("paper"), groups=1)
    state = of_version_1(run.opt)
    again = Run(Kind("paper"), groups=1).go(50, 3)
    again.model.load_state_dict(run.model.state_dict())
    again.opt.load_state_dict(state)
    assert_same(run.go(0, AFTER).everything()["model"], again.go(0, AFTER).everything()["model"])


def test_several_groups_each_take_their_columns_of_a_state_of_version_0_1():
    whole = Run(Kind("paper"), groups=1).go(0, BEFORE)
    saved = of_version_1(whole.opt)
    model = Bag()
    opt = mfac.MFAC([{"params": [p]} for p in model.parameters()], **Kind("paper").options)
    saved["param_groups"] = [{**saved["param_groups"][0], "params": [i]} for i in range(5)]
    opt.load_state_dict(saved)
    rows = torch.cat([window.rows for window in opt.windows], dim=1)
    assert torch.equal(rows, whole.opt.window.rows)
    for window in opt.windows:
        gram = window.rows.double() @ window.rows.double().T
        torch.testing.assert_close(window.state_dict()["gram"].tril(), gram.tril())
    momentum = torch.cat([opt.state[p]["momentum"].flatten() for p in model.parameters()])
    assert torch.equal(momentum, whole.opt.state_dict()["momentum"])


@pytest.mark.parametrize(
    ("options", "change", "error", "message"),
    [
        ({"rule": "adam", "damping": None}, {}, ValueError, r"`rule` should be 'paper' in group 0, .* 0.1.* 'adam'"),
        ({"rank": 5}, {}, ValueError, r"'rows' of shape \[5, 6, 12\]"),
        ({}, {"gram": ...}, KeyError, r"`state_dict\['window'\]` should have an entry 'gram'"),
        ({}, {"rows": torch.zeros(4, 3)}, ValueError, r"'rows' of 137 columns. Found shape \[4, 3\]"),
    ],
)
def test_a_state_of_version_0_1_that_does_not_fit_is_refused_and_changes_nothing(
    options: dict[str, Any], change: dict[str, Any], error: type[Exception], message: str
):
    saved = of_version_1(Run(Kind("paper"), groups=1).go(0, BEFORE).opt)
    saved["window"] = {name: value for name, value in {**saved["window"], **change}.items() if value is not ...}
    run = Run(Kind("paper"), groups=1, **options).go(0, 2)
    before = run.everything()
    with pytest.raises(error, match=message):
        run.opt.load_state_dict(saved)
    assert_same(before, run.everything())


def test_a_state_of_a_rule_of_ones_own_is_refused_by_a_named_rule():
    class Mine(Adam):
        """One's own, though it does as another."""

    weight = torch.nn.Parameter(torch.ones(5))
    mine = mfac.MFAC([weight], rule=Mine())
    weight.grad = torch.ones(5)
    mine.step()
    with pytest.raises(ValueError, match=r"`rule` should be an object in group 0 .* Found 'adam'"):
        mfac.MFAC([weight], rule="adam").load_state_dict(mine.state_dict())
    mfac.MFAC([weight], rule=Mine()).load_state_dict(mine.state_dict())


def test_the_steps_in_the_state_are_those_that_were_taken():
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = mfac.MFAC([weight], rule="adam")
    for step in range(1, 4):
        weight.grad = torch.ones(5)
        optimizer.step()
        assert float(optimizer.state[weight]["step"]) == step


def test_a_state_of_another_optimizer_is_said_to_be_one():
    weight = torch.nn.Parameter(torch.ones(5))
    other = torch.optim.AdamW([weight])
    with pytest.raises(KeyError, match=r"`state_dict` should be of mfac.MFAC. Found group 0 with \['amsgrad'"):
        mfac.MFAC([weight]).load_state_dict(other.state_dict())


def test_names_of_a_wrapped_model_are_those_of_the_model():
    model = torch.nn.Linear(3, 2)
    plain = mfac.MFAC(model.named_parameters())
    wrapped = mfac.MFAC([(f"module.{name}", parameter) for name, parameter in model.named_parameters()])
    model(torch.ones(1, 3)).sum().backward()
    plain.step()
    wrapped.load_state_dict(plain.state_dict())
    assert wrapped.window.num_filled == 1


def test_a_schedule_may_take_the_momentum_of_nesterov_to_zero():
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = mfac.MFAC([weight], nesterov=True, momentum=0.9)
    for momentum in (0.9, 0.0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        weight.grad = torch.ones(5)
        optimizer.step()
        mfac.MFAC([weight], nesterov=True).load_state_dict(optimizer.state_dict())
    assert float(weight.detach().max()) < 1
    with pytest.raises(ValueError, match="`nesterov` should be False"):
        mfac.MFAC([weight], nesterov=True, momentum=0.0)


def test_a_group_that_is_no_dict_is_refused():
    optimizer = mfac.MFAC([torch.nn.Parameter(torch.ones(5))])
    with pytest.raises(TypeError, match=r"`param_group` should be a dict with 'params'\. Found list"):
        optimizer.add_param_group([torch.nn.Parameter(torch.ones(5))])


@pytest.mark.parametrize("emptied", ["cleared", "replaced"])
def test_an_emptied_state_begins_anew(emptied: str):
    def go(optimizer: mfac.MFAC, weight: torch.nn.Parameter) -> None:
        for step in range(4):
            weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    weight, other = (torch.nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = mfac.MFAC([weight])
    go(optimizer, weight)
    if emptied == "cleared":
        optimizer.state.clear()
    else:
        optimizer.state = defaultdict(dict)
    with torch.no_grad():
        other.copy_(weight)
    go(optimizer, weight)
    go(mfac.MFAC([other]), other)
    assert torch.equal(weight, other)
