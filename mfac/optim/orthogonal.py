"""The orthogonal factor of a matrix: its singular values become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_WIDE = 3  # columns a row, from where steps on x xᵀ alone cost less


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a parameter has more than one row and column, its first dimension by all others."""
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
    return orthogonalized_alike([update])[0]


def orthogonalized_alike(updates: Sequence[Tensor]) -> list[Tensor]:
    """`orthogonalized` of several updates; those of one shape together, as small products wait."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, update in enumerate(updates):
        by_shape.setdefault(tuple(update.shape), []).append(i)
    results = list(updates)
    for places in by_shape.values():
        stacked = torch.stack([updates[i].reshape(updates[i].shape[0], -1) for i in places])
        with torch.autocast(stacked.device.type, enabled=False):  # a step in autocast is that outside
            factors = _orthogonal_factors(stacked)
        for i, found in zip(places, factors, strict=True):
            results[i] = found.reshape(updates[i].shape)
    return results


def _orthogonal_factors(x: Tensor) -> Tensor:
    """Of each matrix [k, rows, columns], with its norm."""
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    largest = x.abs().amax(dim=(1, 2), keepdim=True)  # first: squares of tiny or huge entries are 0 or infinite
    x = x / largest.where(largest > 0, 1.0)
    norms, least = x.norm(dim=(1, 2), keepdim=True), torch.finfo(x.dtype).tiny
    x = x / norms.clamp(min=least)
    x = _with_singular_values_near_one(x)
    x = x * (norms / x.norm(dim=(1, 2), keepdim=True).clamp(min=least)) * largest
    return x.mT if tall else x


def _with_singular_values_near_one(x: Tensor) -> Tensor:
    """The iteration, for matrices [k, rows, columns] of norm 1, at least as wide as tall."""
    if x.shape[2] < _WIDE * x.shape[1]:
        for _ in range(_STEPS):
            x = _factor_of(x @ x.mT) @ x
        return x
    # Every step multiplies x from the left by a polynomial of x xᵀ, and all of these commute. So
    # x xᵀ goes through the steps alone, and x is multiplied by the product of all factors, once.
    gram = x @ x.mT
    product = factor = _factor_of(gram)
    for _ in range(_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _factor_of(gram)
        product = factor @ product
    return product @ x


def _factor_of(gram: Tensor) -> Tensor:
    """What a step multiplies x by from the left, x xᵀ being [k, n, n]."""
    a, b, c = _QUINTIC
    factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
