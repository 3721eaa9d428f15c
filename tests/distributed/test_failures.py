"""What goes wrong in one process is heard of by all, and changes nothing in any."""

from __future__ import annotations

import copy
import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import MESHES, Processes
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import Shard, distribute_tensor
from wrapped import Trained, local

import mfac

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

GROUPS = [(("first", "up"), {}), (("down", "norm", "head"), {"rule": "paper", "momentum": 0.9})]
CASES: list[dict[str, Any]] = [
    {},
    {"rule": "paper", "momentum": 0.9},
    {"groups": GROUPS},
    {"window_dtype": torch.int8},
    {"window_dtype": torch.float32, "density": 0.2},
    {"window_dtype": torch.float16, "rule": "paper", "spoilt": 1e6},
]


def spoil_one(kind: str, spoilt: float = float("nan"), **options: Any) -> list[str]:
    """The errors of a step for which one process alone has a bad gradient, and no other change."""
    trained = Trained(kind, "four", **options)
    trained.steps(9)
    again = [tensor.clone() for tensor in trained.state()]
    pushes = [window.ring.pushes for window in trained.opt.windows]
    messages = []
    for _ in range(2):
        trained.backward()
        if dist.get_rank() == 1:
            parameter = trained.unwrapped.up.weight
            local(parameter.grad).view(-1)[-1] = spoilt
        try:
            trained.opt.step()
        except ValueError as error:
            messages.append(str(error))
    assert [window.ring.pushes for window in trained.opt.windows] == pushes
    assert all(torch.equal(a, b) for a, b in zip(again, trained.state(), strict=True))
    trained.steps(1)
    assert bool(trained.weights().isfinite().all())
    return messages


@pytest.mark.parametrize("case", CASES, ids=["adam", "paper", "groups", "int8", "sparse", "float16"])
def test_a_gradient_that_one_process_cannot_take_is_refused_by_all(four: Processes, case: dict[str, Any]):
    found = four.run(spoil, "fsdp", case)
    assert [len(messages) for messages in found] == [2] * 4
    assert all("Parameter `gradient` should be finite" in messages[0] for messages in found)
    if "spoilt" in case:
        assert "an entry of 1e+06, which a window of torch.float16 cannot hold" in found[1][0]
    else:
        assert "It is in the gradient of parameter number" in found[1][0]


def spoil(kind: str, case: dict[str, Any]) -> list[str]:
    return spoil_one(kind, **case)


@pytest.mark.parametrize("case", [{}, {"groups": GROUPS}], ids=["one group", "groups"])
def test_a_gradient_that_one_process_cannot_take_is_skipped_by_all(four: Processes, case: dict[str, Any]):
    assert four.run(spoil, "fsdp", {"nonfinite": "skip", **case}) == [[]] * 4


def refusals() -> list[str]:
    """The messages of what is refused before any process waits for another."""
    found = []
    whole = torch.ones(4, 2)
    meshes = MESHES["four"], MESHES["two"]
    sharded = [torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)) for mesh in meshes]
    flat = FullyShardedDataParallel(torch.nn.Linear(4, 2), device_id=torch.device("cpu"), use_orig_params=True)
    given: list[tuple[list[Any], Any]] = [
        ([sharded[0]], dist.group.WORLD),
        (sharded, None),
        (list(flat.parameters()), None),
        ([torch.nn.Parameter(whole)], dist.GroupMember.NON_GROUP_MEMBER),
    ]
    for parameters, group in given:
        with pytest.raises(ValueError) as error:
            mfac.MFAC(parameters, process_group=group)
        found.append(str(error.value))
    return found


def test_parameters_that_do_not_fit_a_group_are_refused_by_name(four: Processes):
    for group, meshes, flat, outside in four.run(refusals):
        assert group.startswith("Parameter `process_group` should be None where parameters are DTensors")
        assert meshes.startswith("Parameter `params` should have the DTensors of a group on one mesh. Found 2")
        assert flat.endswith("Found parameters of FullyShardedDataParallel.")
        assert outside == "Parameter `process_group` should have this process. Found a group without it."


def copied() -> bool:
    trained = Trained("ddp", "four")
    trained.steps(2)
    model, opt = copy.deepcopy((trained.unwrapped, trained.opt))
    for p, q in zip(trained.model.parameters(), model.parameters(), strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    trained.opt.step()
    opt.step()
    return all(torch.equal(p, q) for p, q in zip(trained.model.parameters(), model.parameters(), strict=True))


def test_a_copy_goes_on_by_itself(four: Processes):
    assert all(four.run(copied))


def die_before_a_step() -> float:
    parameter = torch.nn.Parameter(torch.ones(8, 2))
    opt = mfac.MFAC([parameter], process_group=dist.group.WORLD)
    for step in range(3):
        parameter.grad = torch.full_like(parameter, step + 1.0)
        if step == 2 and dist.get_rank() == 1:
            os._exit(1)
        begin = time.monotonic()
        try:
            opt.step()
        except RuntimeError:
            return time.monotonic() - begin
    return float("inf")


def test_the_others_fail_when_a_process_has_died():
    processes = Processes(size=3, timeout=10)
    try:
        found = processes.outcomes(die_before_a_step, timeout=40)
    finally:
        processes.end()
    assert found[1] == (False, "died")
    for done, seconds in (found[0], found[2]):
        assert done and seconds < 15  # the time-out, and what a busy machine adds
