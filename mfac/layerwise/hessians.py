"""The Hessians of a stage, shared by the weights with the same inputs, in memory while needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mfac.curvature.damping import Damping
from mfac.layerwise.gram import Gram
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.statistics import Key


class Hessians:
    """Hessians by key, each made when it is first needed and gone after its last use.

    Args:
        grams: Of all keys.
        damping: λ, or relative to the mean of the diagonal.
        uses: A key for each use.
    """

    def __init__(self, grams: dict[Key, Gram], damping: Damping, uses: Iterable[Key]) -> None:
        self._grams, self._damping, self._left = grams, damping, Counter(uses)
        self._made: dict[Key, Hessian] = {}

    def take(self, key: Key) -> Hessian:
        """The Hessian of a key."""
        if key not in self._made:
            self._made[key] = Hessian(self._grams[key].mean, self._damping)
        return self._made[key]

    def release(self, key: Key) -> bool:
        """Says that one use is over; whether it was the last."""
        self._left[key] -= 1
        if not self._left[key]:
            self._made.pop(key, None)
        return not self._left[key]
