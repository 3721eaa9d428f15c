"""What pruning saved and cost, measured on a model: loss, time, operations, bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.backward import LossFunction
from mfac.gradients.examples import call_with
from mfac.gradients.modes import model_mode
from mfac.masks.located import locate
from mfac.pruning.flops import counted_flops


@dataclass(frozen=True)
class Measurement:
    """The results of `PruningReport.measure`; a result is None where its argument was missing.

    Attributes:
        dense_bytes: Parameter name to the bytes of all its weights.
        compact_bytes: To the bytes of a bit for each weight and the values of the kept weights.
        dense_flops: To the operations of one forward pass, two for each product with a weight; a
            layer that is never called as a module has no entry.
        sparse_flops: To those with kept weights.
        loss_before: Mean over the batches, of the dense model.
        loss_after: The same of the pruned one.
        seconds_before: Wall time of the loss of one batch, the median over the batches, of the
            dense model.
        seconds_after: The same of the pruned one: zeros in dense tensors make nothing faster by
            themselves.
    """

    dense_bytes: dict[str, int] = field(default_factory=dict)
    compact_bytes: dict[str, int] = field(default_factory=dict)
    dense_flops: dict[str, int] = field(default_factory=dict)
    sparse_flops: dict[str, int] = field(default_factory=dict)
    loss_before: float | None = None
    loss_after: float | None = None
    seconds_before: float | None = None
    seconds_after: float | None = None


def measure(
    masks: Mapping[str, Tensor],
    model: nn.Module,
    loss_fn: LossFunction | None = None,
    data: Iterable[Any] | None = None,
    *,
    dense: nn.Module | None = None,
    example: Any = None,
) -> Measurement:
    """Measures a pruned model; see `PruningReport.measure`."""
    located = locate(model, masks)
    dense_bytes, compact_bytes = {}, {}
    for name, parameter in located.items():
        dense_bytes[name] = parameter.numel() * parameter.element_size()
        kept = int(masks[name].sum())
        bits = (parameter.numel() + 7) // 8 if kept < parameter.numel() else 0
        compact_bytes[name] = bits + kept * parameter.element_size()
    batches = None if data is None else list(data)
    flops = _flops(model, loss_fn, batches, example)
    sparse = {name: round(flops[name] * float(masks[name].double().mean())) for name in masks if name in flops}
    after: tuple[float | None, float | None] = (None, None)
    before = after
    if loss_fn is not None and batches is not None:
        after = mean_loss(model, loss_fn, batches)
        if dense is not None:
            before = mean_loss(dense, loss_fn, batches)
    dense_flops = {name: flops[name] for name in masks if name in flops}
    return Measurement(dense_bytes, compact_bytes, dense_flops, sparse, before[0], after[0], before[1], after[1])


def mean_loss(model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any]) -> tuple[float, float]:
    """The loss over batches, in evaluation mode.

    Args:
        model: The model; its modes are put back.
        loss_fn: Called with the model and each batch.
        batches: At least one.

    Returns:
        The mean of the batches' losses, and the median of their wall times in seconds.

    Raises:
        ValueError: If there is no batch.
    """
    losses, times = [], []
    with model_mode(model, "eval"), torch.enable_grad():  # some losses differentiate within
        for batch in batches:
            start = time.perf_counter()
            losses.append(loss_fn(model, batch).detach().double().item())
            times.append(time.perf_counter() - start)
    if not losses:
        raise ValueError("Parameter `data` should yield at least one batch. Found none.")
    return sum(losses) / len(losses), sorted(times)[len(times) // 2]


def _flops(model: nn.Module, loss_fn: LossFunction | None, batches: list[Any] | None, example: Any) -> dict[str, int]:
    """Of the example input, or of the first batch where there is none."""
    if example is None and (loss_fn is None or not batches):
        return {}
    with model_mode(model, "eval"), counted_flops(model) as counts, torch.enable_grad():
        if example is None and loss_fn is not None and batches:
            loss_fn(model, batches[0])
        else:
            call_with(model, example)
    return counts
