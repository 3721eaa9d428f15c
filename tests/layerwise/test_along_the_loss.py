"""Which layers are sparser, outputs that the loss heeds, and the finish along it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.calling import call_model
from tests.layerwise.networks import NETWORKS, Language, made, outputs


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("allocation", ["erk", "global", "auto"])
def test_allocations_keep_the_count_of_all_weights(kind: str, allocation: Any) -> None:
    model, batches = made(kind)
    report = mfac.prune_layerwise(model, batches, 0.7, method="sparsegpt", allocation=allocation)
    sizes = {name: mask.numel() for name, mask in report.masks.items()}
    kept = {name: int(mask.sum()) for name, mask in report.masks.items()}
    if kind != "mixture":  # whose dense experts are counted beforehand
        assert sum(kept.values()) == pytest.approx(
            0.3 * sum(sizes.values()), abs=1 + (allocation == "auto") * len(sizes)
        )
    if allocation == "global":
        assert all(count >= 0.03 * sizes[name] - 1 for name, count in kept.items())
    if allocation == "auto" and kind in ("encoder", "language", "convolutional"):
        assert all(abs(count - 0.3 * sizes[name]) <= 0.5 for name, count in kept.items())


def test_layers_that_lose_most_are_left_denser() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    with torch.no_grad():  # weights that are all alike cost most to drop; few large ones cost nothing
        model[0].weight.copy_(torch.randn(32, 32).sign())
        model[1].weight.copy_(torch.randn(32, 32) * (torch.rand(32, 32) < 0.1))
    report = mfac.prune_layerwise(model, [torch.randn(256, 32)], 0.5, method="sparsegpt", allocation="global")
    assert report.sparsity_by_parameter["0.weight"] < 0.3 < 0.7 < report.sparsity_by_parameter["1.weight"]
    assert report.sparsity == 0.5


def test_a_finish_lowers_the_loss_and_keeps_zeros() -> None:
    torch.manual_seed(0)
    model = Language(words=11, width=16)
    batches = [torch.arange(12).add(start).remainder(11).repeat(4, 1) for start in range(16)]
    before = [p.requires_grad for p in model.parameters()]
    report = mfac.prune_layerwise(model, batches, 0.5, finish=mfac.FisherFinish(lr=3e-3, epochs=4))
    assert report.finish is not None and report.finish.helped
    assert report.finish.loss_after < report.finish.loss_before
    assert mfac.verify(model, report)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())
    assert "finish: 56 steps" in str(report)


def test_a_finish_that_does_not_help_is_put_back() -> None:
    model, batches = made("mlp")
    pruned = copy.deepcopy(model)
    wanted = mfac.prune_layerwise(pruned, batches, 0.5)

    def constant(module: nn.Module, batch: Any) -> Tensor:
        return 0 * module(batch[0]).sum() + 1.0

    report = mfac.prune_layerwise(model, batches, 0.5, finish="fisher", loss_fn=constant)
    assert report.finish is not None and not report.finish.helped
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(pruned.named_parameters())[name])
    assert all(torch.equal(mask, wanted.masks[name]) for name, mask in report.masks.items())


def sequences() -> list[Tensor]:
    return [torch.arange(12).add(start).remainder(11).repeat(4, 1) for start in range(16)]


BOTH: dict[str, Any] = {
    "method": "sparsegpt",
    "finish": mfac.FisherFinish(lr=3e-3, epochs=4),
    "quantize": mfac.Grid(bits=4, group_size=8),
    "weigh_inputs": True,
}


def test_weights_are_rounded_after_a_finish_and_keep_its_zeros() -> None:
    torch.manual_seed(0)
    model = Language(words=11, width=16)
    finished, rounded = copy.deepcopy(model), copy.deepcopy(model)
    of_finish = mfac.prune_layerwise(finished, sequences(), 0.5, method="sparsegpt", finish=BOTH["finish"])
    report = mfac.prune_layerwise(rounded, sequences(), 0.5, **BOTH)
    assert report.finish is not None and report.finish.loss_after == of_finish.finish.loss_after
    assert all(torch.equal(mask, of_finish.masks[name]) for name, mask in report.masks.items())
    assert mfac.verify(rounded, report)
    for name, layer in report.layers.items():
        weight = rounded.get_parameter(name).detach().double()
        values = layer.grids[0].weights(layer.grids[0].integers(weight))
        assert torch.allclose(values * report.masks[name], weight, atol=1e-6)
    once = copy.deepcopy(model)
    mfac.prune_layerwise(once, sequences(), 0.5, method="sparsegpt", quantize=BOTH["quantize"])
    with torch.no_grad():
        losses = [sum(float(next_word_loss(m, b)) for b in sequences()) for m in (rounded, once)]
    assert losses[0] < losses[1]


def next_word_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@pytest.mark.parametrize("stop", [1, 3])  # within the first sweep, and within the second
def test_a_run_of_two_sweeps_goes_on_where_it_was_stopped(stop: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Language(words=11, width=16)
    undisturbed, stopped = copy.deepcopy(model), copy.deepcopy(model)
    mfac.prune_layerwise(undisturbed, sequences(), 0.5, **BOTH)
    calls = 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mfac.prune_layerwise(stopped, sequences(), 0.5, checkpoint=tmp_path, progress=interrupt, **BOTH)
    again = copy.deepcopy(model)
    report = mfac.prune_layerwise(again, sequences(), 0.5, checkpoint=tmp_path, **BOTH)
    assert report.finish is not None and report.finish.helped
    for name, parameter in undisturbed.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_a_sparse_model_is_rounded_with_its_zeros_kept() -> None:
    model, batches = made("mlp")
    masks = mfac.prune_layerwise(model, batches, 0.5).masks
    report = mfac.prune_layerwise(model, batches, method="keep_zeros", quantize=mfac.Grid(bits=8, group_size=None))
    for name, mask in masks.items():
        assert not bool(model.get_parameter(name)[~mask].any()) and not bool(report.masks[name][~mask].any())


def test_a_finish_is_refused_where_it_has_no_place() -> None:
    model, batches = made("language")
    with pytest.raises(ValueError, match="`finish` should be"):
        mfac.prune_layerwise(model, batches, finish="adam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`lr`"):
        mfac.FisherFinish(lr=0)
    with pytest.raises(ValueError, match="`allocation` should be"):
        mfac.prune_layerwise(model, batches, allocation="equal")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["language", "convolutional", "mlp"])
@pytest.mark.parametrize("method", ["sparsegpt", "alps", "exact_obs"])
def test_outputs_that_the_loss_heeds_keep_more(kind: str, method: str) -> None:
    model, batches = made(kind)

    def first_outputs(module: nn.Module, batch: Any) -> Tensor:
        return call_model(module, batch)[..., :2].square().sum()

    name = {"mlp": "4.weight", "convolutional": "6.weight"}.get(kind)
    plain, weighed = copy.deepcopy(model), copy.deepcopy(model)
    mfac.prune_layerwise(plain, batches, 0.5, method=method, allocation="uniform")  # type: ignore[arg-type]
    report = mfac.prune_layerwise(
        weighed,
        batches,
        0.5,
        method=method,
        allocation="uniform",
        weigh_outputs=True,
        loss_fn=first_outputs,  # type: ignore[arg-type]
    )
    assert mfac.verify(weighed, report)
    assert all(p.grad is None for p in weighed.parameters())
    if name is not None:  # of the last layer only two outputs count
        kept = report.masks[name].float().mean(1)
        assert kept[:2].min() > kept[2:].max()
    lost = [(outputs(m, batches) - outputs(model, batches))[..., :2].square().sum() for m in (plain, weighed)]
    if kind == "mlp":
        assert lost[1] < lost[0]


def test_weighed_outputs_leave_the_grid_a_grid() -> None:
    model, batches = made("language")
    report = mfac.prune_layerwise(model, batches, method="sparsegpt", quantize=mfac.Grid(4, 8), weigh_outputs=True)
    for name, layer in report.layers.items():
        weight = dict(model.named_parameters())[name].detach().double()
        torch.testing.assert_close(layer.grids[0].round(weight) * report.masks[name], weight, rtol=1e-4, atol=1e-5)
