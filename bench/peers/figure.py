"""The figure: what each method adds to a step, at each update interval."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only, no display

from matplotlib import pyplot as plt

from bench.peers.methods import BASELINE
from bench.peers.report import INTERVALS, Results, is_timed, overhead, sgd_step

_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # Okabe and Ito: told apart by most readers
_LEAST = 0.1  # ms: differences below it, and below zero, are drawn here


def plot_overheads(file: Path, results: Results, title: str) -> None:
    """Draw a panel a network, a row a method and a point an interval, on a logarithmic axis.

    Args:
        file: The PNG to write.
        results: By network and method.
        title: Of the figure.
    """
    height = 1.6 + 0.26 * max(len(methods) for methods in results.values())
    figure, panels = plt.subplots(
        1, len(results), figsize=(2 + 3.6 * len(results), height), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (network, methods) in zip(panels[0], results.items(), strict=True):
        names = [name for name in methods if name != BASELINE][::-1]
        for interval, colour in zip(INTERVALS, _COLOURS, strict=True):
            points = [
                (max(_LEAST, overhead(methods, name, interval) * 1e3), row)
                for row, name in enumerate(names)
                if is_timed(methods[name])
            ]
            axes.scatter(*zip(*points, strict=True), color=colour, s=22, label=f"interval {interval}")
        axes.set_yticks(range(len(names)), names, fontsize="small")
        axes.set_xscale("log")
        axes.set_xlabel("time added to an SGD step [ms]")
        axes.set_title(f"{network}, SGD step {sgd_step(methods) * 1e3:.0f} ms", fontsize="medium")
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    panels[0][-1].legend(frameon=False, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=150)
    plt.close(figure)
