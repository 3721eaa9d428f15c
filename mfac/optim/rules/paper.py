"""The paper's rule: F⁻¹g."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mfac.optim.rules.base import Rule
from mfac.window.combination import Combination
from mfac.window.sliding import SlidingFisher


class Paper(Rule):
    """u = F⁻¹g of the newest gradient g, and momentum as an average of such updates.

    For near-orthogonal gradients and small λ the update is about m·g/‖g‖²: it grows as gradients
    shrink, and m is a hidden multiplier of the learning rate.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 4 and its Algorithm 2.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "rank": 32,
        "damping": 1e-2,
        "momentum": 0.0,
        "grafting": 0.0,
        "orthogonal": False,
    }
    averages_updates = True

    def combination(self, fisher: SlidingFisher, options: Mapping[str, Any]) -> Combination | None:
        newest = fisher.ring.newest
        assert newest is not None  # a step has just pushed it
        c = fisher.newest_coefficients(newest)
        if c is None:
            return None
        unit = c.new_zeros(c.shape[1])
        unit.narrow(0, newest, 1).fill_(1)
        # Of a gradient of zeros c is zero, and so is Kc; the host does not wait to see which it is.
        fixed = isinstance(fisher.given_damping, float)
        images = c.select(0, 0) if not fixed and not bool(c.any()) else (unit - fisher.shift * c.select(0, 0)) * c.any()
        return Combination(c.select(0, 0), images, fisher.num_terms, unit, newest)
