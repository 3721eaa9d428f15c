"""Data parallel, fully sharded, tensor parallel and both: all take the steps of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import Processes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from wrapped import Trained, whole

import mfac

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

# A rule for every group of layers.
RULES = [
    (("first", "norm"), {"rule": "adam"}),
    (("up",), {"rule": "leave_one_out", "weight_decay": 0.01}),
    (("down", "head"), {"rule": "paper", "lr": 0.01, "momentum": 0.9}),
]
# In two dimensions the layers without tensor parallelism are on a mesh of their own.
MESHES_APART = [(("first", "norm", "head"), {}), (("up", "down"), {"rule": "leave_one_out", "lr": 0.02})]


def weights(kind: str, mesh: str, groups: Any, steps: int) -> Tensor:
    trained = Trained(kind, mesh, groups)
    trained.steps(steps)
    return trained.weights()


def in_pairs(first: str, second: str, groups: Any, steps: int) -> Tensor:
    """Processes 0 and 1 have one wrapper, 2 and 3 another."""
    return weights(first if dist.get_rank() < 2 else second, "two", groups, steps)


def check(found: list[Tensor], groups: Any, steps: int) -> None:
    alone = weights("one", "", groups, steps)
    for mine in found:
        # Sums in another order: some 1e-16 a step, which training neither damps nor doubles much.
        torch.testing.assert_close(mine, alone, rtol=0, atol=1e-12)


def test_two_hundred_steps_of_two_processes_are_those_of_one(four: Processes):
    check(four.run(in_pairs, "ddp", "fsdp", RULES, 200), RULES, 200)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_four_processes_take_the_steps_of_one(four: Processes, kind: str):
    check(four.run(weights, kind, "four", RULES, 12), RULES, 12)


def test_sharded_copies_take_the_steps_of_one_process(four: Processes):
    check(four.run(weights, "hsdp", "square", RULES, 12), RULES, 12)


def test_tensor_parallel_layers_beside_plain_ones_take_the_steps_of_one_process(four: Processes):
    check(four.run(in_pairs, "tensor", "tensor", None, 12), None, 12)


def test_shards_of_tensor_parallel_layers_take_the_steps_of_one_process(four: Processes):
    check(four.run(weights, "fsdp and tensor", "square", MESHES_APART, 12), MESHES_APART, 12)


def masked(kind: str) -> Tensor:
    trained = Trained(kind, "four", rule="paper", momentum=0.9)
    mask = torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    mfac.Masks({"up.weight": mask}).attach(trained.unwrapped, trained.opt)
    trained.steps(10)
    assert not bool(whole(trained.unwrapped.up.weight)[~mask].any())
    return trained.weights()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_masks_hold(four: Processes, kind: str):
    for mine in four.run(masked, kind):
        torch.testing.assert_close(mine, masked("one"), rtol=0, atol=1e-12)


class Sent(TorchDispatchMode):
    """Every collective operation, whoever calls it: its name, and the tensors that it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, torch.dtype]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "from_local") for kind in types):
            return NotImplemented  # a DTensor's own dispatch comes first, and is seen after
        if func.namespace in {"c10d", "_c10d_functional", "c10d_functional"}:
            name = func._schema.name.split("::")[1]
            given = args[1] if name == "_allgather_base_" else args[0]
            tensors = given if isinstance(given, list) else [given]
            if name not in {"wait_tensor", "_wrap_tensor_autograd"}:  # which send nothing
                self.calls.append((name, [(t.numel(), t.dtype) for t in tensors]))
        return func(*args, **(kwargs or {}))


def sent_by_steps(kind: str, options: dict[str, Any]) -> list[Any]:
    trained = Trained(kind, "four", **options)
    found = []
    for _ in range(6):
        trained.backward()
        with Sent() as sent:
            trained.opt.step()
        found.append(sent.calls)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "adam", "trust_region": 1e-3},
        {"rule": "paper", "momentum": 0.9, "damping": 0.1, "weight_decay": 0.1},
    ],
    ids=["adam", "paper"],
)
def test_a_step_sends_m_numbers_and_the_weights_of_copies(four: Processes, options: dict[str, Any]):
    products = ("allreduce_", [(8, torch.float64)])
    shapes = [tuple(p.shape) for p in Trained().model.parameters()]
    slices = sum(-(-shape[0] // 4) * (shape[1] if len(shape) > 1 else 1) for shape in shapes)  # rows rounded up
    weights = ("_allgather_base_", [(slices, torch.float64)])
    for found in four.run(sent_by_steps, "ddp", options):
        assert found == [[products, weights]] * 6
    for found in four.run(sent_by_steps, "fsdp", options):
        assert found == [[products]] * 6


def test_orthogonal_updates_send_each_matrix_once(four: Processes):
    shapes = [tuple(p.shape) for p in Trained().model.parameters()]
    slices = [-(-shape[0] // 4) * shape[1] for shape in shapes if len(shape) == 2]
    matrices = [("all_gather_into_tensor", [(size, torch.float64)]) for size in slices]
    for found in four.run(sent_by_steps, "fsdp", {"rule": "spectral"}):
        assert found == [[("allreduce_", [(8, torch.float64)]), *matrices]] * 6
