"""A push that a GPU may have refused, which the host learns one step later."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from mfac.window.capacitance import InverseCapacitance
from mfac.window.deferred import Reading
from mfac.window.ring import Ring, Written


@dataclass
class Push:
    """What a push has changed, and what to go back to if the device has refused it.

    Attributes:
        written: In the ring.
        replaced: The capacitance's count from before.
        squared_norm: Of the gradient as stored; NaN where it was refused.
    """

    written: Written
    replaced: int
    squared_norm: Reading

    def accepted(self) -> Tensor:
        """1, or 0 where it was refused; on the device."""
        return self.squared_norm.on_device.isnan().logical_not()

    def settle(self, ring: Ring, capacitance: InverseCapacitance) -> None:
        """Waits for what the device has decided, and takes the push back if it has refused it.

        Args:
            ring: Which the push has written.
            capacitance: Which it has updated.

        Raises:
            ValueError: If it was refused.
        """
        if not math.isnan(self.squared_norm.value()):
            return
        ring.take_back(self.written)
        capacitance.take_back(self.replaced)
        raise ValueError(
            "Parameter `gradient` should be finite and in the range of the window's dtype. That of the last push was "
            "not: it has been taken back, and the window is as before it. What this call was given has not been used."
        )
