"""One, two and four processes take the same steps, whatever the options of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from oracle import fisher
from several import MESHES, Processes
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from wrapped import local, whole

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
    "spectral": {"rule": "spectral"},
    "adam, bfloat16 window, relative": {
        "rule": "adam",
        "window_dtype": torch.bfloat16,
        "damping": mfac.relative(20.0),
    },
    "adam, trust region, decay": {
        "rule": "adam",
        "trust_region": 1e-3,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
    },
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
            for group in self.opt.param_groups:
                for parameter in group["params"] if group["maximize"] else ():
                    if parameter.grad is not None:
                        local(parameter.grad).neg_()
            self.opt.step()
            self.time += 1

    def weights(self) -> list[Tensor]:
        """Of each group, whole."""
        groups = [group["params"] for group in self.opt.param_groups]
        return [torch.cat([whole(p).detach().reshape(-1).double() for p in group]) for group in groups]


def trained(kind: str, mesh: str, dtype: torch.dtype, options: Sequence[dict[str, Any]], steps: int) -> list[Tensor]:
    run = Run(kind, mesh, dtype, options)
    run.steps(steps)
    return run.weights()


def two_kinds(dtype: torch.dtype, options: Sequence[dict[str, Any]], steps: int) -> list[Tensor]:
    """Two processes with copies, and at the same time two others with shards."""
    return trained("copies" if dist.get_rank() < 2 else "shards", "two", dtype, options, steps)


STEPS = 20  # past twice the window's rows; 200 steps of fewer options are in test_wrappers.py


def check(found: Sequence[list[Tensor]], dtype: torch.dtype) -> None:
    expected = trained("one", "", dtype, list(OPTIONS.values()), STEPS)
    # A float32 weight of 2 rounded to the other side is 2.4e-7 off; gradients pull it back.
    # Products with rows are sums in float64, in another order.
    tolerance = 1e-6 if dtype == F32 else 1e-13
    for weights in found:
        for name, mine, one in zip(OPTIONS, weights, expected, strict=True):
            difference = float((mine - one).abs().max())
            assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.parametrize("dtype", [F32, F64])
def test_two_processes_take_the_steps_of_one(four: Processes, dtype: torch.dtype):
    check(four.run(two_kinds, dtype, list(OPTIONS.values()), STEPS), dtype)


@pytest.mark.parametrize(("kind", "dtype"), [("copies", F32), ("shards", F64)])
def test_four_processes_take_the_steps_of_one(four: Processes, kind: str, dtype: torch.dtype):
    check(four.run(trained, kind, "four", dtype, list(OPTIONS.values()), STEPS), dtype)


def test_windows_in_eight_bits_agree_within_their_rounding(four: Processes):
    """Scales are of 1024 columns of one process, so that rows are rounded otherwise."""
    options = [
        {"window_dtype": torch.int8, "rule": rule, "damping": 1.0} for rule in ("paper", "leave_one_out", "adam")
    ]
    before, expected = (trained("one", "", F32, options, steps) for steps in (0, STEPS))
    for weights in four.run(two_kinds, F32, options, STEPS):
        for mine, one, start in zip(weights, expected, before, strict=True):
            # An entry is off by half a step, 1/254 of its row's largest, which is 3 times the mean.
            assert float((mine - one).norm()) <= 3 / 254 * float((one - start).norm())


def narrow(rounding: str) -> tuple[bool, list[Tensor]]:
    run = Run("copies", "four", torch.bfloat16, [{"rounding": rounding}, {"rounding": rounding, **PAPER, "lr": 1e-3}])
    before = run.weights()
    run.steps(STEPS)
    moved = all(not torch.equal(a, b) for a, b in zip(run.weights(), before, strict=True))
    return moved, run.weights()


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_copies_in_16_bits_stay_equal_to_the_last_bit(four: Processes, rounding: str):
    (_, first), *others = four.run(narrow, rounding)
    for moved, weights in others:
        assert moved and all(torch.equal(a, b) for a, b in zip(weights, first, strict=True))


def sparse_steps() -> None:
    """Each process keeps the largest entries of its own slice, and what they leave out."""
    rank, lr, damping, rows, error = 4, 0.05, 0.1, [], torch.zeros(2, 6, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(6, 2, dtype=F64))
    opt = mfac.MFAC(
        [parameter], lr, rank, damping, window_dtype=F64, density=0.3, process_group=MESHES["two"].get_group()
    )
    expected = torch.zeros(12, dtype=F64)
    for _ in range(3 * rank):
        parameter.grad = torch.randn(6, 2, dtype=F64, generator=generator)
        error += parameter.grad.view(2, 6)
        row = torch.zeros_like(error)
        for mine, left in zip(row, error, strict=True):
            chosen = left.abs().topk(2).indices  # 0.3 of 6, rounded up
            mine[chosen] = left[chosen]
        error -= row
        rows = [*rows, row.view(-1)][-rank:]
        expected -= lr * torch.linalg.solve(fisher(torch.stack(rows), damping, num_terms=rank), rows[-1])
        opt.step()
        torch.testing.assert_close(parameter.detach().view(-1), expected, rtol=1e-12, atol=1e-13)
    assert opt.window.nbytes < 500


def test_sparse_windows_keep_the_largest_entries_of_each_slice(four: Processes):
    four.run(sparse_steps)


def lone(kind: str) -> Tensor:
    """Steps of a parameter with fewer columns than rows in the window, of one process alone."""
    whole = torch.arange(1.0, 7, dtype=F64).view(1, 6)
    options: dict[str, Any] = {"rank": 8, "window_dtype": F64, "update_rms": 0.1}
    if kind == "shards":
        whole = distribute_tensor(whole, MESHES["four"], [Shard(0)], src_data_rank=None)
    parameter = torch.nn.Parameter(whole)
    group = MESHES["four"].get_group() if kind == "copies" else None
    groups = [{"params": [parameter], "damping": mfac.relative(1.0), "rule": "leave_one_out", "lr": 0.1}]
    opt = mfac.MFAC(groups, process_group=group, **options)
    for step in range(20):
        parameter.grad = parameter.detach() * (1 + 0.1 * (step % 7))
        opt.step()
    return local(parameter.detach())


@pytest.mark.parametrize("kind", ["copies", "shards"])
def test_processes_without_a_weight_take_part(four: Processes, kind: str):
    expected = lone("one")
    found = [weights for weights in four.run(lone, kind) if weights.numel()]
    assert len(found) == (4 if kind == "copies" else 1)
    for weights in found:
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)
