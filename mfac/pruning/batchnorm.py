"""Batch normalisation after pruning: running statistics re-estimated on the pruned network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import model_mode
from mfac.gradients.nested import num_samples


def normalised_layers(model: nn.Module) -> list[nn.Module]:
    """The batch-norm layers whose running statistics are re-estimated.

    Args:
        model: The model, in its own mode.

    Returns:
        All but those that the caller has frozen: scale and shift require no gradient, or the layer
        is in evaluation mode while the model is in training mode.
    """
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and not _is_frozen(layer, model)
    ]


def _is_frozen(layer: nn.Module, model: nn.Module) -> bool:
    parameters = list(layer.parameters(recurse=False))
    frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
    return frozen or (model.training and not layer.training)


def reestimate_batchnorm(
    model: nn.Module, loss_fn: LossFunction, batches: Iterable[Any], mode: Literal["eval", "train"] = "eval"
) -> int:
    """Replaces the running statistics of batch normalisation by their plain average over batches.

    Pruned weights change the inputs of later layers; the old statistics then cost accuracy.

    Args:
        model: The model; its statistics change, its modes are put back.
        loss_fn: Called with the model and each batch for its forward pass.
        batches: A finite iterable of batches. Batches of one sample are passed over, as they have
            no variance; without other batches the statistics stay.
        mode: The mode of all other layers meanwhile.

    Returns:
        How many batches were used. If a batch fails, the statistics are as they were before the
        call.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        >>> mfac.reestimate_batchnorm(model, lambda model, batch: model(batch).sum(), [torch.randn(8, 2)] * 3)
        3
    """
    layers: list[Any] = normalised_layers(model)
    momenta = {layer: layer.momentum for layer in layers}
    before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    used = 0
    try:
        with model_mode(model, mode), torch.enable_grad():  # some losses differentiate within
            for batch in batches:
                if num_samples(batch) == 1:
                    continue
                if used == 0:
                    for layer in layers:
                        layer.train()
                        layer.reset_running_stats()
                        layer.momentum = None  # torch's name for a cumulative average
                loss_fn(model, batch)
                used += 1
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
    return used
