"""A training that stops at any step and goes on elsewhere ends with the same bits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

import mfac
from mfac import recipes
from tests.training.loops import OPTIMIZERS, RECIPES, STEPS, data, loss_of, network, trained


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def from_step(step: int) -> Iterator[Any]:
    return islice(data(STEPS), step, None)


CASES = [(name, optimizer, "model first") for name in RECIPES for optimizer in ("adamw", "mfac")] + [
    (name, optimizer, order)
    for name in ("acdc", "rigl", "lottery")
    for optimizer in OPTIMIZERS
    for order in ("training first", "training last")
]


@pytest.mark.parametrize(("name", "optimizer", "order"), CASES)
def test_goes_on_bit_by_bit_from_any_step(name: str, optimizer: str, order: str):
    def start(seed: int, parts: dict[str, Any] | None = None) -> tuple[Any, Any, mfac.MaskedTraining]:
        model = network(seed)
        made = OPTIMIZERS[optimizer](model.parameters())
        if parts is not None:  # all is loaded before masks are made
            model.load_state_dict(parts["model"])
            made.load_state_dict(parts["optimizer"])
        return model, made, mfac.MaskedTraining(model, made, RECIPES[name](STEPS), seed=seed)

    model, made, training = start(0)
    stops = {17, 73} if order == "model first" else {36}
    saved = {}

    def keep() -> None:
        if training.steps in stops:
            parts = {"model": model.state_dict(), "optimizer": made.state_dict(), "masks": training.state_dict()}
            saved[training.steps] = through_a_file(parts)

    trained(model, made, data(STEPS), keep)
    for step, parts in saved.items():
        again, other, resumed = start(0 if name == "static" else 5, parts if order == "training last" else None)
        if order == "training first":
            resumed.load_state_dict(parts["masks"])
        if order != "training last":
            again.load_state_dict(parts["model"])
            other.load_state_dict(parts["optimizer"])
        if order != "training first":
            resumed.load_state_dict(parts["masks"])
        trained(again, other, from_step(step))
        assert resumed.masks == training.masks
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (step, key)
        assert [vars(change) for change in resumed.changes] == [vars(change) for change in training.changes]


def test_collected_gradients_go_on_where_they_were():
    def start() -> tuple[nn.Module, torch.optim.Optimizer, mfac.MaskedTraining]:
        model = network()
        made = torch.optim.SGD(model.parameters(), lr=0.05)
        recipe = recipes.GMP(0.8, end=60, every=7, saliency="obs")
        more = {"loss_fn": loss_of, "data": list(data(11, 9)), "num_gradients": 4}
        return model, made, mfac.MaskedTraining(model, made, recipe, **more)

    model, made, training = start()
    saved: dict[str, Any] = {}

    def keep() -> None:
        if training.steps == 30:
            parts = {"model": model.state_dict(), "optimizer": made.state_dict(), "masks": training.state_dict()}
            saved.update(through_a_file(parts))

    trained(model, made, data(STEPS), keep)
    again, other, resumed = start()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["masks"])
    trained(again, other, from_step(30))
    assert resumed.masks == training.masks
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())


def training_with(recipe: recipes.Recipe, model: nn.Module | None = None, **more: Any) -> mfac.MaskedTraining:
    model = network() if model is None else model
    return mfac.MaskedTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), recipe, **more)


def test_another_recipe_is_refused_by_what_differs():
    state = training_with(recipes.RigL(0.8, end=100, every=10)).state_dict()
    for recipe, found in (
        (recipes.RigL(0.8, end=90, every=10), "recipe.drop.rate.end is 90, not 100"),
        (recipes.RigL(0.9, end=100, every=10), "recipe.first.sparsity is 0.9, not 0.8"),
        (recipes.SET(0.8, end=100, every=10), "recipe is SET, not RigL"),
        (recipes.RigL(0.8, end=100, every=10, saliency="obd"), "recipe.drop.saliency is OBD, not Magnitude"),
    ):
        more: dict[str, Any] = {"loss_fn": loss_of, "data": list(data(2))}
        training = training_with(recipe, **more)
        before = training.masks
        with pytest.raises(ValueError, match=found):
            training.load_state_dict(state)
        assert training.masks == before


def test_other_parameters_are_refused():
    recipe = recipes.GMP(0.8, end=100)
    state = training_with(recipe).state_dict()
    with pytest.raises(ValueError, match=r"masks of this training's parameters\. Found others: '0\.weight'"):
        training_with(recipe, nn.Sequential(nn.Linear(4, 4))).load_state_dict(state)
    with pytest.raises(KeyError):
        training_with(recipe).load_state_dict({"version": 1})
    with pytest.raises(ValueError, match="version 1"):
        training_with(recipe).load_state_dict({**state, "version": 2})
