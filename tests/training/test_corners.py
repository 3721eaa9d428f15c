"""Corners: optimizers out of step, wrapped, empty, sparse; copies; errors that came late."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac import recipes


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


def backward(model: nn.Module, scale: float = 1.0) -> None:
    (model(torch.randn(5, 6)).square().mean() * scale).backward()


def sgd(parameters: Any, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("skip", [lambda i: i == 1, lambda i: i % 3 != 2])
@pytest.mark.parametrize("recipe", [recipes.RigL(0.5, end=20, every=5), recipes.SNFS(0.5, every=5)])
def test_optimizers_may_be_out_of_step(recipe: recipes.Recipe, skip: Callable[[int], bool]):
    model = net()
    first, second = sgd(model[0].parameters()), sgd(model[2].parameters())
    training = mfac.MaskedTraining(model, [first, second], recipe)
    for i in range(40):
        model.zero_grad()
        backward(model)
        first.step()
        if not skip(i):
            second.step()
    assert training.steps == sum(not skip(i) for i in range(40))
    assert len(training.changes) > 2
    for key, mask in training.masks.items():
        assert not bool(model.get_parameter(key)[~mask].any())


def test_a_window_within_cram_has_columns_of_kept_weights():
    model = net()
    optimizer = mfac.CrAM(mfac.MFAC(model.parameters(), rank=8))
    training = mfac.MaskedTraining(model, optimizer, recipes.GMP(0.6, end=6, every=3, saliency="obs"))
    for _ in range(10):
        x = torch.randn(5, 6)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    held = optimizer.held_gradients()[model[0].weight].view(-1, 7, 6)
    assert not bool(held[:, ~training.masks["0.weight"]].any())
    assert training.sparsity == pytest.approx(0.6, abs=0.01)


def test_a_recipe_may_write_into_the_masks_it_is_given():
    class Mine(recipes.Recipe):
        def is_due(self, step: int) -> bool:
            return step == 2

        def change(self, context: recipes.ChangeContext) -> Tensor:
            context.kept[:10] = False
            return context.kept

    model = net()
    optimizer = sgd(model.parameters())
    training = mfac.MaskedTraining(model, optimizer, Mine())
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    assert int((model[0].weight == 0).sum()) == 10 == training.changes[-1].dropped


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("make", [lambda: recipes.RigL(0.5, every=5), lambda: recipes.GMP(0.5, end=1)])
def test_empty_parameters_take_no_weights(make: Callable[[], recipes.Recipe]):
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 3), nn.Linear(3, 3))
    optimizer = sgd(model.parameters())
    training = mfac.MaskedTraining(model, optimizer, make())
    model[2].weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert sum(count.kept for count in training.masks.counts().values()) == 5


def test_a_gradient_that_an_optimizer_skips_is_in_no_average():
    model = net()
    optimizer = mfac.MFAC(model.parameters(), rank=4, nonfinite="skip")
    training = mfac.MaskedTraining(model, optimizer, recipes.SNFS(0.5, every=2))
    for i in range(6):
        optimizer.zero_grad()
        backward(model, float("nan") if i == 2 else 1.0)
        optimizer.step()
    assert all(bool(average.isfinite().all()) for average in training._progress.memory["momentum"])


def test_sparse_embeddings_with_momentum():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    optimizer = sgd(model.parameters())
    training = mfac.MaskedTraining(model, optimizer, recipes.Static(0.5), params=["0.weight"])
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randint(10, (5,))).sum().backward()
        optimizer.step()
        assert not bool(model[0].weight[~training.masks["0.weight"]].any())


def test_snip_chooses_before_any_of_several_optimizers_moves():
    found = []
    for several in (True, False):
        model = net()
        parts = [sgd(model[0].parameters(), 10.0), sgd(model[2].parameters(), 10.0)]
        optimizers = parts if several else [sgd(model.parameters(), 10.0)]
        training = mfac.MaskedTraining(model, optimizers, recipes.SNIP(0.5))
        torch.manual_seed(1)
        backward(model)
        for optimizer in optimizers:
            optimizer.step()
        found.append(training.masks)
    assert found[0] == found[1]


def test_snip_without_gradients_is_refused():
    model = net()
    optimizer = sgd(model.parameters())
    mfac.MaskedTraining(model, optimizer, recipes.SNIP(0.5))
    with pytest.raises(ValueError, match="should have gradients"):
        optimizer.step()


def test_windows_that_cannot_serve_are_refused_at_once():
    model = net()
    recipe = recipes.GMP(0.8, begin=8, end=10, saliency="obs")
    groups = [{"params": model[0].parameters(), "rank": 4}, {"params": model[2].parameters(), "rank": 6}]
    with pytest.raises(ValueError, match=r"windows of ranks \[4, 6\]"):
        mfac.MaskedTraining(model, mfac.MFAC(groups), recipe)
    part = [mfac.MFAC(model[0].parameters()), sgd(model[2].parameters())]
    with pytest.raises(ValueError, match=r"no window for \['2\.weight'\]"):
        mfac.MaskedTraining(model, part, recipe)


def test_parts_of_ones_own_are_compared_on_load():
    class Rate:
        def __init__(self, share: float) -> None:
            self.share = share

        def __call__(self, step: int) -> float:
            return self.share

    def training(share: float) -> mfac.MaskedTraining:
        model = net()
        drop = recipes.ShareOfLive(Rate(share))
        parts = (recipes.Every(2), drop, recipes.Random(), recipes.SameLayer(), recipes.RandomMasks(0.5))
        return mfac.MaskedTraining(model, sgd(model.parameters()), recipes.Exchange(*parts))

    training(0.1).load_state_dict(training(0.1).state_dict())
    with pytest.raises(ValueError, match=r"recipe\.drop\.rate\.share is 0\.9, not 0\.1"):
        training(0.9).load_state_dict(training(0.1).state_dict())


def test_copies_of_cram_go_on_and_copies_of_a_training_are_refused():
    model = net()
    optimizer = mfac.CrAM(sgd(model.parameters()))
    other, copied = copy.deepcopy((model, optimizer))

    def closure() -> Tensor:
        copied.zero_grad()
        loss = other(torch.ones(1, 6)).square().sum()
        loss.backward()
        return loss

    copied.step(closure)
    assert not torch.equal(model[0].weight, other[0].weight)
    training = mfac.MaskedTraining(model, optimizer, recipes.Static(0.5))
    with pytest.raises(TypeError, match="make another for the copies"):
        copy.deepcopy(training)


def test_cram_of_vectors_alone_is_plain():
    parameter = nn.Parameter(torch.ones(5))
    optimizer = mfac.CrAM(torch.optim.SGD([parameter], lr=0.1), rho=0.0, plus=False)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(parameter, torch.full((5,), 0.8))


def test_masks_of_other_types_and_removed_handles_are_refused():
    model = net()
    optimizer = sgd(model.parameters())
    masks = mfac.Masks({"0.weight": torch.rand(7, 6) > 0.5})
    handle = masks.attach(model, optimizer)
    before = model[0].weight.detach().clone()
    with pytest.raises(TypeError, match="bool"):
        handle.change({"0.weight": masks["0.weight"].long()})
    assert torch.equal(model[0].weight, before)
    handle.remove()
    with pytest.raises(RuntimeError, match="attach them again"):
        handle.change(masks)


def test_tickets_rewind_to_weights_that_were_loaded_after_the_start():
    model = net()
    optimizer = sgd(model.parameters())
    training = mfac.MaskedTraining(model, optimizer, recipes.LotteryTicket(rounds=1, round_steps=4))
    loaded = {key: torch.full_like(value, 9.0) for key, value in model.state_dict().items()}
    model.load_state_dict(loaded)
    for _ in range(4):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
    for key, value in model.state_dict().items():
        kept = training.masks.get(key, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, loaded[key] * kept)


def test_sparsities_that_contradict_are_refused():
    model = net()
    with pytest.raises(ValueError, match="what the sparsities of `allocation` make together"):
        mfac.MaskedTraining(model, sgd(model.parameters()), recipes.RigL(0.9, every=2, allocation={"*": 0.5}))
    with pytest.raises(TypeError, match="Found NoneType"):
        mfac.MaskedTraining(model, None, recipes.RigL(0.9, every=2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Found none"):
        mfac.MaskedTraining(model, [], recipes.RigL(0.9, every=2))
