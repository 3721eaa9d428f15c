"""The second part of the demo: a small network trained by M-FAC and two first-order methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch.optim import SGD, Adam, Optimizer
from tqdm import tqdm

import mfac
from demo.digits import Digits
from demo.networks import ResNet8
from demo.training import History, train

BATCH_SIZE = 128

# Learning rates by search: 8000 training images, 3 epochs, accuracy in % on 3000 other images of
# MNIST's training half, mean of seeds 0 and 1.
#   SGD    lr 0.01: 84.9, 0.03: 95.3, 0.1: 96.3, 0.3: 96.5, 1: 95.7
#   Adam   lr 0.001: 95.0, 0.003: 97.1, 0.01: 97.2, 0.03: 96.9
#   M-FAC  rank 128, damping 1e-3: lr 0.01: 97.3, 0.02: 97.3
# and of seed 0 alone:
#   M-FAC  rank 128, damping 1e-4: lr 0.001: 73.8, 0.003: 94.3, 0.006: 97.3, 0.01: 97.0, 0.02: 97.3
#          rank 128, lr 0.01: damping 1e-3: 97.2, 1e-4: 97.0, 1e-5: 96.7; rank 64, damping 1e-4,
#          lr 0.01: 96.5
OPTIMIZERS: Mapping[str, tuple[type[Optimizer], Mapping[str, float]]] = {
    "SGD": (SGD, {"lr": 0.3, "momentum": 0.9}),
    "Adam": (Adam, {"lr": 0.01}),
    "M-FAC": (mfac.MFAC, {"lr": 0.01, "rank": 128, "damping": 1e-3, "momentum": 0.9}),
}
"""Class and arguments of each optimizer."""


def compare(
    digits: Digits, epochs: int, on_history: Callable[[str, History], None], seed: int = 0
) -> dict[str, History]:
    """Train the same `ResNet8`, from equal weights on equally ordered images, by each optimizer.

    Args:
        digits: Training and test images.
        epochs: Passes through the training images.
        on_history: Called with an optimizer's name and what its run recorded.
        seed: Of the first weights and of the order.

    Returns:
        What each run recorded, by the name in `OPTIMIZERS`.
    """
    histories = {}
    steps = epochs * (len(digits.train_labels) // BATCH_SIZE)
    for name, (kind, arguments) in OPTIMIZERS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ResNet8()
        with tqdm(total=steps, desc=name, unit="step", leave=False) as bar:

            def advance(loss: float, bar: tqdm = bar) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()

            optimizer = kind(model.parameters(), **arguments)
            histories[name] = train(
                model, optimizer, digits, epochs=epochs, batch_size=BATCH_SIZE, seed=seed, on_step=advance
            )
        on_history(name, histories[name])
    return histories
