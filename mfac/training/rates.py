"""Rates that change on the way: the share of weights that is exchanged, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from mfac.core.checks.numbers import check_count, check_number

Rate = Callable[[int], float]
"""A step, from 1, to the share of the live weights that are exchanged after it."""


class Cosine:
    """From one rate to another on half a cosine, and constant from there.

    Args:
        first: At step 0, in (0, 1].
        last: From step `end` on, in [0, first].
        end: Steps; None for no change at all.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range.
    """

    def __init__(self, first: float, last: float = 0.0, end: int | None = None) -> None:
        self.first = check_number("rate", first, above=0, most=1)
        self.last = check_number("last rate", last, least=0, most=self.first)
        self.end = None if end is None else check_count("end", end, least=1)

    def __call__(self, step: int) -> float:
        """The rate after a step."""
        if self.end is None:
            return self.first
        way = min(1.0, step / self.end)
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * way)) / 2


def rewinding(end: int, period: int, least: float = 0.0) -> Callable[[int], float]:
    """A learning rate's factor that falls linearly and starts again, as GMP*'s.

    For `torch.optim.lr_scheduler.LambdaLR`. Each fall starts on the line from 1 to `least` over the
    whole training, and the last one ends at `least`.

    Args:
        end: Steps in all.
        period: Steps of one fall.
        least: The factor at the end of each fall, in [0, 1).

    Returns:
        A function of the number of steps done.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range.

    Source: "Sparse*BERT" schedules with rewinds in GMP* (2210.06384), section 3.

    Example:
        >>> import mfac
        >>> factor = mfac.recipes.rewinding(end=100, period=50)
        >>> factor(0), factor(49), factor(50), factor(100)
        (1.0, 0.02, 0.5, 0.0)
    """
    check_count("end", end, least=1)
    check_count("period", period, least=1)
    check_number("least", least, least=0, below=1)

    def factor(step: int) -> float:
        if step >= end:
            return least
        begin = step - step % period
        length = min(period, end - begin)
        top = 1 - begin / end
        return round(least + (1 - least) * top * (1 - (step - begin) / length), 12)

    return factor
