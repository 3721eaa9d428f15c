"""What is dropped where weights are exchanged: how many of each parameter, and which.

To add a way, derive from `Drop` (docs/extending/recipe.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from mfac.core.checks.numbers import check_number
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.training.context import ChangeContext, resolve_saliency
from mfac.training.rates import Rate


class Drop(ABC):
    """Says how many weights of each parameter go, and in which order.

    Args:
        saliency: What a weight is worth; the lowest go. As of `mfac.prune`.
    """

    def __init__(self, saliency: SaliencyName | Saliency = "magnitude") -> None:
        self.saliency = resolve_saliency(saliency)

    @abstractmethod
    def counts(self, context: ChangeContext, scores: Tensor) -> list[int]:
        """How many weights of each parameter go. One weight of each stays in any case.

        Args:
            context: The change.
            scores: Of the saliency, [d].

        Returns:
            A count for each parameter.
        """


class ShareOfLive(Drop):
    """The same share of the live weights of every parameter, which may change from step to step.

    Args:
        rate: A function of the step.
        saliency: As of `Drop`.
    """

    def __init__(self, rate: Rate, saliency: SaliencyName | Saliency = "magnitude") -> None:
        super().__init__(saliency)
        self.rate = rate

    def counts(self, context: ChangeContext, scores: Tensor) -> list[int]:
        """Round(rate · live) of each."""
        rate = self.rate(context.step)
        return [round(rate * live) for live in context.counts(context.kept)]


class BelowThreshold(Drop):
    """What is below one threshold for all parameters, which is halved or doubled to meet a number.

    Args:
        share: Of all live weights, about how many are to go at a time, in (0, 1).
        threshold: At first, > 0.
        tolerance: The threshold is doubled where fewer than share · (1 - tolerance) of the live
            weights went, and halved where more than share · (1 + tolerance) did; in (0, 1).
        saliency: As of `Drop`.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range.

    Source: Mostafa, Wang, "Dynamic Sparse Reparameterization" (1902.05967), Algorithm 1.
    """

    def __init__(
        self,
        share: float,
        threshold: float = 1e-3,
        tolerance: float = 0.1,
        saliency: SaliencyName | Saliency = "magnitude",
    ) -> None:
        super().__init__(saliency)
        self.share = check_number("share", share, above=0, below=1)
        self.threshold = check_number("threshold", threshold, above=0)
        self.tolerance = check_number("tolerance", tolerance, above=0, below=1)

    def counts(self, context: ChangeContext, scores: Tensor) -> list[int]:
        """How many of each are below; sets the threshold of the next change."""
        threshold = float(context.memory.get("threshold", self.threshold))
        found = context.counts((scores < threshold) & context.kept)
        wanted = self.share * int(context.kept.sum())
        if sum(found) < (1 - self.tolerance) * wanted:
            context.memory["threshold"] = 2 * threshold
        elif sum(found) > (1 + self.tolerance) * wanted:
            context.memory["threshold"] = threshold / 2
        return found
