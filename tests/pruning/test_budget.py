"""Budgets: the dynamic programme against trying everything, and runs that keep to a budget."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import batches, classifier, cross_entropy

import mfac

numbers = st.integers(0, 1000).map(lambda tenths: tenths / 10)
tables = st.integers(1, 4).flatmap(
    lambda layers: st.lists(
        st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=layers, max_size=layers
    )
)


@given(tables, st.floats(0, 1.2))
def test_the_choice_is_the_best_that_fits(entries: list[list[tuple[float, float]]], share: float):
    errors = {f"l{i}": {j / 10: e for j, (e, _) in enumerate(of_layer)} for i, of_layer in enumerate(entries)}
    costs = {f"l{i}": {j / 10: c for j, (_, c) in enumerate(of_layer)} for i, of_layer in enumerate(entries)}
    low = sum(min(of_layer.values()) for of_layer in costs.values())
    high = sum(max(of_layer.values()) for of_layer in costs.values())
    budget = low + share * (high - low)
    chosen = mfac.allocate(errors, costs, budget)
    assert list(chosen) == list(errors)

    def total(table: dict[str, dict[float, float]], levels: dict[str, float]) -> float:
        return sum(table[layer][level] for layer, level in levels.items())

    assert total(costs, chosen) <= budget * (1 + 1e-12)
    every = [dict(zip(errors, levels, strict=True)) for levels in itertools.product(*errors.values())]
    tighter = budget - (budget - low) * len(errors) / 10_000  # one bucket a layer
    best = min(total(errors, levels) for levels in every if total(costs, levels) <= max(tighter, low))
    assert total(errors, chosen) <= best * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(200))
def test_whole_costs_with_a_bucket_each_give_the_best_choice(seed: int):
    generator = random.Random(seed)
    layers = {f"l{i}": range(generator.randint(1, 4)) for i in range(generator.randint(1, 4))}
    errors = {layer: {f"{level}bit": generator.random() for level in levels} for layer, levels in layers.items()}
    costs = {layer: {level: generator.randint(0, 30) for level in of_layer} for layer, of_layer in errors.items()}
    least = sum(min(of_layer.values()) for of_layer in costs.values())
    budget = least + generator.randint(1, 40)

    def total(table: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> float:
        return sum(table[layer][level] for layer, level in chosen.items())

    chosen = mfac.allocate(errors, costs, budget, buckets=budget - least)
    every = [dict(zip(errors, levels, strict=True)) for levels in itertools.product(*errors.values())]
    assert total(costs, chosen) <= budget
    assert chosen == min((one for one in every if total(costs, one) <= budget), key=lambda one: total(errors, one))


def test_what_cannot_be_is_refused():
    errors, costs = {"a": {0.0: 0.0, 0.5: 1.0}}, {"a": {0.0: 10.0, 0.5: 5.0}}
    with pytest.raises(ValueError, match=r"`budget` should be at least 5, what the cheapest levels cost. Found 4"):
        mfac.allocate(errors, costs, 4.0)
    with pytest.raises(ValueError, match=r"`costs` should have the layers of `errors`, \['a'\]. Found \['b'\]"):
        mfac.allocate(errors, {"b": costs["a"]}, 10.0)
    with pytest.raises(ValueError, match=r"`costs` should have the levels of `errors` for 'a'"):
        mfac.allocate(errors, {"a": {0.0: 10.0}}, 10.0)
    with pytest.raises(ValueError, match=r"`errors\['a'\]\[0\]` should be finite"):
        mfac.allocate({"a": {0.0: float("nan"), 0.5: 1.0}}, costs, 10.0)
    with pytest.raises(ValueError, match=r"`costs\['a'\]\['2:4'\]` should be finite and >= 0. Found -1"):
        mfac.allocate({"a": {0.0: 0.0, "2:4": 1.0}}, {"a": {0.0: 1.0, "2:4": -1.0}}, 10.0)


LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9)


@pytest.mark.parametrize("saliency", ["magnitude", "obs", "greedy"])
@pytest.mark.parametrize("pattern", ["unstructured", "1x4"])
def test_a_run_ends_within_its_budget(saliency: str, pattern: str):
    costs = {name: {s: (1 - s) * price for s in LEVELS} for name, price in (("0.weight", 384), ("2.weight", 10 * 96))}
    allocation = mfac.Budget(costs, budget=600)
    report = mfac.prune(
        classifier(),
        cross_entropy,
        batches(30),
        saliency=saliency,
        pattern=pattern,
        allocation=allocation,
        num_gradients=24,
        stages=2,
        recomputations=2,
    )
    assert allocation.chosen is not None
    spent = sum(costs[name][level] for name, level in allocation.chosen.items())
    assert spent <= 600
    for name, level in allocation.chosen.items():
        assert report.sparsity_by_parameter[name] == pytest.approx(level, abs=4 / 96)


def test_a_budget_decides_the_sparsity_and_knows_every_weight():
    costs = {"0.weight": {0.0: 4.0, 0.5: 2.0}, "2.weight": {0.0: 4.0, 0.5: 2.0}}
    with pytest.raises(ValueError, match=r"`sparsity` should be left out where `allocation` is a budget"):
        mfac.prune(classifier(), cross_entropy, batches(30), sparsity=0.5, allocation=mfac.Budget(costs, 6))
    del costs["2.weight"]
    with pytest.raises(ValueError, match=r"`costs` should have the weights that are pruned"):
        mfac.prune(classifier(), cross_entropy, batches(30), allocation=mfac.Budget(costs, 6))
