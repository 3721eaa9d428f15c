"""Names of parameters without the prefixes of wrappers, as the model inside has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mfac.core.checks.choices import did_you_mean

T = TypeVar("T", bound=Tensor)


def inner_module(module: nn.Module) -> nn.Module:
    """The module within `DataParallel`, `DistributedDataParallel` and `torch.compile` wrappers."""
    while True:
        if isinstance(module, nn.DataParallel | DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":  # what torch.compile returns
            module = module.get_submodule("_orig_mod")
        else:
            return module


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, in `named_modules()` order, under its name without wrappers.

    Args:
        model: The model.

    Yields:
        Name ("" for the model itself) and module; never a wrapper.
    """
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        module = inner_module(module)
        if module in seen:
            return
        seen.add(module)
        yield name, module
        for child_name, child in module._modules.items():
            if child is not None:
                yield from walk(child, f"{name}.{child_name}" if name else child_name)

    yield from walk(model, "")


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter once, by its first unwrapped name, in `named_parameters()` order."""
    return _once(model, lambda layer: layer._parameters)


def named_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Every buffer once, by its first unwrapped name, in `named_buffers()` order."""
    return _once(model, lambda layer: layer._buffers)


def _once(model: nn.Module, held: Callable[[nn.Module], Mapping[str, T | None]]) -> dict[str, T]:
    found: dict[str, T] = {}
    seen: set[int] = set()
    for layer_name, layer in named_layers(model):
        for name, tensor in held(layer).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{layer_name}.{name}" if layer_name else name] = tensor
    return found


def other_names(model: nn.Module) -> dict[str, str]:
    """Further names of parameters that stand in several places, each with the parameter's first."""
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    found: dict[str, str] = {}

    def walk(module: nn.Module, name: str, above: tuple[nn.Module, ...]) -> None:
        module = inner_module(module)
        if module in above:  # a module within itself has names without end
            return
        for own, parameter in module._parameters.items():
            full = f"{name}.{own}" if name else own
            if parameter is not None and first[id(parameter)] != full:
                found[full] = first[id(parameter)]
        for child_name, child in module._modules.items():
            if child is not None:
                walk(child, f"{name}.{child_name}" if name else child_name, (*above, module))

    walk(model, "", ())
    return found


def first_match(name: str, patterns: Collection[str]) -> str | None:
    """The name itself, or else the first shell-style pattern that it matches.

    Args:
        name: Of a parameter.
        patterns: Names or patterns, in order.

    Returns:
        The pattern; None where there is none.
    """
    if name in patterns:
        return name
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def check_all_match(parameter: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Refuses patterns that no name matches.

    Args:
        parameter: Whose keys the patterns are, for the message.
        patterns: Names or patterns.
        names: Of weights.

    Raises:
        ValueError: If there is such a pattern.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) or name == pattern for name in names):
            raise ValueError(
                f"Parameter `{parameter}` should name weights that are pruned. Found {pattern!r}, which matches none "
                f"of {list(names)}{did_you_mean(pattern, names)}"
            )


def parameter_named(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a name, whether the model is wrapped or not.

    Args:
        model: The model.
        name: Its name without wrappers.

    Returns:
        The parameter, also where it is a second name of a shared one.

    Raises:
        AttributeError: If there is none.
    """
    *path, last = name.split(".")
    module = inner_module(model)
    for part in path:
        child = module._modules.get(part)
        if child is None:
            raise AttributeError(f"The model has no parameter {name!r}: there is no module {part!r}.")
        module = inner_module(child)
    parameter = module._parameters.get(last)
    if parameter is None:
        raise AttributeError(f"The model has no parameter {name!r}.")
    return parameter
