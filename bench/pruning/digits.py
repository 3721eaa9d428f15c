"""The digit CNN and the MLP on MNIST: accuracy after one call of `mfac.prune`, without training."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mfac
from bench.pruning.table import Table, reached
from demo.digits import load_mnist
from demo.networks import MLP, accuracy, load_pretrained_digit_cnn

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "obs": {"saliency": "obs"},
    "summed": {"saliency": "obs", "compensation": "summed"},
    "magnitude": {"saliency": "magnitude", "compensation": "none"},
}
CNN_MARKS = {0.8: 99.1, 0.9: 99.0, 0.95: 98.6, 0.98: 97.0}
MLP_MARKS = {(15, 0.95): 92.0, (15, 0.98): 88.5, (1, 0.95): 89.0, (1, 0.98): 52.0}
ONE_STAGE = {"stages": 1, "recomputations": 16}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def shuffled_batches(images: Tensor, labels: Tensor, size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """All images once, in an order by the seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [(images[part], labels[part]) for part in order.split(size)]


def train_mlp(images: Tensor, labels: Tensor, seed: int = 0) -> nn.Module:
    """A 784-40-20-10 MLP without biases, 32 360 weights, after five epochs of SGD: about 94 %."""
    torch.manual_seed(seed)
    model = MLP(bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(5):
        for batch in shuffled_batches(images, labels, 64, seed + epoch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    return model


def cnn(sparsities: Sequence[float], methods: Sequence[str], orders: int, settings: dict[str, Any]) -> None:
    """Prints the table of the pretrained digit CNN.

    Args:
        sparsities: Lines.
        methods: Of `METHODS`.
        orders: Of the data, each a run.
        settings: Of `mfac.prune`, besides the method's.
    """
    mnist = load_mnist()
    dense = load_pretrained_digit_cnn()
    print(f"digit CNN, {mnist.source} Dense {accuracy(dense, mnist.test_images, mnist.test_labels):.2f} %")
    table = Table(["sparsity", "method", "accuracy [%]", "wanted", "time [s]"], [0, 15, 24, 16, 0])
    for sparsity in sparsities or CNN_MARKS:
        for method in methods or METHODS:
            found, seconds = [], []
            for seed in range(orders):
                model = copy.deepcopy(dense)
                data = shuffled_batches(mnist.train_images, mnist.train_labels, 16, seed)
                start = time.perf_counter()
                mfac.prune(model, loss_fn, data, sparsity=sparsity, **settings, **METHODS[method])
                seconds.append(time.perf_counter() - start)
                found.append(accuracy(model, mnist.test_images, mnist.test_labels))
            mean = sum(found) / len(found)
            mark = reached(mean, CNN_MARKS.get(sparsity) if method in list(METHODS)[:1] else None)
            table.row(f"{sparsity:.0%}", method, _numbers(found), mark, f"{min(seconds):.0f}")


def mlp(sparsities: Sequence[float], methods: Sequence[str], networks: int, settings: dict[str, Any]) -> None:
    """Prints the table of the MLP, with one stage and with 15, over several networks.

    Args:
        sparsities: Lines.
        methods: Of `METHODS`.
        networks: How many, trained from different seeds.
        settings: Of `mfac.prune`, besides the method's.
    """
    mnist = load_mnist()
    mean, deviation = mnist.train_images.mean(), mnist.train_images.std()
    train, test = ((images - mean) / deviation for images in (mnist.train_images, mnist.test_images))
    nets = [train_mlp(train, mnist.train_labels, seed) for seed in range(networks)]
    print(f"MLP, {mnist.source} Dense {_numbers([accuracy(net, test, mnist.test_labels) for net in nets])} %")
    table = Table(["stages", "sparsity", "method", "accuracy [%]", "wanted", "time [s]"], [0, 0, 15, 32, 16, 0])
    for stages in (15, 1):
        for sparsity in sparsities or (0.95, 0.98):
            for method in methods or METHODS:
                found, seconds = [], []
                for net in nets:
                    model = copy.deepcopy(net)
                    data = shuffled_batches(train, mnist.train_labels, 1000, 0)
                    options = {"stages": stages, **(ONE_STAGE if stages == 1 else {}), **settings, **METHODS[method]}
                    start = time.perf_counter()
                    mfac.prune(model, loss_fn, data, sparsity, num_gradients=1000, per_sample=True, **options)
                    seconds.append(time.perf_counter() - start)
                    found.append(accuracy(model, test, mnist.test_labels))
                value = sum(found) / len(found)
                mark = reached(value, MLP_MARKS.get((stages, sparsity)) if method == "default" else None)
                numbers = f"{_numbers(found)}, mean {value:.2f}"
                table.row(stages, f"{sparsity:.0%}", method, numbers, mark, f"{min(seconds):.0f}")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
