"""What `mfac.plan` says against what `mfac.prune` then takes, and runs that are stopped or shared.

Every run is a process of its own, `python -m bench.pruning.promises <task> <arguments>`.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mfac
from bench.pruning.digits import loss_fn
from bench.pruning.networks import (
    Network,
    conv_with_batchnorm,
    digit_cnn,
    gru,
    labelled,
    small_mlp,
    transformer,
    transformer_on_long_texts,
    wide_mlp,
)
from bench.pruning.table import Table
from mfac.core.memory import release_freed

MIB = 1 << 20
FOLDER = "folder"  # of settings: stands for a temporary one


@dataclass(frozen=True)
class Case:
    """A network and how it is pruned.

    Attributes:
        make: The network.
        settings: Of `mfac.prune`.
    """

    make: Callable[[], Network]
    settings: dict[str, Any] = field(default_factory=dict)


_ONE_STAGE = {"num_gradients": 64, "stages": 1}
CASES = {
    "digit CNN, defaults": Case(digit_cnn),
    "digit CNN, bf16": Case(digit_cnn, {"gradients": "bf16", "stages": 2}),
    "digit CNN, folder": Case(digit_cnn, {"gradients": FOLDER, "stages": 2}),
    "digit CNN, block_size=64": Case(digit_cnn, {"block_size": 64, "num_gradients": 128, "stages": 2}),
    "MLP 784-40-20-10, defaults": Case(small_mlp),
    "MLP 784-40-20-10, per sample": Case(small_mlp, {"per_sample": True, "num_gradients": 1000, "stages": 4}),
    "MLP 4.4 million, ram": Case(wide_mlp, _ONE_STAGE),
    "MLP 4.4 million, bf16": Case(wide_mlp, {**_ONE_STAGE, "gradients": "bf16"}),
    "MLP 4.4 million, folder": Case(wide_mlp, {**_ONE_STAGE, "gradients": FOLDER}),
    "MLP 4.4 million, block_size=32": Case(wide_mlp, {**_ONE_STAGE, "block_size": 32}),
    "GRU, defaults": Case(gru),
    "transformer, defaults": Case(transformer),
    "transformer, block_size=128": Case(transformer, {"block_size": 128, "num_gradients": 64, "stages": 2}),
    "long texts, folder": Case(transformer_on_long_texts, {**_ONE_STAGE, "gradients": FOLDER}),
    "batch norm, defaults": Case(conv_with_batchnorm),
    "batch norm, folder": Case(conv_with_batchnorm, {"gradients": FOLDER, "num_gradients": 256, "stages": 2}),
    "batch norm, step check and refits": Case(
        conv_with_batchnorm, {"num_gradients": 64, "stages": 2, "step_check": True, "refits": 3}
    ),
}


def plans(only: str = "") -> None:
    """Prints what each run was planned to take, and what it took.

    The column "core" says how much of a core the process had while it planned, and while it
    pruned. Where that is not nearly all of it, the seconds say as much of other processes.

    Args:
        only: Cases that have this in their names.
    """
    columns = ["network and settings", "weights", "stages of", "plan [MiB]", "took [MiB]", "plan [s]", "took [s]"]
    table = Table([*columns, "core", "took / plan"], [34, 8, 9, 0, 0, 0, 0, 12, 20])
    for name in CASES:
        if only not in name:
            continue
        planned = _child("plan", name)
        chosen = {key: planned[key] for key in ("num_gradients", "stages")}
        took = _child("prune", name, json.dumps(chosen))
        memory, seconds = took["bytes"] / planned["bytes"], took["seconds"] / planned["seconds"]
        within = [f"{memory - 1:+.0%}", f"{seconds:.2f}x"]
        held = abs(memory - 1) <= 0.1 and 1 / 1.5 <= seconds <= 1.5
        table.row(
            name,
            planned["weights"],
            f"{planned['stages']} x {planned['num_gradients']}",
            planned["bytes"] // MIB,
            took["bytes"] // MIB,
            f"{planned['seconds']:.1f}",
            f"{took['seconds']:.1f}",
            f"{planned['core']:.0%}, {took['core']:.0%}",
            f"{', '.join(within)}{'' if held else ', MISSED'}",
        )


def _child(*arguments: str) -> dict[str, Any]:
    """What a process of its own found."""
    command = [sys.executable, "-m", "bench.pruning.promises", *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _memory(name: str) -> int:
    """Bytes of this process: VmRSS as it is, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


