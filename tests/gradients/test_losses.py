"""Gradients of any loss: any batches, training mode only, inner derivatives, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from models import batches, cross_entropy, deep, recurrent
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mfac

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2, "sparsity": 0.5}


def pruned(model: nn.Module, loss_fn, data=None, **arguments) -> mfac.PruningReport:
    return mfac.prune(model, loss_fn, batches(30) if data is None else data, **{**SMALL, **arguments})


@dataclass
class Batch:
    inputs: Tensor
    labels: Tensor


def test_batches_may_be_objects_or_dicts():
    objects = [Batch(*batch) for batch in batches(30)]
    by_attribute = pruned(deep(), lambda m, b: cross_entropy(m, (b.inputs, b.labels)), objects)
    dicts = [{"inputs": x, "labels": y} for x, y in batches(30)]
    by_key = pruned(deep(), lambda m, b: cross_entropy(m, (b["inputs"], b["labels"])), dicts)
    plain = pruned(deep(), cross_entropy)
    for name, mask in plain.masks.items():
        assert torch.equal(mask, by_attribute.masks[name]) and torch.equal(mask, by_key.masks[name])


def test_per_sample_gradients_of_objects_and_of_recurrent_layers():
    objects = [Batch(*batch) for batch in batches(4)]
    rows = mfac.collect_gradients(
        recurrent(nn.LSTM), lambda m, b: cross_entropy(m, (b.inputs, b.labels)), objects, 20, per_sample=True
    )
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches(4) for i in range(len(x))]
    expected = mfac.collect_gradients(recurrent(nn.LSTM), cross_entropy, singles, 20)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-7)


class Detector(nn.Module):
    """Gives a loss in training mode, labels in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.drop = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scores = self.head(self.drop(torch.relu(self.norm(self.body(x)))))
        return nn.functional.cross_entropy(scores, labels) if self.training else scores.argmax(1)


def test_a_loss_of_training_mode_only_is_taken_there_without_noise():
    data = batches(30)
    with pytest.warns(UserWarning, match=r"returns no loss in evaluation mode .* mode=\"train\" says so"):
        found = mfac.collect_gradients(Detector(), lambda m, b: m(*b), data, 4)
    model = Detector()
    model.eval()
    model.training = True  # the root alone: batch normalisation and dropout as in evaluation
    asked = mfac.collect_gradients(model, lambda m, b: m(*b), data, 4, mode="train")
    assert torch.equal(found, asked)
    model = Detector()
    pruned(model, lambda m, b: m(*b), data, mode="train")
    assert model.training and model.drop.training
    with pytest.raises(TypeError, match=r"`loss_fn` should return a real floating-point scalar. Found torch.int64"):
        mfac.collect_gradients(Detector(), lambda m, b: m(*b), data, 4, mode="eval")


def test_losses_that_differentiate_within():
    def forces(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = batch[0].clone().requires_grad_()
        energy = model(x).square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return (force - 1).square().mean()

    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3, bias=False))
    report = pruned(model, forces)
    assert report.sparsity == 0.5 and int(model[1].num_batches_tracked) == 30


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = deep(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.clone().requires_grad_(), use_reentrant=self.reentrant)


def test_reentrant_checkpoints_give_the_same_gradients_and_leave_grad_alone():
    model = Checkpointed(True)
    model.inner[0].weight.grad = torch.ones_like(model.inner[0].weight)
    rows = mfac.collect_gradients(model, cross_entropy, batches(3), 3)
    expected = mfac.collect_gradients(Checkpointed(False), cross_entropy, batches(3), 3)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-8)
    assert torch.equal(model.inner[0].weight.grad, torch.ones_like(model.inner[0].weight))
    assert model.inner[4].weight.grad is None
