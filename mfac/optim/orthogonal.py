"""The orthogonal factor of a matrix: its singular values become one."""

from __future__ import annotations

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a matrix of more than one row and column, the first dimension by all others."""
    return len(shape) >= 2 and shape[0] > 1 and torch.Size(shape[1:]).numel() > 1


def orthogonalized(update: Tensor) -> Tensor:
    """An update with the same norm whose singular values are all nearly the same.

    Five steps of a quintic Newton-Schulz iteration leave singular values between 0.7 and 1.2; then
    they are scaled. Muon gives every update the same norm instead; here it shrinks where successive
    gradients disagree.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    Args:
        update: [rows, ...], of which all dimensions but the first are the columns.

    Returns:
        Like `update`. O(rows · columns · min(rows, columns)).
    """
    x = update.reshape(update.shape[0], -1)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    norm = x.norm()
    x = x / norm.clamp(min=torch.finfo(x.dtype).tiny)
    a, b, c = _QUINTIC
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x * (norm / x.norm().clamp(min=torch.finfo(x.dtype).tiny))
    return (x.T if tall else x).reshape(update.shape)
