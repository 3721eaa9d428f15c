"""Weights narrower than their updates: stochastic rounding, or a compensated sum."""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}  # of a float32's mantissa
_LEAST_NORMAL = 2.0**-14  # of float16; below, its numbers are multiples of 2⁻²⁴


def round_stochastically(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Rounds float32 up or down with the probabilities that keep the mean.

    Args:
        values: float32.
        dtype: bfloat16 or float16.
        generator: On the values' device.

    Returns:
        Like `values`, in `dtype`. A value that the dtype holds stays as it is.
    """
    bits = _DROPPED_BITS[dtype]
    noise = torch.randint(0, 1 << bits, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    rounded = values.contiguous().view(torch.int32).add(noise).bitwise_and_(-(1 << bits)).view(torch.float32)
    if dtype == torch.float16:
        units = (values * 2.0**24 + noise * 2.0**-bits).floor() * 2.0**-24
        rounded = torch.where(values.abs() < _LEAST_NORMAL, units, rounded)
    return torch.where(values.isfinite(), rounded, values).to(dtype)


def add_compensated_(weights: Tensor, compensation: Tensor, wanted: Tensor) -> None:
    """Writes `wanted` into narrow weights and what rounding took into the compensation.

    The compensation is of the weights' own dtype: the sum of both has twice their digits.

    Source: Kahan's summation; Zamirai et al., "Revisiting BFloat16 Training" (2010.06192).

    Args:
        weights: In any dtype; overwritten.
        compensation: Like `weights`; overwritten.
        wanted: In the dtype of the arithmetic, with the compensation of before already in it.
    """
    weights.copy_(wanted)
    compensation.copy_(wanted - weights.to(wanted.dtype))
