"""How many weights each pruning step leaves."""

from __future__ import annotations


def geometric_schedule(live: int, final: int, steps: int) -> list[int]:
    """Weights kept after each step, in geometric progression: every step drops the same share of what is left.

    Source: the recomputation schedule of M-FAC's pruner, dens_j = dens_0 (dens_T/dens_0)^(j/R).

    Args:
        live: Weights kept before the first step.
        final: Weights kept after the last, 1 <= final < live.
        steps: How many steps, >= 1.

    Returns:
        `steps` numbers, none greater than the one before; the last is exact.
    """
    return [*(round(live * (final / live) ** (step / steps)) for step in range(1, steps)), final]
