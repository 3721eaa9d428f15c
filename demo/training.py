"""Plain training of a classifier, the same for every optimizer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from demo.digits import Digits
from demo.networks import accuracy
from demo.threads import ThreadChoice, threads_restored


@dataclass
class History:
    """What a training run recorded.

    Attributes:
        step_losses: Training loss of each step's batch, before the step.
        train_losses: Mean of these over each epoch.
        test_accuracies: In %, after each epoch.
        seconds: Training time, evaluation left out.
    """

    step_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    test_accuracies: list[float] = field(default_factory=list)
    seconds: float = 0.0


def cosine(progress: float) -> float:
    """The share of the learning rate left after a share `progress` of all steps: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@threads_restored()
def train(
    model: nn.Module,
    optimizer: Optimizer,
    digits: Digits,
    *,
    epochs: int,
    batch_size: int = 128,
    seed: int = 0,
    schedule: Callable[[float], float] = cosine,
    on_step: Callable[[float], None] | None = None,
) -> History:
    """Minimise the cross entropy, and measure the test accuracy after each epoch.

    Each epoch goes once through the training images in an order that depends on `seed` alone; a
    last batch that is not full is left out, so that all steps weigh the same.

    Args:
        model: Trained in place.
        optimizer: Of the model's parameters.
        digits: Training and test images.
        epochs: Passes through the training images.
        batch_size: Images a step.
        seed: Of the order of the images.
        schedule: Share of the learning rate, from the share of steps done.
        on_step: Called with the loss after every step.

    Raises:
        ValueError: If there are fewer training images than a batch has.
        FloatingPointError: If the loss is no longer finite.
    """
    count = len(digits.train_labels)
    if count < batch_size:
        raise ValueError(f"Parameter `batch_size` should be at most the {count} images. Found {batch_size}.")
    steps = count // batch_size
    scheduler = LambdaLR(optimizer, lambda step: schedule(step / (epochs * steps)))
    generator = torch.Generator().manual_seed(seed)
    history = History()
    threads = ThreadChoice()  # beside a busy process one thread is faster than several
    for _ in range(epochs):
        started = time.perf_counter()
        model.train()
        order = torch.randperm(count, generator=generator)[: steps * batch_size]
        for rows in threads.over(order.split(batch_size)):
            loss = nn.functional.cross_entropy(model(digits.train_images[rows]), digits.train_labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            history.step_losses.append(loss.item())
            if not math.isfinite(history.step_losses[-1]):
                raise FloatingPointError(f"The loss is {loss.item()} after {len(history.step_losses)} steps.")
            if on_step is not None:
                on_step(loss.item())
        history.seconds += time.perf_counter() - started
        history.train_losses.append(sum(history.step_losses[-steps:]) / steps)
        history.test_accuracies.append(accuracy(model, digits.test_images, digits.test_labels))
    return history
