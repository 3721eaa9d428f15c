"""Cost tables say what a forward pass and a compact file take, and a budget made of them holds."""

from __future__ import annotations

import pytest
import torch
from models import batches, classifier, cross_entropy
from torch import nn

import mfac


def test_flops_are_those_that_a_report_measures():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    example = torch.zeros(5, 2, 8, 8)
    table = mfac.cost_table(model, "flops", example, levels=(0.0, 0.5))
    assert table["0.weight"][0.0] == 2 * 5 * 4 * 36 * 9
    assert table["3.weight"] == {0.0: 2 * 5 * 3 * 4 * 36, 0.5: 5 * 3 * 4 * 36}
    report = mfac.prune(model, lambda model, batch: 0, [], sparsity=0.5, saliency="magnitude", compensation="none")
    measured = report.measure(model, example=example)
    assert {name: of_layer[0.0] for name, of_layer in table.items()} == measured.dense_flops


def test_bytes_are_those_of_a_compact_file():
    model = classifier(dtype=torch.float64)
    table = mfac.cost_table(model, "bytes", levels=(0.0, 0.5))
    assert table == {"0.weight": {0.0: 8 * 384, 0.5: 8 * 192 + 48}, "2.weight": {0.0: 8 * 96, 0.5: 8 * 48 + 12}}
    assert list(mfac.cost_table(model, "bytes", params=["2.weight"])) == ["2.weight"]


def test_a_budget_of_flops_holds():
    model = classifier()
    table = mfac.cost_table(model, "flops", torch.zeros(1, 12))
    budget = 0.3 * sum(of_layer[0.0] for of_layer in table.values())
    allocation = mfac.Budget(table, budget)
    report = mfac.prune(model, cross_entropy, batches(30), allocation=allocation, num_gradients=24, stages=2)
    assert sum(report.measure(model, example=torch.zeros(1, 12)).sparse_flops.values()) <= budget


def test_what_cannot_be_counted_is_refused():
    model = classifier()
    with pytest.raises(ValueError, match=r"Parameter `unit` should be 'flops' or 'bytes'. Found 'seconds'"):
        mfac.cost_table(model, "seconds")
    with pytest.raises(ValueError, match=r"Parameter `example` should be an input of the model.*Found None"):
        mfac.cost_table(model, "flops")
    with pytest.raises(ValueError, match=r"Parameter `levels` should be .* Found 1.0"):
        mfac.cost_table(model, "bytes", levels=(1.0,))

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"Found no call of the layers of \['unused.weight'\]"):
        mfac.cost_table(Half(), "flops", torch.zeros(1, 4))
