"""Weights of 16 bits move by updates that are far below their last digit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optim.runs import OF_RULES, Kind, Run, assert_same, copied
from torch import Tensor, nn

import mfac
from mfac.window.rounding import add_compensated_, compensated, compensation_for

NARROW = (torch.bfloat16, torch.float16)
STEPS, SIZE = 24, 1 << 14


def spacing(value: float, dtype: torch.dtype) -> float:
    """Between neighbours at a value, or below it."""
    return max(2.0 ** math.floor(math.log2(value)) * torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal * 2e-3)


def moved(rule: str, start: float, dtype: torch.dtype, rate: float, **options: Any) -> Tensor:
    """Weights after steps along one gradient, whose updates do not depend on the weights."""
    p = nn.Parameter(torch.full((SIZE,), start, dtype=dtype))
    opt = mfac.MFAC([p], rank=4, rule=rule, **{**OF_RULES[rule], "lr": rate, "momentum": 0.0, **options})
    for _ in range(STEPS):
        p.grad = torch.ones_like(p)
        opt.step()
    return p.detach()


def a_rate(rule: str, start: float, dtype: torch.dtype) -> float:
    """A rate whose first update is an eighth of the spacing."""
    p = nn.Parameter(torch.zeros(SIZE))
    opt = mfac.MFAC([p], rank=4, rule=rule, **{**OF_RULES[rule], "lr": 1.0, "momentum": 0.0})
    p.grad = torch.ones_like(p)
    opt.step()
    return spacing(start, dtype) / 8 / float(p.detach().abs().max())


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize(("dtype", "start"), [(torch.bfloat16, 0.75), (torch.float16, 0.75), (torch.float16, 3e-5)])
def test_stochastic_rounding_moves_the_mean_as_float32_moves(rule: str, dtype: torch.dtype, start: float):
    start = float(torch.tensor(start, dtype=dtype))
    rate = a_rate(rule, start, dtype)
    exact = moved(rule, start, torch.float32, rate).double()
    found = moved(rule, start, dtype, rate, rounding="stochastic").double()
    # Each rounding is right in the mean, and of variance at most u²/4 with u the spacing. The sum
    # over T steps is a martingale: its variance is at most T u²/4, and that of the mean of N
    # weights T u²/(4N). Six standard deviations are missed once in 10⁹ draws.
    bound = 6 * spacing(start, dtype) / 2 * (STEPS / SIZE) ** 0.5
    assert float((found.mean() - exact.mean()).abs()) < bound
    assert float((exact - start).abs().mean()) > 5 * bound  # so that the bound says something
    assert float(found.std()) > 0  # weights round apart


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_to_nearest_stays_where_updates_are_small(rule: str, dtype: torch.dtype):
    start = float(torch.tensor(0.75, dtype=dtype))
    found = moved(rule, start, dtype, a_rate(rule, start, dtype), rounding="nearest")
    assert bool((found == start).all())


def along_noise(kind: Kind, weights: torch.dtype, steps: int, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Weights along gradients that do not depend on them, and their compensation."""
    generator = torch.Generator().manual_seed(3)
    p = nn.Parameter(torch.randn(500, generator=generator).to(torch.bfloat16).to(weights))
    opt = mfac.MFAC([p], **{**kind.options, "rounding": kind.rounding, **options})
    for _ in range(steps):
        p.grad = torch.randn(500, generator=generator).to(torch.bfloat16).to(weights)
        opt.step()
    return p.detach().double(), opt.state[p].get("compensation")


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_compensated_sum_is_that_of_float32(rule: str, dtype: torch.dtype, decay: float):
    steps, options = 40, {"lr": 1e-3, "weight_decay": decay, "decoupled_weight_decay": True}
    exact, _ = along_noise(Kind(rule), torch.float32, steps, **options)
    found, compensation = along_noise(Kind(rule, rounding="compensated"), dtype, steps, **options)
    assert compensation is not None and compensation.dtype == torch.int16
    whole = compensated(found.to(dtype), compensation).double()
    # The arithmetic is float32: three roundings of 2⁻²⁴ in either run, and one of what is stored.
    # Decay makes errors of before smaller.
    largest = float(exact.abs().max()) + 0.1
    bound = steps * 7 * 2.0**-24 * largest
    assert float((whole - exact).abs().max()) < bound
    smallest = 2.0**-25 if dtype == torch.float16 else 0.0
    assert float((found - exact).abs().max()) < bound + torch.finfo(dtype).eps / 2 * largest + smallest


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("start", [1.0, -2.0, 0.0, 1e-3, 3e-7])
def test_updates_far_below_the_last_digit_add_up(dtype: torch.dtype, start: float):
    weights = torch.tensor([start], dtype=dtype)
    rest, exact = compensation_for(weights), weights.float()
    step = 3e-7 * max(abs(start), 0.01)
    for _ in range(5000):
        exact -= step
        add_compensated_(weights, rest, compensated(weights, rest) - step)
    assert torch.allclose(compensated(weights, rest), exact, rtol=2e-7, atol=5000 * 2.0**-41)
    assert float(weights) == float(exact.to(dtype)) or float(exact.to(dtype)) == start


