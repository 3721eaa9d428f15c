"""CrAM against its algorithm written out in float64, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from tests.training.loops import data, loss_of, network

STEPS = 50


def closure_of(optimizer: Any, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return closure


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 5)).double()


def doubled(steps: int) -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in data(steps)]


@pytest.mark.parametrize("plus", [True, False])
def test_equals_its_transcription_in_float64(plus: bool):
    model, rho, lr, momentum, decay = mlp(), 0.1, 0.05, 0.9, 1e-3
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
    optimizer = mfac.CrAM(base, rho=rho, sparsities=(0.5, 0.7, 0.9), plus=plus)
    other = mlp()
    parameters = list(other.parameters())
    compressed = [1, 4]  # where the weights of the linear layers are, by module
    weights = [other[i].weight for i in compressed]
    buffers = [torch.zeros_like(p) for p in parameters]
    for step, batch in enumerate(doubled(STEPS)):
        optimizer.step(closure_of(optimizer, model, batch))

        theta = [p.detach().clone() for p in parameters]
        clean = torch.autograd.grad(loss_of(other, batch), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, clean, strict=True):
                p.copy_(p + rho * g)
            sizes = torch.cat([w.abs().flatten() for w in weights])
            share = optimizer.drawn(step)
            count = sizes.numel() - round(share * sizes.numel())
            bound = sizes.sort(descending=True).values[count - 1]
            masks = {id(w): (w.abs() >= bound) for w in weights}
            assert sum(int(m.sum()) for m in masks.values()) == count
            for w in weights:
                w.mul_(masks[id(w)])
        there = torch.autograd.grad(loss_of(other, batch), parameters)
        with torch.no_grad():
            for p, old, g, at, b in zip(parameters, theta, clean, there, buffers, strict=True):
                move = at * masks[id(p)] if id(p) in masks else at
                move = g + move if plus else move
                b.copy_((b * momentum if step else 0 * b) + move + decay * old)
                p.copy_(old - lr * b)
    for mine, wanted in zip(model.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    assert len({optimizer.drawn(step) for step in range(STEPS)}) == 3


def test_running_statistics_come_from_the_clean_pass():
    model, plain = network(), network()
    optimizer = mfac.CrAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=10.0)
    for batch in data(3):
        optimizer.step(closure_of(optimizer, model, batch))
        plain(batch[0])
    for key, buffer in plain.named_buffers():
        assert torch.equal(dict(model.named_buffers())[key], buffer)


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_patterns_hold_at_the_compressed_weights(pattern: str):
    model = network()
    optimizer = mfac.CrAM(torch.optim.AdamW(model.parameters()), sparsities=[pattern])
    keep, group = map(int, pattern.split(":"))
    seen: list[dict[str, Tensor]] = []
    (batch,) = data(1)

    def closure() -> Tensor:
        seen.append({key: p.detach().clone() for key, p in model.named_parameters()})
        return closure_of(optimizer, model, batch)()

    optimizer.step(closure)
    _, there = seen
    for key in ("5.weight", "8.weight"):
        groups = (there[key] != 0).view(len(there[key]), -1, group).sum(2)
        assert bool((groups == keep).all())
    by_position = (there["0.weight"] != 0).permute(0, 2, 3, 1).reshape(-1, 4) if group == 4 else None
    if by_position is not None:
        assert bool((by_position.sum(1) == keep).all())
    for key in ("1.weight", "6.weight", "0.bias"):
        assert bool((there[key] != 0).float().mean() > 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-2),
        lambda p: mfac.MFAC(p, rank=4),
    ],
    ids=["sgd", "adamw", "mfac"],
)
def test_state_goes_on_bit_by_bit(make: Callable[..., torch.optim.Optimizer]):
    model = network()
    optimizer = mfac.CrAM(make(model.parameters()))
    batches = list(data(20))
    for batch in batches[:10]:
        optimizer.step(closure_of(optimizer, model, batch))
    again = network(7)
    again.load_state_dict({key: value.clone() for key, value in model.state_dict().items()})
    other = mfac.CrAM(make(again.parameters()))
    from copy import deepcopy

    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for batch in batches[10:]:
        optimizer.step(closure_of(optimizer, model, batch))
        other.step(closure_of(other, again, batch))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def test_schedulers_and_masks_work_around_it():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = mfac.CrAM(base)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.1)
    training = mfac.MaskedTraining(model, optimizer, mfac.recipes.RigL(0.8, every=3))
    for batch in data(10):
        optimizer.step(closure_of(optimizer, model, batch))
        scheduler.step()
        assert all(not bool(dict(model.named_parameters())[k][~m].any()) for k, m in training.masks.items())
    assert base.param_groups[0]["lr"] == pytest.approx(0.001)
    assert training.steps == 10


def test_a_pass_that_fails_puts_the_weights_back():
    model = network()
    optimizer = mfac.CrAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" not in key}
    (batch,) = data(1)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the second pass fails")
        return closure_of(optimizer, model, batch)()

    with pytest.raises(RuntimeError, match="second pass"):
        optimizer.step(closure)
    for key, value in before.items():
        if "num_batches" not in key:
            assert torch.equal(model.state_dict()[key], value), key


def test_refusals():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        mfac.CrAM(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        mfac.CrAM(base, sparsities=())
    with pytest.raises(ValueError, match="< 1"):
        mfac.CrAM(base, sparsities=(1.0,))
    with pytest.raises(ValueError, match="'N:M'"):
        mfac.CrAM(base, sparsities=("rows",))
    with pytest.raises(ValueError, match=">= 0"):
        mfac.CrAM(base, rho=-1)
    with pytest.raises(ValueError, match="closure"):
        mfac.CrAM(base).step()
