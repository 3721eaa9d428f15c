"""Loops of other kinds: L-BFGS, adversaries, shuffled data, gradients that are not finite."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset

import mfac
from mfac import recipes


def net(seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(seed: int, size: int = 32) -> tuple[Tensor, Tensor]:
    x = torch.randn(size, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1)


def loss_of(model: nn.Module, given: Any) -> Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1])


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
@pytest.mark.parametrize(
    "make", [lambda: recipes.GMP(0.8, end=12, every=3), lambda: recipes.RigL(0.6, end=12, every=3)], ids=["gmp", "rigl"]
)
def test_lbfgs_moves_no_dropped_weight_and_gets_on(make: Callable[[], recipes.Recipe], line_search: str | None):
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn=line_search)
    training = mfac.MaskedTraining(model, optimizer, make())
    seen, losses = 0.0, []

    def closure() -> Tensor:
        nonlocal seen
        optimizer.zero_grad()
        loss = loss_of(model, batch(0, 128))
        loss.backward()
        named = dict(model.named_parameters())
        seen = max([seen, *(float(named[name].detach()[~mask].abs().sum()) for name, mask in training.masks.items())])
        return loss

    for _ in range(30):
        losses.append(float(optimizer.step(closure).detach()))
    assert seen == 0 and max(losses[15:]) < losses[0] / 4


def test_snip_wants_the_gradients_of_all_networks_before_one_steps():
    first, second = net(0), net(1)
    model = nn.ModuleDict({"first": first, "second": second})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (first, second)]
    mfac.MaskedTraining(model, optimizers, recipes.SNIP(0.8))
    loss_of(first, batch(0)).backward()
    with pytest.raises(ValueError, match=r"Found none of \['second.0.weight', 'second.2.weight'\], of optimizer 1"):
        optimizers[0].step()
    loss_of(second, batch(0)).backward()
    optimizers[0].step()


def test_gradients_taken_for_a_change_to_come_are_in_the_state():
    def start(parts: Any = None) -> tuple[nn.ModuleDict, list[torch.optim.Optimizer], mfac.MaskedTraining]:
        model = nn.ModuleDict({"first": net(0), "second": net(1)})
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(model[name].parameters(), lr=0.01) for name in ("first", "second")
        ]
        training = mfac.MaskedTraining(model, optimizers, recipes.RigL(0.5, end=8, every=2))
        if parts is not None:
            model.load_state_dict(parts[0])
            for optimizer, state in zip(optimizers, parts[1], strict=True):
                optimizer.load_state_dict(state)
            training.load_state_dict(parts[2])
        return model, optimizers, training

    def half(model: nn.ModuleDict, optimizers: list[torch.optim.Optimizer], number: int, t: int) -> None:
        part = model[("first", "second")[number]]
        optimizers[number].zero_grad()
        loss_of(part, batch(2 * t + number)).backward()
        optimizers[number].step()

    model, optimizers, training = start()
    saved: dict[tuple[int, int], Any] = {}
    for t in range(10):
        for number in (0, 1):
            half(model, optimizers, number, t)
            parts = (model.state_dict(), [o.state_dict() for o in optimizers], training.state_dict())
            saved[t, number] = through_a_file(parts)
    for (t, number), parts in saved.items():
        again, others, resumed = start(parts)
        for later in [(u, n) for u in range(10) for n in (0, 1) if (u, n) > (t, number)]:
            half(again, others, later[1], later[0])
        assert resumed.masks == training.masks, (t, number)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("stop", [2, 3, 5, 8])
def test_data_that_is_shuffled_by_torchs_own_numbers_goes_on_where_it_was(stop: int):
    examples = TensorDataset(*batch(9, 64))

    def start() -> tuple[nn.Module, torch.optim.Optimizer, mfac.MaskedTraining]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        recipe = recipes.GMP(0.8, end=9, every=2, saliency="obs")
        before = torch.get_rng_state()
        more = {"loss_fn": loss_of, "data": DataLoader(examples, 4, shuffle=True), "num_gradients": 4}
        training = mfac.MaskedTraining(model, optimizer, recipe, **more)
        assert torch.equal(torch.get_rng_state(), before)
        return model, optimizer, training

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for t in steps:
            optimizer.zero_grad()
            loss_of(model, batch(t)).backward()
            optimizer.step()

    model, optimizer, training = start()
    go(model, optimizer, range(stop))
    parts = through_a_file((model.state_dict(), optimizer.state_dict(), training.state_dict()))
    go(model, optimizer, range(stop, 12))
    again, other, resumed = start()
    again.load_state_dict(parts[0])
    other.load_state_dict(parts[1])
    torch.manual_seed(77)  # as another process has it
    resumed.load_state_dict(parts[2])
    go(again, other, range(stop, 12))
    assert resumed.masks == training.masks
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_dropped_weights_whose_gradient_is_not_finite_do_not_come_back():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.5, end=12, every=2), params=["0.weight"])
    for t in range(12):
        optimizer.zero_grad()
        loss_of(model, batch(t)).backward()
        dropped = ~training.masks["0.weight"]
        model[0].weight.grad[dropped] = torch.where(torch.arange(int(dropped.sum())) % 3 == 0, torch.nan, 1.0)
        optimizer.step()
        assert int(training.masks["0.weight"].sum()) == 48
    assert bool(torch.isfinite(model[0].weight).all())


@pytest.mark.parametrize("recipe", [recipes.RigL(0.5, end=8, every=4), recipes.ACDC(0.5, end=20, phase=4)])
def test_weights_that_are_not_finite_are_named_at_the_change(recipe: recipes.Recipe):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(model, optimizer, recipe)
    with torch.no_grad():
        model[2].weight[:] = torch.where(training.masks["2.weight"], torch.nan, 0.0)
    with pytest.raises(ValueError, match=r"Weights should be finite at the change after step \d+.*\['2.weight'\]"):
        for _ in range(20):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()


def test_masks_of_torch_prune_start_a_training_under_the_names_that_it_gives():
    model = net()
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    masks = mfac.Masks.from_torch_prune(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = mfac.MaskedTraining(model, optimizer, recipes.Static(), masks=masks)
    assert int(training.masks["0.weight_orig"].sum()) == 48


def test_keys_that_are_no_names_leave_no_hook():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"`keep_state` should be a list of names. Found 3"):
        mfac.MaskedTraining(model, optimizer, recipes.GMP(0.5, end=4), keep_state=3)  # type: ignore[arg-type]
    assert not optimizer._optimizer_step_pre_hooks


def test_a_cut_at_each_of_a_million_steps_costs_no_list_of_them():
    recipe = recipes.GMP(0.5, end=10**6)
    assert [recipe.when.number(step) for step in (1, 2, 10**6)] == [0, 1, 10**6 - 1]
    assert recipe.when.events()[41] == 42


def test_groups_of_cram_are_those_of_its_base_after_a_load():
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = mfac.CrAM(base)
    base.load_state_dict(base.state_dict())
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state


def test_cram_leaves_a_tied_embedding_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11, bias=False))
    model[3].weight = model[0].weight
    optimizer = mfac.CrAM(torch.optim.SGD(model.parameters(), lr=0.1), sparsities=(0.9,))
    zeros: list[list[int]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        zeros.append([int((p == 0).sum()) for p in model.parameters()])
        loss = nn.functional.cross_entropy(model(torch.arange(11)), torch.arange(11))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert zeros[1][0] == 0 and zeros[1][1] > 50


def test_cram_refuses_what_steps_by_a_closure():
    with pytest.raises(TypeError, match=r"without a closure. Found LBFGS"):
        mfac.CrAM(torch.optim.LBFGS(net().parameters()))
