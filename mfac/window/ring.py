"""Which row of a sliding window is written next, and which gradient each holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_EMPTY = -1  # in place of a push, for a row that holds no gradient


class Ring:
    """The rows of a window in ring order: an empty one is written first, then the oldest.

    Args:
        rank: m.

    Attributes:
        written_by: The number of the push that wrote each row, or -1. A list: after a pass over the
            window a small torch operation starts with cold caches and takes up to 100 µs.
        pushes: How many there have been.
        newest: The row of the newest gradient, or None.
    """

    def __init__(self, rank: int) -> None:
        self.written_by = [_EMPTY] * rank
        self.pushes = 0
        self.newest: int | None = None

    @property
    def filled(self) -> list[bool]:
        """Of every row, whether it holds a gradient."""
        return [push != _EMPTY for push in self.written_by]

    @property
    def num_filled(self) -> int:
        """How many rows hold a gradient."""
        return len(self.written_by) - self.written_by.count(_EMPTY)

    @property
    def next_row(self) -> int:
        """An empty row, or the oldest."""
        return self.written_by.index(min(self.written_by))

    def write(self, row: int) -> None:
        """Counts a push into a row."""
        self.written_by[row] = self.pushes
        self.pushes += 1
        self.newest = row

    def clear(self, row: int) -> None:
        """Makes a row empty."""
        self.written_by[row] = _EMPTY
        if self.newest == row:
            self.newest = None

    def state(self) -> dict[str, Any]:
        """What `load_` takes."""
        ages = torch.tensor(self.written_by, dtype=torch.int64, device="cpu")
        return {"ages": ages, "pushes": self.pushes, "newest": self.newest}

    def load_(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of another ring of the same rank."""
        self.written_by = state["ages"].tolist()
        self.pushes = int(state["pushes"])
        self.newest = None if state["newest"] is None else int(state["newest"])
