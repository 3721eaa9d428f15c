"""How many gradients and stages a run takes if they are not given: as many as the time allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mfac.pruning.settings import Effort, Settings

_LADDER = ((16, 512), (16, 256), (8, 256), (8, 128), (4, 128), (4, 64), (2, 64), (1, 64), (1, 32))
"""Stages and gradients of each, from the best on down."""

_TOP: dict[Effort, int] = {"best": 0, "default": 2, "fast": 4}
"""Where in the ladder an effort begins."""

_SECONDS: dict[Effort, float] = {"best": 1800.0, "default": 120.0, "fast": 20.0}
"""What an effort may take. A machine of which nobody knows how fast it is measures it."""


def candidates(settings: Settings, most_gradients: int | None) -> list[Settings]:
    """What a run may take, the best first.

    Args:
        settings: With the numbers that were given.
        most_gradients: What a pass over the data has; None where that is not known.

    Returns:
        Settings with all numbers. Given numbers are never changed, and numbers of the ladder never
        exceed a pass.
    """
    top = 0 if settings.time_budget is not None else _TOP[settings.effort]
    found = []
    for stages, gradients in _LADDER[top:]:
        if most_gradients is not None:
            gradients = max(1, min(gradients, most_gradients))
        rank = gradients if settings.num_gradients is None else settings.num_gradients
        chosen = replace(settings, num_gradients=rank, stages=stages if settings.stages is None else settings.stages)
        if chosen not in found:
            found.append(chosen)
    return found


def choose(options: list[Settings], seconds_of: Callable[[Settings], float]) -> Settings:
    """The best that the time allows.

    Args:
        options: The best first.
        seconds_of: What each is estimated to take.

    Returns:
        The first that fits, or the last.
    """
    limit = options[0].time_budget or _SECONDS[options[0].effort]
    return next((option for option in options[:-1] if seconds_of(option) <= limit), options[-1])
