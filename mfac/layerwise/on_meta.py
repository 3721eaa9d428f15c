"""Models whose parameters take no memory, for runs that read weights out of files."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter


@contextmanager
def parameters_on_meta() -> Generator[None]:
    """Within, parameters of modules that are made are on the meta device, and buffers are not.

    Such a model is what `prune_layerwise(model, data, weights=..., output=...)` takes. Its weights
    take no memory, but for that of one while it is made. Tables that modules compute when they are
    made are there, as those of rotary positions, which no file holds; `torch.device("meta")` leaves
    these without numbers. Modules that other threads make meanwhile are on the meta device, too.

    Yields:
        Nothing.

    Example:
        >>> import torch, mfac
        >>> with mfac.parameters_on_meta():
        ...     model = torch.nn.Sequential(torch.nn.Linear(1000, 2000), torch.nn.BatchNorm1d(2000))
        >>> model[0].weight.device, model[1].running_mean.device
        (device(type='meta'), device(type='cpu'))
    """
    register = nn.Module.register_parameter

    def registered(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and not isinstance(param, UninitializedParameter) and not param.is_meta:
            empty = nn.Parameter(torch.empty_like(param, device="meta"), requires_grad=param.requires_grad)
            torch.utils.swap_tensors(param, empty)  # the same object, so that ties hold

    nn.Module.register_parameter = registered  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
