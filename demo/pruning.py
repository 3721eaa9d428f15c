"""The first part of the demo: a pretrained network pruned to some sparsities in one call each."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import mfac
from demo.digits import Digits
from demo.networks import accuracy

Batch = tuple[Tensor, Tensor]

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mfac": ("weights go one by one in blocks of the Fisher; in each step the others move as costs least loss", {}),
    "magnitude": (
        "the weights of least magnitude in the whole network; the others stay as they are",
        {"saliency": "magnitude", "compensation": "none"},
    ),
    "M-FAC, summed": (
        "least OBS saliency; the others move by the sum of single-weight updates, as in M-FAC's own pruner",
        {"saliency": "obs", "compensation": "summed"},
    ),
}
"""What each method drops and moves, and its arguments of `mfac.prune`."""


@dataclass(frozen=True)
class Result:
    """One pruned network.

    Attributes:
        sparsity: Share of zeros among the prunable weights, as achieved.
        method: Key of `METHODS`.
        accuracy: Test accuracy in %.
        seconds: Wall time of the call of `mfac.prune`.
    """

    sparsity: float
    method: str
    accuracy: float
    seconds: float


def prune_copies(
    model: nn.Module,
    digits: Digits,
    sparsities: Sequence[float],
    methods: Sequence[str],
    settings: Mapping[str, Any],
    on_result: Callable[[Result], None],
) -> list[Result]:
    """Prune a copy of the model for every sparsity and method, without fine-tuning after.

    Args:
        model: Left as it is.
        digits: Gradients come from the training images, accuracies from the test images.
        sparsities: Shares of zeros.
        methods: Keys of `METHODS`.
        settings: Further arguments of `mfac.prune`, the same for all methods.
        on_result: Called with each result.

    Returns:
        All results, ordered by sparsity, then by method.
    """
    data = shuffled_batches(digits)
    results = []
    for sparsity in sparsities:
        for method in methods:
            pruned = copy.deepcopy(model)
            with tqdm(desc=f"{100 * sparsity:.0f} % {method}", unit="step", leave=False) as bar:
                started = time.perf_counter()
                options = {"progress": partial(_advance, bar), **settings, **METHODS[method][1]}
                report = mfac.prune(pruned, cross_entropy, data, sparsity, **options)
                seconds = time.perf_counter() - started
            correct = accuracy(pruned, digits.test_images, digits.test_labels)
            results.append(Result(report.sparsity, method, correct, seconds))
            on_result(results[-1])
    return results


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean loss of the model on a batch of images [n, 1, 28, 28] and labels [n]."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def shuffled_batches(digits: Digits, batch_size: int = 16, seed: int = 0) -> list[Batch]:
    """All training images once, in full batches."""
    order = torch.randperm(len(digits.train_labels), generator=torch.Generator().manual_seed(seed))
    order = order[: len(order) // batch_size * batch_size]
    return [(digits.train_images[rows], digits.train_labels[rows]) for rows in order.split(batch_size)]


def _advance(bar: tqdm, step: mfac.PruningStep) -> None:
    bar.total = step.total_steps
    bar.set_postfix_str(f"{100 * step.sparsity:.1f} % zero", refresh=False)
    bar.update(step.step - bar.n)
