"""prune: masks, exactness, schedules, what beats what, and that nothing is changed by an error."""

from __future__ import annotations

import copy

import pytest
import torch
from models import (
    accuracy,
    batches,
    classifier,
    conv_classifier,
    cross_entropy,
    same_state,
    snapshot,
    trained_classifier,
)
from oracle import fisher as dense_fisher

import mfac
from mfac.gradients.prunable import PrunableWeight
from mfac.pruning.compensation import Compensation, Joint, Summed, predicted_increase
from mfac.pruning.context import StepContext
from mfac.pruning.schedule import Cubic, Geometric, Linear

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2}


def weights_of(model):
    return torch.cat([model[0].weight.reshape(-1), model[-1].weight.reshape(-1)])


@pytest.mark.parametrize("saliency", ["obs", "magnitude"])
@pytest.mark.parametrize("compensation", ["joint", "summed", "none"])
@pytest.mark.parametrize("block_size", [None, 7])
def test_masks_zeros_and_report_agree(saliency, compensation, block_size):
    model = classifier()
    biases = model[0].bias.clone()
    report = mfac.prune(
        model,
        cross_entropy,
        batches(30),
        sparsity=0.7,
        saliency=saliency,
        compensation=compensation,
        block_size=block_size,
        **SMALL,
    )
    total = 12 * 32 + 32 * 3
    assert report.sparsity == round(0.7 * total) / total
    assert set(report.masks) == {"0.weight", "2.weight"}
    for name, mask in report.masks.items():
        weight = model.get_parameter(name)
        assert mask.dtype == torch.bool and mask.shape == weight.shape
        assert torch.equal(weight != 0, mask)
    assert torch.equal(model[0].bias, biases)
    if compensation == "none" and saliency == "magnitude":
        assert report.predicted_increase is None
    else:
        assert report.predicted_increase > 0


def test_magnitude_without_compensation_drops_the_smallest_and_needs_no_gradients():
    model = classifier()
    before = weights_of(model).clone()
    mfac.prune(model, cross_entropy, [], sparsity=0.5, saliency="magnitude", compensation="none")
    threshold = before.abs().sort().values[before.numel() // 2]
    assert torch.equal(weights_of(model), torch.where(before.abs() >= threshold, before, 0))


def test_obs_keeps_accuracy_where_magnitude_loses_it():
    dense, held_out = trained_classifier(hidden=64), batches(40, size=64, seed=9)
    pruned = {}
    for name, arguments in {"obs": {}, "magnitude": {"saliency": "magnitude", "compensation": "none"}}.items():
        model = copy.deepcopy(dense)
        mfac.prune(model, cross_entropy, batches(64, seed=5), sparsity=0.95, num_gradients=64, stages=4, **arguments)
        pruned[name] = accuracy(model, held_out)
    assert pruned["obs"] > pruned["magnitude"] + 0.05
    assert pruned["obs"] > accuracy(dense, held_out) - 0.15


def update(compensation: Compensation, fisher, weights, dropped):
    weight = PrunableWeight("weight", weights.shape, None, "")
    context = StepContext(weights, fisher, [weight], torch.ones_like(dropped))
    context.decide(dropped)
    return compensation.update(context)


@pytest.mark.parametrize("block_size", [None, 5])
def test_joint_update_is_the_exact_minimiser(block_size):
    torch.manual_seed(0)
    grads, weights, damping = torch.randn(9, 23, dtype=torch.float64), torch.randn(23, dtype=torch.float64), 0.3
    dropped = torch.arange(23) % 3 == 1
    delta = update(Joint(), mfac.EmpiricalFisher(grads, damping, block_size), weights, dropped)
    fisher = dense_fisher(grads, damping, block_size=block_size)
    kept = ~dropped
    expected = torch.linalg.solve(fisher[kept][:, kept], fisher[kept][:, dropped] @ weights[dropped])
    # Two well-conditioned 15 x 15 solves in float64.
    torch.testing.assert_close(delta[kept], expected, rtol=1e-11, atol=1e-13)
    assert torch.equal(delta[dropped], -weights[dropped])


@pytest.mark.parametrize("count", [3, 10, 30])
def test_joint_is_never_predicted_to_cost_more_than_summed(count):
    torch.manual_seed(count)
    grads, weights = torch.randn(count, 40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    fisher = mfac.EmpiricalFisher(grads, 0.1)
    for drop in range(1, 40, 6):
        dropped = torch.randperm(40) < drop
        exact = update(Joint(), fisher, weights, dropped)
        summed = update(Summed(), fisher, weights, dropped)
        assert predicted_increase(fisher, exact) <= predicted_increase(fisher, summed) * (1 + 1e-12)


def test_one_weight_costs_its_saliency():
    torch.manual_seed(0)
    grads, weights = torch.randn(6, 15, dtype=torch.float64), torch.randn(15, dtype=torch.float64)
    fisher = mfac.EmpiricalFisher(grads, 0.2)
    saliencies = weights.square() / (2 * fisher.inverse_diagonal())
    for p in range(15):
        dropped = torch.arange(15) == p
        for delta in (update(Joint(), fisher, weights, dropped), update(Summed(), fisher, weights, dropped)):
            assert predicted_increase(fisher, delta) == pytest.approx(float(saliencies[p]), rel=1e-10)


def test_schedules_fall_as_they_say_and_end_exactly():
    assert Geometric().kept(1000, 100, 5) == [631, 398, 251, 158, 100]
    assert Cubic().kept(1000, 200, 4) == [538, 300, 212, 200]
    assert Linear().kept(1000, 100, 3) == [700, 400, 100]
    for schedule in (Geometric(), Cubic(), Linear()):
        assert schedule.kept(7, 5, 3)[-1] == 5


def test_same_seed_same_masks_and_the_generator_is_untouched():
    masks = []
    for _ in range(2):
        model = classifier()
        torch.manual_seed(123)
        loader = torch.utils.data.DataLoader(
            list(zip(*(torch.cat(t) for t in zip(*batches(30), strict=True)), strict=True)), batch_size=8, shuffle=True
        )
        masks.append(mfac.prune(model, cross_entropy, loader, sparsity=0.6, seed=4, **SMALL).masks)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(123)))
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_zero_sparsity_changes_nothing():
    model = classifier()
    before = snapshot(model)
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.0)
    assert same_state(model, before) and report.sparsity == 0 and report.predicted_increase == 0


