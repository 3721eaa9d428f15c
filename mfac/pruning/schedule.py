"""Schedules: how many weights each pruning step leaves.

To add one, derive from `Schedule`, and give `prune` the object or add its name to `SCHEDULES`
(docs/extending/schedule.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

from mfac.pruning.returned import check_counts

ScheduleName = Literal["geometric", "cubic", "linear"]


class Schedule(ABC):
    """Gives the number of kept weights a step. Derive from it: docs/extending/schedule.md."""

    @abstractmethod
    def kept(self, live: int, final: int, steps: int) -> list[int]:
        """How many weights are kept after each step.

        Args:
            live: Weights kept before the first step.
            final: Weights kept after the last, 0 <= final < live.
            steps: How many steps, >= 1.

        Returns:
            `steps` numbers, none greater than the one before; the last is `final`.
        """


class Geometric(Schedule):
    """Every step drops the same share of what is left.

    Source: the recomputation schedule of M-FAC's pruner, dens_j = dens_0 (dens_T / dens_0)^(j/R).
    """

    def kept(self, live: int, final: int, steps: int) -> list[int]:
        """Live · (final / live)^(j / steps) after step j."""
        return [*(round(live * (final / live) ** (step / steps)) for step in range(1, steps)), final]


class Cubic(Schedule):
    """Large steps first, then smaller ones: kept weights fall as the cube of the way still left.

    Source: Zhu, Gupta, "To prune, or not to prune" (1710.01878), equation 1.
    """

    def kept(self, live: int, final: int, steps: int) -> list[int]:
        """Final + (live - final) (1 - j / steps)³ after step j."""
        return [final + round((live - final) * (1 - step / steps) ** 3) for step in range(1, steps + 1)]


class Linear(Schedule):
    """Every step drops the same number of weights."""

    def kept(self, live: int, final: int, steps: int) -> list[int]:
        """Live - (live - final) j / steps after step j."""
        return [live - round((live - final) * step / steps) for step in range(1, steps + 1)]


SCHEDULES: Mapping[str, Callable[[], Schedule]] = {"geometric": Geometric, "cubic": Cubic, "linear": Linear}
"""By name; a schedule of your own is added here, or given as an object."""


def kept_by(schedule: Schedule, live: int, final: int, steps: int) -> list[int]:
    """The numbers of a schedule, checked.

    Args:
        schedule: Whose they are.
        live: Weights kept before the first step.
        final: Weights kept after the last.
        steps: How many steps.

    Returns:
        The number of weights kept after each step.

    Raises:
        TypeError: If the schedule returns something else than a list of integers.
        ValueError: If they are of another length, rise, or end elsewhere.
    """
    kept = check_counts("schedule", schedule, "kept", schedule.kept(live, final, steps))
    falls = all(b <= a for a, b in zip([live, *kept], kept, strict=False))
    if len(kept) != steps or not falls or kept[-1] != final:
        raise ValueError(
            f"Parameter `schedule` should return {steps} numbers that fall from {live} to {final}. "
            f"Found {kept} from {type(schedule).__name__}."
        )
    return kept
