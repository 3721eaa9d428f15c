"""Gradients that a window cannot hold: an error at once, or zeros where no device is waited for."""

from __future__ import annotations

import math

from torch import Tensor

from mfac.window.deferred import Reading
from mfac.window.formats.base import Rows


class Refusals:
    """Writes gradients into rows, and says which were refused.

    Args:
        defers: False: `push_` raises a `ValueError` for a gradient that was refused, and the rows
            are as they were. True: it becomes a row of zeros, and the next `report` raises.
    """

    def __init__(self, defers: bool) -> None:
        self._defers = defers
        self._last: Reading | None = None

    def push_(self, rows: Rows, row: int, gradient: Tensor) -> Tensor:
        """Writes a gradient [d] into a row; the row's products with every row, [m] float64."""
        products = rows.push_(row, gradient)
        squared_norm = products.select(0, row)
        if self._defers:
            refused = squared_norm.isnan()
            rows.clear_(row, refused)
            self._last = Reading(refused)
            return products.masked_fill_(refused, 0.0)
        if math.isnan(float(squared_norm)):
            found = rows.why_refused(gradient)
            raise ValueError(f"Parameter `gradient` should be finite. Found {found}; the window is unchanged.")
        return products

    def report(self) -> None:
        """Waits for the last push to be decided on; a `ValueError`, once, if it was refused."""
        last, self._last = self._last, None
        if last is not None and last.value():
            raise ValueError(
                "Parameter `gradient` should be finite and in the range of the window's dtype. Found another in the "
                "last push: its row counts as zeros. What this call was given has not been used."
            )
