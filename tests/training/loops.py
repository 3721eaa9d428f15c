"""Small trainings with masks: every recipe, at a size at which a thousand steps are quick."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import mfac
from mfac import recipes

STEPS = 120

RECIPES: dict[str, Callable[[int], recipes.Recipe]] = {
    "gmp": lambda end: recipes.GMP(0.9, end=end * 3 // 4, begin=5, every=7),
    "plain gmp": lambda end: recipes.GMP(0.8, end=end * 3 // 4, every=10, first_sparsity=0.0, allocation="uniform"),
    "gmp 2:4": lambda end: recipes.GMP(end=end * 3 // 4, every=10, pattern="2:4"),
    "acdc": lambda end: recipes.ACDC(0.85, end=end),
    "acdc 2:4": lambda end: recipes.ACDC(end=end, pattern="2:4"),
    "rigl": lambda end: recipes.RigL(0.8, end=end * 3 // 4, every=6),
    "set": lambda end: recipes.SET(0.7, every=9),
    "snfs": lambda end: recipes.SNFS(0.8, end=end, every=8),
    "dsr": lambda end: recipes.DSR(0.75, end=end, periods=(5, 10, 20)),
    "snip": lambda end: recipes.SNIP(0.9),
    "lottery": lambda end: recipes.LotteryTicket(rounds=3, round_steps=end // 4, rewind_step=5),
    "static": lambda end: recipes.Static(0.6, allocation="uniform"),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "mfac": lambda p: mfac.MFAC(p, rank=4),
}


def network(seed: int = 0) -> nn.Sequential:
    """Convolution, batch normalisation and two linear layers; of [n, 4, 4, 4] and five classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 5)),
    )


def data(steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch for each step, from the number of the step alone."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * seed + step)
        x = torch.randn(8, 4, 4, 4, generator=generator)
        yield x, x.flatten(1)[:, :5].argmax(1)


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    after: Callable[[], None] = lambda: None,
) -> None:
    """Steps of plain training."""
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        after()


def state_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    """What an optimizer keeps for each entry of a parameter."""
    found = optimizer.state.get(parameter, {})
    return [v for v in found.values() if isinstance(v, Tensor) and v.shape == parameter.shape]
