"""XᵀX of rows that come a few at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.core import ops

AT_ONCE = 1024
"""Rows that are multiplied together: of 256 each would take half as long again."""


@dataclass
class Gram:
    """XᵀX of some inputs.

    Attributes:
        total: The sum, [columns, columns] float64.
        count: Rows of X.
    """

    total: Tensor
    count: int = 0
    _divided: bool = False

    @property
    def mean(self) -> Tensor:
        """XᵀX/n, which takes the memory of the sum: nothing may be added after."""
        if not self._divided:
            self.total.div_(self.count)
            self._divided = True
        return self.total


class NotFiniteError(ValueError):
    """Raised for rows that are not finite.

    Attributes:
        batch: The number of the batch that they are of.
    """

    def __init__(self, batch: int) -> None:
        super().__init__(f"batch {batch}")
        self.batch = batch


class GramOfRows:
    """Sums up XᵀX in float64, and holds back rows until there are enough for a fast product.

    Args:
        columns: Of X.
        device: Where X is.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self._gram = Gram(torch.zeros(columns, columns, dtype=torch.float64, device=device))
        self._held: Tensor | None = None  # [columns, AT_ONCE], of which some are filled
        self._filled = 0
        self._batches: list[tuple[int, int]] = []  # of what is held: a batch and where its rows end

    def add(self, rows: Tensor, batch: int) -> None:
        """Takes rows, float32 or float64.

        Args:
            rows: [n, columns].
            batch: The number of the batch that they are of.

        Raises:
            NotFiniteError: If rows that are multiplied now are not finite.
        """
        self._gram.count += len(rows)
        if self._held is not None and self._held.dtype != rows.dtype:
            self._multiply()
            self._held = None
        while len(rows):
            if not self._filled and len(rows) >= AT_ONCE:
                self._batches = [(batch, len(rows))]
                self._product(rows.T.contiguous())
                return
            if self._held is None:
                self._held = rows.new_empty(rows.shape[1], AT_ONCE)
            part = rows[: AT_ONCE - self._filled]
            self._held[:, self._filled : self._filled + len(part)] = part.T
            self._filled += len(part)
            self._batches.append((batch, self._filled))
            if self._filled == AT_ONCE:
                self._multiply()
            rows = rows[len(part) :]

    def finished(self) -> Gram:
        """The sum of all rows.

        Returns:
            It; nothing may be added after.

        Raises:
            NotFiniteError: If rows are not finite.
        """
        self._multiply()
        self._held = None
        return self._gram

    def _multiply(self) -> None:
        if self._held is not None and self._filled:
            whole = self._filled == AT_ONCE
            self._product(self._held if whole else self._held[:, : self._filled].contiguous())
            self._filled = 0

    def _product(self, transposed: Tensor) -> None:
        gram = ops.gram(transposed)
        if not bool(torch.isfinite(gram.diagonal()).all()):
            begin = 0
            for batch, end in self._batches:
                if not bool(torch.isfinite(transposed[:, begin:end].double().square().sum(1)).all()):
                    raise NotFiniteError(batch)
                begin = end
            raise NotFiniteError(self._batches[-1][0])
        self._gram.total += gram
        self._batches = []
