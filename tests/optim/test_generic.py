"""The generic tests that torch has for its own optimizers, test/test_optim.py, for MFAC.

Covered, by torch's names: forloop_goes_right_direction, contiguous and not, maximizing, in several
groups; tensor_lr and its form with one dimension; step_is_noop_for_zero_grads;
step_is_noop_when_params_have_no_grad; state_dict_deterministic;
save_load_equality_with_weights_only; step_pre_hook, step_post_hook, step_all_hooks, the global
ones too; state_dict_pre_hook, _post_hook, _pre_post_hook; load_state_dict_pre_hook and its
prepend, _post_hook, _pre_post_hook; deepcopy_copies_all_public_attrs; pickles; non_empty_state;
grads_are_never_inplaced_into; optimizer_can_be_printed; sparse gradients, which are refused; named
parameters; error inputs of all optimizers. In test_loops.py:
param_group_with_lrscheduler_goes_right_direction, schedulers of every kind, averages of weights,
scaled, clipped and accumulated gradients, torch.compile. In test_groups.py: param_groups_lr and
param_groups_weight_decay. In test_state.py: can_load_older_state_dict. In test_optimizer.py:
complex parameters, which are refused.

Not covered: foreach, fused, capturable and differentiable have no meaning here
(foreach_matches_forloop, fused_matches_forloop, peak_memory_foreach, defaults_changed_to_foreach,
CUDA graphs, rosenbrock_sparse); mixed_device_dtype, as a group is on one device;
cpu_load_state_dict and state_dict_with_cuda_params need a GPU; load_nontensor_step, as steps have
been tensors from the first version on.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import classifier
from optim.runs import OF_RULES, SOME_KINDS, Kind, Run, assert_same, copied, give_gradients
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import mfac

RULES = [{"rule": rule, **options} for rule, options in OF_RULES.items()]
OPTIONS = [
    *RULES,
    {"damping": mfac.relative(0.1), "momentum": 0.9},
    {"rule": "leave_one_out", "nesterov": True, "weight_decay": 0.1, "lr": 0.02},
    {"decoupled_weight_decay": True, "weight_decay": 0.1},
    {"window_dtype": torch.int8},
    {"density": 0.3},
    {"grafting": 1.0, "lr": 0.02, "rule": "leave_one_out"},
    {"trust_region": 0.1},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()).replace("torch.", "") or "default"


def quadratic(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return (weight.mv(x) + bias).square().sum()


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize(
    ("contiguous", "separate", "maximize"), [(True, False, False), (False, True, False), (True, True, True)]
)
def test_it_goes_in_the_right_direction(options: dict[str, Any], contiguous: bool, separate: bool, maximize: bool):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10, 5) if contiguous else torch.randn(10, 5, 2)[..., 0])
    bias = nn.Parameter(torch.randn(10) if contiguous else torch.randn(10, 2)[..., 0])
    assert weight.is_contiguous() == bias.is_contiguous() == contiguous
    x = torch.randn(5)
    params: Any = [{"params": [weight]}, {"params": [bias]}] if separate else [weight, bias]
    opt = mfac.MFAC(params, rank=8, maximize=maximize, **options)
    schedule = schedules.ExponentialLR(opt, 0.99)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = quadratic(weight, bias, x)
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        opt.step(closure)
        schedule.step()
    assert (closure().item() > first) if maximize else (closure().item() < first)


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_rate_in_a_tensor_is_the_same_as_a_number(rule: str, shape: tuple[int, ...]):
    rate = 0.0078125  # the same in float32 and float64
    number, tensor = (
        Run(Kind(rule), lr=rate),
        Run(Kind(rule), lr=torch.full(shape, rate)),
    )
    for run in (number, tensor):
        schedule = schedules.LambdaLR(run.opt, lambda t: 0.5**t)
        for t in range(5):
            run.go(t, 1)
            schedule.step()
    assert_same(copied(number.model.state_dict()), copied(tensor.model.state_dict()))
    assert isinstance(tensor.opt.param_groups[0]["lr"], Tensor)


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_a_step_on_zero_gradients_from_the_start_moves_nothing(options: dict[str, Any]):
    p = nn.Parameter(torch.randn(5, 1))
    opt = mfac.MFAC([p], rank=4, **{**options, "weight_decay": 0.0})
    for _ in range(3):
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        opt.step()
        assert torch.equal(before, p)


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_a_step_without_gradients_is_none(options: dict[str, Any]):
    run = Run(Kind(), **{"rule": "auto", "lr": None, "damping": None, "momentum": None, **options})
    for _ in range(2):
        run.opt.zero_grad()
        before = run.everything()
        assert run.opt.step() is None
        assert run.opt.step(lambda: 3.0) == 3.0
        assert_same(before, run.everything())
        run.go(0, 3)


def test_gradients_are_as_they_were_after_a_step():
    for options in ({}, {"weight_decay": 0.1}, {"maximize": True}, {"density": 0.3}, {"rule": "paper"}):
        run = Run(Kind(), **options)
        for t in range(3):
            give_gradients(run.model, t)
            before = [p.grad.clone() for p in run.model.parameters()]
            run.opt.step()
            assert_same(before, [p.grad for p in run.model.parameters()])


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_a_state_and_what_follows_are_deterministic(kind: Kind):
    one, other = Run(kind).go(0, 6), Run(kind).go(0, 6)
    assert_same(one.everything(), other.everything())
    saved = one.everything()
    again = Run(kind, seed=1)
    again.model.load_state_dict(saved["model"])
    again.opt.load_state_dict(saved["opt"])
    # A learning rate as a tensor in a state of numbers, as torch tests it, is taken up too.
    saved["opt"]["param_groups"][0]["lr"] = torch.tensor(saved["opt"]["param_groups"][0]["lr"], dtype=torch.float64)
    tensor = Run(kind, seed=1)
    tensor.model.load_state_dict(saved["model"])
    tensor.opt.load_state_dict(saved["opt"])
    for run in (one, again, tensor):
        run.go(6, 4)
    assert_same(copied(one.model.state_dict()), copied(again.model.state_dict()))
    assert_same(copied(one.model.state_dict()), copied(tensor.model.state_dict()))


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
def test_a_file_holds_the_same_as_the_optimizer(kind: Kind):
    run = Run(kind).go(0, 6)
    file = io.BytesIO()
    torch.save(run.opt.state_dict(), file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=True), copied(run.opt.state_dict()))


def test_the_state_holds_something_for_every_parameter_after_a_step():
    run = Run(Kind()).go(0, 1)
    assert set(run.opt.state) == set(run.model.parameters())
    assert all(len(entries) > 1 for entries in run.opt.state.values())


class Calls:
    """Hooks, as torch's tests have them."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def note(self, name: str) -> Callable[..., None]:
        return lambda *args: self.seen.append(name)