class Watch:
    """Seconds since it was made, and what share of them this process was computing."""

    def __init__(self) -> None:
        self._start, self._computed = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """On the wall's clock."""
        return time.perf_counter() - self._start

    def core(self) -> float:
        """Of one core, 1 at most with one thread."""
        return (time.process_time() - self._computed) / self.seconds()


def _settings(case: Case, folder: str) -> dict[str, Any]:
    settings = dict(case.settings)
    if settings.get("gradients") == FOLDER:
        settings["gradients"] = folder
    return {"sparsity": 0.9, **settings}


def plan_of(name: str) -> dict[str, Any]:
    """The plan of a case."""
    network, watch = CASES[name].make(), Watch()
    with tempfile.TemporaryDirectory() as folder:
        planned = mfac.plan(*network, **_settings(CASES[name], folder))
    names = ("weights", "num_gradients", "stages", "bytes", "seconds")
    return {**{key: getattr(planned, key) for key in names}, "core": watch.core()}


def prune_of(name: str, chosen: str) -> dict[str, Any]:
    """The growth of resident memory at most while a case is pruned, and seconds.

    Args:
        name: Of the case.
        chosen: Numbers that the plan chose, as JSON.

    Returns:
        Bytes and seconds.
    """
    model, loss, data = CASES[name].make()
    warm, options = (
        nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 10)),
        {"num_gradients": 8, "stages": 1, "per_sample": True},
    )
    mfac.prune(warm, loss_fn, labelled(16, 4, (12,)), 0.5, **options)  # loads what is loaded on first use
    torch.autograd.grad(loss(model, data[0]), [p for p in model.parameters() if p.requires_grad])
    with tempfile.TemporaryDirectory() as folder:
        release_freed()
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        watch = Watch()
        mfac.prune(model, loss, data, **{**_settings(CASES[name], folder), **json.loads(chosen)})
        return {"seconds": watch.seconds(), "core": watch.core(), "bytes": _memory("VmHWM") - before}


def large() -> None:
    """Prints what a network of 20 million weights takes with its gradients on disk."""
    found = _child("large")
    held = "" if found["resident"] < 4 << 30 else ", MISSED"
    table = Table(
        ["weights", "gradients", "on disk [GiB]", "resident [GiB]", "of the run, plan [GiB]", "plan [s]", "took [s]"]
    )
    gib = {key: f"{found[key] / (1 << 30):.2f}" for key in ("disk", "resident", "bytes")}
    seconds = (f"{found[key]:.0f}" for key in ("planned", "took"))
    table.row(found["weights"], found["gradients"], gib["disk"], gib["resident"] + held, gib["bytes"], *seconds)


def prune_large() -> dict[str, Any]:
    """Prunes an MLP of 20 million weights by 256 gradients on disk, in a process of its own."""
    model, loss, data = wide_mlp(4440)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"num_gradients": 256, "stages": 1, "recomputations": 1, "gradients": folder}
        planned = mfac.plan(model, loss, data, 0.5, **settings)
        start = time.perf_counter()
        mfac.prune(model, loss, data, 0.5, **settings)
        took = time.perf_counter() - start
    found = {"weights": planned.weights, "gradients": planned.num_gradients, "disk": planned.disk_bytes}
    return {**found, "bytes": planned.bytes, "planned": planned.seconds, "took": took, "resident": _memory("VmHWM")}


