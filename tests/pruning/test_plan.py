"""A plan says what a run does, takes and leaves, changes nothing, and fills open choices."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import time

import pytest
import torch
from models import batches, classifier, conv_classifier, cross_entropy, same_state, snapshot

import mfac
from mfac.pruning import effort
from mfac.pruning.effort import candidates, choose
from mfac.pruning.probe import StepTimes
from mfac.pruning.settings import checked_settings


def test_a_plan_says_what_the_run_then_does():
    model, data = classifier(), batches(30)
    model[2].bias.requires_grad_(False)
    before = snapshot(model)
    arguments = {"sparsity": 0.7, "num_gradients": 24, "stages": 3, "recomputations": 2, "params": ["0.weight"]}
    arguments["compensation"] = "joint"  # which asks for no loss beside the gradients
    planned = mfac.plan(model, cross_entropy, data, **arguments)
    assert same_state(model, before)
    calls: list[int] = []

    def counted(model, batch):
        calls.append(1)
        return cross_entropy(model, batch)

    report = mfac.prune(model, counted, data, mode="eval", **arguments)
    assert planned.tensors == {"0.weight": 12 * 32} and planned.weights == 12 * 32
    assert planned.left_dense == report.left_dense and set(planned.left_dense) == {"2.weight"}
    assert planned.kept == int(report.masks["0.weight"].sum()) and planned.sparsity == report.sparsity
    assert planned.steps == len(report.steps) and planned.batches == 72
    assert (
        72 <= len(calls) <= 72 + 2
    )  # of the first batch, looked at for reentrant checkpoints; biases have no gradient
    for word in ("0.weight", "left dense", "72 batches", "3 stages of 24 gradients", "6 steps"):
        assert word in str(planned)


def test_a_plan_is_printed_when_asked_for_and_changes_no_result(capsys):
    quiet, loud = classifier(), classifier()
    arguments = {"sparsity": 0.7, "num_gradients": 24, "stages": 2}
    mfac.prune(quiet, cross_entropy, batches(30), **arguments)
    assert capsys.readouterr().out == ""
    mfac.prune(loud, cross_entropy, batches(30), verbose=True, **arguments)
    assert capsys.readouterr().out.startswith("plan: 480 weights in 2 tensors")
    assert all(torch.equal(a, b) for a, b in zip(quiet.parameters(), loud.parameters(), strict=True))


def settings(**arguments):
    import inspect

    defaults = {name: option.default for name, option in inspect.signature(mfac.prune).parameters.items()}
    return checked_settings({**defaults, **arguments})


def numbers(options):
    return [(option.total_stages, option.rank) for option in options]


def test_numbers_that_are_given_win():
    assert numbers(candidates(settings(num_gradients=100, stages=5, time_budget=1e-9), None)) == [(5, 100)]
    assert {rank for _, rank in numbers(candidates(settings(num_gradients=100), None))} == {100}
    assert {stages for stages, _ in numbers(candidates(settings(stages=3), None))} == {3}


def test_the_best_that_the_time_allows_is_taken():
    def seconds(option):
        return option.total_stages * option.rank * 0.1

    assert numbers([choose(candidates(settings(), None), lambda _: 1.0)]) == [(8, 256)]
    assert numbers([choose(candidates(settings(effort="best"), None), lambda _: 1.0)]) == [(16, 512)]
    assert numbers([choose(candidates(settings(effort="fast"), None), lambda _: 1.0)]) == [(4, 128)]
    for budget in (10.0, 60.0, 300.0):
        chosen = choose(candidates(settings(time_budget=budget), None), seconds)
        assert budget / 4 < seconds(chosen) <= budget
    assert numbers([choose(candidates(settings(time_budget=1e-9), None), seconds)]) == [(1, 32)]
    assert max(rank for _, rank in numbers(candidates(settings(), 40))) == 40


def test_a_slow_batch_makes_stages_fewer_and_the_plan_says_so(monkeypatch):
    monkeypatch.setattr(effort, "_SECONDS", {"default": 0.02, "fast": 0.01, "best": 0.05})
    planned = mfac.plan(classifier(), cross_entropy, batches(300), sparsity=0.5)
    assert planned.batches < 8 * 256
    assert any("effort='default' allows" in note for note in planned.notes)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_smallest_network_has_a_plan(size):
    planned = mfac.plan(
        torch.nn.Linear(size, 1), lambda model, batch: model(batch).square().mean(), [torch.ones(2, size)], 0.4
    )
    assert planned.weights == size and (planned.seconds is None) == (size == 1)  # where none goes


@pytest.mark.parametrize("sized", [True, False])
def test_short_data_gives_fewer_gradients(sized):
    class Unsized:
        def __iter__(self):
            return iter(batches(20))

    data = batches(20) if sized else Unsized()
    if sized:
        assert mfac.plan(classifier(), cross_entropy, data).num_gradients == 20
    report = mfac.prune(classifier(), cross_entropy, data, sparsity=0.5, stages=2)
    assert report.sparsity == 0.5
    with pytest.raises(ValueError, match="num_gradients=21"):
        mfac.prune(classifier(), cross_entropy, data, sparsity=0.5, stages=2, num_gradients=21)


@pytest.mark.parametrize("gradients", ["bf16", "folder"])
def test_gradients_kept_elsewhere_prune_alike(gradients, tmp_path, monkeypatch):
    monkeypatch.setattr("mfac.curvature.streamed.IN_MEMORY", 0)
    monkeypatch.setattr("mfac.gradients.store.TILE_ENTRIES", 1 << 10)
    where = tmp_path / "rows" if gradients == "folder" else gradients
    dense, data = classifier(hidden=64), batches(64)
    # the scores of single weights: in blocks, the order hangs on the rounding of each weight before
    arguments = {"sparsity": 0.5, "num_gradients": 24, "stages": 1, "recomputations": 4, "saliency": "obs"}
    stored, held = copy.deepcopy(dense), copy.deepcopy(dense)
    report = mfac.prune(stored, cross_entropy, data, gradients=where, **arguments)
    expected = mfac.prune(held, cross_entropy, data, **arguments)
    different = sum(int((report.masks[name] != mask).sum()) for name, mask in expected.masks.items())
    assert different <= 0.02 * 960  # weights at the threshold, whose order 2⁻⁹ of a gradient decides
    assert report.predicted_increase == pytest.approx(expected.predicted_increase, rel=2**-6)


def test_a_conv_network_with_batch_norm_has_a_plan_without_gradients():
    planned = mfac.plan(conv_classifier(), cross_entropy, [], sparsity=0.5, saliency="magnitude", compensation="none")
    assert planned.batches == 0 and planned.seconds is None and "without gradients" in str(planned)


PROGRAM = """
import sys
import torch, mfac
from torch import nn
torch.set_num_threads(1)
width, settings = int(sys.argv[1]), eval(sys.argv[2])
def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
def network(width):
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
samples = 64 if "per_sample" in settings else 4
data = [(torch.randn(samples, 12), torch.randint(3, (samples,))) for _ in range(64)]
loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
arguments = dict(sparsity=0.5, num_gradients=64, stages=1, recomputations=2, **settings)
warm = {**settings, "gradients": "ram"}  # loads what is loaded on first use
mfac.prune(network(40), loss, data, sparsity=0.5, num_gradients=8, stages=1, **warm)
model = network(width)
before = kilobytes("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
mfac.prune(model, loss, data, **arguments)
print((kilobytes("VmHWM") - before) * 1024, mfac.plan(model, loss, data, existing_zeros="ignore", **arguments).bytes)
"""


@pytest.mark.cpu_only("reads the memory of a process")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("width", "settings", "share"),
    [
        (1000, {"gradients": "ram"}, 0.1),
        (1400, {"gradients": "bf16"}, 0.2),
        (800, {"block_size": 32}, 0.1),  # the factors of its blocks take as much as the gradients
        (600, {"per_sample": True}, 0.2),
    ],
)
def test_a_run_takes_the_memory_that_its_plan_says(width, settings, share):
    # Of few hundred MB the libraries' work space is some per cent; of bfloat16 rows it is of a
    # smaller whole.
    command = [sys.executable, "-c", PROGRAM, str(width), repr(settings)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    measured, planned = map(int, run.stdout.split())
    assert abs(measured - planned) <= share * planned, (measured, planned)


def test_the_time_of_batches_that_only_go_forward_is_in_the_plan(monkeypatch):
    monkeypatch.setattr("mfac.pruning.probe.Probe.times", lambda probe, rank: StepTimes(0, 0, 0, 0))
    rest = 0.002

    def slow(model, batch):
        time.sleep(rest)
        return cross_entropy(model, batch)

    model, data = conv_classifier(), batches(12, shape=(1, 6, 6))
    arguments = {"sparsity": 0.5, "num_gradients": 4, "stages": 2, "recomputations": 2, "mode": "eval"}
    planned = mfac.plan(model, slow, data, step_check=True, refits=1, batchnorm_batches=7, **arguments)
    gradients, checked, statistics = 3 * 4, 5 * 4 * 8, 7  # of two stages and a refit; of five solves; batch norm
    assert planned.seconds >= rest * (gradients + checked + statistics)


def test_the_time_of_a_plan_is_that_of_its_parts(monkeypatch):
    times = StepTimes(factoring=1e3, step=1e6, choosing=1e9, chaining=1e12)
    monkeypatch.setattr("mfac.pruning.probe.Probe.times", lambda probe, rank: times)
    planned = mfac.plan(
        classifier(), cross_entropy, batches(30), 0.5, num_gradients=8, stages=2, recomputations=1, schedule="linear"
    )
    before, after = (480, 360), (360, 240)
    expected = (sum(before) + sum(after)) * 1e3 + sum(before) * (1e6 + 1e9) + 2 * 480 * 1e12
    assert planned.seconds == pytest.approx(expected, rel=1e-9)


def test_weights_without_a_gradient_in_the_first_batch_are_noted():
    class TwoWays(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.unread = torch.nn.Linear(12, 3), torch.nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.read(x)

    planned = mfac.plan(TwoWays(), cross_entropy, batches(16), sparsity=0.5)
    assert "no gradient in the first batch: unread.weight" in str(planned)


def test_a_plan_takes_the_arguments_of_a_run():
    assert list(inspect.signature(mfac.plan).parameters) == list(inspect.signature(mfac.prune).parameters)


@pytest.mark.parametrize("numbers", [{}, {"num_gradients": 8, "stages": 1}])
def test_data_that_is_empty_has_no_plan(numbers):
    with pytest.raises(ValueError, match="Found only 0"):
        mfac.plan(classifier(), cross_entropy, [], sparsity=0.5, **numbers)
