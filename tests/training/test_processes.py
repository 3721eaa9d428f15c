"""Two processes have the same masks, and those of one process on the same batches."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import Processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import mfac
from tests.training.loops import RECIPES, loss_of

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

STEPS = 60
KINDS = ["gmp", "acdc", "rigl", "snfs", "dsr", "snip", "lottery"]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def run(name: str, wrapper: str, optimizer: str, seed: int = 0) -> dict[str, Any]:
    """A training on halves of each batch in each process; on all of it in one process."""
    model: nn.Module = mlp()
    rank, size = (dist.get_rank(), dist.get_world_size()) if wrapper != "one" else (0, 1)
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    elif wrapper == "fsdp":
        mesh = init_device_mesh("cpu", (size,))
        for layer in list(model.children()):  # type: ignore[attr-defined]
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    make = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    }[optimizer]
    made = make(model.parameters())
    training = mfac.MaskedTraining(model, made, RECIPES[name](STEPS), seed=seed + (rank if wrapper == "ddp" else 0))
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
        y = x[:, :4].argmax(1)
        made.zero_grad()
        loss_of(model, (x[rank::size], y[rank::size])).backward()
        made.step()
        training.step()
    named = dict(model.named_parameters())
    weights = {}
    for key in training.masks:
        found: Any = named[f"module.{key}" if wrapper == "ddp" else key]
        weights[key] = (found.full_tensor() if hasattr(found, "full_tensor") else found).detach().clone()
    return {"masks": dict(training.masks), "weights": weights, "changes": [vars(change) for change in training.changes]}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", KINDS)
def test_two_processes_are_as_one(two: Processes, name: str, wrapper: str, optimizer: str):
    first, second = two.run(run, name, wrapper, optimizer)
    alone = run(name, "one", optimizer)
    for key, mask in alone["masks"].items():
        assert torch.equal(first["masks"][key], mask)
        assert torch.equal(second["masks"][key], mask)
        assert torch.equal(first["weights"][key], second["weights"][key])
        torch.testing.assert_close(first["weights"][key], alone["weights"][key], rtol=1e-9, atol=1e-11)
        assert not bool(first["weights"][key][~mask].any())
    assert first["changes"] == second["changes"] == alone["changes"]


def cram(wrapper: str) -> list[torch.Tensor]:
    model, rank, size = mlp(), 0, 1
    if wrapper == "fsdp":
        rank, size = dist.get_rank(), dist.get_world_size()
        mesh = init_device_mesh("cpu", (size,))
        for layer in [*(part for part in model if isinstance(part, nn.Linear)), model]:
            fully_shard(layer, mesh=mesh)
    optimizer = mfac.CrAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), sparsities=(0.5, "2:4"))
    for step in range(6):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        y = x[:, :4].argmax(1)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, (x[rank::size], y[rank::size]))
            loss.backward()
            return loss

        optimizer.step(closure)
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in model.parameters()]


def test_cram_of_two_processes_is_as_of_one(two: Processes):
    first, second = two.run(cram, "fsdp")
    for alone, one, other in zip(cram("one"), first, second, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-11)


def lottery_with_mfac() -> tuple[dict[str, torch.Tensor], bool]:
    model = mlp()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in [*(part for part in model if isinstance(part, nn.Linear)), model]:
        fully_shard(layer, mesh=mesh)
    optimizer = mfac.MFAC(model.parameters(), rank=4)
    recipe = mfac.recipes.LotteryTicket(rounds=2, round_steps=5, rewind_step=2)
    training = mfac.MaskedTraining(model, optimizer, recipe)
    for step in range(11):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss_of(model, (x[dist.get_rank() :: 2], x[dist.get_rank() :: 2, :4].argmax(1))).backward()
        optimizer.step()
    named: Any = dict(model.named_parameters())
    zero = all(not bool(named[key].full_tensor()[~mask].any()) for key, mask in training.masks.items())
    return dict(training.masks), zero


def test_a_lottery_rewinds_mfac_on_shards(two: Processes):
    (first, zero), (second, _) = two.run(lottery_with_mfac)
    assert zero and all(torch.equal(mask, second[key]) for key, mask in first.items())


def zero_redundancy() -> float:
    """The largest momentum that a dropped weight has at any step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it uses
        from torch.distributed.optim import ZeroRedundancyOptimizer
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    training = mfac.MaskedTraining(model, optimizer, mfac.recipes.RigL(0.6, end=16, every=2))
    largest = 0.0
    for step in range(16):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss_of(model, (x, x[:, :4].argmax(1))).backward()
        optimizer.step()
        for key, parameter in model.module.named_parameters():
            held = optimizer.optim.state.get(parameter, {})
            if key in training.masks and "momentum_buffer" in held:
                dropped = ~training.masks[key]
                largest = max(largest, float(held["momentum_buffer"][dropped].abs().max()))
    return largest


def test_the_state_within_a_zero_redundancy_optimizer_is_cleared(two: Processes):
    assert two.run(zero_redundancy) == [0.0, 0.0]
