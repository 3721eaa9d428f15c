"""A run that is stopped at any moment goes on from its folder and ends as if it had not been."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from models import batches, classifier, cross_entropy

import mfac

pytestmark = pytest.mark.cpu_only("what is tested is files and processes")

TESTS = Path(__file__).parents[1]
SMALL = {"sparsity": 0.8, "num_gradients": 24, "stages": 4, "recomputations": 2}


def command(folder: str | Path, result: Path) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, str(TESTS / "pruning" / "killed_run.py"), str(folder), str(result)]
    return program, {**os.environ, "PYTHONPATH": path}


def same(a: dict, b: dict) -> bool:
    masks = all(torch.equal(a["masks"][name], mask) for name, mask in b["masks"].items())
    return masks and all(torch.equal(a["weights"][name], value) for name, value in b["weights"].items())


def killed_and_resumed(tmp_path: Path, kills: int, seed: int) -> int:
    """Kills a run at random moments until it has died `kills` times; how often it left a file."""
    arguments, environment = command("", tmp_path / "whole.pt")
    start = time.perf_counter()
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begins\n"
        start = time.perf_counter()
        assert process.wait(timeout=120) == 0
    seconds = time.perf_counter() - start
    draw, result, left = random.Random(seed), tmp_path / "resumed.pt", 0
    whole, died, number = torch.load(tmp_path / "whole.pt"), 0, 0
    while died < kills:
        folder, number = tmp_path / f"run{number}", number + 1
        for _ in range(3):  # of one run: it may die several times
            arguments, environment = command(folder, result)
            with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None and process.stdout.readline() == "begins\n"
                try:
                    process.wait(timeout=draw.uniform(0, 0.8 * seconds))
                except subprocess.TimeoutExpired:
                    process.kill()
                    died += 1
            left += (folder / "run.pt").exists()
            if died == kills:
                break
        arguments, environment = command(folder, result)
        subprocess.run(arguments, env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
        resumed = torch.load(result)
        assert resumed["steps"] == whole["steps"] and same(resumed, whole)
        result.unlink()
    return left


def test_a_run_killed_at_random_moments_ends_with_the_masks_of_an_undisturbed_one(tmp_path):
    assert killed_and_resumed(tmp_path, kills=5, seed=0) > 0


class StopError(Exception):
    pass


def stop_at(step: int):
    def progress(done: mfac.PruningStep) -> None:
        if done.step == step:
            raise StopError

    return progress


@pytest.mark.parametrize("extra", [{}, {"damping": "auto"}, {"gradients": "bf16"}, {"per_sample": True}])
def test_every_step_may_be_the_last_of_a_process(tmp_path, extra):
    dense, data = classifier(), batches(30)
    whole = copy.deepcopy(dense)
    report = mfac.prune(whole, cross_entropy, data, **SMALL, **extra)
    for step in range(1, 9):
        model = copy.deepcopy(dense)
        with pytest.raises(StopError):
            mfac.prune(
                model, cross_entropy, data, checkpoint=tmp_path / str(step), progress=stop_at(step), **SMALL, **extra
            )
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))
        seen: list[int] = []
        resumed = mfac.prune(
            model,
            cross_entropy,
            data,
            checkpoint=tmp_path / str(step),
            progress=lambda s, seen=seen: seen.append(s.step),
            **SMALL,
            **extra,
        )
        assert seen[0] == (step - 1) // 2 * 2 + 1  # the stage that was not finished begins anew
        assert [s.predicted_increase for s in resumed.steps] == [s.predicted_increase for s in report.steps]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
        assert all(torch.equal(resumed.masks[name], mask) for name, mask in report.masks.items())


def test_a_finished_run_gives_its_result_again(tmp_path):
    dense, model = classifier(), classifier()
    report = mfac.prune(model, cross_entropy, batches(30), checkpoint=tmp_path, **SMALL)

    def not_called(model, batch):
        raise AssertionError

    again = mfac.prune(dense, not_called, batches(30), checkpoint=tmp_path, **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))
    assert again.sparsity == report.sparsity and len(again.steps) == len(report.steps)


def test_a_folder_of_another_run_is_refused(tmp_path):
    mfac.prune(classifier(), cross_entropy, batches(30), checkpoint=tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"another sparsity: 0\.8, now 0\.7"):
        mfac.prune(classifier(), cross_entropy, batches(30), checkpoint=tmp_path, **{**SMALL, "sparsity": 0.7})
    with pytest.raises(ValueError, match="another damping"):
        mfac.prune(classifier(), cross_entropy, batches(30), checkpoint=tmp_path, damping=0.1, **SMALL)
    with pytest.raises(ValueError, match="another state of the model's weights and buffers: SHA-256"):
        mfac.prune(classifier(seed=1), cross_entropy, batches(30), checkpoint=tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"another model: 0.weight \[32, 12\]"):
        mfac.prune(classifier(hidden=16), cross_entropy, batches(30), checkpoint=tmp_path, **SMALL)


def test_a_budget_keeps_the_levels_of_its_first_scores(tmp_path):
    def arguments() -> dict[str, object]:
        costs = mfac.cost_table(classifier(), "flops", torch.zeros(1, 12))
        return {**SMALL, "sparsity": None, "allocation": mfac.Budget(costs, 300.0)}

    whole, model = classifier(), classifier()
    report = mfac.prune(whole, cross_entropy, batches(30), **arguments())
    with pytest.raises(StopError):
        mfac.prune(model, cross_entropy, batches(30), checkpoint=tmp_path, progress=stop_at(5), **arguments())
    resumed = mfac.prune(model, cross_entropy, batches(30), checkpoint=tmp_path, **arguments())
    assert all(torch.equal(resumed.masks[name], mask) for name, mask in report.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
