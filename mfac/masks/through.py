"""What stands between a layer and the next in a traced graph, if channels pass it one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

Step = nn.Module | Callable[[Tensor], Tensor]

_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Hardtanh, nn.Softplus),
    *(nn.Hardswish, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten),
)
_FUNCTIONS = {"relu", "relu6", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "elu", "softplus", "relu_"}
_SHAPES = {"max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "flatten", "dropout"}
_NEXT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def follow(node: fx.Node, root: nn.Module, uses: Mapping[str, int]) -> tuple[list[Step], nn.Module] | str:
    """Goes from a layer to the next.

    Args:
        node: The layer's.
        root: What was traced.
        uses: How often each module is called.

    Returns:
        What is applied to a channel on the way, and the next layer; or why there is no such way:
        "it ...".
    """
    steps: list[Step] = []
    layer: Any = root.get_submodule(str(node.target))
    channels = int(layer.weight.shape[0])
    while True:
        if len(node.users) != 1:
            return "feeds several others, or nothing"
        node = next(iter(node.users))
        if node.op == "output":
            return "is the output"
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if isinstance(module, _NEXT):
                inputs = int(module.weight.shape[1])
                if uses[str(node.target)] != 1 or getattr(module, "groups", 1) != 1 or inputs % channels:
                    return f"feeds {node.target!r}, which is used more than once or has groups"
                if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.padding_mode != "zeros":
                    return f"feeds {node.target!r}, whose padding is not of zeros"
                return steps, module
            if isinstance(module, _BatchNorm) and uses[str(node.target)] == 1 and module.running_mean is not None:
                steps.append(module)
            elif isinstance(module, _ELEMENTWISE):
                steps.append(_in_evaluation(module))
            elif not isinstance(module, _POOLS) or _pads_with_zeros(module):
                return f"passes {node.target!r}, a {type(module).__name__}"
        else:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name in _FUNCTIONS and len(node.args) <= 1:
                steps.append(_applying(node))
            elif name not in _SHAPES or (name == "flatten" and 1 not in (*node.args[1:], node.kwargs.get("start_dim"))):
                return f"passes {name!r}"
            elif name.startswith("avg_pool") and len(node.args) + len(node.kwargs) > 3:
                return f"passes {name!r} with padding"


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
