"""How strongly the input channels of each layer are driven: ‖X_j‖₂, laid out as the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.gradients.modes import model_mode
from mfac.gradients.naming import named_layers
from mfac.gradients.prunable import layout_of, parameter_behind, weight_names


def input_norms(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
    mode: Literal["eval", "train"] = "eval",
    name: str = "batches",
) -> dict[str, Tensor]:
    """The norm of each weight's input channel, over all samples and positions.

    Args:
        model: Put back in its own mode.
        batches: A finite iterable.
        forward: Calls the model with a batch; by default `model(batch)`, or `model(batch[0])` for a
            tuple or list. It may differentiate within, as losses of forces do.
        mode: Of the model meanwhile, as for `collect_gradients`.
        name: Of the parameter that the batches are of, for the message.

    Returns:
        Name of a weight to norms of its shape, expanded where channels repeat, for every layer with
        one weight (linear layers and convolutions) that was called as a module; a convolution's
        channels are not told apart by position.

    Raises:
        ValueError: If there is no batch.
    """
    squares: dict[str, Tensor] = {}
    handles = []

    def watch(name: str, layer: nn.Module, parameter: nn.Parameter) -> None:
        def add(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = (arguments[0] if arguments else next(iter(named.values()))).detach()
            spatial = parameter.dim() - 2
            channels = -1 - spatial if isinstance(getattr(layer, "kernel_size", None), tuple) else -1
            found = x.movedim(channels, -1).reshape(-1, x.shape[channels]).double().square().sum(0)
            squares[name] = squares[name] + found if name in squares else found

        handles.append(layer.register_forward_pre_hook(add, with_kwargs=True))

    shapes: dict[str, tuple[nn.Module, torch.Size]] = {}
    for layer_name, layer in named_layers(model):
        if weight_names(layer) == ["weight"] and (parameter := parameter_behind(layer, "weight")) is not None:
            own = next(key for key, value in layer._parameters.items() if value is parameter)
            full = f"{layer_name}.{own}" if layer_name else own
            shapes[full] = (layer, parameter.shape)
            watch(full, layer, parameter)
    seen = False
    try:
        with model_mode(model, mode), torch.set_grad_enabled(forward is not None):
            for batch in batches:
                seen = True
                if forward is not None:
                    forward(model, batch)
                else:
                    model(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError(f"Parameter `{name}` should hold at least one batch. Found none.")
    return {full: _as_weight(squares[full].sqrt(), *shapes[full]) for full in squares}


def _as_weight(norms: Tensor, layer: nn.Module, shape: torch.Size) -> Tensor:
    """Norms of channels, [channels], as the weight that is multiplied with them, without a copy."""
    outer, inputs, inner = layout_of(layer, shape)
    groups = int(getattr(layer, "groups", 1))
    of_groups = norms.view(groups, 1, inputs, 1)  # channels of each group in turn
    return of_groups.expand(groups, outer // groups, inputs, inner).reshape(shape)
