"""What the engine costs: in steps without changes, and in a change of ten million weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import mfac
from bench.training.tasks import TASKS, loss_fn
from mfac import recipes

ROUNDS, STEPS = 9, 20


def overhead() -> None:
    """Prints both."""
    torch.set_num_threads(1)
    print("\na step between changes with masks over one without, ResNet-20, batch 64, medians of pairs")
    for name, make in (
        ("SGD", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        ("AdamW", lambda p: torch.optim.AdamW(p, lr=1e-4)),
    ):
        print(f"  {name:<6} {_ratio(make):.4f}   (1.02 wanted)")
    torch.set_num_threads(2)
    print("\na change of masks at ten million weights, seconds, two threads")
    for name, recipe in {
        "GMP": recipes.GMP(0.9, begin=3, end=9, every=3),
        "GMP, uniform": recipes.GMP(0.9, begin=3, end=9, every=3, allocation="uniform"),
        "AC/DC": recipes.ACDC(0.9, end=20, warmup=3, phase=3, final=3),
        "RigL": recipes.RigL(0.9, end=9, every=3),
        "SET": recipes.SET(0.9, end=9, every=3),
        "SNFS": recipes.SNFS(0.9, end=9, every=3),
        "DSR": recipes.DSR(0.9, end=9, periods=[3]),
    }.items():
        print(f"  {name:<14} {_change(recipe):.2f}   (1 wanted)")


def _ratio(make: Callable[..., torch.optim.Optimizer]) -> float:
    task = TASKS["fashion"]
    batch = next(task.batches(0))

    def seconds(masked: bool) -> float:
        torch.manual_seed(0)
        model = task.model()
        optimizer = make(model.parameters())
        if masked:
            mfac.MaskedTraining(model, optimizer, recipes.Static(0.9))
        begin = 0.0
        for step in range(STEPS + 2):
            if step == 2:
                begin = time.perf_counter()
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        return time.perf_counter() - begin

    pairs = [(seconds(True), seconds(False)) if i % 2 else (seconds(False), seconds(True))[::-1] for i in range(ROUNDS)]
    return statistics.median(with_masks / without for with_masks, without in pairs)


def _change(recipe: recipes.Recipe) -> float:
    """How much longer the longest step with a change takes than the median step without one."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    training = mfac.MaskedTraining(model, optimizer, recipe)
    with_change, without = [], []
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.randn(2, 1024)).square().mean().backward()
        begin = time.perf_counter()
        optimizer.step()
        (without if training.step() is None else with_change).append(time.perf_counter() - begin)
    return max(with_change) - statistics.median(without)
