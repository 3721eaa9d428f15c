"""Where output and input channels are in a weight, whatever layer it belongs to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfac.gradients.prunable import PrunableWeight


def as_matrix(weight: PrunableWeight) -> Tensor:
    """A weight's entries by output channel, input channel and position.

    Args:
        weight: One whose layer's input channels are known.

    Returns:
        Row-major numbers of the entries, [out, inputs, positions]. The outputs of a grouped layer
        are those of all its groups, its inputs those of one; a transposed convolution's and a
        Hugging Face Conv1D's are put in this order, and a stack of matrices one after the other.
    """
    shape, layout = weight.shape, weight.layout
    assert layout is not None
    index = torch.arange(weight.size)
    if weight.stacked:
        return index.view(layout).transpose(1, 2).reshape(-1, layout[1], 1)
    if layout == (shape[0], shape[1], math.prod(shape[2:])):  # [out, in], [out, in / groups, ...]
        return index.view(layout)
    if len(shape) == 2:  # [in, out]
        return index.view(shape).T[:, :, None]
    groups, inputs, _ = layout  # [in, out / groups, ...]
    by_group = index.view(groups, inputs, shape[1], -1).transpose(1, 2)
    return by_group.reshape(groups * shape[1], inputs, -1)


def check_channels(weights: list[PrunableWeight], pattern: str) -> None:
    """Refuses weights whose channels are not known.

    Args:
        weights: What is known of each.
        pattern: What cannot describe them, for the message.

    Raises:
        ValueError: If there is such a weight, naming it.
    """
    for weight in weights:
        if weight.layout is None:
            raise ValueError(
                f"Parameter `params` should select weights of layers whose channels are known with "
                f"pattern={pattern!r}. Found {weight.name!r}, which belongs to no such layer."
            )
