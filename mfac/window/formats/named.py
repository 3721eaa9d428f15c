"""Which format a dtype and a density name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mfac.window.formats.base import Rows
from mfac.window.formats.dense import DenseRows
from mfac.window.formats.int8 import Int8Rows
from mfac.window.formats.topk import TopKRows

Format = Callable[[int, int, torch.device], Rows]  # of m, d and the device


def named_format(dtype: torch.dtype, density: float) -> Format:
    """The format of windows in a dtype, sparse where the density is below 1."""
    if density < 1:
        return lambda rank, dim, device: TopKRows(rank, dim, dtype, density, device)
    if dtype == torch.int8:
        return Int8Rows
    return lambda rank, dim, device: DenseRows(rank, dim, dtype, device)
