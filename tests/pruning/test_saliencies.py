"""Saliencies and compensations against their definitions with a dense Fisher in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from models import batches, cross_entropy, trained_classifier
from oracle import fisher
from torch import Tensor, nn

import mfac
from mfac.gradients.input_norms import input_norms
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Blocks
from mfac.pruning.checked import checked_update
from mfac.pruning.compensation import COMPENSATIONS, GreedyInBlocks, LeastLoss, Shrunk, predicted_increase
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.greedy import Greedy
from mfac.pruning.saliencies.obs import OBS, group_scores
from mfac.pruning.saliencies.refined import Refined
from mfac.pruning.saliency import SALIENCIES

DAMPING = 0.05


def context_of(
    dim: int,
    rank: int,
    seed: int,
    block_size: int | None = None,
    evaluate: Callable[[Tensor], float] | None = None,
) -> StepContext:
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(rank, dim, generator=generator, dtype=torch.float64)
    weights = torch.randn(dim, generator=generator, dtype=torch.float64)
    described = [PrunableWeight("w", torch.Size([1, dim]), (1, dim, 1), "Linear")]
    curvature = mfac.EmpiricalFisher(grads, DAMPING, block_size)
    return StepContext(weights, curvature, described, torch.ones(dim, dtype=torch.bool), evaluate)


def dense(context: StepContext, block_size: int | None = None) -> Tensor:
    return fisher(context.fisher.grads, DAMPING, block_size)


def joint_objective(F: Tensor, w: Tensor, dropped: Tensor) -> float:
    """The least ½ δᵀFδ with δ = -w on the dropped weights, by the kept ones' Schur complement."""
    kept = ~dropped
    schur = F[dropped][:, dropped] - F[dropped][:, kept] @ torch.linalg.solve(F[kept][:, kept], F[kept][:, dropped])
    return 0.5 * float(w[dropped] @ schur @ w[dropped])


def lowest(count: int):
    def choose(scores: Tensor) -> Tensor:
        dropped = torch.zeros_like(scores, dtype=torch.bool)
        dropped[torch.argsort(scores, stable=True)[:count]] = True
        return dropped

    return choose


def test_first_order_saliencies_are_their_formulae():
    context = context_of(30, 7, seed=0)
    G, w = context.fisher.grads, context.weights
    torch.testing.assert_close(SALIENCIES["obd"]().scores(context), 0.5 * G.square().mean(0) * w**2)
    torch.testing.assert_close(SALIENCIES["snip"]().scores(context), (w * G.mean(0)).abs())


