"""MFAC in the loops that people write: schedules, averages, scaling, compiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import batches, classifier, cross_entropy
from optim.runs import OF_RULES, Kind, Run, assert_same, copied, give_gradients
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedules
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mfac

RULES = [{"rule": rule, **options} for rule, options in OF_RULES.items()]


def named(options: dict[str, Any]) -> str:
    return str(options["rule"])


@pytest.mark.parametrize("options", RULES, ids=named)
def test_schedules_by_group_and_on_a_plateau_go_in_the_right_direction(options: dict[str, Any]):
    torch.manual_seed(0)
    weight, bias, x = nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10)), torch.randn(5)
    opt = mfac.MFAC([{"params": [weight], "lr": 0.01}, {"params": [bias]}], rank=8, **options)
    steps = schedules.StepLR(opt, 10, gamma=0.9)
    plateau = schedules.ReduceLROnPlateau(opt, patience=5)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(20):
        loss = opt.step(closure)
        steps.step()
        plateau.step(loss.item())
    assert closure().item() < first


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedules.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: schedules.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: schedules.StepLR(o, 3),
    "MultiStepLR": lambda o: schedules.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: schedules.ConstantLR(o, total_iters=4),
    "LinearLR": lambda o: schedules.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: schedules.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedules.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: schedules.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedules.CyclicLR(o, 1e-4, 1e-2, step_size_up=3),
    "OneCycleLR": lambda o: schedules.OneCycleLR(o, 1e-2, total_steps=12),
    "ReduceLROnPlateau": lambda o: schedules.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: schedules.ChainedScheduler([schedules.StepLR(o, 2), schedules.ExponentialLR(o, 0.9)]),
    "SequentialLR": lambda o: schedules.SequentialLR(
        o, [schedules.ConstantLR(o, 0.1), schedules.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 1e-3, 3),
}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, "adam") for name in SCHEDULES),
        *((n, r) for n in ("OneCycleLR", "CyclicLR") for r in OF_RULES if r != "adam"),
    ],
)
def test_a_stored_schedule_goes_on_with_its_optimizer(name: str, rule: str):
    def go(run: Run, schedule: Any, first: int, steps: int) -> None:
        for t in range(first, first + steps):
            run.go(t, 1)
            schedule.step(1.0) if name == "ReduceLROnPlateau" else schedule.step()

    run = Run(Kind(rule))
    schedule = SCHEDULES[name](run.opt)
    rates, momenta = set(), set()
    for t in range(6):
        rates.add(run.opt.param_groups[0]["lr"])
        momenta.add(run.opt.param_groups[0]["momentum"])
        go(run, schedule, t, 1)
    assert len(rates) > 1
    assert len(momenta) > 1 or name not in ("OneCycleLR", "CyclicLR")
    saved = copied({**run.everything(), "schedule": schedule.state_dict()})
    again = Run(Kind(rule), seed=1)
    other = SCHEDULES[name](again.opt)
    again.model.load_state_dict(saved["model"])
    again.opt.load_state_dict(saved["opt"])
    other.load_state_dict(saved["schedule"])
    for each, its in ((run, schedule), (again, other)):
        go(each, its, 6, 5)
    assert_same(copied(run.model.state_dict()), copied(again.model.state_dict()))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_cycle_of_momentum_is_the_momentum_of_its_steps(momentum: float):
    torch.manual_seed(0)
    p, q = (nn.Parameter(torch.ones(6, dtype=torch.float64)) for _ in range(2))
    opt = mfac.MFAC([p], 1e-2, 4, 0.1, momentum, window_dtype=torch.float64)
    other = mfac.MFAC([q], 1e-2, 4, 0.1, momentum, window_dtype=torch.float64)
    schedule = schedules.OneCycleLR(opt, 1e-2, total_steps=8)
    for _ in range(8):
        g = torch.randn(6, dtype=torch.float64)
        other.param_groups[0].update({key: opt.param_groups[0][key] for key in ("lr", "momentum")})
        p.grad, q.grad = g.clone(), g.clone()
        opt.step(), other.step()
        assert torch.equal(p, q) and 0.8 < opt.param_groups[0]["momentum"] < 1
        schedule.step() if opt.window.ring.pushes < 8 else None


def test_averages_of_weights_follow_them():
    model = classifier()
    opt = mfac.MFAC(model.parameters(), rank=4)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = None
    for batch in batches(5):
        opt.zero_grad()
        cross_entropy(model, batch).backward()
        opt.step()
        average.update_parameters(model)
        w = model[0].weight.detach().clone()
        expected = w if expected is None else expected.lerp(w, 0.5)
    torch.testing.assert_close(average.module[0].weight.detach(), expected)


def test_scaled_gradients_make_the_same_steps():
    plain, scaled = Run(Kind("paper")), Run(Kind("paper"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain.go(0, 5)
    for t in range(5):
        scaler.scale(torch.ones(1))  # as a loss
        give_gradients(scaled.model, t)
        for p in scaled.model.parameters():
            p.grad *= 1024.0  # exact
        scaler.step(scaled.opt)
        scaler.update()
    assert_same(copied(plain.model.state_dict()), copied(scaled.model.state_dict()))


def test_clipped_gradients_enter_the_window_clipped():
    run = Run(Kind("leave_one_out"), groups=1)
    give_gradients(run.model, 0)
    nn.utils.clip_grad_norm_(run.model.parameters(), 0.1)
    run.opt.step()
    assert math.isclose(float(run.opt.window.rows[0].norm()), 0.1, rel_tol=1e-5)


def test_accumulated_gradients_are_one_gradient():
    one, parts = classifier(), classifier()
    x, y = batches(1, size=8)[0]
    opts = [mfac.MFAC(model.parameters(), rank=4, rule="leave_one_out") for model in (one, parts)]
    cross_entropy(one, (x, y)).backward()
    for i in (0, 4):
        (cross_entropy(parts, (x[i : i + 4], y[i : i + 4])) / 2).backward()
    for opt in opts:
        opt.step()
    # Means of 8 and of twice 4 numbers in float32: a few roundings apart.
    torch.testing.assert_close(opts[0].window.rows, opts[1].window.rows, rtol=1e-5, atol=1e-7)
    assert opts[1].window.num_filled == 1


@pytest.mark.parametrize("options", RULES[::2], ids=named)
def test_compiled_models_and_steps_make_the_same_weights(options: dict[str, Any]):
    torch._dynamo.reset()
    model, compiled = classifier(), classifier()
    opts = [mfac.MFAC(m.parameters(), rank=4, **options) for m in (model, compiled)]
    forward = torch.compile(compiled, backend="aot_eager")
    step = torch.compile(lambda: opts[1].step(), backend="eager")
    schedule = [schedules.ExponentialLR(opt, 0.9) for opt in opts]
    for batch in batches(5):
        for opt in opts:
            opt.zero_grad()
        cross_entropy(model, batch).backward()
        nn.functional.cross_entropy(forward(batch[0]), batch[1]).backward()
        opts[0].step()
        step()
        for each in schedule:
            each.step()
    assert_same(copied(model.state_dict()), copied(compiled.state_dict()))


def test_lazy_parameters_train_once_they_have_a_shape():
    torch.manual_seed(0)
    lazy, plain = (nn.Sequential(kind, nn.Tanh(), nn.Linear(4, 1)) for kind in (nn.LazyLinear(4), nn.Linear(3, 4)))
    optimizer = mfac.MFAC(lazy.parameters())
    x = torch.randn(8, 3)
    lazy(x)
    plain.load_state_dict(lazy.state_dict())
    expected = mfac.MFAC(plain.parameters())
    for _ in range(3):
        for model, one in ((lazy, optimizer), (plain, expected)):
            one.zero_grad()
            model(x).square().mean().backward()
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(lazy.parameters(), plain.parameters(), strict=True))
