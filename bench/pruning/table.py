"""Lines of a table, printed as they are found."""

from __future__ import annotations

from collections.abc import Sequence


class Table:
    """A table in Markdown, of which each line is printed as soon as it is there.

    Args:
        columns: Headings.
        widths: Least widths of the columns.
    """

    def __init__(self, columns: Sequence[str], widths: Sequence[int] | None = None) -> None:
        self.widths = [max(len(c), w) for c, w in zip(columns, widths or [0] * len(columns), strict=True)]
        self.row(*columns)
        print("|" + "|".join("-" * (width + 2) for width in self.widths) + "|", flush=True)

    def row(self, *cells: object) -> None:
        """Prints a line."""
        padded = (f" {cell!s:<{width}} " for cell, width in zip(cells, self.widths, strict=True))
        print("|" + "|".join(padded) + "|", flush=True)


def reached(value: float, mark: float | None) -> str:
    """A mark and whether a value reaches it."""
    return "" if mark is None else f">= {mark:g}{'' if value >= mark else ', MISSED'}"
