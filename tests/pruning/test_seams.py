"""Users' own parts are checked: a wrong score, update or schedule is named and changes nothing."""

from __future__ import annotations

import pytest
import torch
from models import batches, classifier, cross_entropy, same_state, snapshot

import mfac

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2, "sparsity": 0.5}


class Scores(mfac.Saliency):
    def __init__(self, change) -> None:
        self.change = change

    def scores(self, context):
        return self.change(context.weights.abs())


class Update(mfac.Compensation):
    def __init__(self, change) -> None:
        self.change = change

    def update(self, context):
        return self.change(-context.weights.double() * context.dropped)


class Kept(mfac.Schedule):
    def __init__(self, change) -> None:
        self.change = change

    def kept(self, live, final, steps):
        return self.change(live, final, steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"saliency": Scores(lambda s: s[1:])}, r"`saliency` should return a score for each of the 480 live weights"),
        ({"saliency": Scores(lambda s: -s)}, r"`saliency` should return finite scores >= 0. Found others from Scores"),
        ({"saliency": Scores(lambda s: s / 0)}, r"`saliency` should return finite scores >= 0. Found others"),
        ({"compensation": Update(lambda d: d[1:])}, r"`compensation` should return a finite change of each of the 480"),
        (
            {"compensation": Update(lambda d: d * float("nan"))},
            r"`compensation` should return .* not finite",
        ),
        (
            {"schedule": Kept(lambda live, final, steps: [final])},
            r"`schedule` should return 4 numbers that fall",
        ),
        ({"schedule": Kept(lambda live, final, steps: [final, live, final, final])}, r"`schedule` should return 4"),
        ({"schedule": Kept(lambda live, final, steps: [live] * steps)}, r"`schedule` should return 4 numbers"),
    ],
)
def test_wrong_results_are_named(arguments, message):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        mfac.prune(model, cross_entropy, batches(30), **{**SMALL, **arguments})
    assert same_state(model, before)


class ByMagnitude(mfac.Saliency):
    needs_fisher = False

    def scores(self, context):
        return context.weights.abs()


class Untouched(mfac.Compensation):
    needs_fisher = False

    def update(self, context):
        return -context.weights.double() * context.dropped


def test_rules_that_need_no_gradients_read_no_data():
    ours, names = classifier(), classifier()
    mine = mfac.prune(ours, cross_entropy, [], sparsity=0.5, saliency=ByMagnitude(), compensation=Untouched())
    theirs = mfac.prune(names, cross_entropy, [], sparsity=0.5, saliency="magnitude", compensation="none")
    assert all(torch.equal(mine.masks[name], theirs.masks[name]) for name in mine.masks)
    assert mine.predicted_increase is None


class Peeking(ByMagnitude):
    def scores(self, context):
        return context.inverse_diagonal


def test_what_was_not_declared_is_not_there():
    with pytest.raises(RuntimeError, match=r"its saliency and its compensation both say needs_fisher=False"):
        mfac.prune(classifier(), cross_entropy, [], sparsity=0.5, saliency=Peeking(), compensation="none")
