"""Control of a step's length from its m coefficients: trust region, grafting, a fixed norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfac.window.combination import Combination
from mfac.window.sliding import SlidingFisher


def controlled(u: Combination, fisher: SlidingFisher, options: Mapping[str, Any], lr: float, dim: int) -> Combination:
    """The direction, lengthened or shortened as the options of the group say.

    `grafting` θ multiplies u by (‖g‖/‖u‖)^θ, with g the gradient that u answers: at θ = 1 u has the
    length of the gradient. `update_rms` gives u the norm rms·√d. `trust_region` κ then shortens u
    so that η²·uᵀFu <= κ, which bounds the KL divergence that a step makes in the model of F.

    Args:
        u: The direction.
        fisher: Whose F measures u.
        options: Of the parameter group.
        lr: η.
        dim: d.

    Returns:
        The direction, scaled.
    """
    lengths = (options["grafting"], options["update_rms"], options["trust_region"])
    if not any(lengths) or (squared := u.squared_norm) == 0:
        return u
    if options["grafting"]:
        # ‖Gᵀa‖² = aᵀKa
        of_gradient = fisher.gram_form(u.target)
        u = u.scaled((of_gradient / squared) ** (options["grafting"] / 2))
    if options["update_rms"] is not None:
        u = u.scaled(options["update_rms"] * (dim / u.squared_norm) ** 0.5)
    if options["trust_region"] is not None and lr > 0:
        within = options["trust_region"] / (lr**2 * u.curvature(fisher.damping, fisher.num_terms))
        u = u.scaled(min(1.0, within**0.5))
    return u
