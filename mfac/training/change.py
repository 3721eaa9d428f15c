"""What a change of masks did, and the log of all of them, as JSON and as a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class MaskChange:
    """One change of masks.

    Attributes:
        step: Steps of the optimizer so far; 0 for the masks at the start.
        dropped: How many weights went.
        grown: How many came back.
        kept: How many weights are kept, of each parameter by name.
        total: How many weights there are in all.
        unchanged: Share of all weights whose mask has been the same since the start.
    """

    step: int
    dropped: int
    grown: int
    kept: Mapping[str, int]
    total: int
    unchanged: float

    @property
    def sparsity(self) -> float:
        """Share of zeros among all weights with masks."""
        return 1 - sum(self.kept.values()) / self.total


def write_log(changes: Sequence[MaskChange], sizes: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    """Writes a log as JSON.

    Args:
        changes: In order.
        sizes: How many weights each parameter has.
        path: Of the file, which appears whole or not at all.
    """
    entries = [
        {
            **asdict(change),
            "sparsity": change.sparsity,
            "sparsities": {name: 1 - count / sizes[name] for name, count in change.kept.items()},
        }
        for change in changes
    ]
    scratch = Path(f"{os.fspath(path)}.part")
    scratch.write_text(json.dumps({"sizes": dict(sizes), "changes": entries}, indent=1) + "\n")
    scratch.replace(path)


def plot_log(changes: Sequence[MaskChange], sizes: Mapping[str, int], path: str | os.PathLike[str]) -> None:
    """Draws sparsity and unchanged share over the steps, and each parameter's sparsity.

    Args:
        changes: In order, at least one.
        sizes: How many weights each parameter has.
        path: Of the picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ImportError("A plot of the changes needs matplotlib: `pip install matplotlib`. Found no such module.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for the caller's process

    figure: Any = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[2, 3], sharex=True)
    steps = [change.step for change in changes]
    above.step(steps, [change.sparsity for change in changes], where="post", label="sparsity")
    above.plot(steps, [change.unchanged for change in changes], marker=".", label="masks that never changed")
    above.set(ylabel="share of weights", ylim=(0, 1.02))
    above.legend(loc="lower right")
    shares = [[1 - change.kept[name] / size for change in changes] for name, size in sizes.items()]
    edges = [*steps, steps[-1] + 1]
    picture = below.pcolormesh(edges, range(len(sizes) + 1), shares, vmin=0, vmax=1, cmap="viridis")
    below.set_yticks([place + 0.5 for place in range(len(sizes))], list(sizes), fontsize=6)
    below.invert_yaxis()
    below.set(xlabel="step")
    figure.colorbar(picture, ax=below, label="sparsity")
    figure.savefig(path)
