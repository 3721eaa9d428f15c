"""Whole rows and whole channels of small convolutional networks, by saliency."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import mfac
from bench.training.tasks import TASKS, Batch

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "magnitude": {"saliency": "magnitude"},
    "obd": {"saliency": "obd"},
    "damping 1": {"damping": mfac.relative(1.0)},
    "greedy": {"compensation": "greedy"},
}


def network(normalised: bool) -> nn.Sequential:
    """Three convolutions and a head for 8 x 8 pixels, with batch norm or biases."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for ins, outs in ((1, 24), (24, 32), (32, 32)):
        layers.append(nn.Conv2d(ins, outs, 3, padding=1, bias=not normalised))
        layers += [nn.BatchNorm2d(outs)] if normalised else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if ins > 1 else [nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def trained(normalised: bool, seed: int) -> nn.Sequential:
    """After 12 epochs of Adam on scikit-learn's digits."""
    torch.manual_seed(seed)
    model, task = network(normalised), TASKS["digits"]
    inputs, labels = task.data().train
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(12):
        for rows in torch.randperm(len(inputs)).split(50):
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def loss_fn(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The cross entropy."""
    return functional.cross_entropy(model(batch[0]), batch[1])


def table(sparsities: Sequence[float], methods: Sequence[str], networks: int) -> None:
    """Prints mean accuracies over networks; hidden convolutions lose rows or channels alike.

    Args:
        sparsities: Shares of rows or channels; none for 0.4 and 0.6.
        methods: Of `METHODS`; none for all.
        networks: Trained from the seeds 0, 1, ...
    """
    task = TASKS["digits"]
    inputs, labels = task.data().train
    batches = [(inputs[i : i + 5], labels[i : i + 5]) for i in range(0, 1300, 5)]
    for normalised in (True, False):
        models = [trained(normalised, seed) for seed in range(networks)]
        dense = statistics.fmean(task.measure(model) for model in models)
        print(f"{'batch norm' if normalised else 'no batch norm'}: dense {dense:.1f}, {networks} networks")
        hidden = [name for name, p in models[0].named_parameters() if p.dim() == 4][1:]
        for pattern in ("rows", "channels"):
            for method in methods or METHODS:
                ends = []
                for sparsity in sparsities or (0.4, 0.6):
                    pruned = [copy.deepcopy(model) for model in models]
                    for model in pruned:
                        options = {"num_gradients": 208, "stages": 4, "allocation": "uniform"} | METHODS[method]
                        mfac.prune(model, loss_fn, batches, sparsity, hidden, pattern=pattern, **options)
                    found = [task.measure(model) for model in pruned]
                    ends.append(f"{100 * sparsity:.0f} %: {statistics.fmean(found):.1f} ({min(found):.1f} at least)")
                print(f"  {pattern:<9} {method:<10} {'   '.join(ends)}", flush=True)
