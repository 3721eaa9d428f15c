"""Batch normalisation after pruning: running statistics re-estimated on the pruned network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from mfac.gradients.collecting import evaluation_mode, num_samples

_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def normalised_layers(model: nn.Module) -> list[nn.Module]:
    """The batch-norm layers that keep running statistics."""
    return [layer for layer in model.modules() if isinstance(layer, _LAYERS) and layer.track_running_stats]


@torch.no_grad()
def reestimate_statistics(model: nn.Module, loss_fn: Callable[[nn.Module, Any], Any], batches: Iterable[Any]) -> int:
    """Replaces the running statistics by the plain average over `batches`, all else in evaluation mode.

    Args:
        model: The model; its statistics change, its modes are put back.
        loss_fn: Called with the model and each batch for its forward pass.
        batches: A finite iterable of batches; those of one sample are passed over. Without others the statistics stay.

    Returns:
        How many batches were used.
    """
    layers: list[Any] = normalised_layers(model)
    momenta = {layer: layer.momentum for layer in layers}
    used = 0
    try:
        with evaluation_mode(model):
            for batch in batches:
                if num_samples(batch) == 1:  # has no variance to estimate
                    continue
                if used == 0:
                    for layer in layers:
                        layer.train()
                        layer.reset_running_stats()
                        layer.momentum = None  # torch's name for a cumulative average
                loss_fn(model, batch)
                used += 1
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    return used
