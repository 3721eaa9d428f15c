"""How many weights each pruning step leaves."""

from __future__ import annotations

from mfac.masks import num_dropped_at


def geometric_schedule(live: int, sparsity: float, dim: int, steps: int) -> list[int]:
    """Weights kept after each step, in geometric progression: every step drops the same share of what is left.

    Source: the recomputation schedule of M-FAC's pruner, dens_j = dens_0 (dens_T/dens_0)^(j/R).

    Args:
        live: Weights kept before the first step, more than after the last.
        sparsity: Share of the `dim` weights dropped after the last, in [0, 1).
        dim: d.
        steps: How many steps, >= 1.

    Returns:
        `steps` numbers, none greater than the one before; the last is exact.
    """
    final = dim - num_dropped_at(sparsity, dim)
    return [*(round(live * (final / live) ** (step / steps)) for step in range(1, steps)), final]
