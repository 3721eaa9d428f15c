"""The masks that sparse training starts with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice
from mfac.core.checks.numbers import check_number
from mfac.core.selection import highest
from mfac.gradients.prunable import PrunableWeight
from mfac.pruning.allocation import ByLayer, apportion
from mfac.training.context import ChangeContext


class Start(ABC):
    """Makes the first masks."""

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses weights that it is not for.

        Args:
            weights: What is known of each parameter.
            kept: The masks that the training is given, [d] bool.

        Raises:
            ValueError: If there are such.
        """
        return

    @abstractmethod
    def masks(self, context: ChangeContext) -> Tensor:
        """The masks before the first step.

        Args:
            context: With the masks that the training is given.

        Returns:
            [d] bool.
        """


class RandomMasks(Start):
    """Random masks; where the training is given masks with zeros, those.

    Args:
        sparsity: Share of zeros in all.
        allocation: "erk": densities in proportion to Σ shape / Π shape, so that small layers keep
            more; "uniform"; or a sparsity for each parameter, by name or shell-style pattern.

    Raises:
        TypeError: If a number is none.
        ValueError: If one is out of range, or an allocation is unknown.

    Source: Evci et al., "Rigging the Lottery" (1911.11134), section 3, for ERK.
    """

    def __init__(self, sparsity: float, allocation: Literal["erk", "uniform"] | Mapping[str, float] = "erk") -> None:
        self.sparsity = check_number("sparsity", sparsity, above=0, below=1)
        self.by_layer = ByLayer(allocation) if isinstance(allocation, Mapping) else None
        self.allocation = allocation
        if self.by_layer is None:
            check_choice("allocation", str(allocation), ("erk", "uniform"))

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses sparsities that leave nothing, or are not those of the masks given."""
        total, live = kept.numel(), int(kept.sum())
        if self.by_layer is not None:
            self.by_layer.check(weights)
        wanted = sum(self.counts(weights))
        if self.by_layer is not None and abs(1 - wanted / total - self.sparsity) > max(1e-3, len(weights) / total):
            raise ValueError(
                f"Parameter `sparsity` should be what the sparsities of `allocation` make together, "
                f"{1 - wanted / total:.6f}. Found {self.sparsity!r}."
            )
        if live < total and live != wanted:
            raise ValueError(
                f"Parameter `sparsity` should be that of the masks at the start, {1 - live / total:.6f}. "
                f"Found {self.sparsity!r}."
            )
        asked = wanted if self.by_layer is not None else total - round(self.sparsity * total)
        if asked < sum(weight.size > 0 for weight in weights):
            raise ValueError(
                f"Parameter `sparsity` should leave a weight of each of the {len(weights)} parameters. "
                f"Found {self.sparsity!r}, which leaves {asked} of {total}."
            )

    def counts(self, weights: Sequence[PrunableWeight]) -> list[int]:
        """How many weights each parameter keeps; at least one."""
        sizes = [weight.size for weight in weights]
        if self.by_layer is not None:
            return [max(min(1, n), count) for n, count in zip(sizes, self.by_layer.final(weights), strict=True)]
        shares = [float(sum(w.shape)) if self.allocation == "erk" else float(w.size) for w in weights]
        return apportion(sum(sizes) - round(self.sparsity * sum(sizes)), shares, [min(1, n) for n in sizes], sizes)

    def masks(self, context: ChangeContext) -> Tensor:
        """Random masks with those counts."""
        if not bool(context.kept.all()):
            return context.kept
        masks = torch.zeros_like(context.kept)
        pieces = zip(masks.split(context.sizes), context.random().split(context.sizes), strict=True)
        for count, (mask, numbers) in zip(self.counts(context.weights), pieces, strict=True):
            mask.copy_(highest(numbers, count))
        return masks
