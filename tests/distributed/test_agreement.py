"""One, two and four processes take the same steps, whatever the options of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import MESHES, Processes
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import mfac

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

F32, F64 = torch.float32, torch.float64
# Odd first dimensions, fewer rows than processes, no dimension, and one that is frozen. Four
# processes have no row of the second but the first two.
SHAPES = [(5, 3), (2, 4), (), (7,), (3, 2, 2), (1, 6), (4, 2)]
FROZEN = 6
PERIOD = 13
PAPER = {"rule": "paper", "lr": 0.02, "damping": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, bfloat16 window, relative": {"window_dtype": torch.bfloat16, "damping": mfac.relative(2.0)},
    "adam, trust region, decay": {"trust_region": 1e-3, "weight_decay": 0.1, "decoupled_weight_decay": True},
    "leave one out": {"rule": "leave_one_out", "update_rms": 0.2, "lr": 0.01, "damping": 0.3},
    "leave one out, centred": {
        "rule": "leave_one_out",
        "centred": True,
        "damping": mfac.row_relative(3.0),
        "nesterov": True,
    },
    "paper": {**PAPER, "weight_decay": 0.01},
    "paper, momentum": {**PAPER, "momentum": 0.9, "damping": mfac.relative(1.0), "grafting": 0.5},
    "paper, nesterov": {**PAPER, "momentum": 0.9, "nesterov": True, "normalize": "filled", "maximize": True},
}
EIGHT_BITS = {"adam, int8 window": {"window_dtype": torch.int8}}


class Run:
    """Parameters of several groups, with gradients that pull them back and push them about.

    Args:
        kind: "one" process, "copies" in all, or "shards".
        mesh: The name of the mesh.
        dtype: Of the parameters.
        options: Of each group.
    """

    def __init__(self, kind: str, mesh: str, dtype: torch.dtype, options: Sequence[dict[str, Any]]) -> None:
        self.mesh = None if kind == "one" else MESHES[mesh]
        generator = torch.Generator().manual_seed(0)
        groups = []
        self.pulled: list[tuple[Tensor, list[Tensor]]] = []
        for own in options:
            parameters = []
            for i, shape in enumerate(SHAPES):
                whole = torch.randn(PERIOD + 1, *shape, generator=generator, dtype=F64).to(dtype)
                pieces = [self._laid_out(tensor, i) if kind == "shards" else tensor for tensor in whole]
                parameter = torch.nn.Parameter(pieces[0].clone(), requires_grad=i != FROZEN)
                parameters.append(parameter)
                if i != FROZEN:
                    parameter.grad = torch.zeros_like(parameter)
                    self.pulled.append((parameter, pieces[1:]))
            window = {"window_dtype": F64} if dtype == F64 else {}
            groups.append({"params": parameters, "rank": 8, **window, **own})
        group = self.mesh.get_group() if self.mesh is not None and kind == "copies" else None
        self.opt = mfac.MFAC(groups, process_group=group)
        self.time = 0

    def _laid_out(self, whole: Tensor, i: int) -> Tensor:
        if whole.dim() == 0:
            return whole
        place = Replicate() if i == 5 else Shard(1 if i == 4 else 0)
        return distribute_tensor(whole, self.mesh, [place], src_data_rank=None)

    def steps(self, count: int) -> None:
        for _ in range(count):
            for parameter, noise in self.pulled:
                torch.add(local(noise[self.time % PERIOD]), local(parameter.detach()), out=local(parameter.grad))
                if parameter.dim() == 0 and self.time % 5 == 3:
                    local(parameter.grad).zero_()
            if any(group["maximize"] for group in self.opt.param_groups):
                for parameter in (p for group in self.opt.param_groups if group["maximize"] for p in group["params"]):
                    if parameter.grad is not None:
                        local(parameter.grad).neg_()
            self.opt.step()
            self.time += 1

    def weights(self) -> list[Tensor]:
        """Of each group, whole."""
        groups = [group["params"] for group in self.opt.param_groups]
        return [torch.cat([whole(p).detach().reshape(-1).double() for p in group]) for group in groups]


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(kind: str, mesh: str, dtype: torch.dtype, options: Sequence[dict[str, Any]], steps: int) -> list[Tensor]:
    run = Run(kind, mesh, dtype, options)
    run.steps(steps)
    return run.weights()


def two_kinds(dtype: torch.dtype, options: Sequence[dict[str, Any]], steps: int) -> list[Tensor]:
    """Two processes with copies, and at the same time two others with shards."""
    return trained("copies" if dist.get_rank() < 2 else "shards", "two", dtype, options, steps)


STEPS = {F32: 200, F64: 200}


@pytest.fixture(scope="module")
def alone() -> dict[torch.dtype, list[Tensor]]:
    return {dtype: trained("one", "", dtype, list(OPTIONS.values()), STEPS[dtype]) for dtype in (F32, F64)}


def check(found: Sequence[list[Tensor]], expected: list[Tensor], tolerance: float) -> None:
    for weights in found:
        for name, mine, one in zip(OPTIONS, weights, expected, strict=True):
            difference = float((mine - one).abs().max())
            assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F64, 1e-12)])
def test_two_processes_take_the_steps_of_one(four: Processes, alone, dtype, tolerance):
    found = four.run(two_kinds, dtype, list(OPTIONS.values()), STEPS[dtype])
    check(found, alone[dtype], tolerance)


@pytest.mark.parametrize("kind", ["copies", "shards"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F64, 1e-12)])
def test_four_processes_take_the_steps_of_one(four: Processes, alone, kind, dtype, tolerance):
    found = four.run(trained, kind, "four", dtype, list(OPTIONS.values()), STEPS[dtype])
    check(found, alone[dtype], tolerance)
