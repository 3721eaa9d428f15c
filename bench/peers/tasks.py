"""The networks and the data: the trained networks, and a tiny one with matrices built in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from bench.fashion import load_fashion_mnist
from demo.networks import ResNet8, _Block

BATCH_SIZE = 128


@dataclass(frozen=True)
class Task:
    """A network and batches for it.

    Attributes:
        name: As it is printed.
        build: Makes the network; the same weights every time.
        batches: Some batches of images [128, 1, 28, 28] in [0, 1] and labels [128], used in turn.
    """

    name: str
    build: Callable[[], nn.Module]
    batches: list[tuple[Tensor, Tensor]]

    def cycle(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches again and again."""
        while True:
            yield from self.batches


class MLP(nn.Sequential):
    """784-256-128-10 with biases, 235146 parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), *_linear_layers(784, 256, 128, 10))


class ResNet20(ResNet8):
    """The ResNet of 20 layers of He et al. (CVPR 2016) for one input channel, at width 16.

    It has 269434 parameters.

    Shortcuts without parameters (their option A), batch norm after every convolution, no biases in
    convolutions.
    """

    def __init__(self) -> None:
        super().__init__(width=16)
        blocks: list[nn.Module] = []
        for channels_in, channels in pairwise((16, 16, 32, 64)):
            blocks += [
                _Block(channels_in, channels, stride=channels // channels_in),
                _Block(channels, channels, stride=1),
                _Block(channels, channels, stride=1),
            ]
        self.stages = nn.Sequential(*blocks)


class Transformer(nn.Module):
    """A pre-norm encoder over the 28 rows of an image as tokens.

    It has 2 layers, width 64, 4 heads and 104394 parameters.

    Queries, keys, values and outputs are Linear layers of their own, as the peers know no fused
    attention. With `flat_tokens` each Linear sees [batch · tokens, features], the same function,
    for a peer that takes only matrices.
    """

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Linear(28, width)
        self.position = nn.Parameter(0.02 * torch.randn(28, width))
        self.layers = nn.Sequential(*(_EncoderLayer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)
        self.flat_tokens = False

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 28, 28] to logits [n, 10]."""
        x = apply_linear(self.embedding, images.squeeze(1), self.flat_tokens) + self.position
        for layer in self.layers:
            x = layer(x, self.flat_tokens)
        return self.head(self.norm(x).mean(dim=1))


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries, self.keys, self.values = (nn.Linear(width, width) for _ in range(3))
        self.outputs = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, flat: bool) -> Tensor:
        normed = self.norm1(x)
        projections = (apply_linear(layer, normed, flat) for layer in (self.queries, self.keys, self.values))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in projections)  # [n, heads, tokens, .]
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + apply_linear(self.outputs, attended, flat)
        inner = nn.functional.gelu(apply_linear(self.expand, self.norm2(x), flat))
        return x + apply_linear(self.contract, inner, flat)


class TinyMLP(nn.Sequential):
    """16-12-10 on averages of 7 x 7 pixels, 334 parameters: small enough for dense matrices."""

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(7), nn.Flatten(), *_linear_layers(16, 12, 10))


def apply_linear(layer: nn.Linear, x: Tensor, flat: bool) -> Tensor:
    """The layer on [n, tokens, features], through [n · tokens, features] if `flat`."""
    if not flat:
        return layer(x)
    return layer(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def _linear_layers(*sizes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers[:-1]


NETWORKS: Mapping[str, type[nn.Module]] = {"mlp": MLP, "resnet20": ResNet20, "transformer": Transformer}
"""The networks that are timed."""


def load_tasks(names: list[str], num_batches: int = 8) -> dict[str, Task]:
    """The tasks of these networks, on shuffled images of Fashion-MNIST; "tiny" is `TinyMLP`."""
    data = load_fashion_mnist().subset(num_batches * BATCH_SIZE)
    batches = list(
        zip(data.train_images.split(BATCH_SIZE), data.train_labels.split(BATCH_SIZE), strict=True),
    )
    networks = {**NETWORKS, "tiny": TinyMLP}
    return {name: Task(name, _seeded(networks[name]), batches) for name in names}


def _seeded(network: type[nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return network()

    return build
