"""The orthogonal factor of a matrix: its singular values become one."""

from __future__ import annotations

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS = 0.2  # of an update of Adam's, so that its learning rates and weight decays carry over


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix of more than one row and column, the first dimension by all others."""
    return len(shape) >= 2 and shape[0] > 1 and torch.Size(shape[1:]).numel() > 1


def orthogonalized(update: Tensor) -> Tensor:
    """An update whose singular values are all near one, with the root mean square of Adam's updates.

    Five steps of a quintic Newton-Schulz iteration, whose singular values end between 0.7 and 1.2.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
    scale 0.2·√max(rows, columns) from Liu et al., "Muon is scalable for LLM training" (2502.16982).

    Args:
        update: [rows, ...], of which all dimensions but the first are the columns.

    Returns:
        Like `update`. O(rows · columns · min(rows, columns)).
    """
    x = update.reshape(update.shape[0], -1)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    scale = _RMS * max(x.shape) ** 0.5
    return ((x.T if tall else x) * scale).reshape(update.shape)
