"""How weights move along one vector that holds the direction of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor


@dataclass
class Descent:
    """w <- decay·w - rate·v for several parameters, of which v holds the directions; for `GradientWindow.descend_`.

    Example:
        >>> import torch, mfac
        >>> window = mfac.GradientWindow(rank=4, dim=6, damping=0.1)
        >>> window.push(torch.ones(6))
        >>> weights, bias = torch.zeros(2, 2), torch.zeros(2)
        >>> descent = mfac.Descent()
        >>> descent.add(weights, column=0, rate=0.5, decay=1.0)
        >>> descent.add(bias, column=4, rate=0.5, decay=1.0)
        >>> window.descend_(descent)
        >>> torch.allclose(bias, -0.5 * window.precondition()[4:])
        True

    Attributes:
        parameters: Each w, in the order of their columns.
        columns: The first column of v, [d], for each; the others follow, row-major.
        rates: For each.
        decays: For each.
    """

    parameters: list[Tensor] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)

    def add(self, parameter: Tensor, column: int, rate: float, decay: float) -> None:
        """Moves one more, whose columns come after those of the others."""
        self.parameters.append(parameter)
        self.columns.append(column)
        self.rates.append(rate)
        self.decays.append(decay)

    def suits(self, dtype: torch.dtype) -> bool:
        """Whether the pass that computes v, in `dtype`, may move them itself: it takes them for pieces of a vector."""
        return all(p.dtype == dtype and p.is_contiguous() for p in self.parameters)

    def apply_(self, move: Tensor) -> None:
        """Moves them along v, [d], by torch: a call for all that have the same factors."""
        moves = [
            move[column : column + p.numel()].view(p.shape)
            for p, column in zip(self.parameters, self.columns, strict=True)
        ]
        factors = list(zip(self.rates, self.decays, strict=True))
        for (rate, decay), places in groupby(range(len(factors)), key=factors.__getitem__):
            chosen = list(places)
            parameters = [self.parameters[i] for i in chosen]
            if decay != 1:
                torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, [moves[i] for i in chosen], alpha=-rate)


def follow_average_(move: Tensor, average: Tensor, carried: Tensor | None) -> None:
    """In place: move [d] becomes the average [d], but for what is carried; there the average becomes 0.

    Args:
        move: F⁻¹g.
        average: With F⁻¹g in it.
        carried: Columns of the entries of the newest row if rows are sparse, [k].
    """
    if carried is None:
        move.copy_(average)
        return
    at_once = move[carried]
    move.copy_(average)
    move[carried] = at_once
    average[carried] = 0
