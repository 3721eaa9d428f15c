"""Grids that weights are rounded to: bits, groups of columns, symmetric or not, searched or not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.core.checks.choices import check_flag
from mfac.core.checks.numbers import check_count

_SHRINKS, _LEAST_SHRINK, _NORM = 80, 0.2, 2.4


@dataclass(frozen=True)
class Grid:
    """Uniform steps for each output channel and group of input columns.

    A weight w is stored as the integer clamp(round(w/scale) + zero, 0, 2^bits - 1), and read as
    (integer - zero) · scale. Zero is always one of the steps.

    Args:
        bits: 1 to 8.
        group_size: Successive columns that share a scale; None for all columns of a row.
        symmetric: Whether the steps lie symmetric about zero, but for one more below.
        search: Whether the range is searched among 80 shrunken ones for the least Σ|w - q|^2.4,
            instead of reaching from the least to the greatest weight.

    Raises:
        ValueError: If a number is out of range.

    Source: GPTQ (Frantar et al. 2022, 2210.17323) and OBQ (2208.11580).

    Example:
        >>> import torch, mfac
        >>> weight = torch.tensor([[-1.0, 0.0, 0.4, 2.0]], dtype=torch.float64)
        >>> values = mfac.Grid(bits=2, group_size=None).fit(weight)
        >>> values.round(weight)
        tensor([[-1.,  0.,  0.,  2.]], dtype=torch.float64)
    """

    bits: int = 4
    group_size: int | None = 128
    symmetric: bool = False
    search: bool = False

    def __post_init__(self) -> None:
        if not 1 <= check_count("bits", self.bits, least=1) <= 8:
            raise ValueError(f"Parameter `bits` should be from 1 to 8. Found {self.bits}.")
        if self.group_size is not None:
            check_count("group_size", self.group_size, least=1)
        check_flag("symmetric", self.symmetric)
        check_flag("search", self.search)

    @property
    def levels(self) -> int:
        """The greatest integer."""
        return 2**self.bits - 1

    def bounds(self, columns: int) -> list[tuple[int, int]]:
        """First column of each group and the one after its last."""
        size = columns if self.group_size is None else min(columns, self.group_size)
        return [(begin, min(begin + size, columns)) for begin in range(0, columns, max(1, size))]

    def fit(self, weight: Tensor) -> GridValues:
        """Scales and zeros for a weight [rows, columns].

        Args:
            weight: Floating point.

        Returns:
            The values; O(size), eighty times that with a search.
        """
        fitted = [self.fit_group(weight[:, begin:end].double()) for begin, end in self.bounds(weight.shape[1])]
        scales, zeros = (torch.stack(part, 1) for part in zip(*fitted, strict=True))
        return GridValues(self, scales, zeros)

    def fit_group(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of each row over one group of columns, [rows, width] -> [rows], [rows]."""
        low, high = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        flat = (low == 0) & (high == 0)
        high = torch.where(flat, torch.ones_like(high), high)
        if self.symmetric:
            low = -high
        best = self._steps(low, high)
        if not self.search:
            return best
        least = self._loss(weight, *best)
        for number in range(1, _SHRINKS):
            share = 1 - number * (1 - _LEAST_SHRINK) / _SHRINKS
            tried = self._steps(low * share, high * share)
            loss = self._loss(weight, *tried)
            better = loss < least
            least = torch.where(better, loss, least)
            best = (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1]))
        return best

    def _steps(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = single((high - low) / self.levels)
        zero = torch.full_like(scale, (self.levels + 1) // 2) if self.symmetric else (-low / scale).round()
        return scale, zero

    def _loss(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        return (rounded(weight, scale[:, None], zero[:, None], self.levels) - weight).abs().pow(_NORM).sum(1)


@dataclass(frozen=True)
class GridValues:
    """A grid with its scales and zeros for one matrix.

    Attributes:
        grid: Bits and groups.
        scales: [rows, groups] float64, positive; a `Grid` makes those that float32 can hold.
        zeros: [rows, groups] float64, integers.
    """

    grid: Grid
    scales: Tensor
    zeros: Tensor

    def expanded(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of every entry, [rows, columns] each."""
        widths = torch.tensor([end - begin for begin, end in self.grid.bounds(columns)], device=self.scales.device)
        return self.scales.repeat_interleave(widths, 1), self.zeros.repeat_interleave(widths, 1)

    def round(self, weight: Tensor) -> Tensor:
        """Each entry at its nearest step, [rows, columns] float64."""
        return rounded(weight.double(), *self.expanded(weight.shape[1]), self.grid.levels)

    def integers(self, weight: Tensor) -> Tensor:
        """The integers of a weight that is on the grid, [rows, columns] uint8."""
        scale, zero = self.expanded(weight.shape[1])
        return ((weight.double() / scale).round() + zero).clamp(0, self.grid.levels).to(torch.uint8)

    def weights(self, integers: Tensor) -> Tensor:
        """What integers stand for, [rows, columns] float64; to the last bit what solvers leave."""
        scale, zero = self.expanded(integers.shape[1])
        return (integers.double() - zero) * scale


def rounded(weight: Tensor, scale: Tensor, zero: Tensor, levels: int) -> Tensor:
    """The nearest step of each entry, halves to even."""
    return (((weight / scale).round() + zero).clamp(0, levels) - zero) * scale


def single(scales: Tensor) -> Tensor:
    """Scales as float32 can hold them, so that files of them lose nothing; float64.

    Args:
        scales: Positive, float64.

    Returns:
        Rounded, but for those that float32 has no normal numbers for.
    """
    limits = torch.finfo(torch.float32)
    return torch.where((scales >= limits.tiny) & (scales < limits.max), scales.float().double(), scales)
