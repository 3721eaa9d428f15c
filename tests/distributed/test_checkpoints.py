"""Runs go on from checkpoints, on as many processes or others."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from several import MESHES, Processes
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from wrapped import Trained

pytestmark = [
    pytest.mark.cpu_only("processes that speak gloo"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),  # as is meant
]

GROUPS = [(("first", "norm"), {"weight_decay": 0.1}), (("up", "down", "head"), {"rule": "paper", "momentum": 0.9})]
BEFORE, AFTER = 9, 4


def states(trained: Trained, **options: Any) -> dict[str, Any]:
    chosen = StateDictOptions(**options)
    model = get_model_state_dict(trained.model, options=chosen)
    return {"model": model, "opt": get_optimizer_state_dict(trained.model, trained.opt, options=chosen)}


def take_up(trained: Trained, state: dict[str, Any], **options: Any) -> None:
    chosen = StateDictOptions(**options)
    set_model_state_dict(trained.model, state["model"], options=chosen)
    set_optimizer_state_dict(trained.model, trained.opt, state["opt"], options=chosen)
    trained.time = BEFORE


def save(kind: str, mesh: str, folder: str) -> Tensor:
    """Saves amid a run; the weights at its end."""
    trained = Trained(kind, mesh, GROUPS)
    trained.steps(BEFORE)
    dcp.save(states(trained), checkpoint_id=folder, process_group=MESHES[mesh].get_group())
    trained.steps(AFTER)
    return trained.weights()


def go_on(kind: str, mesh: str, folder: str, again: str = "") -> Tensor:
    """A new run that goes on from a checkpoint; the weights at its end."""
    trained = Trained(kind, mesh, GROUPS)
    state = states(trained)
    if trained.mesh is None:
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    else:
        dcp.load(state, checkpoint_id=folder, process_group=trained.mesh.get_group())
    take_up(trained, state)
    if again:
        dcp.save(states(trained), checkpoint_id=again, no_dist=True)
    trained.steps(AFTER)
    return trained.weights()


def of_pair(function: Any, folder: str) -> Tensor:
    """Processes 0 and 1 with copies, 2 and 3 with shards."""
    kind = "ddp" if dist.get_rank() < 2 else "fsdp"
    return function(kind, "two", f"{folder}/{kind}")


def test_a_run_goes_on_with_as_many_processes_as_it_would_have(four: Processes, tmp_path: Path):
    expected = four.run(of_pair, save, str(tmp_path))
    found = four.run(of_pair, go_on, str(tmp_path))
    assert all(torch.equal(mine, before) for mine, before in zip(found, expected, strict=True))


def test_a_run_goes_on_with_other_processes(four: Processes, tmp_path: Path):
    folders = {kind: str(tmp_path / kind) for kind in ("ddp", "fsdp")}
    expected = four.run(of_pair, save, str(tmp_path))[0]
    for kind, other in (("ddp", "fsdp"), ("fsdp", "ddp")):
        for mine in four.run(go_on, other, "four", folders[kind]):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
        again = str(tmp_path / f"{kind}_of_one")
        torch.testing.assert_close(go_on("one", "", folders[kind], again), expected, rtol=0, atol=1e-12)
        (tmp_path / "back").mkdir(exist_ok=True)
        for mine in four.run(go_on, kind, "four", again):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


def through_whole_states(kind: str) -> tuple[Tensor, Tensor]:
    trained = Trained(kind, "four", GROUPS)
    trained.steps(BEFORE)
    state = copy.deepcopy(states(trained, full_state_dict=True, cpu_offload=True))  # on a CPU some are by reference
    trained.steps(AFTER)
    resumed = Trained(kind, "four", GROUPS)
    first = dist.get_rank() == 0
    empty: dict[str, Any] = {"model": {}, "opt": {}}
    take_up(resumed, state if first else empty, full_state_dict=True, broadcast_from_rank0=True)
    resumed.steps(AFTER)
    return trained.weights(), resumed.weights()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_whole_state_goes_on_from_the_first_process(four: Processes, kind: str):
    # DDP sums a gradient's parts in another order in its first step than in the steps that follow.
    tolerance = 1e-12 if kind == "ddp" else 0.0
    for expected, found in four.run(through_whole_states, kind):
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def keep(kind: str, mesh: str, options: dict[str, Any], folder: str) -> Tensor:
    trained = Trained(kind, mesh, **options)
    trained.steps(BEFORE)
    dcp.save(states(trained), checkpoint_id=folder, process_group=MESHES[mesh].get_group())
    trained.steps(AFTER)
    return trained.weights()


def take(kind: str, mesh: str, options: dict[str, Any], folder: str) -> Tensor | str:
    trained = Trained(kind, mesh, **options)
    state = states(trained)
    try:
        dcp.load(state, checkpoint_id=folder, process_group=trained.mesh.get_group())
    except dcp.api.CheckpointException as error:
        return str(error)
    take_up(trained, state)
    trained.steps(AFTER)
    return trained.weights()


def of_either(function: Any, options: dict[str, Any], folder: str) -> Any:
    kind = "ddp" if dist.get_rank() < 2 else "fsdp"
    return function(kind, "two", options, f"{folder}/{kind}")


COMPRESSED = [
    ({"window_dtype": torch.int8}, "window_scales"),
    ({"window_dtype": torch.float32, "density": 0.2}, "window_values"),
]


@pytest.mark.parametrize(("options", "entry"), COMPRESSED, ids=["int8", "sparse"])
def test_what_each_process_has_of_its_own_goes_on_with_as_many_alone(four: Processes, tmp_path, options, entry):
    expected = four.run(of_either, keep, options, str(tmp_path))
    found = four.run(of_either, take, options, str(tmp_path))
    assert all(torch.equal(mine, before) for mine, before in zip(found, expected, strict=True))
    for message in four.run(take, "fsdp", "four", options, str(tmp_path / "fsdp")):
        assert f"Missing key in checkpoint state_dict: opt.state.first.weight.{entry}." in message


def refused_state(kind: str, options: dict[str, Any], path: str) -> str:
    trained = Trained(kind, "two", **options)
    trained.steps(3)
    whole = states(trained, full_state_dict=True, cpu_offload=True)
    resumed = Trained(kind, "four", **options)
    if dist.get_rank() == 0:
        torch.save(whole, path)
    dist.barrier()
    given = torch.load(path)["opt"]
    with pytest.raises(ValueError, match="not from a whole state") as error:
        set_optimizer_state_dict(resumed.model, resumed.opt, given, options=StateDictOptions(full_state_dict=True))
    assert resumed.opt.window.num_filled == 0
    return str(error.value)


@pytest.mark.parametrize("options", [options for options, _ in COMPRESSED], ids=["int8", "sparse"])
def test_a_whole_state_that_lacks_what_others_had_is_refused_by_all(four: Processes, tmp_path: Path, options):
    # Torch's tools leave an entry that the state lacks as it is in the new optimizer: zero.
    for message in four.run(refused_state, "ddp", options, str(tmp_path / "whole.pt")):
        assert "squared norms" in message


def probed(weight_decay: float) -> list[int]:
    trained = Trained("fsdp", "four", weight_decay=weight_decay)
    states(trained)
    return [window.num_filled for window in trained.opt.windows]


def test_a_state_that_is_looked_at_before_the_first_step_holds_no_gradient(four: Processes):
    assert four.run(probed, 0.1) == [[0]] * 4


def through_copies(kind: str) -> Tensor:
    """A run that goes on from its own state: copied, pickled, and in a file."""
    trained = Trained(kind, "four", GROUPS)
    trained.steps(BEFORE)
    state = trained.opt.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    for same in (copy.deepcopy(state), pickle.loads(pickle.dumps(state)), torch.load(file, weights_only=False)):
        trained.opt.load_state_dict(same)
    trained.steps(AFTER)
    return trained.weights()


def plain_run(kind: str) -> Tensor:
    trained = Trained(kind, "four", GROUPS)
    trained.steps(BEFORE + AFTER)
    return trained.weights()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_states_of_several_processes_are_copied_and_pickled(four: Processes, kind: str):
    found, expected = four.run(through_copies, kind), four.run(plain_run, kind)
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
