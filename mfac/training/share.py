"""How many weights come back in each parameter where weights are exchanged.

To add a way, derive from `Share` (docs/extending/recipe.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from mfac.pruning.allocation import apportion
from mfac.training.context import ChangeContext
from mfac.training.grow import average_of


class Share(ABC):
    """Shares among the parameters what comes back: as many weights as were dropped, in all."""

    def limits(self, context: ChangeContext, counts: Sequence[int]) -> list[int]:
        """Lowers counts of weights to drop, so that as many can come back.

        Args:
            context: The change.
            counts: How many weights of each parameter are to go.

        Returns:
            Counts that are no greater; by default so that their sum is no greater than the number
            of weights that are dropped already.
        """
        dead = context.kept.numel() - int(context.kept.sum())
        return apportion(min(dead, sum(counts)), [float(count) for count in counts], [0] * len(counts), counts)

    @abstractmethod
    def proportions(self, context: ChangeContext, dropped: Tensor) -> list[float]:
        """By which numbers what comes back is shared.

        Args:
            context: The change; its masks are those before it.
            dropped: What goes, [d] bool.

        Returns:
            A number >= 0 for each parameter.
        """

    def counts(self, context: ChangeContext, dropped: Tensor) -> list[int]:
        """How many weights of each parameter come back.

        Args:
            context: The change.
            dropped: What goes, [d] bool.

        Returns:
            Counts that add up to the number that goes; none is greater than the number of weights
            that the parameter had dropped before the change.
        """
        room = context.counts(~context.kept)
        wanted = self.proportions(context, dropped)
        if sum(share for share, free in zip(wanted, room, strict=True) if free) <= 0:
            wanted = [float(free) for free in room]
        return apportion(int(dropped.sum()), wanted, [0] * len(room), room)


class SameLayer(Share):
    """Every parameter gets back what it lost."""

    def limits(self, context: ChangeContext, counts: Sequence[int]) -> list[int]:
        """Counts no greater than the parameter has dropped weights."""
        return [min(count, free) for count, free in zip(counts, context.counts(~context.kept), strict=True)]

    def proportions(self, context: ChangeContext, dropped: Tensor) -> list[float]:
        """What each lost."""
        return [float(count) for count in context.counts(dropped)]


class ByMomentum(Share):
    """In proportion to the mean size of the average gradients of a parameter's live weights."""

    def proportions(self, context: ChangeContext, dropped: Tensor) -> list[float]:
        """Mean |b| of the live weights of each."""
        sizes = (average_of(context).abs() * context.kept).split(context.sizes)
        live = context.counts(context.kept)
        return [float(piece.sum()) / max(1, count) for piece, count in zip(sizes, live, strict=True)]


class BySurvivors(Share):
    """In proportion to how many weights of each parameter stay."""

    def proportions(self, context: ChangeContext, dropped: Tensor) -> list[float]:
        """The live weights of each that do not go."""
        return [float(count) for count in context.counts(context.kept & ~dropped)]
