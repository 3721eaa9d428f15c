"""What a step of a sliding window costs as d and m grow, with exponents fitted by least squares."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mfac.bench.measurement import DAMPING, Setting
from mfac.bench.ops import filled, step
from mfac.bench.timing import medians

_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito: told apart by most readers


@dataclass(frozen=True)
class Point:
    """A step at one shape: its seconds include 1/m of the factorisation due every m pushes."""

    rank: int
    dim: int
    seconds: float


@dataclass(frozen=True)
class Series:
    """Points along one of the two sizes.

    Attributes:
        varied: "d" or "m".
        points: By growing size.
    """

    varied: str
    points: Sequence[Point]

    @property
    def fixed(self) -> str:
        """The other size, in words."""
        return f"m = {self.points[0].rank}" if self.varied == "d" else f"d = {self.points[0].dim}"

    def exponent(self, points: Sequence[Point] | None = None) -> float:
        """Slope of log seconds over log size, by least squares; of all points or of some."""
        points = self.points if points is None else points
        x = [math.log(point.dim if self.varied == "d" else point.rank) for point in points]
        y = [math.log(point.seconds) for point in points]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        return slope / sum((a - mean_x) ** 2 for a in x)

    def __str__(self) -> str:
        text = f"over {self.varied} at {self.fixed}: {self.varied}^{self.exponent():.2f}"
        if len(self.points) > 4:
            text += (
                f" (first three {self.exponent(self.points[:3]):.2f}, last three {self.exponent(self.points[-3:]):.2f})"
            )
        return text


def step_cost(rank: int, dim: int, rounds: int) -> Point:
    """Median of `push` and `precondition` on a float32 window, with 1/m of the periodic work.

    Args:
        rank: m.
        dim: d > m.
        rounds: Times that the step is timed.

    Returns:
        The cost.
    """
    setting = Setting(rank, dim)
    window, g = filled(setting, rank, dim), setting.normal(dim)
    full = window.state_dict(copy=False)["gram"] + rank * DAMPING * torch.eye(rank, dtype=torch.float64)
    seconds = medians({"step": partial(step, window, g)}, rounds)
    # The median leaves out the refactorisation, so it is added: Cholesky and inverse.
    anew = medians({"refactor": lambda: torch.cholesky_inverse(torch.linalg.cholesky(full))}, rounds=1)
    return Point(rank, dim, seconds["step"] + anew["refactor"] / rank)


def over(varied: str, shapes: Iterable[tuple[int, int]], rounds: int = 15) -> Series:
    """Steps at several shapes, of which one size is fixed.

    Args:
        varied: "d" or "m".
        shapes: m and d > m of each.
        rounds: Times that a step is timed.

    Returns:
        The series.
    """
    return Series(varied, [step_cost(rank, dim, rounds) for rank, dim in shapes])


def exponent_in_rank(quick: bool) -> Series:
    """The series that the ratios wanted look at: small d, so that O(m²) shows beside O(dm)."""
    if quick:
        return over("m", [(2**k, 1024) for k in range(5, 9)], rounds=9)
    return over("m", [(2**k, 4096) for k in range(6, 12)])


def sweep(quick: bool) -> list[Series]:
    """Cost over d at m = 64, over m at small d, and over m at large d.

    Args:
        quick: Whether to leave out the larger half of each.

    Returns:
        Three series.
    """
    return [
        over("d", [(64, 2**k) for k in range(14, 19 if quick else 23)]),
        exponent_in_rank(quick),
        over("m", [(2**k, 2**16 if quick else 2**18) for k in range(4, 8 if quick else 10)]),
    ]


def pyplot() -> Any:
    """matplotlib.pyplot, for files only.

    Returns:
        The module.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
    except ImportError as error:
        raise ImportError("The figure of --sweep needs matplotlib: `pip install matplotlib`.") from error
    return importlib.import_module("matplotlib.pyplot")


def draw(file: Path, series: Sequence[Series], title: str) -> None:
    """Draws the cost against the work m·d and against m², with the fitted exponents in the legends.

    Args:
        file: The PNG to write.
        series: As `sweep` returns them.
        title: Of the figure.
    """
    plt = pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharey=True)
    for one, colour in zip(series, _COLOURS, strict=False):
        milliseconds = [1e3 * point.seconds for point in one.points]
        works = [
            [point.rank * point.dim for point in one.points],
            [point.rank**2 for point in one.points],
        ]
        panels[0].loglog(works[0], milliseconds, "o-", color=colour, label=str(one))
        if one.varied == "m":
            panels[1].loglog(works[1], milliseconds, "o-", color=colour, label=str(one))
    for axes, work in zip(panels, ("m·d", "m²"), strict=True):
        axes.set_xlabel(f"work {work}")
        axes.grid(color="0.9")
        axes.legend(frameon=False, fontsize="small")
    panels[0].set_ylabel("push + precondition [ms]")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=150)
    plt.close(figure)
