"""Which weights of a model can be pruned, and how a pattern sees each: found in the modules that hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    """

    name: str
    shape: torch.Size
    layout: Layout | None
    layer: str

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


def weight_layouts(module: nn.Module) -> Iterator[tuple[str, Layout]]:
    """The weights that a module itself holds and that are pruned unless told otherwise.

    Args:
        module: Of any kind; modules within it are not looked at.

    Yields:
        The parameter's name within the module, and its layout.
    """
    if _is_uninitialised(module):
        return
    if isinstance(module, nn.Linear):
        yield "weight", _rows(module.weight.shape)
    elif isinstance(module, _CONVOLUTIONS):
        shape = module.weight.shape  # [out, in / groups, ...]
        yield "weight", (shape[0], shape[1], math.prod(shape[2:]))
    elif isinstance(module, _TRANSPOSED):
        shape = module.weight.shape  # [in, out / groups, ...], the channels of each group in turn
        yield "weight", (module.groups, shape[0] // module.groups, math.prod(shape[1:]))
    elif isinstance(module, nn.MultiheadAttention):
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            if isinstance(weight := getattr(module, name), torch.Tensor):
                yield name, _rows(weight.shape)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        parameters: dict[str, nn.Parameter | None] = module._parameters
        for name, weight in parameters.items():
            if name.startswith("weight_") and weight is not None:
                yield name, _rows(weight.shape)
    elif _is_transformers_conv1d(module):
        inputs, outputs = module.get_parameter("weight").shape
        yield "weight", (1, inputs, outputs)


def describe_weights(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> list[PrunableWeight]:
    """What is known of each selected parameter, by the first layer that holds it.

    Args:
        model: Where the layers are.
        selected: Name to parameter.

    Returns:
        A description of each, in order.
    """
    layouts: dict[int, tuple[Layout, str]] = {}
    holders: dict[int, str] = {}
    for module in model.modules():
        kind = type(module).__name__
        for name, layout in weight_layouts(module):
            if (weight := parameter_behind(module, name)) is not None:
                layouts.setdefault(id(weight), (layout, kind))
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), kind)
    return [
        PrunableWeight(
            name,
            parameter.shape,
            layouts[id(parameter)][0] if id(parameter) in layouts else None,
            holders.get(id(parameter), ""),
        )
        for name, parameter in selected.items()
    ]


def parameter_behind(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter that a layer's weight is made of, elementwise: itself, or `weight_orig` under torch's pruning.

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


def _rows(shape: torch.Size) -> Layout:
    return (shape[0], shape[1], 1)


def _is_uninitialised(module: nn.Module) -> bool:
    return any(isinstance(parameter, UninitializedParameter) for parameter in module.parameters(recurse=False))


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether it is the Conv1D of Hugging Face's transformers, whose weight is [in, out]: known by name and shape."""
    weight = module._parameters.get("weight")
    return type(module).__name__ == "Conv1D" and weight is not None and weight.dim() == 2
