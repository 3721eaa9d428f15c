"""Two processes share batches and solutions, and end with the same bits, and the masks of one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from several import Processes
from torch import nn

import mfac
from mfac.layerwise.stage_solver import StageSolver
from tests.layerwise.networks import NETWORKS

pytestmark = pytest.mark.cpu_only("processes that speak gloo")

KINDS = ["encoder", "language", "convolutional", "mixture", "stacks", "mlp"]
CASES: dict[str, dict[str, Any]] = {
    "alps": {"method": "alps"},
    "sparsegpt": {"method": "sparsegpt"},
    "exact_obs": {"method": "exact_obs"},
    "exact_obs, blocks": {"method": "exact_obs", "pattern": "1x2"},
    "fitted": {"method": "wanda", "refit": True},
    "fitted and rounded": {"method": "sparsegpt", "refit": True, "quantize": mfac.Grid(4, None)},
    "rounded": {"method": "sparsegpt", "quantize": mfac.Grid(4, None)},
    "rounded alone": {"method": "exact_obs", "sparsity": 0.0, "quantize": mfac.Grid(8, None)},
}


def pruned(kind: str, arguments: dict[str, Any], group: Any = None, count: int = 5) -> dict[str, Any]:
    torch.manual_seed(0)
    made, batch = NETWORKS[kind]
    model = made().eval()
    batches = [batch() for _ in range(count)]
    runs = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    report = mfac.prune_layerwise(model, batches, process_group=group, **arguments)
    return {
        "masks": report.masks,
        "weights": model.state_dict(),
        "left": report.left_dense,
        "errors": {name: layer.error for name, layer in report.layers.items()},
        "samples": {name: layer.samples for name, layer in report.layers.items()},
        "grids": {name: [v.scales for v in layer.grids] for name, layer in report.layers.items()},
        "runs": len(runs),
    }


def in_a_process(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return pruned(kind, arguments, dist.group.WORLD)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_give_the_masks_of_one(two: Processes, kind: str, case: str) -> None:
    first, second = two.run(in_a_process, kind, CASES[case])
    alone = pruned(kind, CASES[case])
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    assert list(first["masks"]) == list(alone["masks"])
    assert first["left"] == second["left"] == alone["left"]
    assert first["samples"] == second["samples"] == alone["samples"]
    for name, mask in alone["masks"].items():
        assert torch.equal(first["masks"][name], mask) and torch.equal(second["masks"][name], mask), name
        assert first["errors"][name] == pytest.approx(alone["errors"][name], rel=1e-6, abs=1e-9)
        for own, other in zip(first["grids"][name], alone["grids"][name], strict=True):
            torch.testing.assert_close(own, other)
        if "quantize" not in CASES[case]:  # where a last bit may become a step
            torch.testing.assert_close(first["weights"][name], alone["weights"][name], rtol=1e-4, atol=1e-5)


def test_each_process_runs_its_batches(two: Processes) -> None:
    arguments = {"method": "magnitude", "allocation": "uniform"}
    alone = pruned("mlp", arguments, count=8)
    found = two.run(runs_of, arguments)
    # Three layers and 8 batches are 24 passes, of which each does half; the check, the order and
    # the stages are of the first batch, on every process.
    assert alone["runs"] - found[0] == alone["runs"] - found[1] == 12


def runs_of(arguments: dict[str, Any]) -> int:
    return int(pruned("mlp", arguments, dist.group.WORLD, count=8)["runs"])


def solved_where() -> list[str]:
    names: list[str] = []
    own = StageSolver._own

    def noted(self: Any, *arguments: Any) -> Any:
        found = own(self, *arguments)
        names.extend(name for name, _ in found)
        return found

    StageSolver._own = noted  # type: ignore[method-assign]
    try:
        in_a_process("language", {"method": "sparsegpt"})
    finally:
        StageSolver._own = own  # type: ignore[method-assign]
    return names


def test_each_matrix_is_solved_by_one_process(two: Processes) -> None:
    first, second = two.run(solved_where)
    assert not set(first) & set(second)
    assert len(first) + len(second) == 21
    assert {"layers.0.q.weight", "layers.0.k.weight", "layers.0.v.weight"} & set(second)


def refused(count: int, broken: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randn(20, 8) for _ in range(count)]
    rank = dist.get_rank()
    if broken is None:
        with pytest.raises(ValueError, match=r"at least one batch for each of the 2 ranks.*Found 1\."):
            mfac.prune_layerwise(model, batches, process_group=dist.group.WORLD)
        with pytest.raises(ValueError, match=re.escape("Found [3, 4] batches")):
            mfac.prune_layerwise(model, [batches[0]] * (3 + rank), process_group=dist.group.WORLD)
        with pytest.raises(ValueError, match="Found other batches: give all of them to all ranks"):
            mfac.prune_layerwise(model, [batches[0] + rank] * 2, process_group=dist.group.WORLD)
        other = nn.Linear(8, 8)
        nn.init.constant_(other.weight, rank)
        with pytest.raises(ValueError, match="Found other weights"):
            mfac.prune_layerwise(other, [batches[0]] * 2, process_group=dist.group.WORLD)
    else:
        batches[broken][3, 2] = float("nan")
        here = broken % 2 == rank
        words = f"inputs. Found some that are not at '0.weight' in batch {broken}"
        with pytest.raises(ValueError if here else RuntimeError, match=re.escape(words)) as error:
            mfac.prune_layerwise(model, batches, process_group=dist.group.WORLD)
        assert here or f"Rank {broken % 2} of `process_group` failed" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def raise_on_one(case: str, folder: str) -> None:
    torch.manual_seed(0)
    rank = dist.get_rank()
    model = NETWORKS["language"][0]()
    batches = [NETWORKS["language"][1]() for _ in range(4)]

    def data() -> Iterator[Any]:
        yield batches[0]
        if case == "data" and rank == 1:
            raise KeyError("said by a test")
        yield from batches[1:]

    def solver(hessian: Any, weight: Any, pattern: Any, grid: Any) -> Any:
        if case == "solver" and rank == 1:
            raise KeyError("said by a test")
        kept = torch.ones_like(weight, dtype=torch.bool)
        return mfac.LayerSolution(weight, kept)

    def progress(*_: Any) -> None:
        if case == "progress" and rank == 1:
            raise KeyError("said by a test")

    with pytest.raises(KeyError if rank == 1 else RuntimeError, match="said by a test"):
        mfac.prune_layerwise(
            model, data(), method=solver, process_group=dist.group.WORLD, progress=progress, checkpoint=folder
        )


def test_all_ranks_hear_of_a_failure(two: Processes, tmp_path: Path) -> None:
    two.run(refused, 1, None)
    for broken in range(3):
        two.run(refused, 3, broken)
    for case in ("data", "solver", "progress"):
        two.run(raise_on_one, case, str(tmp_path / case))


class StoppedError(Exception):
    """Raised by a test in the middle of a run."""


def stopped_and_resumed(folder: str) -> dict[str, Any]:
    def stop(name: str, done: int, of: int) -> None:
        if done >= 7:
            raise StoppedError

    with pytest.raises(StoppedError):
        in_a_process("language", {"method": "sparsegpt", "checkpoint": folder, "progress": stop})
    solved: list[str] = []
    arguments = {"checkpoint": folder, "progress": lambda name, done, of: solved.append(name)}
    found = in_a_process("language", {"method": "sparsegpt", **arguments})
    assert len(solved) == 2
    return found


def test_a_run_that_was_stopped_goes_on(two: Processes, tmp_path: Path) -> None:
    whole = two.run(in_a_process, "language", {"method": "sparsegpt"})
    resumed = two.run(stopped_and_resumed, str(tmp_path / "common"))
    assert len(list((tmp_path / "common").iterdir())) == 3
    for one in resumed:
        for name, value in whole[0]["weights"].items():
            assert torch.equal(value, one["weights"][name]), name
        assert one["errors"] == whole[0]["errors"]


def without_the_folder(folder: str) -> None:
    own = f"{folder}/{dist.get_rank()}"
    with pytest.raises(ValueError if dist.get_rank() else RuntimeError, match="all ranks of `process_group` see"):
        stopped_and_resumed(own)


def test_a_checkpoint_that_only_one_sees_is_refused(two: Processes, tmp_path: Path) -> None:
    two.run(without_the_folder, str(tmp_path))
