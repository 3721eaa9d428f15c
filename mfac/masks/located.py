"""The parameters of a model that masks name: under torch's pruning or not, wrapped or not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mfac.core.checks.choices import did_you_mean
from mfac.gradients.naming import named_parameters, parameter_named
from mfac.gradients.vector import memory_of


def masked_parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a name; `weight` finds `weight_orig` under torch's pruning, and the reverse.

    Args:
        model: The model, wrapped or not.
        name: Of the parameter, without prefixes of wrappers.

    Returns:
        The parameter.

    Raises:
        AttributeError: If there is none.
    """
    try:
        return parameter_named(model, name)
    except AttributeError:
        other = name.removesuffix("_orig") if name.endswith("_orig") else f"{name}_orig"
        try:
            return parameter_named(model, other)
        except AttributeError:
            pass
        raise


def locate(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The parameter of each mask.

    Args:
        model: The model, wrapped or not.
        masks: Parameter name to mask of its shape.

    Returns:
        Name to parameter.

    Raises:
        ValueError: If a name is no parameter's, or a mask has another shape.
    """
    found = {}
    for name, mask in masks.items():
        try:
            parameter = masked_parameter(model, name)
        except AttributeError:
            names = list(named_parameters(model))
            raise ValueError(
                f"Parameter `model` should have every parameter that there is a mask for. Found no {name!r} among "
                f"{names}{did_you_mean(name, names)}"
            ) from None
        if parameter.shape != mask.shape:
            raise ValueError(
                f"Parameter `model` should have {name!r} of its mask's shape {list(mask.shape)}. "
                f"Found {list(parameter.shape)}."
            )
        found[name] = parameter
    return found


def same_memory(model: nn.Module, parameter: nn.Parameter) -> list[nn.Parameter]:
    """A parameter, and every other one of the model that is the same numbers in the same memory."""
    memory = memory_of(parameter)
    return [parameter] + [
        other for other in named_parameters(model).values() if other is not parameter and memory_of(other) == memory
    ]
