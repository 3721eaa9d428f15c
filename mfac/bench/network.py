"""Gradients of a network, for measuring the static Fisher: noise has an easy Gram matrix.

A ResNet-20 is trained for some steps of SGD, then every row of the window is the gradient of 16
images. The images are Fashion-MNIST's where a copy lies in `$FASHION_MNIST_DIR` or in the cache of
`bench.fashion`. Otherwise they are ten smooth random patterns, shifted, scaled and with noise, and
a line says so.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from mfac.gradients.collecting import collect_gradients

_BATCH, _TRAINING_BATCH = 16, 128
_CLASSES, _SIDE = 10, 28


@dataclass(frozen=True)
class NetworkGradients:
    """A window of gradients.

    Attributes:
        rows: [m, d] float32.
        source: The network and the images, in words.
    """

    rows: Tensor
    source: str


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.added = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + shortcut)


class ResNet20(nn.Sequential):
    """The ResNet of 20 layers of He et al. (CVPR 2016) for one channel.

    It has 269434 parameters at width 16.

    Args:
        width: Channels of the first stage; the others have twice and four times as many.
    """

    def __init__(self, width: int = 16) -> None:
        stages: list[nn.Module] = []
        for channels_in, channels in pairwise((width, width, 2 * width, 4 * width)):
            stages += [_Block(channels_in, channels), _Block(channels, channels), _Block(channels, channels)]
        stem = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, _CLASSES)]
        super().__init__(*stem, *stages, *head)


def network_gradients(rank: int, width: int = 16, steps: int = 100) -> NetworkGradients:
    """The gradients of a ResNet-20 after some steps of training.

    Args:
        rank: m.
        width: Of the network.
        steps: Of SGD with learning rate 0.1 and momentum 0.9, in batches of 128.

    Returns:
        The window, d = 269434 at width 16. About 15 s at m = 256 on two cores.
    """
    images, labels, source = _images(max(10_000, rank * _BATCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet20(width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(steps):
            chosen = torch.randint(len(images), (_TRAINING_BATCH,))
            optimizer.zero_grad()
            _loss(model, (images[chosen], labels[chosen])).backward()
            optimizer.step()
    batches = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    rows = collect_gradients(model, _loss, batches, num_gradients=rank)
    return NetworkGradients(rows, f"ResNet-20 of width {width} after {steps} steps on {source}")


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _images(count: int) -> tuple[Tensor, Tensor, str]:
    """Images [n, 1, 28, 28] of mean 0 and deviation 1, labels [n], and the images' source."""
    folder = _fashion_mnist()
    if folder is None:
        images, labels = _patterns(count)
        source = "random patterns (Fashion-MNIST is not there: python -m bench.diagonal fetches it)"
    else:
        images = _idx(folder, "train-images-idx3-ubyte", 16)[: count * _SIDE**2].view(-1, 1, _SIDE, _SIDE).float()
        labels = _idx(folder, "train-labels-idx1-ubyte", 8)[:count].long()
        source = "Fashion-MNIST"
    return (images - images.mean()) / images.std(), labels, source


def _fashion_mnist() -> Path | None:
    """The folder of a copy that is there already."""
    cache = Path(os.environ.get("MFAC_CACHE") or Path.home() / ".cache" / "mfac")
    given = os.environ.get("FASHION_MNIST_DIR")
    for folder in [Path(given)] if given else sorted(cache.glob("dataset-fashion-mnist-*")):
        if list(folder.glob("train-images-idx3-ubyte*")) and list(folder.glob("train-labels-idx1-ubyte*")):
            return folder
    return None


def _idx(folder: Path, name: str, header: int) -> Tensor:
    """The bytes of an IDX file, plain or gzipped, after its header."""
    plain, packed = folder / name, folder / f"{name}.gz"
    data = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    return torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8)


def _patterns(count: int) -> tuple[Tensor, Tensor]:
    """Images of one smooth pattern a class: shifted by up to two pixels, scaled, with noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(_CLASSES, 1, 6, 6, generator=generator)
    patterns = nn.functional.interpolate(coarse, size=_SIDE + 4, mode="bicubic")
    labels = torch.randint(_CLASSES, (count,), generator=generator)
    top, left = torch.randint(5, (2, count), generator=generator).tolist()
    images = torch.stack(
        [
            patterns[label, :, i : i + _SIDE, j : j + _SIDE]
            for label, i, j in zip(labels.tolist(), top, left, strict=True)
        ]
    )
    contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    return contrast * images + 0.5 * torch.randn(images.shape, generator=generator), labels