@pytest.mark.parametrize(("dim", "rank"), [(40, 9), (12, 30), (64, 64)])
@pytest.mark.parametrize("block_size", [None, 10])
@pytest.mark.parametrize("units", [1, 3, 8])
def test_group_scores_are_the_exact_cost_of_a_unit(dim: int, rank: int, block_size: int | None, units: int):
    context = context_of(dim, rank, seed=1, block_size=block_size)
    F = dense(context, block_size)
    unit_of = torch.arange(dim) * units // dim
    unit_of[3] = -1
    found = group_scores(context.fisher, context.weights, unit_of, units)
    expected = torch.tensor(
        [joint_objective(F, context.weights, unit_of == unit) for unit in range(units)], dtype=torch.float64
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def one_after_the_other(F: Tensor, w: Tensor) -> tuple[list[int], list[float]]:
    """Greedy OBS by definition: each time the cheapest weight, by a fresh inverse over the rest."""
    w, left, order, costs = w.clone(), list(range(len(w))), [], []
    while left:
        inverse = torch.linalg.inv(F[left][:, left])
        cost = w[left] ** 2 / (2 * inverse.diagonal())
        p = int(cost.argmin())
        order.append(left[p])
        costs.append(float(cost[p]))
        w[left] -= w[left[p]] / inverse[p, p] * inverse[:, p]
        del left[p]
    return order, costs


@pytest.mark.parametrize(("dim", "block_size"), [(20, 8), (16, 16), (5, 64), (9, 1)])
@pytest.mark.parametrize("ranking", ["cumulative", "marginal"])
def test_greedy_scores_follow_the_elimination_by_definition(dim: int, block_size: int, ranking: str):
    context = context_of(dim, 6, seed=2)
    found, F = Greedy(block_size, ranking).scores(context), dense(context)
    for begin in range(0, dim, block_size):
        block = slice(begin, min(begin + block_size, dim))
        order, costs = one_after_the_other(F[block, block], context.weights[block])
        reached = itertools.accumulate(costs, max if ranking == "marginal" else None)
        expected = torch.empty(len(order), dtype=torch.float64)
        expected[order] = torch.tensor(list(reached), dtype=torch.float64)
        torch.testing.assert_close(found[block], expected, rtol=1e-8, atol=1e-12)


def test_greedy_compensation_is_elimination_one_by_one():
    context = context_of(20, 6, seed=3)
    dropped = torch.rand(20, generator=torch.Generator().manual_seed(0)) < 0.5
    context.decide(dropped)
    found, F = GreedyInBlocks(8).update(context), dense(context, 8)
    for begin in range(0, 20, 8):
        block = list(range(begin, min(begin + 8, 20)))
        w, left = context.weights.clone(), list(block)
        for p in [p for p in block if dropped[p]]:
            inverse, at = torch.linalg.inv(F[left][:, left]), left.index(p)
            w[left] -= w[p] / inverse[at, at] * inverse[:, at]
            del left[at]
        w[torch.tensor([p for p in block if dropped[p]], dtype=torch.int64)] = 0
        torch.testing.assert_close(found[block], (w - context.weights)[block], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("dim", "rank", "block_size"), [(40, 12, 8), (43, 12, 8), (43, 5, 8), (30, 50, 7), (6, 4, 8)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_shrunk_compensation_minimises_between_f_and_its_blocks(dim: int, rank: int, block_size: int, share: float):
    context = context_of(dim, rank, seed=4)
    context.decide(torch.rand(dim, generator=torch.Generator().manual_seed(0)) < 0.5)
    M = share * dense(context) + (1 - share) * dense(context, block_size)
    dropped, kept, w = context.dropped, ~context.dropped, context.weights
    expected = -w * dropped
    expected[kept] = torch.linalg.solve(M[kept][:, kept], M[kept][:, dropped] @ w[dropped])
    torch.testing.assert_close(Shrunk(share, block_size).update(context), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_shares_of_the_whole_fisher_out_of_range(share: float):
    with pytest.raises(ValueError, match=r"Parameter `share`"):
        Shrunk(share)


@pytest.mark.parametrize("seed", range(4))
def test_refined_sets_are_never_worse_than_where_they_began(seed: int):
    context = context_of(60, 12, seed)
    F, w, choose = dense(context), context.weights, lowest(40)
    begun = joint_objective(F, w, choose(OBS().scores(context)))
    refined = Refined(start=OBS()).select(context, choose)
    assert int(refined.sum()) == 40
    assert joint_objective(F, w, refined) <= begun * (1 + 1e-9)


def test_refined_finds_the_best_set_of_a_small_problem_more_often_than_a_ranking():
    best_found = ranked_found = 0
    for seed in range(20):
        context = context_of(10, 6, seed)
        F, w = dense(context), context.weights
        costs = {}
        for chosen in itertools.combinations(range(10), 5):
            dropped = torch.zeros(10, dtype=torch.bool)
            dropped[list(chosen)] = True
            costs[chosen] = joint_objective(F, w, dropped)
        least = min(costs.values()) * (1 + 1e-9)
        best_found += joint_objective(F, w, Refined(start=OBS()).select(context, lowest(5))) <= least
        ranked_found += joint_objective(F, w, lowest(5)(OBS().scores(context))) <= least
    assert best_found > ranked_found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_size", [None, 7])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_joint_is_predicted_to_cost_least(seed: int, block_size: int | None, share: float):
    context = context_of(50, 11, seed, block_size, evaluate=lambda _: 0.0)
    context.decide(torch.rand(50, generator=torch.Generator().manual_seed(seed)) < share)
    costs = {name: predicted_increase(context.fisher, make().update(context)) for name, make in COMPENSATIONS.items()}
    assert all(costs["joint"] <= cost * (1 + 1e-9) for cost in costs.values())


def test_a_prediction_is_near_what_is_measured_at_small_steps():
    """A linear model's square loss with unit noise: its expected Hessian is the Fisher."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(12, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4000, 12, generator=generator, dtype=torch.float64)
    targets = inputs @ true + torch.randn(4000, generator=generator, dtype=torch.float64)
    model = nn.Linear(12, 1, bias=False).double()
    with torch.no_grad():
        model.weight[0] = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (model(batch[0])[:, 0] - batch[1]).square().mean()

    data = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(4000)]
    before = float(loss_fn(model, (inputs, targets)).detach())
    settings = {"num_gradients": 4000, "stages": 1, "recomputations": 1, "damping": 1e-6}
    report = mfac.prune(model, loss_fn, data, sparsity=0.25, **settings)
    measured = float(loss_fn(model, (inputs, targets)).detach()) - before
    assert report.predicted_increase == pytest.approx(measured, rel=0.2)


def test_the_check_takes_the_scale_of_least_loss():
    dropped = torch.tensor([True, False, False, True, False, False])
    delta = torch.arange(1.0, 7.0).double()

    def checked(delta: Tensor, evaluate: Callable[[Tensor], float]) -> tuple[Tensor, float]:
        context = context_of(6, 3, seed=0, evaluate=evaluate)
        context.decide(dropped)
        return checked_update(context, delta)

    for wanted in (1.0, 0.5, 0.25, 0.0):
        update, scale = checked(delta, lambda d, wanted=wanted: abs(float(d[1]) / 2 - wanted))
        assert scale == wanted
        assert torch.equal(update, torch.where(dropped, delta, wanted * delta))
    assert checked(delta, lambda d: float("nan") if float(d[1]) else 5.0)[1] == 0.0
    assert checked(delta * dropped, lambda d: 1 / 0)[1] == 1.0  # nothing to decide


@pytest.mark.parametrize("least", ["joint", "greedy"])
def test_the_compensation_of_least_loss_is_taken(least: str):
    updates = {}

    def evaluate(delta: Tensor) -> float:
        return 1.0 if torch.equal(delta, updates[least]) else float("nan")

    context = context_of(300, 4, seed=1, evaluate=evaluate)
    context.decide(torch.arange(300) % 3 == 0)
    updates.update({name: COMPENSATIONS[name]().update(context) for name in ("joint", "greedy")})
    assert not torch.allclose(updates["joint"], updates["greedy"])
    assert torch.equal(COMPENSATIONS["auto"]().update(context), updates[least])
    without = context_of(300, 4, seed=1)
    without.decide(torch.arange(300) % 3 == 0)
    with pytest.raises(RuntimeError, match="The step has no held-out loss: its compensation says evaluations=0"):
        COMPENSATIONS["auto"]().update(without)
    with pytest.raises(TypeError, match=r"Parameter `candidates` should be mfac.Compensation objects. Found str"):
        LeastLoss("joint")


def test_a_checked_run_is_not_worse_than_none_on_what_it_looks_at():
    held_out = batches(16, seed=1)  # the first of the data
    losses = {}
    for name, arguments in {
        "none": {"compensation": "none"},
        "checked": {"compensation": "joint", "step_check": True},
    }.items():
        model = trained_classifier()
        mfac.prune(
            model, cross_entropy, batches(64), sparsity=0.9, num_gradients=16, stages=1, recomputations=1, **arguments
        )
        with torch.no_grad():
            losses[name] = sum(float(cross_entropy(model, batch)) for batch in held_out)
    assert losses["checked"] <= losses["none"] * (1 + 1e-6)


def test_refits_lower_the_loss():
    losses = []
    for refits in (0, 3):
        model = trained_classifier()
        settings = {"num_gradients": 48, "stages": 1, "step_check": True, "refits": refits}
        report = mfac.prune(model, cross_entropy, batches(64), sparsity=0.8, saliency="obs", **settings)
        assert all(torch.equal(model.get_parameter(name) != 0, mask) for name, mask in report.masks.items())
        with torch.no_grad():
            losses.append(sum(float(cross_entropy(model, batch)) for batch in batches(30, seed=9)))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", sorted(set(SALIENCIES) - {"wanda"}))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "3x2", "rows"])
def test_every_saliency_goes_with_every_pattern(name: str, pattern: str):
    model = trained_classifier()
    sparsity = None if pattern == "2:4" else 0.5
    report = mfac.prune(
        model,
        cross_entropy,
        batches(30),
        sparsity,
        saliency=name,
        pattern=pattern,
        num_gradients=24,
        stages=2,
        recomputations=2,
    )
    assert 0.4 < report.sparsity <= 0.5
    assert all(torch.equal(model.get_parameter(n) != 0, mask) for n, mask in report.masks.items())


def test_group_obs_is_asked_for_units_of_several_weights():
    context = context_of(40, 9, seed=5)
    units = Blocks(1, 4).units(mfac.Candidates(context.parameters, context.live, OBS().scores(context)))
    found = OBS().unit_scores(context, units)
    assert found is not None and found.shape == (10,)
    assert not torch.allclose(found, units.scores)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(5, 6)
        self.conv = nn.Conv1d(6, 4, 2, groups=2)
        self.up = nn.ConvTranspose1d(4, 6, 2, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.conv(self.line(x).mT))


def test_input_norms_are_those_of_each_weights_channel():
    model, x = Layers(), torch.randn(7, 3, 5)
    norms = input_norms(model, [x[:4], x[4:]])
    line = x.norm(dim=(0, 1))
    torch.testing.assert_close(norms["line.weight"], line.double().expand(6, 5))
    middle = model.line(x).mT  # [7, 6, 3]
    channels = middle.norm(dim=(0, 2)).double().detach()
    torch.testing.assert_close(norms["conv.weight"][:2, :, 0], channels[:3].expand(2, 3))
    torch.testing.assert_close(norms["conv.weight"][2:, :, 1], channels[3:].expand(2, 3))
    of_up = model.conv(middle).norm(dim=(0, 2)).double().detach()
    torch.testing.assert_close(norms["up.weight"][:, 1, 0], of_up)


def test_wanda_by_name_takes_the_runs_inputs_and_refuses_layers_without():
    ours, theirs = trained_classifier(), trained_classifier()
    arguments = {"sparsity": 0.5, "compensation": "none"}
    mfac.prune(ours, cross_entropy, batches(8), saliency=mfac.Wanda(ours, batches(8)), **arguments)
    mfac.prune(theirs, cross_entropy, batches(8), saliency="wanda", **arguments)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"`saliency` should have the inputs .* for 'weight_ih_l0' of a GRU"):
        mfac.prune(nn.GRU(3, 4), lambda model, batch: 0, [], saliency=mfac.Wanda(nn.Linear(1, 1), [torch.ones(1)]),
                   compensation="none")  # fmt: skip
    with pytest.raises(ValueError, match=r"`batches` should hold at least one batch"):
        mfac.Wanda(nn.Linear(1, 1), [])
