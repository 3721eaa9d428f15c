"""Rounding errors that tolerances are derived from.

The standard model of floating-point sums (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1): in any order, a sum of n products is computed with an error of at most n·u·Σ|a||b|, up
to second order in u.
"""

import torch
from torch import Tensor

U = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # unit roundoff


def assert_sums_agree(found: Tensor, expected: Tensor, terms: int, absolute_sums: Tensor) -> None:
    """Holds two sums of the same products to n·u·Σ|a||b| each, and to the rounding of `found`."""
    bound = 2 * (terms + 2) * U[torch.float64] * absolute_sums + U[found.dtype] * expected.abs()
    smallest = torch.finfo(found.dtype).tiny  # below it rounding is absolute
    excess = (found.double() - expected).abs() - bound - smallest
    assert bool((excess <= 0).all()), (
        f"largest excess {float(excess.max()):.3g} over bounds up to {float(bound.max()):.3g}"
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖/‖expected‖."""
    return float((found.double() - expected).norm() / expected.norm())


def entry_error(found: Tensor, expected: Tensor, largest: Tensor) -> float:
    """The largest error of an entry, relative to the largest entry of the whole matrix."""
    return float((found.double() - expected).abs().max() / largest.abs().max())
