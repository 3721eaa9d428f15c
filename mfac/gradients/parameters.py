"""Which parameters of a model are meant, and their order as one flat vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from mfac.core.devices import check_device, check_same_device
from mfac.gradients.prunable import parameter_behind, weight_layouts

Selection = str | Iterable[str | Tensor] | Callable[[str, nn.Parameter], bool] | None


def prunable_weights(model: nn.Module) -> set[str]:
    """Names of the weights that layers are known to hold. One that layers share counts once, under its first name."""
    weights = {
        id(parameter)
        for layer in model.modules()
        for name, _ in weight_layouts(layer)
        if (parameter := parameter_behind(layer, name)) is not None
    }
    return {name for name, parameter in model.named_parameters() if id(parameter) in weights}


def select_parameters(
    model: nn.Module, params: Selection, default: Callable[[nn.Module], set[str]] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters that a selection means, in `named_parameters()` order.

    Args:
        model: Where they are looked up.
        params: None for the default; a name or shell-style pattern, or several; the parameters themselves; or a
            predicate of name and parameter.
        default: What None means: the names chosen from a model. Without it, every parameter that requires a gradient.

    Returns:
        Name to parameter. A flat vector over them is each one flattened row-major, in this order.

    Raises:
        ValueError: If nothing is selected, a name or pattern matches nothing, or a parameter does not require a
        gradient.
        TypeError: If `params` is of another type or a parameter is not real floating-point.
    """
    named = dict(model.named_parameters())
    if params is None:
        chosen = default(model) if default else {name for name, parameter in named.items() if parameter.requires_grad}
    elif callable(params):
        chosen = {name for name, parameter in named.items() if params(name, parameter)}
    elif not isinstance(params, Iterable):
        raise TypeError(
            f"Parameter `params` should be names, patterns, parameters or a predicate. Found {type(params).__name__}."
        )
    else:
        chosen = _match(named, [params] if isinstance(params, str) else list(params))
    selected = {name: parameter for name, parameter in named.items() if name in chosen}
    if not selected:
        raise ValueError(
            f"Parameter `params` should select at least one parameter of the model. Found none among {list(named)}."
        )
    for name, parameter in selected.items():
        if not parameter.requires_grad:
            raise ValueError(
                f"Parameter `params` should select parameters that require a gradient. Found {name!r}, which does not."
            )
        if not parameter.is_floating_point():
            raise TypeError(
                f"Parameter `params` should select real floating-point parameters. Found {name!r} of {parameter.dtype}."
            )
        check_device(f"params[{name!r}]", parameter.device)
        check_same_device(f"params[{name!r}]", parameter.device, device_of(selected))
    return selected


def _match(named: Mapping[str, nn.Parameter], wanted: list[str | Tensor]) -> set[str]:
    chosen: set[str] = set()
    for item in wanted:
        if isinstance(item, Tensor):
            found = {name for name, parameter in named.items() if parameter is item}
            described = f"a tensor of shape {list(item.shape)} that is no parameter of the model"
        elif isinstance(item, str):
            found = {name for name in named if fnmatchcase(name, item)}
            described = f"{item!r}, which matches none of {list(named)}"
        else:
            raise TypeError(
                f"Parameter `params` should hold names, patterns or parameters. Found {type(item).__name__}."
            )
        if not found:
            raise ValueError(f"Parameter `params` should name parameters of the model. Found {described}.")
        chosen |= found
    return chosen


def device_of(parameters: Mapping[str, Tensor]) -> torch.device:
    """Where the parameters are."""
    return next(iter(parameters.values())).device


def total_size(parameters: Mapping[str, Tensor]) -> int:
    """d: how many weights there are in all."""
    return sum(parameter.numel() for parameter in parameters.values())


def flatten(tensors: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """One vector [d]: each tensor flattened row-major, in order. A copy."""
    return torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])


@torch.no_grad()
def write_flat_(tensors: Iterable[Tensor], flat: Tensor) -> None:
    """Writes a vector [d] back into the tensors it was flattened from, whatever their memory format."""
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
