"""Damping: the λ of F = λI + (1/n) GᵀG, as a number or relative to the gradients' own scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mfac.core.checks.numbers import check_number


@dataclass(frozen=True)
class RelativeDamping:
    """λ = `scale` · mean of diag((1/n) GᵀG). Made by `mfac.relative`.

    Attributes:
        scale: c, a positive number without unit.
    """

    scale: float

    def __post_init__(self) -> None:
        check_number("scale", self.scale, above=0)


@dataclass(frozen=True)
class RowRelativeDamping:
    """nλ = `scale` · mean squared norm of the gradients. Made by `mfac.row_relative`.

    Attributes:
        scale: ρ, a positive number without unit.
    """

    scale: float

    def __post_init__(self) -> None:
        check_number("scale", self.scale, above=0)


Damping = float | RelativeDamping | RowRelativeDamping


def relative(scale: float) -> RelativeDamping:
    """Damping in proportion to the mean of the Fisher's undamped diagonal.

    A fixed λ means something else for every network and every batch size: 1e-5 can be sixteen times
    the mean of the diagonal, or a thousandth of the mean. A relative damping does not change when
    the loss is scaled.

    Args:
        scale: c > 0; λ = c · mean of diag((1/n) GᵀG).

    Returns:
        A value for any parameter called `damping`.

    Raises:
        ValueError: If `scale` is not positive and finite.

    Example:
        >>> import torch, mfac
        >>> grads = torch.full((2, 4), 3.0)
        >>> mfac.EmpiricalFisher(grads, damping=mfac.relative(0.01)).damping
        0.09
    """
    return RelativeDamping(scale)


def row_relative(scale: float) -> RowRelativeDamping:
    """Damping in proportion to the mean squared norm of the gradients: nλ = ρ · mean ‖gᵢ‖².

    The m x m matrix that is inverted is nλI + GGᵀ. So the same ρ means the same for every dimension
    d and every m, where `mfac.relative(c)` is nλ = c · m/d · mean ‖gᵢ‖², and so
    nearly undamped for large d. Useful values are 0.1 to 10. In a sliding window λ is held until
    the mean leaves half to twice what it was.

    Args:
        scale: ρ > 0; λ = ρ · mean ‖gᵢ‖² / n.

    Returns:
        A value for any parameter called `damping`.

    Raises:
        ValueError: If `scale` is not positive and finite.

    Example:
        >>> import torch, mfac
        >>> grads = torch.full((2, 4), 3.0)
        >>> mfac.EmpiricalFisher(grads, damping=mfac.row_relative(0.5)).damping
        9.0
    """
    return RowRelativeDamping(scale)


def check_damping(damping: Damping) -> Damping:
    """Accepts λ > 0, `mfac.relative(c)` or `mfac.row_relative(ρ)`.

    Args:
        damping: What was given for the parameter `damping`.

    Returns:
        The same.

    Raises:
        ValueError: If λ is not positive and finite.
        TypeError: If it is neither a number nor relative.
    """
    if isinstance(damping, RelativeDamping | RowRelativeDamping):
        return damping
    value = check_number("damping", damping, above=0)
    if not 1e-150 <= value <= 1e150:
        raise ValueError(
            f"Parameter `damping` should be between 1e-150 and 1e150, or float64 overflows. Found {value!r}."
        )
    return value


def resolve_damping(damping: Damping, trace: float, num_terms: float, dim: int, num_rows: int | None = None) -> float:
    """The number λ.

    Args:
        damping: λ itself, or relative.
        trace: tr(GGᵀ), the sum of the rows' squared norms.
        num_terms: n.
        dim: d.
        num_rows: How many rows hold a gradient; None for n.

    Returns:
        λ > 0.

    Raises:
        ValueError: If a relative damping meets gradients that are all zero.
    """
    if not isinstance(damping, RelativeDamping | RowRelativeDamping):
        return float(damping)
    by_row = isinstance(damping, RowRelativeDamping)
    found = f"{'row_relative' if by_row else 'relative'}({damping.scale:g})"
    if trace <= 0:
        raise ValueError(
            f"Parameter `damping` should be a positive number where all gradients are zero. "
            f"Found {found}, which would be 0."
        )
    mean_over = (num_terms if num_rows is None else num_rows) if by_row else dim
    value = damping.scale * trace / (num_terms * mean_over)
    if not 1e-150 <= value <= 1e150:
        raise ValueError(f"Parameter `damping` should give a λ between 1e-150 and 1e150. Found {found} = {value!r}.")
    return value


def check_inverse_range(damping: float, dtype: torch.dtype) -> None:
    """Refuses a λ whose inverse, the largest entry that F⁻¹ may have, is no number of the dtype.

    Args:
        damping: λ.
        dtype: Of the results.

    Raises:
        ValueError: If 1/λ overflows.
    """
    if damping * torch.finfo(dtype).max < 1:
        raise ValueError(
            f"Parameter `damping` should be at least {1 / torch.finfo(dtype).max:.1e} with fewer gradients than "
            f"weights in {str(dtype).removeprefix('torch.')}, as 1/λ overflows below. Found {damping:g}."
        )
