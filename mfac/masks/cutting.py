"""Channels cut out of layers, with their biases and the layers' own numbers of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.prunable import is_transformers_conv1d


def channels_of(units: Tensor, width: int) -> Tensor:
    """The channels of units of successive channels.

    Args:
        units: Numbers of units, [k] int64.
        width: Channels of a unit.

    Returns:
        [k width] int64.
    """
    return (units[:, None] * width + torch.arange(width, device=units.device)).reshape(-1)


def keep_outputs(layer: Any, channels: Tensor) -> None:
    """Leaves a linear layer, convolution or transformers `Conv1D` some output channels, in place.

    Args:
        layer: Of one group.
        channels: Those that stay, int64.
    """
    across = is_transformers_conv1d(layer)
    _set(layer, "weight", layer.weight[:, channels] if across else layer.weight[channels])
    if layer.bias is not None:
        _set(layer, "bias", layer.bias[channels])
    name = "nf" if across else "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    setattr(layer, name, len(channels))


def keep_inputs(layer: Any, channels: Tensor) -> None:
    """Leaves a layer some input channels, in place.

    Args:
        layer: As for `keep_outputs`.
        channels: Those that stay, int64.
    """
    across = is_transformers_conv1d(layer)
    _set(layer, "weight", layer.weight[channels] if across else layer.weight[:, channels])
    name = "nx" if across else "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(layer, name, len(channels))


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value.detach().clone(), layer.get_parameter(name).requires_grad))
