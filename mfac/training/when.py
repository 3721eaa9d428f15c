"""When masks change: after which steps of the optimizer, counted from 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from mfac.core.checks.numbers import check_count


class When(ABC):
    """Says after which steps masks change. Derive from it: docs/extending/recipe.md."""

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether masks change after a step.

        Args:
            step: Of the optimizer, from 1.
        """


class Every(When):
    """The steps `begin`, `begin + interval`, ..., up to `end`.

    Args:
        interval: Steps from one change to the next.
        end: The last step that may change masks; None for no end.
        begin: The first; None for `interval`.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If the end comes before the beginning.
    """

    def __init__(self, interval: int, end: int | None = None, begin: int | None = None) -> None:
        self.interval = check_count("every", interval, least=1)
        self.begin = self.interval if begin is None else check_count("begin", begin, least=1)
        self.end = None if end is None else check_end(end, self.begin)

    def is_due(self, step: int) -> bool:
        """Whether `step` is one of them."""
        late = self.end is not None and step > self.end
        return step >= self.begin and not late and (step - self.begin) % self.interval == 0

    def events(self) -> list[int]:
        """All of them, where there is an end."""
        if self.end is None:
            raise ValueError("Parameter `end` should be given: there are changes without end.")
        return list(range(self.begin, self.end + 1, self.interval))

    def number(self, step: int) -> int:
        """Which of them a step is, from 0."""
        return (step - self.begin) // self.interval


class Slower(When):
    """Intervals that grow: each is used for an equal part of the way to the end.

    Args:
        intervals: Steps from one change to the next, the first part's first.
        end: The last step that may change masks.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If no change comes before the end.
    """

    def __init__(self, intervals: Sequence[int], end: int) -> None:
        self.intervals = [check_count("periods", interval, least=1) for interval in intervals]
        if not self.intervals:
            raise ValueError("Parameter `periods` should hold at least one interval. Found none.")
        self.end = check_end(end, self.intervals[0])
        self._events: set[int] = set()
        step = 0
        while step < end:
            step += self.intervals[min(len(self.intervals) - 1, step * len(self.intervals) // end)]
            self._events.add(step)
        self._events.discard(step if step > end else -1)

    def is_due(self, step: int) -> bool:
        """Whether `step` ends an interval."""
        return step in self._events


def check_end(end: int, begin: int) -> int:
    """Accepts a last step that does not come before the first.

    Args:
        end: What was given for it.
        begin: The first step that changes masks.

    Returns:
        The last step.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it comes before the first.
    """
    if check_count("end", end, least=1) < begin:
        raise ValueError(f"Parameter `end` should be at least {begin}, the first step that changes masks. Found {end}.")
    return int(end)
