"""Users' own parts are checked: a wrong score, update or schedule is named and changes nothing."""

from __future__ import annotations

import pytest
import torch
from models import batches, classifier, cross_entropy, same_state, snapshot

import mfac
from mfac.masks.patterns import Rows
from mfac.pruning.compensation import LeastLoss

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


class Answer:
    """Answers every question of a part with the same thing."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def _say(self, *_):
        return self.answer

    scores = select = unit_scores = update = kept = protected = units = least_kept = _say


class Selects(Answer, mfac.Saliency):
    def scores(self, context):
        return context.weights.abs()

    unit_scores = mfac.Saliency.unit_scores


class Scoring(Answer, mfac.Saliency):
    select = mfac.Saliency.select


class OfUnits(Answer, mfac.Saliency):
    def scores(self, context):
        return context.weights.abs()

    select = mfac.Saliency.select


class Moves(Answer, mfac.Compensation):
    pass


class Allocates(Answer, mfac.Allocation):
    protected = mfac.Allocation.protected


class Protects(Answer, mfac.Global):
    kept = mfac.Global.kept


class Falls(Answer, mfac.Schedule):
    pass


class Groups(Answer, mfac.Pattern):
    least_kept = mfac.Pattern.least_kept


class Bounds(Answer, Rows):
    units = Rows.units


def unit_answers():
    yield None, TypeError, r"`pattern` should return mfac.Units. Found None from Groups.units\(\)"
    yield mfac.Units(None, [384, 96]), TypeError, r"`pattern` should return a score for each .* Found None from Groups"
    yield mfac.Units(torch.ones(480), [480]), ValueError, r"`pattern` should return 2 integers, one a parameter"
    yield mfac.Units(torch.ones(9), [384, 96]), ValueError, r"each of the 480 units .* Found shape \[9\] from Groups"
    yield mfac.Units(torch.ones(9), [4, 5]), ValueError, r"a unit for each of 480 live weights, or `unit_of`"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"saliency": Scoring(None)}, TypeError, r"`saliency` should return a score .* Found None from Scoring.scores"),
        ({"saliency": Scoring([1.0] * 480)}, TypeError, r"as a tensor of numbers. Found list from Scoring.scores\(\)"),
        ({"saliency": Scoring(torch.ones(480) > 0)}, TypeError, r"Found a tensor of torch.bool from Scoring.scores"),
        (
            {"saliency": Selects(None)},
            TypeError,
            r"which of the 480 live weights go, .* Found None from Selects.select",
        ),
        ({"saliency": Selects(torch.ones(480))}, TypeError, r"Found a tensor of torch.float32 from Sel"),
        ({"saliency": Selects(torch.ones(3) > 0)}, ValueError, r"Found shape \[3\] from Sel"),
        (
            {"saliency": OfUnits(torch.ones(3)), "pattern": "rows"},
            ValueError,
            r"35 units. .* OfUnits.unit_",
        ),
        ({"saliency": OfUnits(3), "pattern": "rows"}, TypeError, r"35 units, .* Found int from OfUnits.unit_scores"),
        ({"compensation": Moves(None)}, TypeError, r"`compensation` should return .* Found None from Moves.update"),
        ({"compensation": Moves(torch.ones(3))}, ValueError, r"Found shape \[3\] from Moves.update\(\)"),
        (
            {"compensation": LeastLoss(Moves(None), Moves(None), known=0)},
            TypeError,
            r"`compensation` should return .* Found None from Moves.update\(\)",
        ),
        ({"allocation": Allocates(None)}, TypeError, r"`allocation` should return a list .* Found None from"),
        ({"allocation": Allocates(torch.ones(2))}, TypeError, r"Found Tensor from Allocates.kept\(\)"),
        (
            {"allocation": Allocates([240])},
            ValueError,
            r"should return 2 integers, one .* Found 1 from",
        ),
        ({"allocation": Allocates([240.0, 0.0])}, TypeError, r"Found \[240.0, 0.0\] from Allocates.kept\(\)"),
        (
            {"allocation": Protects(torch.ones(480))},
            TypeError,
            r"480 units are protected, .* Protects.prot",
        ),
        ({"schedule": Falls(None)}, TypeError, r"`schedule` should return a list .* Found None from Falls"),
        (
            {"pattern": Bounds(None)},
            TypeError,
            r"`pattern` should return a list .* Found None from Bounds.le",
        ),
        *(({"pattern": Groups(answer)}, kind, message) for answer, kind, message in unit_answers()),
    ],
)
def test_answers_of_another_kind_name_the_object(arguments, kind: type[Exception], message: str):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(kind, match=message):
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
