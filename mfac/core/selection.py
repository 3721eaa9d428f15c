"""The highest or lowest of many numbers, exactly so many, in time linear in their number."""

from __future__ import annotations

import torch
from torch import Tensor


def highest(scores: Tensor, count: int) -> Tensor:
    """The `count` highest entries, exactly so many; of equal ones the higher index is taken first.

    Args:
        scores: Of any shape, without NaN.
        count: How many; fewer than none are none, and more than all are all.

    Returns:
        Bool, of the scores' shape. O(size).
    """
    return ~lowest(scores, scores.numel() - count)


def lowest(scores: Tensor, count: int) -> Tensor:
    """The `count` lowest entries, exactly so many; of equal ones the lower index is taken first.

    Args:
        scores: Of any shape, without NaN.
        count: How many; fewer than none are none, and more than all are all.

    Returns:
        Bool, of the scores' shape. O(size).
    """
    flat = scores.reshape(-1)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    bound = flat.kthvalue(count).values
    below = flat < bound
    ties = (flat == bound).nonzero()[:, 0]
    below[ties[: count - int(torch.count_nonzero(below))]] = True
    return below.view(scores.shape)
