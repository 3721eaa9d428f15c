"""The figures of the demo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # files only, no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from demo.training import History

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito: told apart by most readers
_MARKERS = ("o", "s", "^", "D")


def plot_pruning(file: Path, accuracies: Mapping[str, Sequence[tuple[float, float]]], dense: float, title: str) -> None:
    """Draw test accuracy against sparsity, a line a method, once in full and once near the top.

    Args:
        file: The PNG to write.
        accuracies: Pairs of sparsity in [0, 1] and test accuracy in %, by method.
        dense: Test accuracy of the network before pruning in %, a dashed line.
        title: Of the figure.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    ticks = sorted({100 * sparsity for points in accuracies.values() for sparsity, _ in points})
    for axes, lowest, name in zip(panels, (0, 90), ("whole range", "90 % and above"), strict=True):
        axes.axhline(dense, color="0.4", linestyle="--", linewidth=1.2, label=f"dense, {dense:.2f} %")
        for (method, points), colour, marker in zip(accuracies.items(), _COLOURS, _MARKERS, strict=False):
            sparsities = [100 * sparsity for sparsity, _ in points]
            axes.plot(sparsities, [value for _, value in points], color=colour, marker=marker, label=method)
        axes.set_xticks(ticks)
        axes.set_ylim(lowest, 100 + 0.04 * (100 - lowest))
        axes.set_xlabel("weights set to zero [%]")
        axes.set_ylabel("test accuracy [%]")
        axes.set_title(name, fontsize="medium")
        _finish(axes)
    panels[0].legend(loc="lower left", frameon=False)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_training(file: Path, histories: Mapping[str, History], title: str) -> None:
    """Draw training loss and test accuracy over the epochs, a line an optimizer.

    Thin lines are the losses of single batches, thick ones their mean over the last eighth of an
    epoch.

    Args:
        file: The PNG to write.
        histories: What each run recorded, by optimizer.
        title: Of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    for (name, history), colour, marker in zip(histories.items(), _COLOURS, _MARKERS, strict=False):
        epochs = range(1, len(history.test_accuracies) + 1)
        steps_per_epoch = len(history.step_losses) / len(epochs)
        span = max(1, round(steps_per_epoch / 8))
        steps = [(step + 1) / steps_per_epoch for step in range(len(history.step_losses))]
        left.plot(steps, history.step_losses, color=colour, linewidth=0.6, alpha=0.3)
        means = np.convolve(history.step_losses, np.full(span, 1 / span), mode="valid")
        left.plot(steps[span - 1 :], means, color=colour, linewidth=1.8, label=name)
        right.plot(epochs, history.test_accuracies, color=colour, marker=marker, label=name)
        right.set_xticks(epochs)
        left.set_xticks([0, *epochs])
    left.set_yscale("log")
    left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_ylabel("training loss [nats]")
    right.set_ylabel("test accuracy [%]")
    for axes in (left, right):
        axes.set_xlabel("training [epochs]")
        _finish(axes)
    right.legend(loc="lower right", frameon=False)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_language(file: Path, rows: Sequence[tuple[str, Mapping[str, float], float]], title: str) -> None:
    """Draw perplexities and sizes, a line of the page a row of the table.

    Args:
        file: The PNG to write.
        rows: Name, perplexity by kind of text, and size of the file in MB.
        title: Of the figure.
    """
    height = 1.8 + 0.35 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, height), layout="constrained", sharey=True)
    places = range(len(rows))
    for kind, colour, marker in zip(rows[0][1], _COLOURS, _MARKERS, strict=False):
        values = [perplexities[kind] for _, perplexities, _ in rows]
        left.plot(values, places, color=colour, marker=marker, linestyle="none", label=kind)
    left.set_xscale("log")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_yticks(places, [name for name, _, _ in rows])
    left.invert_yaxis()
    left.set_xlabel("perplexity")
    right.barh(places, [megabytes for _, _, megabytes in rows], color=_COLOURS[2], height=0.5)
    right.set_xlabel("size of the file [MB]")
    for axes in (left, right):
        _finish(axes)
    left.legend(loc="upper right", frameon=False)
    figure.suptitle(title)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
