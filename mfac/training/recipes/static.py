"""Masks that are made once: SNIP at initialisation, random ones, or those that are given."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern, resolve_pattern
from mfac.pruning.allocation import Allocation, AllocationName
from mfac.pruning.saliencies.base import Saliency
from mfac.training.context import ChangeContext
from mfac.training.recipe import Cut, Recipe, check_sparsity
from mfac.training.recipes.exchanging import StartName
from mfac.training.start import RandomMasks


class SNIP(Recipe):
    """SNIP: before the first update, the weights with the least |w · g| go, for good.

    g is the gradient of the first step of the optimizer, of the dense network; the step itself
    then moves the weights that are kept. Accumulate gradients over several batches before that step
    for a better g.

    Args:
        sparsity: Share of zeros; None where the pattern fixes it.
        allocation: As of `mfac.prune`. The default is one ranking in which each layer keeps at
            least a tenth of the overall density, as a layer without weights passes nothing on.
        pattern: As of `mfac.prune`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range.

    Source: Lee, Ajanthan, Torr, "SNIP" (1810.02340), Algorithm 1.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        allocation: AllocationName | Allocation = "global",
        pattern: str | Pattern = "unstructured",
    ) -> None:
        self.sparsity = None if sparsity is None else check_sparsity(sparsity)
        self.allocation, self.pattern = allocation, resolve_pattern(pattern)
        Cut("magnitude", self.pattern, allocation)

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses masks at the start that are sparser than the end."""
        Cut("magnitude", self.pattern, self.allocation).final(self.sparsity, weights, kept)

    def is_due(self, step: int) -> bool:
        """In the first step."""
        return step == 1

    def is_before_update(self, step: int) -> bool:
        """In the first step."""
        return step == 1

    def needs_gradient(self, step: int) -> bool:
        """In the first step."""
        return step == 1

    def change(self, context: ChangeContext) -> Tensor:
        """The largest |w · g|."""
        if not bool(context.gradient.any()):
            raise ValueError("The first step should have gradients, by which weights are chosen. Found none.")
        cut = Cut(_Given((context.values * context.gradient).abs()[context.kept]), self.pattern, self.allocation)
        kept = cut.final(self.sparsity, context.weights, context.kept)
        return cut(context, kept, kept)


class _Given(Saliency):
    """Scores that are known already."""

    needs_fisher = False

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores

    def scores(self, context: object) -> Tensor:
        """The scores."""
        return self._scores


class Static(Recipe):
    """Masks that never change: those that the training is given, or random ones.

    Args:
        sparsity: Share of zeros of random masks; None for the masks that the training is given.
        allocation: As of `mfac.recipes.RigL`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range.
    """

    def __init__(self, sparsity: float | None = None, *, allocation: StartName = "erk") -> None:
        self.first = None if sparsity is None else RandomMasks(sparsity, allocation)

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses a sparsity that is not that of the masks given."""
        if self.first is not None:
            self.first.check(weights, kept)
        elif bool(kept.all()):
            raise ValueError(
                "Parameter `masks` should have zeros, or the recipe a sparsity. Found neither: nothing would be masked."
            )

    def start(self, context: ChangeContext) -> Tensor:
        """Random masks, or those given."""
        return context.kept if self.first is None else self.first.masks(context)

    def is_due(self, step: int) -> bool:
        """Never."""
        return False

    def change(self, context: ChangeContext) -> Tensor:
        """The masks as they are."""
        return context.kept