@pytest.mark.parametrize("dtype", NARROW)
def test_a_compensated_sum_holds_any_float32_in_range(dtype: torch.dtype):
    torch.manual_seed(0)
    wanted = torch.cat(
        [torch.randn(4000) * 10.0 ** torch.empty(4000).uniform_(-9, 4), torch.tensor([0.0, -0.0, 1e-40])]
    )
    weights = torch.empty_like(wanted, dtype=dtype)
    rest = compensation_for(weights)
    add_compensated_(weights, rest, wanted)
    assert torch.equal(weights, wanted.to(dtype))
    atol = 2.0**-41 if dtype == torch.float16 else 0.0
    torch.testing.assert_close(compensated(weights, rest), wanted, rtol=2.0**-23, atol=atol)


@pytest.mark.parametrize("rounding", ["stochastic", "compensated", "nearest"])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("rule", OF_RULES)
def test_the_same_seeds_give_the_same_bits_and_torchs_own_draws_are_left_alone(
    rule: str, dtype: torch.dtype, rounding: str
):
    torch.manual_seed(1)
    run = Run(Kind(rule, weights=dtype, rounding=rounding))
    before = torch.get_rng_state()
    run.go(0, 6)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    other = Run(Kind(rule, weights=dtype, rounding=rounding)).go(0, 6)
    assert_same(run.everything(), other.everything())


@pytest.mark.parametrize("rounding", ["stochastic", "compensated", "nearest"])
@pytest.mark.parametrize("dtype", NARROW)
def test_a_run_that_stops_rounds_on_as_before(dtype: torch.dtype, rounding: str):
    kind = Kind("adam", weights=dtype, rounding=rounding)
    run, again = Run(kind).go(0, 5), Run(kind, seed=1)
    again.model.load_state_dict(run.model.state_dict())
    again.opt.load_state_dict(copied(run.opt.state_dict()))
    assert_same(run.go(5, 5).everything(), again.go(5, 5).everything())


def test_every_step_and_every_group_draws_anew():
    parameters = [nn.Parameter(torch.full((SIZE,), 0.75, dtype=torch.bfloat16)) for _ in range(2)]
    opt = mfac.MFAC([{"params": [p]} for p in parameters], rule="paper", lr=1e-3, damping=1.0)
    ups: list[Tensor] = []
    for _ in range(3):
        before = [p.detach().clone() for p in parameters]
        for p in parameters:
            p.grad = torch.ones_like(p)
        opt.step()
        ups += [(p != b).detach() for p, b in zip(parameters, before, strict=True)]
    assert all(not torch.equal(a, b) for i, a in enumerate(ups) for b in ups[:i])


@pytest.mark.parametrize("rule", OF_RULES)
def test_float32_weights_are_the_same_whatever_the_rounding(rule: str):
    runs = [Run(Kind(rule, rounding=rounding)).go(0, 6) for rounding in ("stochastic", "compensated", "nearest")]
    for run in runs[1:]:
        assert_same(copied(runs[0].model.state_dict()), copied(run.model.state_dict()))


def test_rounding_may_change_between_steps():
    run = Run(Kind("paper", weights=torch.bfloat16, rounding="nearest"))
    for t, rounding in enumerate(("nearest", "compensated", "stochastic", "compensated")):
        for group in run.opt.param_groups:
            group["rounding"] = rounding
        run.go(t, 1)
    for group in run.opt.param_groups:
        group["rounding"] = "up"
    with pytest.raises(ValueError, match=r"`rounding` should be .* Found 'up'"):
        run.go(4, 1)
