"""A pattern on one matrix of weights: which entries it keeps by given scores, in exact numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.selection import highest
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import NM, Blocks, Candidates, Pattern, Unstructured


@dataclass(frozen=True)
class MatrixPattern:
    """What a pattern and a sparsity ask of a matrix [rows, columns].

    Columns are the input channels of the first kernel position, then those of the second, and so
    on; a linear layer has one position.

    Attributes:
        pattern: The pattern.
        rows: Output channels.
        columns: Positions times input channels.
        positions: Of the kernel.
        kept: How many entries are kept; patterns of units keep the fewest whole units that are no
            less.
    """

    pattern: Pattern
    rows: int
    columns: int
    positions: int
    kept: int

    @classmethod
    def of(cls, pattern: Pattern, rows: int, columns: int, positions: int, sparsity: float) -> MatrixPattern:
        """For a share of zeros; a pattern that fixes the share, as N:M does, has its own.

        Args:
            pattern: The pattern.
            rows: Of the matrix.
            columns: Of the matrix.
            positions: Of the kernel, a divisor of `columns`.
            sparsity: Share of zeros.

        Returns:
            The pattern on such matrices, with kept = rows · columns - round(sparsity · rows ·
            columns).
        """
        size = rows * columns
        weight = _described(rows, columns, positions)
        if pattern.sparsity is not None:
            kept = pattern.least_kept([weight], torch.ones(size, dtype=torch.bool))[0]
        else:
            kept = size - round(sparsity * size)
        return cls(pattern, rows, columns, positions, kept)

    @property
    def channels(self) -> int:
        """Input channels of a position."""
        return self.columns // self.positions

    @property
    def nm(self) -> tuple[int, int] | None:
        """N and M; None for another pattern."""
        return (self.pattern.keep, self.pattern.group) if isinstance(self.pattern, NM) else None

    @property
    def is_unstructured(self) -> bool:
        """Whether any entries may be kept."""
        return isinstance(self.pattern, Unstructured)

    @property
    def align(self) -> int:
        """Successive channels that are decided together; 0 if all of them are."""
        if isinstance(self.pattern, NM):
            return self.pattern.group
        if isinstance(self.pattern, Blocks):
            return self.pattern.inputs
        return 1 if self.is_unstructured else 0

    def may_part(self, column: int) -> bool:
        """Whether no columns before one are decided together with it or with those after it."""
        return self.align > 0 and column % self.channels % self.align == 0

    def choose(self, scores: Tensor) -> Tensor:
        """The entries to keep: those of the highest scores that the pattern allows.

        Args:
            scores: >= 0, [rows, columns].

        Returns:
            [rows, columns] bool. Of equal scores the lower index goes first.
        """
        if self.is_unstructured:
            return highest(scores, self.kept)
        if (nm := self.nm) is not None:
            shape = (self.rows * self.positions, self.channels, 1)
            return ops.nm_mask(scores.contiguous().view(shape), *nm).view(self.rows, self.columns)
        weight = _described(self.rows, self.columns, self.positions)
        live = torch.ones(weight.size, dtype=torch.bool)
        flat = scores.reshape(self.rows, self.positions, self.channels).transpose(1, 2).reshape(-1).cpu()
        units = self.pattern.units(Candidates([weight], live, flat))
        dropped = units.lowest([weight.size - self.kept])
        kept = ~dropped.view(self.rows, self.channels, self.positions).transpose(1, 2)
        return kept.reshape(self.rows, self.columns).to(scores.device)

    def cuts(self, width: int) -> Iterator[tuple[int, int]]:
        """Blocks of columns that a sweep takes one after the other.

        Args:
            width: Of a block at most, unless what is decided together is wider.

        Yields:
            First column and the one after the last; no block spans two positions, and none ends
            within columns that are decided together.
        """
        align = max(1, self.align)
        step = max(align, width // align * align)
        for position in range(self.positions):
            begin = position * self.channels
            for start in range(begin, begin + self.channels, step):
                yield start, min(start + step, begin + self.channels)

    def restricted(self, width: int, kept: int) -> MatrixPattern:
        """The same on `width` columns of one position, with a number of its own."""
        return MatrixPattern(self.pattern, self.rows, width, 1, kept)


def _described(rows: int, columns: int, positions: int) -> PrunableWeight:
    channels = columns // positions
    return PrunableWeight("weight", torch.Size([rows, channels, positions]), (rows, channels, positions), "Conv1d")