def test_zeros_stay_zero_when_pruned_further():
    model = classifier()
    first = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, **SMALL)
    second = mfac.prune(model, cross_entropy, batches(30), sparsity=0.75, **SMALL)
    for name, mask in second.masks.items():
        assert not bool((mask & ~first.masks[name]).any())


def test_convolutions_batch_norm_and_channels_last():
    model = conv_classifier().to(memory_format=torch.channels_last)
    before = model[1].running_mean.clone()
    report = mfac.prune(model, cross_entropy, batches(40, shape=(1, 6, 6)), sparsity=0.5, **SMALL)
    assert torch.equal(model[0].weight != 0, report.masks["0.weight"])
    assert not torch.equal(model[1].running_mean, before)  # re-estimated
    assert model[1].momentum == 0.1 and model.training


def test_batch_norm_is_left_alone_on_request():
    model = conv_classifier()
    before = model[1].running_mean.clone()
    mfac.prune(model, cross_entropy, batches(40, shape=(1, 6, 6)), sparsity=0.5, batchnorm_batches=0, **SMALL)
    assert torch.equal(model[1].running_mean, before)


def test_a_tied_weight_counts_once():
    model = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Tanh(), torch.nn.Linear(12, 12))
    model[2].weight = model[0].weight
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, **SMALL)
    assert list(report.masks) == ["0.weight"] and report.masks["0.weight"].numel() == 144


def test_per_sample_and_progress():
    steps = []
    report = mfac.prune(
        classifier(), cross_entropy, batches(8), sparsity=0.6, per_sample=True, progress=steps.append, **SMALL
    )
    assert steps == report.steps and [step.step for step in steps] == [1, 2, 3, 4]
    assert [step.stage for step in steps] == [1, 1, 2, 2] and steps[-1].sparsity == report.sparsity
    assert len({step.damping for step in steps}) == 1  # a relative damping is held from the first stage on
    assert "sparsity 0.6000" in str(report)


def test_a_network_sparser_than_asked_for_is_reported_as_it_is():
    model = classifier()
    mfac.prune(model, cross_entropy, batches(30), sparsity=0.8, **SMALL)
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, **SMALL)
    assert report.sparsity == 0.8 and report.steps == []
    assert torch.equal(report.masks["0.weight"], model[0].weight != 0)


def test_a_network_of_zeros_is_as_sparse_as_can_be():
    model = classifier()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, existing_zeros="keep", **SMALL)
    assert report.sparsity == 1
    with pytest.raises(ValueError, match=r"at least one weight that can be pruned. .* '0.weight' is zero throughout"):
        mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, **SMALL)


def test_masks_hold_through_fine_tuning():
    model = classifier()
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.8, **SMALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in batches(3):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
        report.apply_(model)
    assert torch.equal(model[0].weight != 0, report.masks["0.weight"])


def test_batch_norm_keeps_its_statistics_where_no_data_is_left():
    model = conv_classifier()
    before = snapshot(model[1])
    mfac.prune(model, cross_entropy, iter(batches(48, shape=(1, 6, 6))), sparsity=0.5, **SMALL)
    assert same_state(model[1], {**before, "weight": model[1].weight, "bias": model[1].bias})


