"""The networks of the demo and the benchmarks, for digits of 28 x 28 pixels in [0, 1]."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from demo.fetch import fetch, package

PRETRAINED = package("digit_cnn")

_PIXEL_MEAN, _PIXEL_STD = 0.1307, 0.3081  # of MNIST's training images


class DigitCNN(nn.Module):
    """Three convolutions and two linear layers, 390410 parameters, named as in `PRETRAINED`.

    It takes pixels in [0, 1] and normalises them itself, with the constants that the pretrained
    weights need.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 28 -> 14 pixels
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 14 -> 7
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),  # 7 -> 3
        )
        self.fc_layers = nn.Sequential(nn.Linear(128 * 3 * 3, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 28, 28] in [0, 1] to logits [n, 10]."""
        return self.fc_layers(self.conv_layers(_normalise(images)).flatten(1))


class ResNet8(nn.Module):
    """A residual network of 8 layers with batch norm, 75002 parameters at width 16.

    The CIFAR layout of He et al., "Deep Residual Learning" (CVPR 2016), with one block a stage and
    shortcuts without parameters (their option A).

    Args:
        width: Channels of the first stage; the others have twice and four times as many.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(
            _Block(width, width, stride=1),
            _Block(width, 2 * width, stride=2),
            _Block(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, 28, 28] in [0, 1] to logits [n, 10]."""
        return self.head(self.stages(self.stem(_normalise(images))).mean(dim=(2, 3)))


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.added))  # zero channels
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + shortcut)


class MLP(nn.Sequential):
    """784-40-20-10 on images [n, 1, 28, 28], with biases or without."""

    def __init__(self, bias: bool = True) -> None:
        sizes = (784, 40, 20, 10)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
        super().__init__(*layers[:-1])


def load_pretrained_digit_cnn() -> DigitCNN:
    """A `DigitCNN` with the third-party weights of `PRETRAINED`, in eval mode.

    99.06 % of MNIST's 10000 test images are classified right.

    Raises:
        FetchError: If the weights could not be downloaded.
    """
    file = fetch(PRETRAINED) / "handwriting_model.pth"
    model = DigitCNN()
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """The share of images classified right, in %; the model is put back into its own mode after."""
    was_training = model.training
    model.eval()
    try:
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        correct = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in batches)
    finally:
        model.train(was_training)
    return 100 * correct / len(labels)


def _normalise(images: Tensor) -> Tensor:
    return (images - _PIXEL_MEAN) / _PIXEL_STD
