"""Examples of a model's inputs, and the outputs that the model has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.modes import model_mode
from mfac.gradients.nested import tensors_in


def call_with(model: nn.Module, example: Any) -> Any:
    """Calls a model with an example.

    Args:
        model: The model.
        example: A tensor, a tuple or list of arguments, or a mapping of named arguments.

    Returns:
        What the model returns.
    """
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


@torch.no_grad()
def outputs_with(model: nn.Module, example: Any) -> list[Tensor]:
    """The tensors that a model returns for an example, in evaluation mode.

    Args:
        model: The model; its modes are put back.
        example: As for `call_with`.

    Returns:
        The tensors of its output, depth first.
    """
    with model_mode(model, "eval"):
        return list(tensors_in(call_with(model, example), alone=False))


def largest_gap(wanted: list[Tensor], found: list[Tensor]) -> float:
    """How far outputs are apart, relative to the largest number of each and at least 1.

    Args:
        wanted: Outputs.
        found: Others of the same number and shapes.

    Returns:
        The largest difference; infinite where numbers or shapes differ, or one is not finite.
    """
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        if one.numel():
            one, other = one.detach().cpu().double(), other.detach().cpu().double()
            gap = float((other - one).abs().max() / one.abs().max().clamp_min(1.0))
            worst = max(worst, gap) if gap == gap else float("inf")
    return worst
