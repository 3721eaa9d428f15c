"""Budget search: never over the budget, no worse than one level for all, and cheap to score."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from models import Batch, batches, cross_entropy, same_state, snapshot, trained_classifier
from torch import nn

import mfac
from mfac.layerwise.spdy import SearchResult
from mfac.layerwise.stitched import StitchedModel

LEVELS = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9]
DATA = batches(4, size=64, seed=100)


def deep_classifier() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(12, 24)]
    for _ in range(4):
        layers += [nn.ReLU(), nn.Linear(24, 24)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for batch in batches(200, size=64, seed=100):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Sequential, mfac.LayerDatabase]:
    model = deep_classifier()
    folder = tmp_path_factory.mktemp("deep")
    return model, mfac.LayerDatabase.build(model, [x for x, _ in DATA], LEVELS, folder=folder)


def loss(model: nn.Module, data: list[Batch] = DATA) -> float:
    with torch.no_grad():
        return sum(float(cross_entropy(model, batch)) for batch in data) / len(data)


def cost(costs: dict[str, dict[float, float]], profile: dict[str, float]) -> float:
    return sum(costs[layer][level] for layer, level in profile.items())


@pytest.mark.parametrize("level", [0.5, 0.7, 0.8])
def test_no_worse_than_one_level_for_all(deep: tuple[nn.Sequential, mfac.LayerDatabase], level: float):
    model, database = deep
    costs = database.costs("flops", model, torch.zeros(1, 12))
    uniform = dict.fromkeys(database.layers, level)
    budget = cost(costs, uniform)
    dense = snapshot(model)
    try:
        database.stitch(uniform, model)
        at_one_level = loss(model)
        found = mfac.spdy_search(database, costs, budget, cross_entropy, DATA, model=model, starts=30, failures=10)
        assert found.cost == cost(costs, found.profile) <= budget
        assert found.loss <= at_one_level
        assert found.loss < 0.9 * at_one_level or level == 0.5  # layers differ, so that a choice helps
        assert found.loss == loss(model)  # the model has the profile
        assert all(torch.equal(model.get_parameter(n), database.load(n, s)) for n, s in found.profile.items())
        assert all(torch.equal(found.masks[n], database.mask(n, s)) for n, s in found.profile.items())
    finally:
        model.load_state_dict(dense)


def search(deep: tuple[nn.Sequential, mfac.LayerDatabase], budget: float, **options: object) -> SearchResult:
    model, database = deep
    return mfac.spdy_search(
        database, options.pop("costs", "bytes"), budget, cross_entropy, DATA, model=model, apply=False, **options
    )


def test_never_over_the_budget_whatever_the_costs(deep: tuple[nn.Sequential, mfac.LayerDatabase]):
    _, database = deep
    generator = random.Random(0)
    for seed in range(6):  # of no order at all
        costs = {layer: {level: generator.random() for level in LEVELS} for layer in database.layers}
        least = sum(min(of_layer.values()) for of_layer in costs.values())
        budget = least * (1 + generator.random())
        found = search(deep, budget, costs=costs, seed=seed, starts=5, failures=2)
        assert cost(costs, found.profile) == found.cost <= budget
        assert list(found.profile) == database.layers
    assert search(deep, least, costs=costs, starts=2, failures=1).cost == least


def test_costs_by_function_and_some_levels_only(deep: tuple[nn.Sequential, mfac.LayerDatabase]):
    _, database = deep
    by_function = search(deep, 3.0, costs=lambda _, level: 1 - level, starts=5, failures=2)
    costs = {layer: {level: 1 - level for level in LEVELS} for layer in database.layers}
    assert by_function.profile == search(deep, 3.0, costs=costs, starts=5, failures=2).profile
    few = {layer: {level: 1 - level for level in (0.5, 0.9)} for layer in database.layers}
    assert set(search(deep, 2.5, costs=few, starts=5, failures=2).profile.values()) <= {0.5, 0.9}


def test_measured_errors_need_one_evaluation(deep: tuple[nn.Sequential, mfac.LayerDatabase]):
    _, database = deep
    costs = database.costs("bytes")
    found = search(deep, 3000.0, errors="measured")
    assert found.evaluations == 1
    assert found.profile == mfac.allocate(database.errors, costs, 3000.0)
    assert search(deep, 3000.0, starts=5, failures=2).loss <= found.loss


def test_a_seed_decides(deep: tuple[nn.Sequential, mfac.LayerDatabase]):
    one, two = (search(deep, 3000.0, seed=3, starts=5, failures=3) for _ in range(2))
    assert (one.profile, one.loss, one.evaluations) == (two.profile, two.loss, two.evaluations)


def test_the_model_is_as_it_was_where_asked_or_where_the_loss_raises(
    deep: tuple[nn.Sequential, mfac.LayerDatabase],
):
    model, database = deep
    before = snapshot(model)
    model.train()
    search(deep, 3000.0, starts=3, failures=1)
    assert same_state(model, before) and model.training
    calls = []

    def failing(model: nn.Module, batch: Batch) -> torch.Tensor:
        assert not model.training
        calls.append(1)
        if len(calls) > 7:
            raise RuntimeError("no more")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="no more"):
        mfac.spdy_search(database, "bytes", 3000.0, failing, DATA, model=model)
    assert same_state(model, before)
    with pytest.raises(ValueError, match=r"`loss_fn` should return finite losses"):
        mfac.spdy_search(
            database,
            "bytes",
            3000.0,
            lambda model, _: torch.tensor(float("nan")),
            DATA,
            model=model,
            starts=1,
            failures=1,
        )
    assert same_state(model, before)


@pytest.mark.parametrize("layers", [1, 2])
def test_few_layers(layers: int, tmp_path: Path):
    model = trained_classifier(steps=30)
    params = ["0.weight", "2.weight"][:layers]
    database = mfac.LayerDatabase.build(model, [x for x, _ in DATA], LEVELS, folder=tmp_path, params=params)
    costs = database.costs("bits")
    budget = 0.5 * sum(of_layer[0.0] for of_layer in costs.values())
    found = mfac.spdy_search(database, "bits", budget, cross_entropy, DATA, model=model, starts=40, failures=10)
    assert found.cost <= budget
    losses = []
    for chosen in itertools.product(LEVELS, repeat=layers):
        profile = dict(zip(database.layers, chosen, strict=True))
        if cost(costs, profile) <= budget:
            database.stitch(profile, model)
            losses.append(loss(model))
    assert found.loss == min(losses) and found.evaluations == len(losses)


def test_an_impossible_budget_says_what_is_possible(deep: tuple[nn.Sequential, mfac.LayerDatabase]):
    _, database = deep
    least = sum(min(of_layer.values()) for of_layer in database.costs("bytes").values())
    with pytest.raises(
        ValueError, match=rf"`budget` should be at least {least:g}, what the cheapest levels cost. Found 9"
    ):
        search(deep, 9.0)
    with pytest.raises(ValueError, match=r"`costs` should have the layers of the database"):
        search(deep, 9.0, costs={"0.weight": {0.5: 1.0}})
    with pytest.raises(ValueError, match=r"`costs` should have levels of '0.weight' in the database, .* Found 0.55"):
        search(deep, 9.0, costs={layer: {0.55: 1.0} for layer in database.layers})
    with pytest.raises(TypeError, match=r"`costs` should be a table, a function or a unit. Found int"):
        search(deep, 9.0, costs=3)
    with pytest.raises(ValueError, match=r"`errors` should be 'prior' or 'measured'"):
        search(deep, 9.0, errors="guessed")


def test_only_layers_that_change_are_written_and_little_is_held(
    deep: tuple[nn.Sequential, mfac.LayerDatabase], monkeypatch: pytest.MonkeyPatch
):
    model, database = deep
    before = snapshot(model)
    one = 24 * 24 * 4
    stitched = StitchedModel(database, model, database.layers, cache_bytes=5 * one)
    stitched.write(dict.fromkeys(database.layers, 0.5))
    assert stitched.written == 6
    stitched.write({**dict.fromkeys(database.layers, 0.5), "4.weight": 0.9})
    assert stitched.written == 7
    loads = []
    load = database.load
    monkeypatch.setattr(database, "load", lambda *given: loads.append(given) or load(*given))
    stitched.write({"4.weight": 0.5})  # of the last few
    assert not loads
    stitched.write({"0.weight": 0.9, "2.weight": 0.9})
    stitched.write({"0.weight": 0.5})  # long gone
    assert ("0.weight", 0.5) in loads
    assert stitched._held == sum(weight.nbytes for weight in stitched._cache.values()) <= 5 * one
    stitched.restore()
    assert same_state(model, before)


def test_levels_with_words_for_names(tmp_path: Path):
    model = trained_classifier(steps=30)
    levels = [0.0, "8bit", "2:4 8bit", "4bit", "2:4 4bit"]
    database = mfac.LayerDatabase.build(model, [x for x, _ in DATA], levels, folder=tmp_path)
    dense = sum(of_layer[0.0] for of_layer in database.costs("bits").values())
    found = mfac.spdy_search(database, "bits", 0.3 * dense, cross_entropy, DATA, model=model, starts=10, failures=5)
    assert found.cost <= 0.3 * dense and set(found.profile.values()) <= set(levels)
