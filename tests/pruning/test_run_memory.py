"""What a run takes is counted before it begins, and what it has freed goes back to the system."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models import batches, classifier, cross_entropy

import mfac
from mfac.core import memory
from mfac.gradients.store import TILE_ENTRIES
from mfac.pruning.memory import Activations


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.cpu_only("reads the memory of a process")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(memory._trim() is None, reason="a C library that cannot be asked to")
def test_what_was_freed_below_something_in_use_goes_back():
    pieces = [torch.ones(1 << 14) for _ in range(1600)]  # 100 MiB of pieces that are too small for maps of their own
    last = torch.ones(1 << 14)
    del pieces
    before = resident()
    memory.release_freed()
    assert before - resident() > 50 << 20
    assert last.sum() == 1 << 14


def test_without_such_a_function_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.release_freed()


def test_activations_are_what_the_forward_pass_keeps():
    model, rows = classifier(hidden=32), 8
    counted = Activations(model)
    with counted.counted():
        loss = cross_entropy(model, batches(1, size=rows)[0])
    floats = rows * (12 + 32 + 3)  # the input, what tanh gives, log-probabilities; weights are not the batch's
    assert 4 * floats <= counted.total <= 4 * floats + 8 * rows + 16  # labels, and a number or two
    loss.backward()


def test_a_view_of_the_data_counts_as_what_is_seen():
    data, model = torch.randn(1000, 12), torch.nn.Linear(12, 3)
    counted = Activations(model)
    with counted.counted():
        model(data[:8]).sum()
    assert counted.total == 4 * 8 * 12


def test_activations_of_a_batch_are_in_the_plan():
    def wasteful(model, batch):
        wide = model(batch[0])[:, :, None] * torch.ones(20_000, requires_grad=True)
        return wide.square().mean()

    arguments = {"sparsity": 0.5, "num_gradients": 8, "stages": 1, "mode": "eval"}
    planned = mfac.plan(classifier(), wasteful, batches(8), **arguments)
    assert (
        planned.bytes > mfac.plan(classifier(), cross_entropy, batches(8), **arguments).bytes + 8 * 3 * 20_000 * 4 / 2
    )


def test_a_tensor_of_the_next_step_is_there_while_tiles_are_read():
    planned = mfac.plan(
        classifier(hidden=9500),
        cross_entropy,
        batches(256),
        0.3,
        num_gradients=256,
        stages=1,
        recomputations=1,
        gradients="bf16",
    )  # 142 500 weights, too many for a tensor; then 99 750
    assert planned.bytes >= 2 * 256 * 142_500 + 4 * 256 * planned.kept + 6 * TILE_ENTRIES