def test_batch_norm_passes_over_batches_of_one():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    mfac.prune(model, cross_entropy, [*batches(30), *batches(1, size=1)], sparsity=0.5, **SMALL)
    assert int(model[1].num_batches_tracked) == 30


def test_an_error_after_the_weights_are_final_undoes_nothing():
    def data():
        yield from batches(48)
        raise ValueError("corrupt record")

    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    before = snapshot(model)
    with pytest.warns(UserWarning, match=r"ValueError: corrupt record. Call mfac.reestimate_batchnorm"):
        report = mfac.prune(model, cross_entropy, data(), sparsity=0.5, **SMALL)
    assert report.sparsity == 0.5 and torch.equal(model[0].weight != 0, report.masks["0.weight"])
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_buffers_outside_the_state_dict_are_restored_too():
    model = classifier()
    model.register_buffer("calls", torch.zeros(()), persistent=False)

    def loss_fn(model, batch):
        model.calls += 1
        if model.calls > 30:
            raise RuntimeError("enough")
        return cross_entropy(model, batch)

    with pytest.raises(RuntimeError, match="enough"):
        mfac.prune(model, loss_fn, batches(40), sparsity=0.5, **SMALL)
    assert float(model.calls) == 0


def failing_loss(after: int):
    calls = []

    def loss_fn(model, batch):
        calls.append(None)
        return cross_entropy(model, batch) * (float("nan") if len(calls) > after else 1)

    return loss_fn


@pytest.mark.parametrize("after", [0, 30])
def test_an_error_leaves_the_model_as_it_was(after):
    model = conv_classifier()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"`loss_fn` should return a finite loss. Found nan"):
        mfac.prune(model, failing_loss(after), batches(40, shape=(1, 6, 6)), sparsity=0.5, **SMALL)
    assert same_state(model, before) and model.training


def test_an_interrupt_leaves_the_model_as_it_was():
    model = classifier()
    before = snapshot(model)

    def interrupt(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mfac.prune(model, cross_entropy, batches(40), sparsity=0.5, progress=interrupt, **SMALL)
    assert same_state(model, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsity": 1.0}, ValueError, r"`sparsity` should be finite and >= 0 and < 1. Found 1.0"),
        ({"sparsity": -0.1}, ValueError, r"`sparsity` .* Found -0.1"),
        ({"sparsity": float("nan")}, ValueError, r"`sparsity` .* Found nan"),
        ({"sparsity": "high"}, TypeError, r"`sparsity` should be a real number. Found 'high'"),
        (
            {"sparsity": 0.9999},
            ValueError,
            r"`sparsity` should leave at least one of the 480 prunable weights. Found 0.9999",
        ),
        (
            {"saliency": "hessian"},
            ValueError,
            r"`saliency` should be 'obs', 'magnitude', .* or a Saliency. Found 'hessian'",
        ),
        ({"saliency": 3}, TypeError, r"`saliency` should be 'obs', .* or a Saliency. Found int"),
        (
            {"compensation": "all"},
            ValueError,
            r"`compensation` should be 'auto', 'joint', 'summed', 'greedy', 'shrunk' or 'none', .* Found 'all'",
        ),
        (
            {"allocation": "local"},
            ValueError,
            r"`allocation` should be 'global', 'uniform' or 'erk', or an Allocation. Found 'local'",
        ),
        ({"allocation": {"3.*": 0.5}}, ValueError, r"`allocation` should name weights .* Found '3.\*'"),
        ({"allocation": {"0.*": 0.5}}, ValueError, r"`allocation` should give every weight .* for '2.weight'"),
        ({"allocation": {"*": 1.5}}, ValueError, r"`allocation\['\*'\]` should be finite and >= 0 and < 1. Found 1.5"),
        ({"schedule": "slow"}, ValueError, r"`schedule` should be 'geometric', 'cubic' or 'linear', or a Schedule."),
        ({"damping": 0.0}, ValueError, r"`damping` should be finite and > 0. Found 0.0"),
        ({"block_size": 0}, ValueError, r"`block_size` should be at least 1. Found 0"),
        ({"stages": 0}, ValueError, r"`stages` should be at least 1. Found 0"),
        ({"recomputations": 1.5}, TypeError, r"`recomputations` should be an integer. Found 1.5"),
        (
            {"num_gradients": 1000},
            ValueError,
            r"`data` should yield enough batches for num_gradients=1000. Found only 30",
        ),
        ({"params": "nothing"}, ValueError, r"`params` should name parameters of the model. Found 'nothing'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        mfac.prune(model, cross_entropy, batches(30), **{"sparsity": 0.5, **SMALL, **arguments})
    assert same_state(model, before)
