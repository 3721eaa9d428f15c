"""Networks of several kinds and sizes, with losses and batches, for measuring whole runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from bench.pruning.digits import loss_fn, shuffled_batches
from bench.recurrent import Copier, letter_batches
from bench.recurrent import loss_fn as letters_loss
from demo.digits import load_mnist
from demo.networks import MLP, load_pretrained_digit_cnn

Network = tuple[nn.Module, Callable[[nn.Module, Any], Tensor], list[Any]]
"""A model, its loss and batches."""


def digit_cnn() -> Network:
    """The pretrained digit CNN, 390 410 parameters."""
    mnist = load_mnist()
    return load_pretrained_digit_cnn(), loss_fn, shuffled_batches(mnist.train_images, mnist.train_labels, 16, 0)


def small_mlp() -> Network:
    """784-40-20-10 without biases, 32 360 weights."""
    mnist = load_mnist()
    return MLP(bias=False), loss_fn, shuffled_batches(mnist.train_images, mnist.train_labels, 64, 0)


def wide_mlp(hidden: int = 2050) -> Network:
    """An MLP of 64 inputs, two hidden layers and 10 classes on noise; 4.4 million weights."""
    layers = (nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return nn.Sequential(*layers), loss_fn, labelled(512, 4, (64,))


def gru() -> Network:
    """The GRU that repeats letters, 63 642 parameters."""
    return Copier(), letters_loss, list(letter_batches(512, 16, seed=7))


class Transformer(nn.Module):
    """A small encoder over letters, with the mean over places classified.

    Args:
        width: Of the model.
        layers: How many.
    """

    def __init__(self, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, letters: Tensor) -> Tensor:
        """Letters [n, t] to logits [n, 10]."""
        return self.head(self.encoder(self.embed(letters)).mean(1))


def transformer() -> Network:
    """Four layers of width 128, 0.8 million weights, on texts of 32 random letters."""
    return Transformer(), loss_fn, [(torch.randint(32, (8, 32)), torch.randint(10, (8,))) for _ in range(512)]


def transformer_on_long_texts() -> Network:
    """The same on batches of 64 texts of 128 letters, whose activations take the most memory."""
    return Transformer(), loss_fn, [(torch.randint(32, (64, 128)), torch.randint(10, (64,))) for _ in range(128)]


def conv_with_batchnorm() -> Network:
    """Five convolutions with batch norm on noise of 24 by 24 pixels, 0.46 million weights."""
    channels, layers = (3, 32, 64, 64, 128, 256), []
    for number, (before, after) in enumerate(pairwise(channels)):
        conv = nn.Conv2d(before, after, 3, stride=1 + number % 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))
    return model, loss_fn, labelled(512, 16, (3, 24, 24))


def labelled(count: int, size: int, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise with random labels."""
    return [(torch.randn(size, *shape), torch.randint(10, (size,))) for _ in range(count)]
