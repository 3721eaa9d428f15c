"""The engine beside loops of all kinds: scaled, closed over, accumulated, of several optimizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac import recipes
from tests.training.loops import data, loss_of, network, state_of, trained


def zeros_hold(training: mfac.MaskedTraining, model: nn.Module) -> bool:
    named = dict(model.named_parameters())
    return all(not bool(named[key][~mask].any()) for key, mask in training.masks.items())


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_of_a_scaler_does_not_count(fused: bool):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.8, every=2))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number, batch in enumerate(data(8)):
        optimizer.zero_grad()
        loss = scaler.scale(loss_of(model, batch))
        if number in (1, 4):
            loss = loss * float("inf")
        loss.backward()
        scaler.step(optimizer)
        scaler.update()
        training.step()
    assert training.steps == 6
    assert [change.step for change in training.changes] == [0, 2, 4, 6]
    assert zeros_hold(training, model)


@pytest.mark.parametrize("recipe", [recipes.RigL(0.8, every=2), recipes.SNIP(0.8), recipes.GMP(0.8, end=5, every=2)])
def test_a_step_that_mfac_skips_does_not_count(recipe: recipes.Recipe):
    model = network()
    optimizer = mfac.MFAC(model.parameters(), lr=1e-2, rank=4, nonfinite="skip")
    training = mfac.MaskedTraining(model, optimizer, recipe)
    for number, batch in enumerate(data(8)):
        optimizer.zero_grad()
        loss = loss_of(model, batch) * (float("nan") if number in (0, 4) else 1.0)
        loss.backward()
        optimizer.step()
        assert optimizer.skipped == (number in (0, 4))
    assert training.steps == 6
    assert {change.step for change in training.changes} <= set(range(7))
    assert (
        1 - sum(int(m.sum()) for m in training.masks.values()) / sum(m.numel() for m in training.masks.values()) > 0.79
    )
    assert zeros_hold(training, model)


def test_a_closure_shows_the_gradients_that_it_computes():
    model, other = network(), network()
    made = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, other)]
    pair = [mfac.MaskedTraining(m, o, recipes.RigL(0.8, every=3)) for m, o in zip((model, other), made, strict=True)]
    for batch in data(20):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            made[0].zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            return loss

        assert made[0].step(closure) is not None
    trained(other, made[1], data(20))
    assert pair[0].masks == pair[1].masks
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_accumulated_gradients_are_one_step():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(model, optimizer, recipes.GMP(0.8, end=6, every=2))
    for number, batch in enumerate(data(24), 1):
        loss_of(model, batch).backward()
        if number % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert training.steps == 6
    assert training.sparsity == pytest.approx(0.8, abs=1e-3)


def test_several_optimizers_are_one_training():
    model = network()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    muon, adam = torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)
    with pytest.raises(ValueError, match=r"Found none of \['0\.weight'\]"):
        mfac.MaskedTraining(model, muon, recipes.RigL(0.8, every=3))
    training = mfac.MaskedTraining(model, [muon, adam], recipes.RigL(0.8, every=3))
    for batch in data(12):
        model.zero_grad()
        loss_of(model, batch).backward()
        muon.step()
        assert training.step() is None
        adam.step()
        assert (training.step() is not None) == (training.steps % 3 == 0)
        assert zeros_hold(training, model)
    assert training.steps == 12
    for name, parameter in model.named_parameters():
        if name in training.masks:
            state = state_of(muon if parameter.dim() == 2 else adam, parameter)
            assert state
            assert not any(bool(value[~training.masks[name]].any()) for value in state)


def test_averages_are_of_every_optimizer_too():
    model = network()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    pair = [torch.optim.SGD(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)]
    training = mfac.MaskedTraining(model, pair, recipes.SNFS(0.8, every=4))
    for batch in data(8):
        model.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in pair:
            optimizer.step()
    assert [change.step for change in training.changes] == [0, 4, 8]
    assert all(bool(average.any()) for average in training._progress.memory["momentum"])


def test_schedulers_follow_a_rewound_training():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recipe = recipes.LotteryTicket(rounds=2, round_steps=10, rewind_step=2)
    training = mfac.MaskedTraining(model, optimizer, recipe)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.1 / (1 + training.position))
    rates: list[float] = []
    for batch in data(recipe.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        scheduler.step()
    first = [0.1 / (1 + step) for step in range(10)]
    assert rates == pytest.approx(first + first[2:] + first[2:])


def test_narrow_weights_and_channels_last():
    model = network().to(torch.bfloat16)
    model[0].to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.8, every=3))
    for x, y in data(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(torch.bfloat16)).float(), y).backward()
        optimizer.step()
        assert zeros_hold(training, model)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_wrappers_and_compiled_models_have_the_names_of_the_model():
    model = network()
    wrapped = nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(wrapped, optimizer, recipes.SET(0.8, every=2))
    trained(wrapped, optimizer, data(6))
    assert set(training.masks) == {"0.weight", "5.weight", "8.weight"}
    assert not any("mask" in key for key in model.state_dict())


def test_tied_weights_have_one_mask():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).tanh())

    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.8, every=2))
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    assert set(training.masks) == {"first.weight"}
    assert int((model.second.weight != 0).sum()) <= 13


def test_masks_do_not_go_with_weights_of_the_same_seed():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(6)))
    sizes = [p.detach().abs() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = mfac.MaskedTraining(model, optimizer, recipes.Static(0.9), seed=0)
    for size, mask in zip(sizes, training.masks.values(), strict=True):
        assert float(size[mask].mean()) == pytest.approx(float(size.mean()), rel=0.05)


@pytest.mark.parametrize("name", ["sgd", "adamw", "mfac", "muon"])
def test_no_weight_comes_back_in_500_steps_of_fine_tuning(name: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 3))
    mfac.prune(model, loss_of, [], sparsity=0.8, saliency="magnitude", compensation="none")
    masks = mfac.Masks.from_zeros(model)
    matrices, others = ([p for p in model.parameters() if (p.dim() == 2) == wanted] for wanted in (True, False))
    made = {
        "sgd": lambda: [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)],
        "adamw": lambda: [torch.optim.AdamW(model.parameters(), lr=1e-2)],
        "mfac": lambda: [mfac.MFAC(model.parameters(), rank=8)],
        "muon": lambda: [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-2)],
    }[name]()
    training = mfac.MaskedTraining(model, made, recipes.Static(), masks=masks)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    for step in range(500):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        loss_of(model, (x, x[:, :3].argmax(1))).backward()
        for optimizer in made:
            optimizer.step()
        assert zeros_hold(training, model)
    assert training.masks == masks
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[key])
        for optimizer in made:
            if key in masks:
                assert not any(bool(value[~masks[key]].any()) for value in state_of(optimizer, parameter))


def test_removal_frees_the_weights():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with mfac.MaskedTraining(model, optimizer, recipes.Static(0.8)) as training:
        trained(model, optimizer, data(3))
    assert zeros_hold(training, model)
    trained(model, optimizer, data(3))
    assert not zeros_hold(training, model)
    assert training.steps == 3


REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: recipes.GMP(0.9, end=5, begin=10), ValueError, "`end` should be at least 10"),
    (lambda: recipes.GMP(0.4, end=5), ValueError, "`first_sparsity` should be at most `sparsity`, 0.4"),
    (lambda: recipes.GMP(end=5, pattern="5:2"), ValueError, "'N:M'"),
    (lambda: recipes.GMP(1.0, end=5), ValueError, "`sparsity` should be finite and > 0 and < 1"),
    (lambda: recipes.GMP(0.9, end=5, saliency="wanda"), Exception, "saliency"),
    (lambda: recipes.GMP(0.9, end=5, schedule="cubik"), ValueError, "Did you mean 'cubic'"),
    (lambda: recipes.GMP("0.9", end=5), TypeError, "real number"),  # type: ignore[arg-type]
    (lambda: recipes.ACDC(0.9, end=10, warmup=8, final=5), ValueError, "`end` should be at least 13"),
    (lambda: recipes.RigL(0.9, end=50), ValueError, "`end` should be at least 100, the first step"),
    (lambda: recipes.RigL(0.0, every=1), ValueError, "`sparsity`"),
    (lambda: recipes.RigL(0.5, every=0), ValueError, "`every` should be at least 1"),
    (lambda: recipes.SET(0.5, rate=0), ValueError, "`rate`"),
    (lambda: recipes.DSR(0.5, end=50), ValueError, "`end` should be at least 100"),
    (lambda: recipes.LotteryTicket(rounds=2, round_steps=5, rewind_step=5), ValueError, "below `round_steps`"),
    (lambda: recipes.Exchange(1, 2, 3, 4, 5), TypeError, "`when` should be a When"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "error", "text"), REFUSED)
def test_recipes_that_cannot_be_are_refused(make: Callable[[], object], error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        make()


def test_trainings_that_cannot_be_are_refused_before_the_first_step():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = recipes.GMP(0.9, end=5)
    sparse = {"5.weight": torch.zeros(16, 32, dtype=torch.bool)}
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: mfac.MaskedTraining(optimizer, model, recipe), TypeError, "torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: mfac.MaskedTraining(model, [model], recipe), TypeError, "torch.optim.Optimizer"),  # type: ignore[list-item]
        (lambda: mfac.MaskedTraining(model, optimizer, "gmp"), TypeError, "a Recipe"),  # type: ignore[arg-type]
        (
            lambda: mfac.MaskedTraining(model, torch.optim.SGD(model[0].parameters(), lr=0.1), recipe),
            ValueError,
            r"Found none of \['5.weight', '8.weight'\]",
        ),
        (
            lambda: mfac.MaskedTraining(
                model, optimizer, recipe, masks={"5.weight": torch.ones(3, 3, dtype=torch.bool)}
            ),
            ValueError,
            r"shape \[16, 32\]",
        ),
        (
            lambda: mfac.MaskedTraining(model, optimizer, recipe, masks={"9.weight": torch.ones(3, dtype=torch.bool)}),
            ValueError,
            "'9.weight', none of",
        ),
        (
            lambda: mfac.MaskedTraining(model, optimizer, recipes.GMP(0.5, end=5, first_sparsity=0), masks=sparse),
            ValueError,
            "should not be below that of the masks at the start, 0.5818",
        ),
        (
            lambda: mfac.MaskedTraining(model, optimizer, recipes.ACDC(0.9, end=100), masks=sparse),
            ValueError,
            "dense phases have no masks",
        ),
        (lambda: mfac.MaskedTraining(model, optimizer, recipes.Static()), ValueError, "nothing would be masked"),
        (
            lambda: mfac.MaskedTraining(model, optimizer, recipes.RigL(0.9, every=2), masks=sparse),
            ValueError,
            "should be that of the masks at the start",
        ),
        (lambda: mfac.MaskedTraining(model, optimizer, recipe, params="conv*"), ValueError, "params"),
        (
            lambda: mfac.MaskedTraining(model, optimizer, recipes.RigL(0.9999, every=2)),
            ValueError,
            "leave a weight of each of the 3 parameters",
        ),
    ]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for make, error, text in cases:
        with pytest.raises(error, match=text):
            make()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_recipe_of_ones_own_is_one_class():
    class Once(recipes.Recipe):
        def is_due(self, step: int) -> bool:
            return step == 3

        def change(self, context: recipes.ChangeContext) -> Tensor:
            return context.kept & (context.values > 0)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(model, optimizer, Once())
    trained(model, optimizer, data(5))
    assert [change.step for change in training.changes] == [3]
    assert zeros_hold(training, model)

    class Wrong(Once):
        def change(self, context: recipes.ChangeContext) -> Tensor:
            return context.values

    other = network()
    wrong = torch.optim.SGD(other.parameters(), lr=0.05)
    mfac.MaskedTraining(other, wrong, Wrong())
    with pytest.raises(TypeError, match="masks as a tensor of bool"):
        trained(other, wrong, data(5))
