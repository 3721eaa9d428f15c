"""Recipes beside a loop: counts exact at every step, zeros that stay, what each method says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mfac
from mfac import recipes
from tests.training.loops import OPTIMIZERS, RECIPES, STEPS, data, loss_of, network, state_of, trained

KEPT = {  # share of the 864 weights that each recipe keeps at the end
    **{"gmp": 0.1, "plain gmp": 0.2, "gmp 2:4": 0.5, "acdc": 0.15, "acdc 2:4": 0.5, "rigl": 0.2, "set": 0.3},
    **{"snfs": 0.2, "dsr": 0.25, "snip": 0.1, "lottery": 0.8**3, "static": 0.4},
}
EXCHANGING = ("rigl", "set", "snfs", "dsr", "static")
TENSORS = ("0.weight", "5.weight", "8.weight")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if name in TENSORS}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", RECIPES)
def test_dropped_weights_and_their_state_are_zero_after_every_step(name: str, optimizer: str):
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    training = mfac.MaskedTraining(model, made, RECIPES[name](STEPS))
    total = sum(w.numel() for w in weights(model).values())

    def check() -> None:
        masks = training.masks
        assert set(masks) == set(TENSORS)
        for key, weight in weights(model).items():
            assert not bool(weight[~masks[key]].any())
            assert not any(bool(state[~masks[key]].any()) for state in state_of(made, weight))
        if name in EXCHANGING:
            assert sum(count.kept for count in masks.counts().values()) == total - round((1 - KEPT[name]) * total)
        assert masks.sparsity == pytest.approx(training.sparsity)

    trained(model, made, data(STEPS), check)
    assert sum(c.kept for c in training.masks.counts().values()) == round(KEPT[name] * total)
    for other in ("1.weight", "6.weight", "8.bias"):
        assert bool(model.get_parameter(other).any())


class Noise:
    """Steps whose gradients are random numbers: thousands of them in a second."""

    def __init__(self, name: str, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(11, 7), nn.Linear(7, 5, bias=False), nn.Conv1d(1, 3, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.5)
        self.training = mfac.MaskedTraining(self.model, self.optimizer, RECIPES[name](steps), seed=seed)
        self.masked = [dict(self.model.named_parameters())[key] for key in self.training.masks]

    def step(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()

    @property
    def kept(self) -> int:
        return int(self.training._progress.kept.sum())

    @property
    def nonzero(self) -> int:
        return sum(int((p != 0).sum()) for p in self.masked)


@pytest.mark.parametrize("name", [name for name in RECIPES if "2:4" not in name])
def test_counts_are_exact_in_ten_thousand_steps(name: str):
    steps = 10_000
    noise = Noise(name, 3, steps)
    total = sum(p.numel() for p in noise.masked)
    wanted = total
    for number in range(1, steps + 1):
        noise.step()
        if noise.training.step() is not None:
            change = noise.training.changes[-1]
            assert sum(change.kept.values()) == noise.kept == wanted - change.dropped + change.grown
        if noise.training.changes and noise.training.changes[-1].step in (0, number):
            wanted = noise.kept
        assert noise.kept == wanted  # and nothing between changes
        # Of a weight that has come back in this step the value is still zero.
        assert noise.nonzero <= wanted
        if name in EXCHANGING:
            assert wanted == round(KEPT[name] * total) or wanted == total - round((1 - KEPT[name]) * total)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.02, 0.97),
    st.sampled_from(["rigl", "set", "snfs", "dsr"]),
    st.sampled_from(["erk", "uniform"]),
)
def test_exchanges_keep_the_number_whatever_the_sparsity(seed: int, sparsity: float, name: str, allocation: str):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 9), nn.Linear(9, 31), nn.Linear(31, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    make = {
        "rigl": lambda: recipes.RigL(sparsity, end=30, every=3, rate=1.0, allocation=allocation),
        "set": lambda: recipes.SET(sparsity, every=3, rate=0.7, allocation=allocation),
        "snfs": lambda: recipes.SNFS(sparsity, end=30, every=3, rate=1.0, allocation=allocation),
        "dsr": lambda: recipes.DSR(sparsity, end=30, periods=[2, 5], share=0.4, allocation=allocation),
    }[name]
    training = mfac.MaskedTraining(model, optimizer, make(), seed=seed)
    total = sum(mask.numel() for mask in training.masks.values())
    for _ in range(30):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        counts = training.masks.counts()
        assert sum(count.kept for count in counts.values()) == total - round(sparsity * total)
        assert all(count.kept >= 1 for count in counts.values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_what_comes_back_is_zero_at_each_regrowth(optimizer: str):
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    training = mfac.MaskedTraining(model, made, recipes.RigL(0.7, every=4))
    before = training.masks
    seen = 0

    def check() -> None:
        nonlocal before, seen
        for key, weight in weights(model).items():
            came = training.masks[key] & ~before[key]
            seen += int(came.sum())
            assert not bool(weight[came].any())
            assert not any(bool(state[came].any()) for state in state_of(made, weight))
        before = training.masks

    trained(model, made, data(60), check)
    assert seen > 100


def test_rigl_grows_by_the_gradient_of_the_dense_network():
    model = nn.Linear(6, 6, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.5, every=1, rate=0.2))
    before = training.masks["weight"]
    gradient = torch.randn(6, 6)
    model.weight.grad = gradient.clone()
    optimizer.step()
    came = training.masks["weight"] & ~before
    went = before & ~training.masks["weight"]
    assert int(came.sum()) == int(went.sum()) == round(0.2 * 18)
    dead = gradient[~before].abs().sort(descending=True).values
    assert float(gradient[came].abs().min()) == float(dead[int(came.sum()) - 1])


def test_rigl_exchanges_less_and_less_and_set_always_as_much():
    for recipe, falls in ((recipes.RigL(0.5, end=100, every=10), True), (recipes.SET(0.5, end=100, every=10), False)):
        model = nn.Linear(40, 40, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        training = mfac.MaskedTraining(model, optimizer, recipe)
        for _ in range(110):
            model.weight.grad = torch.randn(40, 40)
            optimizer.step()
        counts = [change.dropped for change in training.changes[1:]]
        expected = [round(0.3 / 2 * (1 + math.cos(math.pi * t / 100)) * 800) for t in range(10, 101, 10)]
        assert counts == (expected if falls else [240] * 10)


def test_snfs_shares_by_the_average_gradient_of_live_weights():
    model = nn.ModuleDict({"much": nn.Linear(20, 20, bias=False), "little": nn.Linear(20, 20, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    training = mfac.MaskedTraining(model, optimizer, recipes.SNFS(0.8, every=10, rate=0.5))
    for _ in range(10):
        for key, scale in (("much", 9.0), ("little", 1.0)):
            model[key].weight.grad = scale * torch.sign(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
        optimizer.step()
    change = training.changes[-1]
    assert change.dropped == change.grown == 80
    assert [change.kept[f"{key}.weight"] for key in ("much", "little")] == [40 + 72, 40 + 8]


def test_dsr_finds_a_threshold_that_drops_as_many_as_asked():
    model = nn.Linear(60, 60, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    recipe = recipes.DSR(0.5, end=4000, periods=[20], share=0.1, threshold=1e-6)
    training = mfac.MaskedTraining(model, optimizer, recipe)
    for _ in range(1000):
        model.weight.grad = torch.randn(60, 60) + model.weight.detach()
        optimizer.step()
    last = [change.dropped for change in training.changes[-10:]]
    assert training.changes[1].dropped < 10
    assert all(0.04 * 1800 < count < 0.25 * 1800 for count in last)


def test_snip_takes_the_first_gradient_before_the_first_update():
    model = network()
    before = {key: weight.detach().clone() for key, weight in weights(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    recipe = recipes.SNIP(0.8, allocation=mfac.Global(floor=0.0))
    training = mfac.MaskedTraining(model, optimizer, recipe)
    (batch,) = data(1)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    scores = {key: (weight.grad * before[key]).abs() for key, weight in weights(model).items()}
    dropped_gradients = {key: weight.grad.clone() for key, weight in weights(model).items()}
    optimizer.step()
    every = torch.cat([score.flatten() for score in scores.values()]).sort(descending=True).values
    bound = float(every[round(0.2 * every.numel()) - 1])
    for key, weight in weights(model).items():
        assert torch.equal(training.masks[key], scores[key] >= bound)
        kept = training.masks[key]
        assert torch.allclose(weight[kept], (before[key] - 0.1 * dropped_gradients[key])[kept])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_lottery_tickets_rewind_bit_by_bit(optimizer: str):
    model = network()
    made = OPTIMIZERS[optimizer](model.parameters())
    training = mfac.MaskedTraining(model, made, recipes.LotteryTicket(rounds=4, round_steps=20, rewind_step=6))
    early: dict[str, Tensor] = {}
    rounds = []
    total = sum(w.numel() for w in weights(model).values())

    def check() -> None:
        if training.steps == 6:
            early.update({key: value.clone() for key, value in model.state_dict().items()})
        if training.steps in training.recipe.ends:
            rounds.append(sum(count.kept for count in training.masks.counts().values()))
            for key, value in model.state_dict().items():
                wanted = early[key] * training.masks[key] if key in training.masks else early[key]
                assert torch.equal(value, wanted), key
            assert training.position == 6

    trained(model, made, data(training.recipe.steps), check)
    assert rounds == [round(total * 0.8**n) for n in range(1, 5)]


def test_acdc_leaves_a_dense_model_on_the_way():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    training = mfac.MaskedTraining(model, optimizer, recipes.ACDC(0.9, end=100))
    kinds = {}
    trained(model, optimizer, data(100), lambda: kinds.update({training.steps: training.sparsity}))
    phases = dict(training.recipe.phases)
    expected = 0.0
    for step in range(1, 101):
        expected = {"sparse": 0.9, "dense": 0.0}.get(phases.get(step, ""), expected)
        assert kinds[step] == pytest.approx(expected, abs=1e-3)
    assert training.snapshot is not None
    assert all(float((training.snapshot[key] != 0).float().mean()) > 0.5 for key in TENSORS)
    dense = network()
    dense.load_state_dict(training.snapshot)


def test_gmp_cuts_by_obs_on_the_live_window_of_mfac():
    model = network()
    optimizer = mfac.MFAC(model.parameters(), rank=8)
    recipe = recipes.GMP(0.6, begin=12, end=12, saliency="obs", allocation=mfac.Global(0.0))
    training = mfac.MaskedTraining(model, optimizer, recipe, damping=1e-3)
    held: list[Tensor] = []
    flat: list[Tensor] = []
    original = training.recipe.change

    def spy(context: recipes.ChangeContext) -> Tensor:
        gradients = optimizer.held_gradients()
        held.append(torch.cat([gradients[p] for p in weights(model).values()], 1))
        flat.append(context.values)
        return original(context)

    training.recipe.change = spy  # type: ignore[method-assign]
    trained(model, optimizer, data(12))
    fisher = mfac.EmpiricalFisher(held[0], damping=1e-3)
    scores = flat[0].square() / fisher.inverse_diagonal()
    kept = torch.cat([mask.flatten() for mask in training.masks.values()])
    assert float(scores[kept].min()) >= float(scores[~kept].max()) * (1 - 1e-5)


def test_obs_collects_gradients_where_there_is_no_window():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recipe = recipes.GMP(0.6, begin=2, end=20, every=6, saliency="obs")
    with pytest.raises(ValueError, match=r"train with mfac\.MFAC"):
        mfac.MaskedTraining(model, optimizer, recipe)
    state = torch.random.get_rng_state()
    training = mfac.MaskedTraining(model, optimizer, recipe, loss_fn=loss_of, data=list(data(8, 9)), num_gradients=6)
    trained(model, optimizer, data(20))
    assert training.sparsity == pytest.approx(0.6, abs=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_masks_at_the_start_serve_sparse_transfer():
    model = network()
    masks = mfac.Masks({key: torch.rand_like(weight) < 0.3 for key, weight in weights(model).items()})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    training = mfac.MaskedTraining(model, optimizer, recipes.Static(), masks=masks)
    trained(model, optimizer, data(30))
    assert training.masks == masks
    assert all(not bool(weight[~masks[key]].any()) for key, weight in weights(model).items())


def test_a_log_says_what_changed(tmp_path: Path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = mfac.MaskedTraining(model, optimizer, recipes.RigL(0.8, end=40, every=10))
    with pytest.raises(RuntimeError, match="nothing to draw"):
        other = network()
        mfac.MaskedTraining(other, torch.optim.SGD(other.parameters(), lr=0.1), recipes.GMP(0.5, end=9)).plot("x.png")
    returned = []
    trained(model, optimizer, data(45), lambda: returned.append(training.step()))
    assert [i + 1 for i, change in enumerate(returned) if change is not None] == [10, 20, 30, 40]
    training.save_log(tmp_path / "log.json")
    log = json.loads((tmp_path / "log.json").read_text())
    assert [change["step"] for change in log["changes"]] == [0, 10, 20, 30, 40]
    assert log["changes"][1]["dropped"] == log["changes"][1]["grown"] > 0
    assert log["changes"][-1]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    shares = [change["unchanged"] for change in log["changes"]]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    training.plot(tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000
