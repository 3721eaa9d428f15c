"""How much the loss heeds a layer's outputs, and its inputs at each position: squared gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.modes import gradients_of
from mfac.layerwise.views import ConvolutionView, LayerView, LinearView

_LEAST = 1e-2
"""Of the mean weight: an output that the loss never heeds still counts for so much."""
LONGEST = 4.0
"""Times the median of a call's lengths: inputs that are longer count as if they were of this."""

Positions = Sequence[Sequence[Tensor]]
"""For each batch and each call of a layer in it the weight of every position, [n] float32."""


@dataclass(frozen=True)
class Heeding:
    """What is known of each weight by its name.

    Attributes:
        outputs: For each matrix the weight of each of its outputs, [rows] float64; mean 1.
        inputs: The weights of the positions, as multiples of their mean; at least 1, or 0.
    """

    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    inputs: dict[str, Positions] = field(default_factory=dict)


def heeding_of(
    model: nn.Module,
    views: Sequence[LayerView],
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    outputs: bool,
    inputs: bool,
) -> Heeding:
    """Squared gradients of the loss at the outputs of layers, summed in two ways.

    With g_t the gradient at a position t of a layer's output, outputs have the weights mean_t g_t²
    and positions ‖g_t‖². So the error that a solver keeps least, tr(D δ (Σ_t w_t x_t x_tᵀ) δᵀ), is
    the Kronecker-factored Gauss-Newton estimate of the loss with a diagonal first factor.

    Args:
        model: Dense; nothing of it changes.
        views: The weights.
        batches: What the loss takes.
        loss_fn: loss_fn(model, batch) -> scalar.
        outputs: Whether weights of outputs are wanted.
        inputs: Whether weights of positions are wanted, which linear layers alone have.

    Returns:
        Both; what is computed without calling a layer, as the projections inside of attention and
        stacks of experts, is missing. A forward and a backward pass of all batches, without
        gradients of weights.

    Raises:
        ValueError: If the loss is no scalar, not finite, or depends on no layer.
    """
    squares: dict[str, Tensor] = {}
    positions: dict[str, list[list[Tensor]]] = {}
    anchor = torch.zeros((), requires_grad=True)

    def hook_of(view: LayerView) -> Callable[..., Tensor]:
        channels = 1 if isinstance(view, ConvolutionView) else -1

        def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            axis = channels if channels < 0 or output.dim() > len(view.parameter.shape) - 1 else 0
            calls = positions[view.name][-1]
            place = len(calls)
            calls.append(torch.empty(0))

            def add(gradient: Tensor) -> None:
                square = gradient.detach().double().square().movedim(axis, -1).flatten(0, -2)
                if inputs and isinstance(view, LinearView):
                    calls[place] = square.sum(1).float()
                if outputs:
                    found = square.sum(0)
                    squares[view.name] = squares[view.name] + found if view.name in squares else found

            seen = output + anchor.to(output)
            seen.register_hook(add)
            return seen

        return hook

    watched = [view for view in views if isinstance(view, LinearView | ConvolutionView) and not view.by_product]
    with gradients_of(model, ()), torch.enable_grad():
        handles = [one.module.register_forward_hook(hook_of(view)) for view in watched for one in view.layers]
        try:
            for number, batch in enumerate(batches):
                for view in watched:
                    positions.setdefault(view.name, []).append([])
                loss = loss_fn(model, batch)
                heard = isinstance(loss, Tensor) and not loss.requires_grad and any(view.by_product for view in views)
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not (loss.requires_grad or heard):
                    raise ValueError(
                        f"Parameter `loss_fn` should return a scalar that depends on the weights. Found {loss!r}."
                    )
                if not bool(torch.isfinite(loss)):
                    raise ValueError(
                        f"Parameter `loss_fn` should return a finite loss. Found {float(loss.detach())} at batch "
                        f"{number}."
                    )
                if not heard:  # nothing is known of products, which may be all that the loss depends on
                    torch.autograd.grad(loss, [anchor])
        finally:
            for handle in handles:
                handle.remove()
    return Heeding(
        {view.name: _by_matrix(view, squares[view.name]) for view in views if view.name in squares},
        {view.name: _mean_one(positions[view.name]) for view in watched if inputs and isinstance(view, LinearView)},
    )


def _by_matrix(view: LayerView, squares: Tensor) -> list[Tensor]:
    mean = squares.mean().clamp(min=torch.finfo(torch.float64).tiny)
    weights = (squares / mean).clamp(min=_LEAST)
    weights = weights / weights.mean()
    return list(weights.split([rows for rows, _ in view.shapes]))


def _mean_one(positions: Positions) -> Positions:
    """Weights of all batches over their mean, and no less than 1; those that are all zero are gone.

    Without the bound a few positions would be all that a layer is fitted to. A weight of zero, as
    of padding, stays zero.

    Returns:
        As given.
    """
    every = [call for batch in positions for call in batch if call.numel()]
    total = sum(float(call.double().sum()) for call in every)
    if total == 0:
        return [[torch.empty(0) for _ in batch] for batch in positions]
    mean = total / sum(call.numel() for call in every)
    return [[torch.where(call > 0, (call / mean).clamp(min=1), 0) for call in batch] for batch in positions]


def weighted_rows(rows: Tensor, weights: Tensor) -> Tensor:
    """Inputs times the roots of their weights, the longest of them shortened.

    Args:
        rows: X [n, columns].
        weights: [n].

    Returns:
        [n, columns].
    """
    lengths = rows.norm(dim=1)
    bound = LONGEST * lengths.median()
    shortened = torch.where(lengths > bound, bound / lengths.clamp(min=torch.finfo(rows.dtype).tiny), 1.0)
    return rows * (weights.to(rows).sqrt() * shortened)[:, None]
