"""The picture of the README, drawn from the tables of docs/benchmarks/: `python -m tools.figures`.

The numbers stand in the tables alone, so that a picture never says something else than they do.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # files only, no display

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "docs" / "benchmarks"
FIGURE = ROOT / "docs" / "figures" / "front.png"
NETWORK = "resnet20"
METHODS = {  # as the table names them: as the figure does
    "MFAC m=128 bf16": "mfac, m = 128, bfloat16",
    "MFAC m=128 float32": "mfac, m = 128, float32",
    "singd reduce": "singd, KFAC-reduce",
    "asdfghjkl SKFAC": "asdfghjkl, SKFAC",
    "curvlinops K-FAC reduce": "curvlinops, KFAC-reduce",
    "asdfghjkl K-FAC": "asdfghjkl, K-FAC",
    "nngeometry K-FAC": "nngeometry, K-FAC",
    "curvlinops K-FAC": "curvlinops, K-FAC",
}
OURS, THEIRS, PALE = "#0072b2", "#d55e00", "#e69f00"  # Okabe and Ito: told apart by most readers


def main() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained", width_ratios=(1, 1.15))
    draw_pruning(left, table(BENCHMARKS / "results.md", "sparsity", "defaults"))
    draw_steps(right, table(BENCHMARKS / "raw.md", "network", "method"))
    figure.savefig(FIGURE, dpi=150)


def table(page: Path, *headers: str) -> list[dict[str, str]]:
    """The rows of the first table of a page whose header begins with these words.

    Raises:
        ValueError: If there is no such table.
    """
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        names = cells(line)
        if len(names) >= len(headers) and all(
            name.startswith(header) for name, header in zip(names, headers, strict=False)
        ):
            rows = []
            for later in lines[number + 2 :]:
                if not later.startswith("|"):
                    break
                rows.append(dict(zip(names, cells(later), strict=True)))
            return rows
    raise ValueError(f"{page} should have a table with the columns {', '.join(headers)}. Found none.")


def cells(line: str) -> list[str]:
    """The cells of a line, without the bold type of what misses its mark."""
    if not line.startswith("|"):
        return []
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def draw_pruning(axes: Axes, rows: list[dict[str, str]]) -> None:
    """Test accuracy against sparsity: the default and magnitude."""
    sparsities = [row["sparsity"].removesuffix("%").strip() for row in rows]
    for column, name, colour in (("defaults", "mfac.prune", OURS), ("magnitude", "magnitude", THEIRS)):
        values = [float(next(value for key, value in row.items() if key.startswith(column))) for row in rows]
        axes.plot(sparsities, values, marker="o", color=colour)
        place = (2, values[2] - 7) if column == "joint" else (1.45, values[2] + 4)
        axes.text(*place, name, color=colour, va="top", ha="center")
    axes.set_ylim(0, 103)
    axes.set_xlabel("zeros among the weights [%]")
    axes.set_ylabel("test accuracy [%]")
    axes.set_title("Digit CNN pruned in one call, no fine-tuning", fontsize="medium")
    axes.grid(axis="y", color="0.9")


def draw_steps(axes: Axes, rows: list[dict[str, str]]) -> None:
    """A step of each method as a multiple of an SGD step, at update intervals 1 and 10."""
    column = next(name for name in rows[0] if name.startswith("step / SGD step"))
    found = {row["method"]: row[column].split("/") for row in rows if row["network"] == NETWORK}
    for place, method in enumerate(reversed(METHODS)):
        every, tenth = (float(value) for value in found[method][:2])
        bars = [(0.0, every, OURS)] if method.startswith("MFAC") else [(0.19, every, THEIRS), (-0.19, tenth, PALE)]
        for offset, value, colour in bars:
            axes.barh(place + offset, value, 0.36, color=colour)
            axes.text(value + 0.06, place + offset, f"{value:.2f}", va="center", fontsize="x-small")
    axes.set_yticks(range(len(METHODS)), list(METHODS.values())[::-1], fontsize="small")
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.set_xlim(0, 7)
    axes.set_xlabel("time of a step / time of an SGD step")
    for label, colour in (("renewed at every step", THEIRS), ("renewed at every tenth", PALE)):
        axes.barh(0, 0, color=colour, label=label)
    axes.legend(frameon=False, fontsize="small", loc="upper right")
    axes.set_title("A training step of ResNet-20, batch 128, two cores", fontsize="medium")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
