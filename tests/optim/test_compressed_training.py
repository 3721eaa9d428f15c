"""MFAC with compressed windows: it trains, and its state goes on."""

import copy

import pytest
import torch
from compressed import F32, SOME, assert_same_state
from samplers import normal
from torch import Tensor

import mfac


def problem(seed: int = 0) -> tuple[torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(10, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    x = normal(64, 10, dtype=F32)
    return model, x, x[:, :1].sin() + x[:, 1:2]


@torch.no_grad()
def loss_of(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x) - y).square().mean())


def train(model: torch.nn.Module, opt: mfac.MFAC, x: Tensor, y: Tensor, steps: int) -> float:
    for _ in range(steps):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
    return loss_of(model, x, y)


def optimizer(model: torch.nn.Module, dtype: torch.dtype, density: float) -> mfac.MFAC:
    return mfac.MFAC(
        model.parameters(), lr=0.06, rank=16, damping=0.1, momentum=0.5, window_dtype=dtype, density=density
    )


@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_the_optimizer_trains(dtype: torch.dtype, density: float):
    model, x, y = problem()
    opt = optimizer(model, dtype, density)
    assert opt.window.dtype == dtype and opt.window.density == density
    before = loss_of(model, x, y)
    assert train(model, opt, x, y, 30) < before / 2


@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_the_optimizers_state_goes_on_bit_by_bit(dtype: torch.dtype, density: float):
    model, x, y = problem()
    opt = optimizer(model, dtype, density)
    train(model, opt, x, y, 18)  # past wrap-around
    other, *_ = problem(seed=1)
    resumed = optimizer(other, dtype, density)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert_same_state(resumed.window, opt.window.state_dict())
    assert train(model, opt, x, y, 4) == train(other, resumed, x, y, 4)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
