"""Which weights of a model can be pruned, and a pattern's view of each, found in its modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Layout = tuple[int, int, int]
"""(outer, inputs, inner): a weight's shape, row-major, as seen along its input channels."""


@dataclass(frozen=True)
class PrunableWeight:
    """What a pattern or an allocation needs to know of a weight.

    Attributes:
        name: The parameter's name.
        shape: Its shape.
        layout: (outer, inputs, inner), whose product is the size; None where no layer says which
            axis the input channels are.
        layer: The class of the layer that holds the weight.
        groups: Of the layer's channels, as of a grouped convolution.
        stacked: Whether it is a stack of matrices, each of which has inputs of its own.
    """

    name: str
    shape: torch.Size
    layout: Layout | None
    layer: str
    groups: int = 1
    stacked: bool = False

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


def weight_names(module: nn.Module) -> list[str]:
    """The weights that a module itself holds and that are pruned unless told otherwise.

    Args:
        module: Of any kind; modules within it are not looked at, and nothing of it is computed.

    Returns:
        Names within the module.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False)):
        return []
    if isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or is_transformers_conv1d(module):
        return ["weight"]
    if isinstance(module, nn.MultiheadAttention):
        if module._qkv_same_embed_dim:
            return ["in_proj_weight"]
        return ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    if isinstance(module, nn.RNNBase):
        return [name for names in module._all_weights for name in names if name.startswith("weight_")]
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    return []


def layout_of(module: nn.Module, shape: torch.Size) -> Layout:
    """How a weight of a module is seen along its input channels.

    Args:
        module: One with `weight_names`.
        shape: Of the weight.

    Returns:
        (outer, inputs, inner).
    """
    if isinstance(module, _TRANSPOSED):  # [in, out / groups, ...], the channels of each group in turn
        return (module.groups, shape[0] // module.groups, math.prod(shape[1:]))
    if is_transformers_conv1d(module):  # [in, out]
        return (1, shape[0], shape[1])
    return (shape[0], shape[1], math.prod(shape[2:]))  # [out, in], or [out, in / groups, ...]


def describe_weights(
    model: nn.Module, selected: Mapping[str, nn.Parameter], known: Mapping[str, Layout] | None = None
) -> list[PrunableWeight]:
    """What is known of each selected parameter, by the first layer that holds it.

    Args:
        model: Where the layers are.
        selected: Name to parameter.
        known: The layouts of weights, or stacks of weights, that no layer says.

    Returns:
        A description of each, in order.
    """
    known = known if known is not None else {}
    layouts: dict[int, tuple[Layout, int]] = {}
    holders: dict[int, str] = {}
    for module in model.modules():
        kind = type(module).__name__
        for name in weight_names(module):
            if (weight := parameter_behind(module, name)) is not None:
                layouts.setdefault(id(weight), (layout_of(module, weight.shape), getattr(module, "groups", 1)))
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), kind)
    return [
        PrunableWeight(
            name,
            parameter.shape,
            known[name] if name in known else layouts[id(parameter)][0] if id(parameter) in layouts else None,
            holders.get(id(parameter), ""),
            layouts[id(parameter)][1] if id(parameter) in layouts and name not in known else 1,
            name in known,
        )
        for name, parameter in selected.items()
    ]


def parameter_behind(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter behind a layer's weight: itself, or `weight_orig` under torch's pruning.

    Args:
        module: The layer.
        name: The weight's name within it.

    Returns:
        The parameter; None where the weight is computed from others in some other way.
    """
    own = module._parameters.get(name)
    if own is None:
        own = module._parameters.get(f"{name}_orig")
        return own if f"{name}_mask" in module._buffers else None
    return own


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether it is a transformers Conv1D with weight [in, out], known by its name and shape."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and weight is not None and weight.dim() == 2
