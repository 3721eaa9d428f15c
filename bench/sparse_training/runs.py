"""One training run of a way, and what is measured at its end."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

import mfac
from bench.fashion import load_fashion_mnist
from bench.sparse_training.methods import FASHION, PARAGRAPHS, Way, training
from bench.training.tasks import TASKS, Batch, Data, Task, loss_fn
from demo.training import cosine

ONE_SHOT = (0.8, 0.9)
_EPOCHS = {"fashion": 10, "paragraphs": 8}
_WARM = 0.05  # of the steps


def task_of(name: str) -> Task:
    """The task, with the epochs that masks take, and of Fashion-MNIST all test images."""
    task = replace(TASKS[name], epochs=_EPOCHS[name])
    return replace(task, data=_fashion) if name == "fashion" else task


@cache
def _fashion() -> Data:
    images = load_fashion_mnist()
    test = functional.avg_pool2d(images.test_images, 2), images.test_labels
    return Data(TASKS["fashion"].data().train, test)


def ways_of(name: str) -> dict[str, Way]:
    """What is compared on a task."""
    return {"fashion": FASHION, "paragraphs": PARAGRAPHS}[name]


def one_run(task_name: str, name: str, sparsity: float, seed: int) -> dict[str, float]:
    """Trains, and measures: "accuracy"; "twin" of AC/DC; "one-shot 0.8" of dense networks."""
    task, way = task_of(task_name), ways_of(task_name)[name]
    torch.manual_seed(seed)
    model = task.model()
    model.train()
    steps = task.steps()
    optimizer = _optimizer(task_name, way, model)
    outer: Any = mfac.CrAM(optimizer, rho=way.cram, seed=seed) if way.cram is not None else optimizer
    scheduler = LambdaLR(optimizer, lambda step: _factor(step, steps))
    more: dict[str, Any] = {}
    if way.collects:
        more = {"loss_fn": loss_fn, "data": list(_some(task.batches(1000 + seed), 128)), "num_gradients": 32}
    masked = training(way, model, outer, sparsity, steps, seed, **more)
    began = time.perf_counter()
    found: dict[str, float] = {}
    for batch in task.batches(seed):
        _step(model, outer, batch)
        scheduler.step()
        if masked is not None and masked.snapshot is not None and masked.steps == masked.recipe.snapshot_at:
            found["twin"] = _twin(task, model, optimizer, masked, seed, steps)
    found["seconds"] = time.perf_counter() - began
    found["accuracy"] = task.measure(model)
    if masked is not None:
        found["sparsity"] = 1 - sum(int((p != 0).sum()) for p in _masked(model, masked)) / sum(
            p.numel() for p in _masked(model, masked)
        )
    elif task_name == "fashion":
        for share in ONE_SHOT:
            found[f"one-shot {share:g}"] = _one_shot(task, model, share, seed)
    return found


def _masked(model: nn.Module, masked: mfac.MaskedTraining) -> Sequence[nn.Parameter]:
    named = dict(model.named_parameters())
    return [named[name] for name in masked.masks]


def _factor(step: int, steps: int) -> float:
    warm = max(1, round(_WARM * steps))
    return (step + 1) / warm if step < warm else cosine((step - warm) / max(1, steps - warm))


def _optimizer(task_name: str, way: Way, model: nn.Module) -> Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    if way.windowed:
        return mfac.MFAC(trained)
    if task_name == "paragraphs":
        return AdamW(trained, lr=3e-4, weight_decay=0.01)
    return SGD(trained, lr=0.1, momentum=0.9, weight_decay=5e-4)


def _step(model: nn.Module, optimizer: Any, batch: Batch) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        return loss

    if isinstance(optimizer, mfac.CrAM):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def _twin(
    task: Task, model: nn.Module, optimizer: Optimizer, masked: mfac.MaskedTraining, seed: int, steps: int
) -> float:
    """The dense model of AC/DC, trained on for as many steps as the sparse end has."""
    assert masked.snapshot is not None
    twin = copy.deepcopy(model)
    twin.load_state_dict(masked.snapshot)
    other = type(optimizer)(twin.parameters(), **{k: v for k, v in optimizer.defaults.items() if k in _SHARED})
    for number, batch in enumerate(task.batches(seed)):
        if number >= masked.steps:
            for group in other.param_groups:
                group["lr"] = optimizer.defaults["lr"] * _factor(number, steps)
            _step(twin, other, batch)
    return task.measure(twin)


_GLOBAL = mfac.Global(floor=0.0)
_SHARED = ("lr", "momentum", "weight_decay")


def _one_shot(task: Task, model: nn.Module, share: float, seed: int) -> float:
    """A copy after magnitude pruning, running statistics taken anew."""
    pruned = copy.deepcopy(model)
    unused: Callable[..., Any] = lambda model, batch: 0  # ruff: ignore[lambda-assignment]
    mfac.prune(
        pruned, unused, [], sparsity=share, saliency="magnitude", compensation="none", allocation=mfac.Global(0.0)
    )
    batches = [inputs for inputs, _ in _some(task.batches(seed), 30)]
    mfac.reestimate_batchnorm(pruned, lambda model, batch: model(batch).sum(), batches)
    return task.measure(pruned)


def _some(batches: Iterable[Batch], count: int) -> Iterable[Batch]:
    for number, batch in enumerate(batches):
        if number >= count:
            return
        yield batch
