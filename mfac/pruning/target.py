"""How many weights are left in the end: what sparsity, pattern and allocation ask for together."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mfac.core.checks.numbers import check_number
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern
from mfac.pruning.allocation import ByLayer, Uniform, apportion
from mfac.pruning.budget import Budget
from mfac.pruning.obs import Rules
from mfac.pruning.returned import check_counts

DEFAULT_SPARSITY = 0.9


def final_count(rules: Rules, sparsity: float | None, weights: Sequence[PrunableWeight], live: Tensor) -> int:
    """How many of all d weights are kept after the last step.

    Args:
        rules: Of the run; the pattern or an allocation by layer may fix the number.
        sparsity: Share of zeros; None for 0.9, or for what the rules fix.
        weights: What is known of each parameter.
        live: Weights that are alive before the first step, [d] bool.

    Returns:
        The number; no more than are alive.

    Raises:
        TypeError: If the sparsity is no number.
        ValueError: If the sparsity is out of range, is not the one that the rules fix, or leaves
            nothing; or if the pattern cannot describe a weight.
    """
    if sparsity is not None:
        check_number("sparsity", sparsity, least=0, below=1)
    rules.pattern.check(weights)
    alive, total = int(live.sum()), sum(weight.size for weight in weights)
    of_each = [int(piece.sum()) for piece in live.split([weight.size for weight in weights])]
    least_of_each = rules.pattern.least_kept(weights, live)
    least = sum(check_counts("pattern", rules.pattern, "least_kept", least_of_each, len(weights)))
    most_of_each = rules.pattern.most_kept(weights, live)
    most = sum(check_counts("pattern", rules.pattern, "most_kept", most_of_each, len(weights)))
    if rules.pattern.sparsity is not None and isinstance(rules.allocation, ByLayer | Budget):
        raise ValueError(
            f"Parameter `allocation` should be left out with pattern={str(rules.pattern)!r}, which fixes the sparsity "
            f"of every weight. Found {type(rules.allocation).__name__}."
        )
    if isinstance(rules.allocation, ByLayer):
        rules.allocation.check(weights)
        final = list(map(min, rules.allocation.final(weights), of_each))
        for i, weight in enumerate(weights):
            if most_of_each[i] == of_each[i]:
                continue
            entry, given = rules.allocation.entry_of(weight.name)
            if entry != "*" and final[i] != most_of_each[i]:
                raise ValueError(
                    f"Parameter `allocation` should leave out {weight.name!r}, or give it the sparsity "
                    f"{1 - most_of_each[i] / weight.size:g} that pattern={str(rules.pattern)!r} fixes for it. Found "
                    f"{entry!r}: {given:g}."
                )
            final[i] = most_of_each[i]
        kept = sum(final)
        if sparsity is not None and abs(sparsity - (1 - kept / total)) > 1e-6:
            raise ValueError(
                f"Parameter `sparsity` should be left out where `allocation` gives one for each weight, which make "
                f"{1 - kept / total:g} together. Found {sparsity!r}."
            )
    elif isinstance(rules.allocation, Budget):
        if sparsity is not None:
            raise ValueError(
                f"Parameter `sparsity` should be left out where `allocation` is a budget, which decides it. "
                f"Found {sparsity!r}."
            )
        kept = _within_budget(rules.pattern, rules.allocation, weights, of_each, least)
    elif rules.pattern.sparsity is not None:
        if sparsity is not None and abs(sparsity - rules.pattern.sparsity) > 1e-6:
            raise ValueError(
                f"Parameter `sparsity` should be left out with pattern={str(rules.pattern)!r}, which fixes it, or be "
                f"{rules.pattern.sparsity:g}. Found {sparsity!r}."
            )
        kept = least
    else:
        sparsity = DEFAULT_SPARSITY if sparsity is None else sparsity
        kept = total - round(sparsity * total)
        if kept == 0:
            raise ValueError(
                f"Parameter `sparsity` should leave at least one of the {total} prunable weights. Found {sparsity!r}."
            )
        if isinstance(rules.allocation, Uniform):  # what is sparser already stays so, and the rest goes its way
            shares = apportion(kept, [float(w.size) for w in weights], [0] * len(weights), [w.size for w in weights])
            kept = sum(map(min, shares, of_each))
        if kept > most and most < alive:
            raise ValueError(
                f"Parameter `sparsity` should be at least {1 - most / total:.4f}, which the fixed parts of "
                f"pattern={str(rules.pattern)!r} make on their own. Found {sparsity!r}."
            )
        free = sum(alone for alone, of in zip(most_of_each, of_each, strict=True) if alone == of)
        if kept <= most - free and free and most < alive:
            raise ValueError(
                f"Parameter `sparsity` should be below {1 - (most - free) / total:.4f}, where nothing is left of the "
                f"weights that pattern={str(rules.pattern)!r} leaves open. Found {sparsity!r}."
            )
    return min(alive, max(least, kept))


def _within_budget(
    pattern: Pattern, budget: Budget, weights: Sequence[PrunableWeight], live: Sequence[int], least: int
) -> int:
    """The fewest weights that a budget may keep, before the first scores choose the levels."""
    if any(len(group) > 1 for group in pattern.together(weights)):
        raise ValueError(
            f"Parameter `allocation` should not be a budget with pattern={str(pattern)!r}, whose units go through "
            f"several weights, while a budget has costs for each. Found a budget."
        )
    kept, alive = budget.least(weights, live), sum(live)
    if max(kept, least) >= alive and not (kept == alive and budget.holds()):
        raise ValueError(
            f"Parameter `allocation` should be a budget that dropping weights can reach. Found nothing to drop: "
            f"{alive} weights are not zero, the highest levels of its costs keep {kept} of them, and "
            f"pattern={str(pattern)!r} at least {least}."
        )
    return kept
