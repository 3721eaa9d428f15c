"""What stands between a layer and the next in a traced graph, if channels pass it one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Step = nn.Module | Callable[[Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Hardtanh, nn.Softplus),
    *(nn.Hardswish, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
_FUNCTIONS = {"relu", "relu6", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "elu", "softplus", "relu_"}
_POOLING = {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d"}
_NEXT = (nn.Linear, *_CONVOLUTIONS)


@dataclass(frozen=True)
class Way:
    """From a layer to the next.

    Attributes:
        steps: What is applied to a channel on the way.
        consumer: The next layer.
        channels_last: Whether the consumer's inputs have the channels of one position side by side,
            as a flattened sequence has; otherwise the positions of one channel.
    """

    steps: list[Step]
    consumer: nn.Module
    channels_last: bool


def follow(node: fx.Node, root: nn.Module, uses: Mapping[str, int], read: Collection[int]) -> Way | str:
    """Goes from a layer to the next.

    Args:
        node: The layer's.
        root: What was traced.
        uses: How often each module is called.
        read: Identities of parameters that the graph reads without calling their module.

    Returns:
        The way; or why there is none: "it ...".
    """
    steps: list[Step] = []
    layer: Any = root.get_submodule(str(node.target))
    if (why := _not_plain(layer, read)) is not None:
        return why
    channels, linear, flat = int(layer.weight.shape[0]), isinstance(layer, nn.Linear), False
    while True:
        if len(node.users) != 1:
            return "feeds several others, or nothing"
        node = next(iter(node.users))
        if node.op == "output":
            return "is the output"
        if node.op == "call_module":
            name, module = str(node.target), root.get_submodule(str(node.target))
            if isinstance(module, _NEXT):
                if (why := _not_plain(module, read)) is not None:
                    return f"feeds {name!r}, which {why}"
                why = _unfit(module, uses[name], channels, linear, flat)
                return f"feeds {name!r}, {why}" if why is not None else Way(steps, module, linear)
            if module._forward_hooks or module._forward_pre_hooks:
                return f"passes {name!r}, which has hooks"
            if isinstance(module, _BatchNorm) and uses[name] == 1 and module.running_mean is not None:
                if flat or module.num_features != channels or any(id(p) in read for p in module.parameters()):
                    return f"passes {name!r}, whose features are not its channels alone"
                steps.append(module)
            elif isinstance(module, _ELEMENTWISE):
                steps.append(_in_evaluation(module))
            elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
                flat = True
            elif not isinstance(module, _POOLS) or linear or flat or _pads_with_zeros(module):
                return f"passes {name!r}, a {type(module).__name__}"
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name in _FUNCTIONS and len(node.args) <= 1:
                steps.append(_applying(node))
            elif name == "flatten" and _from_channels(node):
                flat = True
            elif name == "dropout":
                continue
            elif name not in _POOLING or linear or flat:
                return f"passes {name!r}"
            elif name.startswith("avg_pool") and len(node.args) + len(node.kwargs) > 3:
                return f"passes {name!r} with padding"


def _not_plain(layer: nn.Module, read: Collection[int]) -> str | None:
    """Why a layer does not compute with its weight alone, or its weight serves elsewhere."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "has hooks"
    if "weight" not in layer._parameters:
        return "has a weight that is computed from others"
    if any(id(parameter) in read for parameter in layer.parameters()):
        return "has a weight that is used beside it"
    return None


def _unfit(consumer: Any, calls: int, channels: int, linear: bool, flat: bool) -> str | None:
    """Why the next layer's inputs are not the channels, in an order that is known."""
    inputs, is_linear = int(consumer.weight.shape[1]), isinstance(consumer, nn.Linear)
    if calls != 1 or getattr(consumer, "groups", 1) != 1:
        return "which is used more than once or has groups"
    if is_linear != (linear or flat) or inputs % channels or (not flat and inputs != channels):
        return "whose inputs are not its channels"
    if not is_linear and consumer.padding_mode != "zeros":
        return "whose padding is not of zeros"
    return None


def _from_channels(node: fx.Node) -> bool:
    """Whether a call of `flatten` leaves the batch alone and joins all else."""
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    return (given.get("start_dim"), given.get("end_dim", -1)) == (1, -1)


def _in_evaluation(module: nn.Module) -> Step:
    if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return nn.Identity()
    return module


def _applying(node: fx.Node) -> Step:
    function: Any = node.target
    if isinstance(function, str):
        function = getattr(torch, function.rstrip("_"))
    options = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    return lambda x: function(x.clone(), **options)


def _pads_with_zeros(module: nn.Module) -> bool:
    padding: Any = getattr(module, "padding", 0)
    pads = any(padding) if isinstance(padding, tuple) else bool(padding)
    return pads and isinstance(module, nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d)
