"""A gradient that no window can hold: nothing is stored or moved, and the error says where."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from device import look
from optim.runs import FORMATS, OF_RULES, Bag, Kind, Run, assert_same, give_gradients
from torch import nn

import mfac

BAD = (float("nan"), float("inf"), -float("inf"))
KINDS = [Kind(r, *f, torch.bfloat16, "stochastic") for r, f in itertools.product(OF_RULES, FORMATS)]


def poisoned(run: Run, t: int, value: float) -> None:
    """Gradients of which one, in the last group, has a bad entry."""
    give_gradients(run.model, t)
    run.model.last.grad[1, 2] = value


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("groups", "nonfinite"), [(1, "raise"), (2, "raise"), (2, "skip")])
def test_nothing_changes_and_the_run_goes_on_as_if_it_had_not_been(kind: Kind, groups: int, nonfinite: str):
    run = Run(kind, groups=groups, nonfinite=nonfinite)
    calm = Run(kind, groups=groups)
    for t, value in enumerate(BAD, start=2):
        run.go(t, 2 if t == 2 else 1)
        calm.go(t, 2 if t == 2 else 1)
        before = run.everything()
        poisoned(run, t, value)
        if nonfinite == "skip":
            run.opt.step()
        else:
            with pytest.raises(ValueError, match=r"`gradient` should be finite. Found a NaN or infinity"):
                run.opt.step()
                look(run.opt.windows[-1])
        run.opt.zero_grad()
        assert_same(before, run.everything())
    assert_same(calm.go(9, 3).everything(), run.go(9, 3).everything())


@pytest.mark.parametrize("rule", OF_RULES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_first_gradient_that_is_not_finite_leaves_nothing(rule: str, groups: int, nonfinite: str):
    run, calm = (Run(Kind(rule), groups=groups, nonfinite=nonfinite) for _ in range(2))
    poisoned(run, 0, float("nan"))
    if nonfinite == "skip":
        run.opt.step()
    else:
        with pytest.raises(ValueError, match="finite"):
            run.opt.step()
    assert all(window.num_filled == 0 for window in run.opt.windows)
    assert_same(calm.go(0, 4).everything(), run.go(0, 4).everything())


@pytest.mark.cpu_only("elsewhere the next step reports it")
@pytest.mark.parametrize("groups", [1, 2])
def test_the_error_names_the_parameter(groups: int):
    model = Bag()
    names = [name for name, _ in model.named_parameters()]
    halves = [names] if groups == 1 else [names[:2], names[2:]]
    for named in (False, True):
        params: Any = [
            {"params": [(n, getattr(model, n)) if named else getattr(model, n) for n in half]} for half in halves
        ]
        opt = mfac.MFAC(params, rank=3)
        give_gradients(model, 0)
        model.bias.grad[3] = torch.nan
        model.scale.grad.fill_(torch.inf)
        with pytest.raises(ValueError, match="finite") as error:
            opt.step()
        text = str(error.value)
        if named:
            assert "'bias'" in text and "'scale'" in text and "'wide'" not in text and "'last'" not in text
        else:
            assert "number 1, shape [6]" in text and "shape []" in text
        assert groups == 1 or ("in group 0" in text and "in group 1" in text)


@pytest.mark.cpu_only("elsewhere the next step reports it")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_an_entry_out_of_the_windows_range_is_one_too(groups: int, density: float, nonfinite: str):
    parameters = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    params: Any = [{"params": [("calm", parameters[0])]}, {"params": [("large", parameters[1])]}]
    if groups == 1:
        params = [("calm", parameters[0]), ("large", parameters[1])]
    options = {"window_dtype": torch.float16, "density": density, "nonfinite": nonfinite, "rule": "leave_one_out"}
    opt = mfac.MFAC(params, rank=3, **options)
    parameters[0].grad, parameters[1].grad = torch.ones(5), torch.tensor([1.0, 1e6, 0, 0, 0])
    if nonfinite == "skip":
        opt.step()
    else:
        message = r"Found an entry of 1e\+06, which a window of torch.float16 cannot hold.* parameter 'large'"
        with pytest.raises(ValueError, match=message):
            opt.step()
    assert all(torch.equal(p, torch.ones(5)) for p in parameters)
    assert all(window.num_filled == 0 for window in opt.windows)
    if density < 1:
        assert all(not bool(window.format.error.any()) for window in opt.windows)
    parameters[1].grad = torch.full((5,), 65504.0)  # the largest of float16
    opt.step()
    assert all(window.num_filled == 1 for window in opt.windows)


def test_a_skipped_step_returns_the_loss_and_runs_its_hooks():
    p = nn.Parameter(torch.ones(3))
    opt = mfac.MFAC([p], rank=2, nonfinite="skip")
    calls: list[int] = []
    opt.register_step_post_hook(lambda *args: calls.append(1))
    p.grad = torch.full((3,), torch.nan)
    assert opt.step(lambda: 4.0) == 4.0 and calls == [1]


def test_weights_that_are_not_finite_are_found_through_weight_decay():
    run = Run(Kind("paper"), weight_decay=0.1)
    run.model.wide.data[0, 0] = torch.nan
    give_gradients(run.model, 0)
    run.model.wide.grad = torch.ones(6, 12)
    with pytest.raises(ValueError, match=r"It is in the gradient of parameter number 0, shape \[6, 12\]"):
        run.opt.step()
        look(run.opt.windows[0])


def test_what_to_do_with_them_is_one_of_two():
    with pytest.raises(ValueError, match=r"`nonfinite` should be 'raise' or 'skip'. Found 'ignore'"):
        mfac.MFAC([nn.Parameter(torch.ones(2))], nonfinite="ignore")
