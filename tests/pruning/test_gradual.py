"""Gradual pruning beside an optimizer: exact zeros, the schedule, and saved states that go on."""

from __future__ import annotations

import copy

import pytest
import torch
from models import batches, classifier, cross_entropy

import mfac
from mfac.pruning.gradual import GMP

OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1),
    "mfac": lambda model: mfac.MFAC(model.parameters(), lr=1e-2, rank=16),
}
ARGUMENTS = {"sparsity": 0.8, "begin": 3, "end": 40, "every": 5, "num_gradients": 16}


def train(optimizer, schedule, stop=None, **extra):
    """A network pruned in 50 steps, saved and loaded into new objects before step `stop`."""
    data = batches(32)

    def made(seed):
        model = classifier(seed)
        own = OPTIMIZERS[optimizer](model)
        return model, own, mfac.Pruner(model, own, cross_entropy, data, schedule=schedule, **{**ARGUMENTS, **extra})

    objects = made(0)
    for step, batch in enumerate(batches(50, seed=7), start=1):
        if step == stop:
            states = copy.deepcopy([part.state_dict() for part in objects])
            objects = made(5)
            for part, state in zip(objects, states, strict=True):
                part.load_state_dict(state)
        model, own, pruner = objects
        own.zero_grad()
        cross_entropy(model, batch).backward()
        own.step()
        done = pruner.step()
        assert (done is not None) == (step in pruner.events)
        for name, mask in pruner.masks.items():
            assert torch.equal(model.get_parameter(name) != 0, mask)
    return objects


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["cubic", "geometric", "gmp"])
def test_zeros_are_exact_after_every_step_and_a_state_goes_on(optimizer, schedule):
    model, _, pruner = train(optimizer, schedule)
    assert pruner.events == [3, 8, 13, 18, 23, 28, 33, 38]
    assert pruner.report.sparsity == 0.8 and len(pruner.report.steps) == 8
    for stop in (2, 20):
        resumed, _, other = train(optimizer, schedule, stop=stop)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
        assert [step.sparsity for step in other.report.steps] == [step.sparsity for step in pruner.report.steps]


def test_magnitude_needs_no_gradients():
    _, _, pruner = train("sgd", "linear", saliency="magnitude", compensation="none")
    assert pruner.report.sparsity == 0.8
    assert [step.damping for step in pruner.report.steps] == 8 * [None]


def test_a_pattern_holds_in_the_end():
    model, _, _ = train("adamw", "cubic", pattern="2:4", sparsity=None)
    assert int((model[0].weight != 0).view(32, 3, 4).sum(2).max()) <= 2


def test_momenta_of_dropped_weights_are_forgotten():
    model = classifier()
    optimizer = OPTIMIZERS["adamw"](model)
    pruner = mfac.Pruner(model, optimizer, cross_entropy, batches(32), end=1, sparsity=0.5, num_gradients=16)
    cross_entropy(model, batches(1)[0]).backward()
    optimizer.step()
    pruner.step()
    for name, mask in pruner.masks.items():
        state = optimizer.state[model.get_parameter(name)]
        assert not bool(state["exp_avg"][~mask].any()) and bool(state["exp_avg"][mask].any())


def test_gmp_drops_at_once_and_is_cubic_then():
    kept = GMP(0.5).kept(1000, 200, 5)
    assert kept[0] == 600 and kept[-1] == 200
    assert kept == sorted(kept, reverse=True)
    assert GMP().kept(10, 3, 1) == [3]


def test_what_is_no_argument_is_refused():
    model = classifier()
    optimizer = OPTIMIZERS["sgd"](model)
    with pytest.raises(TypeError, match="'stages'"):
        mfac.Pruner(model, optimizer, cross_entropy, batches(4), end=3, stages=2)
    with pytest.raises(TypeError, match="optimizer"):
        mfac.Pruner(model, model, cross_entropy, batches(4), end=3)
    with pytest.raises(ValueError, match="end"):
        mfac.Pruner(model, optimizer, cross_entropy, batches(4), begin=5, end=3)
    with pytest.raises(ValueError, match="`optimizer` should have parameters of `model`"):
        mfac.Pruner(classifier(), optimizer, cross_entropy, batches(4), end=3)
