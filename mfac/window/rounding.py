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


def compensation_for(weights: Tensor) -> Tensor:
    """What rounding has left out of narrow weights, nothing yet: int16, for parts of a last digit.

    A number of the weights' own dtype would stop growing where an update is a thousandth of their
    last digit.

    Args:
        weights: bfloat16 or float16.

    Returns:
        Zeros like `weights`.
    """
    return torch.zeros_like(weights, dtype=torch.int16)


def compensated(weights: Tensor, compensation: Tensor) -> Tensor:
    """The sum of both.

    A weight that somebody else has changed since keeps at most half its last digit. A bfloat16 of
    zero has nothing below: there the bits of another weight would make a NaN.

    Args:
        weights: bfloat16 or float16.
        compensation: Of `compensation_for`.

    Returns:
        Like `weights`, float32.
    """
    wide = weights.float()
    if weights.dtype == torch.bfloat16:
        compensation = torch.where(wide == 0, compensation.clamp(min=0), compensation)
        return wide.view(torch.int32).add_(compensation).view(torch.float32)
    return wide.add_(_part(wide) * compensation)


def add_compensated_(weights: Tensor, compensation: Tensor, wanted: Tensor) -> None:
    """Writes `wanted` into narrow weights and what rounding took into the compensation.

    The sum of both is `wanted` in float32, but for the last bit of a tie: of bfloat16 the
    compensation is the bits that a float32 has more, of float16 it counts 2⁻¹⁶ of its last digit.

    Source: Kahan's summation; Zamirai et al., "Revisiting BFloat16 Training" (2010.06192).

    Args:
        weights: bfloat16 or float16; overwritten.
        compensation: Of `compensation_for`; overwritten.
        wanted: float32 or float64, with the compensation of before already in it.
    """
    wanted = wanted.float()
    weights.copy_(wanted)
    wide = weights.float()
    if weights.dtype == torch.bfloat16:
        rest = wanted.view(torch.int32) - wide.view(torch.int32)
    else:
        rest = ((wanted - wide) / _part(wide)).nan_to_num_().round_()
    compensation.copy_(rest.clamp_(-(1 << 15), (1 << 15) - 1))  # half a digit upwards is one more than int16 holds


def _part(values: Tensor) -> Tensor:
    """2⁻¹⁶ of the last digit of float16 values, of which the smallest is 2⁻²⁴."""
    exponents = torch.where(values == 0, -24, torch.frexp(values).exponent - 11).clamp_(min=-24)
    return torch.ldexp(torch.ones_like(values), exponents - 16)