def test_step_hooks_of_its_own_and_of_all_run_in_order():
    run, calls = Run(Kind()), Calls()
    handles = [
        register_optimizer_step_pre_hook(calls.note("all before")),
        register_optimizer_step_post_hook(calls.note("all after")),
        run.opt.register_step_pre_hook(calls.note("before")),
        run.opt.register_step_post_hook(calls.note("after")),
    ]
    run.go(0, 1)
    assert calls.seen == ["all before", "before", "after", "all after"]
    for handle in handles:
        handle.remove()
    run.go(1, 1)
    assert len(calls.seen) == 4


def test_a_step_hook_may_change_what_a_step_is_given():
    p = nn.Parameter(torch.ones(2))
    opt = mfac.MFAC([p], rank=2)
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 2.0), {}))
    assert opt.step(lambda: 1.0) == 2.0


def test_state_dict_hooks_see_and_change_what_is_returned():
    opt = Run(Kind("paper"), groups=1).go(0, 2).opt
    order: list[str] = []

    def before(opt: Any) -> None:
        opt.state["test"] = 1

    def after(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        order.append("after")
        assert state["momentum"] is not None and isinstance(state["param_groups"][0]["rule"], str)
        return {**state, "seen": state["state"].pop("test"), "momentum": None}

    opt.register_state_dict_pre_hook(before)
    opt.register_state_dict_post_hook(after)
    opt.register_state_dict_post_hook(lambda opt, state: order.append("first"), prepend=True)
    found = opt.state_dict()
    assert order == ["first", "after"] and found["seen"] == 1 and "test" not in found["state"]
    assert found["momentum"] is None


def test_load_state_dict_hooks_run_in_order_and_leave_what_was_given():
    opt = Run(Kind()).go(0, 2).opt

    def to_two(opt: Any, state: dict[str, Any]) -> None:
        state["param_groups"][0]["lr"] = 0.002

    def to_three(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
        mine = copied(state)
        mine["param_groups"][0]["lr"] = 0.003
        return mine

    def add(opt: Any, state: dict[str, Any]) -> None:
        state["more"] = True

    seen: list[float] = []
    opt.register_load_state_dict_pre_hook(to_two)
    opt.register_load_state_dict_pre_hook(to_three, prepend=True)
    opt.register_load_state_dict_pre_hook(add, prepend=True)
    opt.register_load_state_dict_post_hook(lambda opt: seen.append(opt.param_groups[0]["lr"]))
    given = copied(opt.state_dict())
    opt.load_state_dict(given)
    assert seen == [0.002] and "more" not in given and given["param_groups"][0]["lr"] != 0.002


def test_a_hook_that_fails_leaves_the_hooks():
    opt = Run(Kind()).opt

    def bad(*args: Any) -> None:
        raise RuntimeError("no")

    opt.register_state_dict_post_hook(bad)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            opt.state_dict()


@pytest.mark.parametrize("kind", SOME_KINDS, ids=str)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles_go_on_as_the_original_does(kind: Kind, copier: Callable[[Any], Any]):
    run = Run(kind).go(0, 6)
    run.opt.param_groups[0]["lr"] *= 0.5
    other = copier(run)
    names = {name for name in vars(run.opt) if not name.startswith("_")}
    assert names == {name for name in vars(other.opt) if not name.startswith("_")}
    assert set(other.opt.state) == set(other.model.parameters())
    for each in (run, other):
        each.opt.param_groups[1]["lr"] *= 0.5  # so that options are checked again
        each.go(6, 4)
    assert_same(run.everything(), other.everything())
    other.opt.load_state_dict(run.opt.state_dict())
    other.opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_it_can_be_printed():
    text = repr(Run(Kind()).opt)
    assert text.startswith("MFAC (") and "rank: 4" in text and "damping" in text


def test_torchs_own_refusals_of_parameters():
    with pytest.raises(TypeError, match="params"):
        mfac.MFAC(nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match="empty parameter list"):
        mfac.MFAC([])
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        mfac.MFAC([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="leaf"):
        mfac.MFAC([p * 2])


def test_sparse_gradients_are_refused_and_nothing_has_changed():
    embedding = nn.Embedding(5, 3, sparse=True)
    p = nn.Parameter(torch.ones(2))
    opt = mfac.MFAC([{"params": [p]}, {"params": embedding.parameters()}], rank=2)
    embedding(torch.tensor([1, 2])).sum().backward()
    p.grad = torch.ones(2)
    with pytest.raises(
        TypeError, match=r"`params` should have dense gradients.*Found a sparse one.*number 0.*in group"
    ):
        opt.step()
    assert torch.equal(p, torch.ones(2)) and [window.num_filled for window in opt.windows] == [0, 0]


def test_named_parameters_keep_their_names():
    model = classifier()
    opt = mfac.MFAC(model.named_parameters(), rank=3)
    plain = mfac.MFAC(copy.deepcopy(model).parameters(), rank=3)
    assert opt.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    other = mfac.MFAC(classifier().named_parameters(), rank=3)
    other.load_state_dict(copied(opt.state_dict()))
    other.load_state_dict(copied(plain.state_dict()))  # without names
    plain.load_state_dict(copied(opt.state_dict()))
    assert other.param_groups[0]["param_names"] == opt.param_groups[0]["param_names"]
    assert "param_names" not in plain.param_groups[0]
    with pytest.raises(ValueError, match="without names"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
