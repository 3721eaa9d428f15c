"""Allocations: exact totals, floors, promised densities, with every pattern and schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import batches, cross_entropy
from torch import nn

import mfac
from mfac.pruning.allocation import apportion

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2}


def deep() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))


SIZES = {"0.weight": 768, "2.weight": 1024, "4.weight": 48}


def kept_of(report: mfac.PruningReport) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in report.masks.items()}


@pytest.mark.parametrize("schedule", ["geometric", "cubic", "linear"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_every_step_has_the_count_of_its_schedule(allocation: str, schedule: str):
    report = mfac.prune(
        deep(), cross_entropy, batches(30), sparsity=0.8, allocation=allocation, schedule=schedule, **SMALL
    )
    kept = {
        "geometric": mfac.pruning.schedule.Geometric(),
        "cubic": mfac.pruning.schedule.Cubic(),
        "linear": mfac.pruning.schedule.Linear(),
    }[schedule].kept(1840, 368, 4)
    assert [round(1840 * (1 - step.sparsity)) for step in report.steps] == kept
    assert sum(kept_of(report).values()) == 368


def test_uniform_gives_every_parameter_the_same_density():
    report = mfac.prune(deep(), cross_entropy, batches(30), sparsity=0.75, allocation="uniform", **SMALL)
    assert kept_of(report) == {name: size // 4 for name, size in SIZES.items()}


def test_erk_follows_the_shapes_and_stops_at_dense():
    report = mfac.prune(deep(), cross_entropy, batches(30), sparsity=0.8, allocation="erk", **SMALL)
    kept = kept_of(report)
    # Σ shape is 76, 80 and 19: 368 kept weights in these proportions leave 40 for the last, below
    # its 48.
    assert kept == {"0.weight": 160, "2.weight": 168, "4.weight": 40}
    report = mfac.prune(deep(), cross_entropy, batches(30), sparsity=0.5, allocation="erk", **SMALL)
    kept = kept_of(report)
    assert kept["4.weight"] == 48 and kept["0.weight"] + kept["2.weight"] == 920 - 48
    assert kept["2.weight"] / kept["0.weight"] == pytest.approx(80 / 76, abs=0.01)


def test_sparsities_by_name():
    allocation = {"4.*": 0.0, "2.weight": 0.9, "*": 0.5}
    report = mfac.prune(deep(), cross_entropy, batches(30), allocation=allocation, **SMALL)
    assert kept_of(report) == {"0.weight": 384, "2.weight": 102, "4.weight": 48}
    with pytest.raises(ValueError, match=r"`sparsity` should be left out where `allocation` gives one"):
        mfac.prune(deep(), cross_entropy, batches(30), sparsity=0.3, allocation=allocation, **SMALL)


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_a_pattern_that_fixes_the_counts_has_its_way(allocation: str):
    report = mfac.prune(deep(), cross_entropy, batches(30), pattern="2:4", allocation=allocation, **SMALL)
    assert kept_of(report) == {name: size // 2 for name, size in SIZES.items()}


def with_a_worthless_layer() -> nn.Sequential:
    model = deep()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    return model


def test_a_floor_keeps_a_layer_that_the_ranking_would_empty():
    arguments = {"saliency": "magnitude", "compensation": "none", "sparsity": 0.9}
    emptied = mfac.prune(with_a_worthless_layer(), cross_entropy, [], allocation=mfac.Global(floor=0.0), **arguments)
    assert kept_of(emptied)["2.weight"] == 0
    report = mfac.prune(with_a_worthless_layer(), cross_entropy, [], **arguments)
    assert kept_of(report)["2.weight"] == 11  # a tenth of the density 0.1, of 1024
    assert sum(kept_of(report).values()) == 184


def test_without_a_floor_and_without_ties_the_global_choice_is_one_ranking():
    model = deep()
    before = torch.cat([model[i].weight.detach().abs().flatten() for i in (0, 2, 4)])
    report = mfac.prune(
        model,
        cross_entropy,
        [],
        sparsity=0.7,
        saliency="magnitude",
        compensation="none",
        allocation=mfac.Global(floor=0.0),
    )
    kept = torch.cat([mask.flatten() for mask in report.masks.values()])
    assert before[kept].min() > before[~kept].max()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8), st.data()
)
def test_apportion_is_exact_and_within_its_bounds(entries: list[tuple[int, int, int]], data: st.DataObject):
    proportions = [float(p) for p, _, _ in entries]
    least = [a for _, a, _ in entries]
    most = [a + b for _, a, b in entries]
    total = data.draw(st.integers(sum(least), sum(most)))
    counts = apportion(total, proportions, least, most)
    assert sum(counts) == total
    assert all(a <= n <= b for n, a, b in zip(counts, least, most, strict=True))


class Wrong(mfac.Allocation):
    def __init__(self, change: int) -> None:
        self.change = change

    def kept(self, context: mfac.AllocationContext) -> list[int]:
        counts = mfac.Global().kept(context)
        return [counts[0] + self.change, *counts[1:]]


@pytest.mark.parametrize("change", [1, -1, 5000])
def test_counts_that_do_not_add_up_are_refused(change: int):
    model = deep()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"`allocation` should return a count between .* from Wrong"):
        mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, allocation=Wrong(change), **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
