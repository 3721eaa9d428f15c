"""Gradients that a window cannot hold: an error at once, or zeros where nothing waits for a device."""

from __future__ import annotations

import math

from torch import Tensor

from mfac.window.deferred import Reading
from mfac.window.formats.base import Rows


class Refusals:
    """Writes gradients into rows, and says which were refused.

    Args:
        defers: Whether that is read from the device at the next step. Until then a refused gradient
            counts as zero.
    """

    def __init__(self, defers: bool) -> None:
        self._defers = defers
        self._last: Reading | None = None

    def push_(self, rows: Rows, row: int, gradient: Tensor) -> Tensor:
        """Writes a gradient [d] into a row.

        Args:
            rows: That it is written into.
            row: Which.
            gradient: [d].

        Returns:
            Its products with every row, [m] float64; zeros of one that was refused on a device that
            is not waited for.

        Raises:
            ValueError: If it was refused, and that is known; the rows are as they were.
        """
        products = rows.push_(row, gradient)
        squared_norm = products[row]
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
        """Waits for the last push to be decided on.

        Raises:
            ValueError: Once, if it was refused.
        """
        last, self._last = self._last, None
        if last is not None and last.value():
            raise ValueError(
                "Parameter `gradient` should be finite and in the range of the window's dtype. Found another in the "
                "last push: its row counts as zeros. What this call was given has not been used."
            )
