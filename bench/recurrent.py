"""A recurrent network that has to remember: it reads letters, then says them in the same order."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LETTERS, LENGTH = 26, 10


class Copier(nn.Module):
    """A GRU that reads `LENGTH` letters, and is then asked for them one a time step.

    Its input is one-hot.

    Args:
        hidden: Units of the GRU.
    """

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.gru = nn.GRU(LETTERS + 1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, LETTERS)

    def forward(self, letters: Tensor) -> Tensor:
        """Letters [n, t] to logits [n, t, 26] of the same letters, given after all were read."""
        question = torch.full_like(letters, LETTERS)
        inputs = functional.one_hot(torch.cat([letters, question], 1), LETTERS + 1).float()
        return self.head(self.gru(inputs)[0][:, letters.shape[1] :])


def loss_fn(model: nn.Module, letters: Tensor) -> Tensor:
    """Mean cross-entropy over all letters of a batch [n, t]."""
    return functional.cross_entropy(model(letters).flatten(0, 1), letters.flatten())


def letter_batches(count: int, size: int, seed: int) -> list[Tensor]:
    """Batches of random letters, [size, LENGTH]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(LETTERS, (size, LENGTH), generator=generator) for _ in range(count)]


@torch.no_grad()
def recalled(model: nn.Module, seed: int = 12345) -> float:
    """Share of 20000 letters that are said right, in %."""
    letters = letter_batches(1, 2000, seed)[0]
    return 100 * float((model(letters).argmax(-1) == letters).double().mean())


def train_copier(steps: int = 2500, seed: int = 0) -> Copier:
    """Trains a copier with Adam from random weights; a minute on one core."""
    torch.manual_seed(seed)
    model = Copier()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for letters in letter_batches(steps, 128, seed + 1):
        optimizer.zero_grad()
        loss_fn(model, letters).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()
