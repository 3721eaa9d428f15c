"""Layers under `torch.nn.utils.prune`: their own masks follow what this library drops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_layers
from mfac.gradients.vector import ParameterVector
from mfac.pruning.targets import ExistingZeros


def _layers_under_torch_pruning(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name `<name>_orig`, layer, and `<name>` of every parameter that torch's pruning masks."""
    for layer_name, layer in named_layers(model):
        for parameter in layer._parameters:
            name = parameter.removesuffix("_orig")
            if name != parameter and f"{name}_mask" in layer._buffers:
                yield f"{layer_name}.{parameter}" if layer_name else parameter, layer, name


def torch_masks(model: nn.Module) -> dict[str, Tensor]:
    """What torch's pruning keeps, [True = kept], by the name of the parameter that it masks."""
    return {full: layer.get_buffer(f"{name}_mask") != 0 for full, layer, name in _layers_under_torch_pruning(model)}


def live_weights(model: nn.Module, vector: ParameterVector, weights: Tensor, existing_zeros: ExistingZeros) -> Tensor:
    """Which weights are alive before a run.

    Args:
        model: The model.
        vector: What is pruned.
        weights: Its weights, [d].
        existing_zeros: What zeros are; what torch's pruning masks is never alive.

    Returns:
        [d] bool.
    """
    live = torch.ones_like(weights, dtype=torch.bool) if existing_zeros == "ignore" else weights != 0
    masked = torch_masks(model)
    for name, piece in vector.pieces(live):
        if name in masked:
            piece &= masked[name]
    return live


@torch.no_grad()
def update_torch_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Takes masks into the masks of torch's pruning, and computes the weights anew.

    Args:
        model: The model.
        masks: Parameter name to mask, True = kept.
    """
    for full, layer, name in _layers_under_torch_pruning(model):
        if full in masks:
            mask = layer.get_buffer(f"{name}_mask").mul_(masks[full])
            setattr(layer, name, layer.get_parameter(f"{name}_orig") * mask)
