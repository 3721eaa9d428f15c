"""How much the loss heeds each output of a layer: the mean square of the loss's gradient there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_parameters
from mfac.layerwise.views import ConvolutionView, LayerView, LinearView

_LEAST = 1e-2
"""Of the mean weight: an output that the loss never heeds still counts for so much."""


def output_weights(
    model: nn.Module, views: Sequence[LayerView], batches: Sequence[Any], loss_fn: Callable[[nn.Module, Any], Tensor]
) -> dict[str, list[Tensor]]:
    """For each matrix the weight of each of its outputs, with a mean of 1.

    With D these weights, the error that a solver keeps least is Σ_r D_r (δHδᵀ)_rr: the Gauss-Newton
    estimate of the loss where outputs of a layer do not interact and gradients do not depend on
    inputs.

    Args:
        model: Dense; nothing of it changes.
        views: The weights.
        batches: What the loss takes.
        loss_fn: loss_fn(model, batch) -> scalar.

    Returns:
        Name to weights by matrix, [rows] float64 each. What torch computes without calling a layer,
        as the projections inside of attention, is missing. A forward and a backward pass of all
        batches.

    Raises:
        ValueError: If the loss is no scalar, or depends on no weight.
    """
    squares: dict[str, Tensor] = {}
    handles = []

    def watch(view: LayerView) -> None:
        channels = 1 if isinstance(view, ConvolutionView) else -1

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            axis = channels if channels < 0 or output.dim() > len(view.parameter.shape) - 1 else 0

            def add(gradient: Tensor) -> None:
                found = gradient.detach().double().square().movedim(axis, -1).flatten(0, -2).sum(0)
                squares[view.name] = squares[view.name] + found if view.name in squares else found

            if output.requires_grad:
                output.register_hook(add)

        handles.append(view.module.register_forward_hook(hook))

    for view in views:
        if isinstance(view, LinearView | ConvolutionView):
            watch(view)
    named = named_parameters(model)
    were = {name: parameter.requires_grad for name, parameter in named.items()}
    try:
        for view in views:
            view.parameter.requires_grad_(True)
        with torch.enable_grad():
            for batch in batches:
                loss = loss_fn(model, batch)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise ValueError(
                        f"Parameter `loss_fn` should return a scalar that depends on the weights. Found {loss!r}."
                    )
                # Of one weight alone, so that no gradient of all weights is held.
                torch.autograd.grad(loss, [views[0].parameter], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in named.items():
            parameter.requires_grad_(were[name])
    return {view.name: _by_matrix(view, squares[view.name]) for view in views if view.name in squares}


def _by_matrix(view: LayerView, squares: Tensor) -> list[Tensor]:
    mean = squares.mean().clamp(min=torch.finfo(torch.float64).tiny)
    weights = (squares / mean).clamp(min=_LEAST)
    weights = weights / weights.mean()
    return list(weights.split([rows for rows, _ in view.shapes]))