def killed(kills: int = 20, seed: int = 0) -> None:
    """Prints how a staged run ends that is killed at random moments, time and again, and resumed.

    Args:
        kills: Moments.
        seed: Of the moments.
    """
    draw, died, number, resumed, left = random.Random(seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole, again = Path(folder) / "whole.pt", Path(folder) / "again.pt"
        seconds = _staged("", whole)
        assert seconds is not None
        while died < kills:
            run, before, number = Path(folder) / f"run{number}", died, number + 1
            for _ in range(min(3, kills - died)):  # of one run: it may die several times
                if _staged(str(run), again, draw.uniform(0, 0.9 * seconds)) is None:
                    died += 1
                    left += (run / "run.pt").exists()
            _staged(str(run), again)
            _refuse_different(whole, again)
            resumed += died > before
            again.unlink()
    table = Table(["killed", "with a stage saved", "runs that this happened to", "same masks and weights in the end"])
    table.row(f"{died} times", left, resumed, resumed)


def _staged(folder: str, result: Path, limit: float | None = None) -> float | None:
    """Seconds of a staged run in a process of its own; None if killed after `limit` seconds."""
    command = [sys.executable, "-m", "bench.pruning.promises", "staged", folder, str(result)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and any(line == "begins\n" for line in process.stdout)
        start = time.perf_counter()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return None
        if code:
            raise RuntimeError(f"A staged run should end well. Found exit code {code}.")
        return time.perf_counter() - start


def staged(folder: str, result: str) -> dict[str, Any]:
    """A run of twelve stages on batches that are shuffled anew in each pass.

    Args:
        folder: Of its checkpoint; none where it is empty.
        result: The file that masks and weights are written to.

    Returns:
        Nothing of interest.
    """
    model, loss, data = small_mlp()
    images, labels = (torch.cat(tensors[:60]) for tensors in zip(*data, strict=True))
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
    print("begins", flush=True)
    settings = {"num_gradients": 50, "stages": 12, "recomputations": 2, "seed": 3}
    _save(model, mfac.prune(model, loss, loader, 0.9, checkpoint=folder or None, **settings), result)
    return {}


def _save(model: nn.Module, report: mfac.PruningReport, result: str | Path) -> None:
    torch.save({"masks": report.masks, "weights": model.state_dict()}, result)


def _refuse_different(expected: Path, found: Path) -> None:
    """An error where masks or weights of two runs differ in a bit."""
    one, other = torch.load(expected), torch.load(found)
    for what in ("masks", "weights"):
        for name, tensor in one[what].items():
            if not torch.equal(tensor, other[what][name]):
                raise AssertionError(f"The {what} of {name!r} should be those of the undisturbed run. Found others.")


SHARED: dict[str, dict[str, Any]] = {
    "one gradient a batch": {"num_gradients": 63, "stages": 2, "recomputations": 2},
    "one a sample": {"num_gradients": 63, "stages": 2, "recomputations": 2, "per_sample": True},
    "bfloat16": {"num_gradients": 64, "stages": 2, "recomputations": 2, "gradients": "bf16"},
}


def shared() -> None:
    """Prints whether two processes that share gradients end with the masks and weights of one."""
    table = Table(["digit CNN", "masks and weights of two processes"], [22, 0])
    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
        found.close()
        for name in SHARED:
            alone, ranks = Path(folder) / "alone.pt", [Path(folder) / f"{rank}.pt" for rank in range(2)]
            _child("rank", name, str(alone))
            command = [sys.executable, "-m", "bench.pruning.promises", "rank", name]
            place = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            started = [
                subprocess.Popen([*command, str(path)], env={**place, "RANK": str(rank)}, stdout=subprocess.DEVNULL)
                for rank, path in enumerate(ranks)
            ]
            if any([process.wait() for process in started]):
                raise RuntimeError("Both processes should end well. Found one that did not.")
            for path in ranks:
                _refuse_different(alone, path)
            table.row(name, "equal to the last bit to those of one")


def rank(name: str, result: str) -> dict[str, Any]:
    """Prunes the digit CNN alone, or with another process where torch's variables of one are set.

    Args:
        name: Of `SHARED`.
        result: The file that masks and weights are written to.

    Returns:
        Nothing of interest.
    """
    model, loss, data = digit_cnn()
    group = None
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        group = dist.group.WORLD
    _save(model, mfac.prune(model, loss, data, 0.9, process_group=group, **SHARED[name]), result)
    if group is not None:
        dist.destroy_process_group()
    return {}


def table(only: Sequence[str]) -> None:
    """Prints all tables, or some.

    Args:
        only: Parts of the names of cases whose plans are looked at, or "large", "killed",
            "shared"; none for all.
    """
    others = {"large": large, "killed": killed, "shared": shared}
    for part in only or ("", *others):
        if part in others:
            others[part]()
        else:
            plans(part)
        print()


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "plan": plan_of,
    "prune": prune_of,
    "large": prune_large,
    "staged": staged,
    "rank": rank,
}


def main(task: str, *arguments: str) -> None:
    """What a process of its own does; the last line that it prints is what it found."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(TASKS[task](*arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
