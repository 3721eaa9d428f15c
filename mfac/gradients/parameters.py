"""Which parameters of a model are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from mfac.core.checks.choices import did_you_mean
from mfac.core.devices import check_device, check_same_device
from mfac.gradients.naming import named_parameters, other_names

Selection = str | Iterable[str | Tensor] | Callable[[str, nn.Parameter], bool] | None


def select_parameters(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    """The parameters that a selection means, in `named_parameters()` order.

    Args:
        model: Where they are looked up.
        params: None for every parameter that requires a gradient; a name or shell-style pattern, or
            several; the parameters themselves; or a predicate of name and parameter.

    Returns:
        Name to parameter. A flat vector over them is each one flattened row-major, in this order.

    Raises:
        ValueError: If nothing is selected, a name or pattern matches nothing, or a parameter does
            not require a gradient.
        TypeError: If `params` is of another type or a parameter is not real floating-point.
    """
    named = named_parameters(model)
    if params is None:
        chosen = {name for name, parameter in named.items() if parameter.requires_grad}
    else:
        chosen = match_parameters(named, params, other_names(model))
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
    check_selected(selected)
    return selected


def check_tensors(model: nn.Module) -> None:
    """Refuses a model with tensors that hold no numbers, or that autograd cannot use.

    Args:
        model: Whose parameters and buffers are looked at.

    Raises:
        ValueError: If one has no shape yet, is on the meta device without a hook that loads it, or
            was made in inference mode.
    """
    loads_itself = any(hasattr(module, "_hf_hook") for module in model.modules())  # of accelerate, layer by layer
    for name, tensor in (*named_parameters(model).items(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ValueError(
                f"Parameter `model` should have parameters with shapes. Found {name!r} of a lazy layer, which has none "
                f"yet: call the model with a batch first."
            )
        if tensor.device.type == "meta" and not loads_itself:
            raise ValueError(
                f"Parameter `model` should have its numbers in memory. Found {name!r} on the meta device: call "
                f"model.to_empty(device=...) and load a state dict first."
            )
        if tensor.is_inference():
            raise ValueError(
                f"Parameter `model` should be made outside torch.inference_mode(). Found {name!r}, made inside: make "
                f"the model anew and load the state dict."
            )


def check_selected(selected: Mapping[str, nn.Parameter], on_disk: bool = False) -> None:
    """Refuses parameters that are not real, or not on one device that has kernels.

    Args:
        selected: Name to parameter.
        on_disk: Whether parameters on the meta device are like any others.

    Raises:
        TypeError: If one is not real floating-point.
        ValueError: If one is on another device than the rest.
    """
    for name, parameter in selected.items():
        if not parameter.is_floating_point():
            raise TypeError(
                f"Parameter `params` should select real floating-point parameters. Found {name!r} of {parameter.dtype}."
            )
        if on_disk and parameter.device.type == "meta":
            continue
        check_device(f"params[{name!r}]", parameter.device)
        check_same_device(f"params[{name!r}]", parameter.device, next(iter(selected.values())).device)


def match_parameters(
    named: Mapping[str, nn.Parameter], params: Selection, others: Mapping[str, str] | None = None
) -> set[str]:
    """Names of the parameters that a selection other than None means.

    Args:
        named: Name to parameter, of all that there are.
        params: The selection.
        others: Further names of parameters, each with the name in `named`; they count where a
            name or pattern matches no other.

    Returns:
        The names.

    Raises:
        ValueError: If a name or pattern matches nothing.
        TypeError: If the selection is of another type.
    """
    if callable(params):
        return {name for name, parameter in named.items() if params(name, parameter)}
    if not isinstance(params, Iterable):
        raise TypeError(
            f"Parameter `params` should be names, patterns, parameters or a predicate. Found {type(params).__name__}."
        )
    return _match(named, [params] if isinstance(params, str) else list(params), others or {})


def _match(named: Mapping[str, nn.Parameter], wanted: list[str | Tensor], others: Mapping[str, str]) -> set[str]:
    chosen: set[str] = set()
    for item in wanted:
        if isinstance(item, Tensor):
            found = {name for name, parameter in named.items() if parameter is item}
            described = f"a tensor of shape {list(item.shape)} that is no parameter of the model."
        elif isinstance(item, str):
            found = {name for name in named if fnmatchcase(name, item)}
            found = found or {first for other, first in others.items() if fnmatchcase(other, item)}
            described = f"{item!r}, which matches none of {list(named)}{did_you_mean(item, [*named, *others])}"
        else:
            raise TypeError(
                f"Parameter `params` should hold names, patterns or parameters. Found {type(item).__name__}."
            )
        if not found:
            raise ValueError(f"Parameter `params` should name parameters of the model. Found {described}")
        chosen |= found
    return chosen
