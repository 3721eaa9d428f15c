"""Layers under `torch.nn.utils.prune`: their own masks follow what this library drops."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_layers


@torch.no_grad()
def update_torch_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Takes masks into those that torch's pruning keeps beside `<name>_orig`, and computes the weights anew.

    Args:
        model: The model.
        masks: Parameter name to mask, True = kept.
    """
    for layer_name, layer in named_layers(model):
        for name in [name.removesuffix("_orig") for name in layer._parameters if name.endswith("_orig")]:
            full = f"{layer_name}.{name}_orig" if layer_name else f"{name}_orig"
            mask = layer._buffers.get(f"{name}_mask")
            if mask is None or full not in masks:
                continue
            mask.mul_(masks[full])
            setattr(layer, name, layer.get_parameter(f"{name}_orig") * mask)
