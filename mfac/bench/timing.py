"""Timing two or more functions in turn, so that a machine whose speed drifts treats them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

import mfac


def medians(functions: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of functions that run in turn, in rounds after a first uncounted one.

    Args:
        functions: By name.
        rounds: That count.

    Returns:
        Seconds by the same names.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for counted in range(-1, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def describe_machine() -> str:
    """One line: processor architecture, instruction set, threads, torch."""
    return (
        f"{platform.machine()}, kernels {mfac.build_info()['isa_chosen']}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, mfac {mfac.__version__}"
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖ in float64."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check(name: str, error: float, limit: float) -> None:
    """Refuses to time what is not right.

    Args:
        name: Of what was checked.
        error: Relative error found.
        limit: The largest that will do.

    Raises:
        AssertionError: If the error is above its limit.
    """
    if not error <= limit:
        raise AssertionError(f"{name}: relative error {error:.2e} is above {limit:.0e}")
