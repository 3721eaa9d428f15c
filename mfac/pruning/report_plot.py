"""A pruning report as a picture."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from mfac.pruning.report_data import ReportData


def plot_report(report: ReportData, path: str | os.PathLike[str]) -> None:
    """Draws the kept share of each layer, and where there are steps the sparsity after each.

    Args:
        report: The report.
        path: Of the picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("A plot of the report needs matplotlib: `pip install matplotlib`. Found no such module.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for the caller's process

    names = [name for name in report.masks if name not in report.left_dense]
    figure: Any = Figure(figsize=(8, 1.5 + 0.28 * len(names) + (2.2 if report.steps else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2 if report.steps else 1, squeeze=False, height_ratios=[max(3, len(names)), 7] if report.steps else [1]
    )[:, 0]
    kept = [float(report.masks[name].double().mean()) for name in names]
    axes[0].barh(names, [1.0] * len(names), color="0.88", label="dropped")
    axes[0].barh(names, kept, color="C0", label="kept")
    axes[0].invert_yaxis()
    axes[0].set(xlim=(0, 1), xlabel="share of weights", title=f"sparsity {report.sparsity:.4f}")
    axes[0].legend(loc="lower right")
    if report.steps:
        axes[1].plot([step.step for step in report.steps], [step.sparsity for step in report.steps], marker=".")
        axes[1].set(xlabel="step", ylabel="sparsity")
    figure.savefig(path)
