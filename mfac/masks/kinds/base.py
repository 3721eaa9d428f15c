"""What a pattern is: it says which zeros a network may have, as units that a step may drop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mfac.core.selection import lowest
from mfac.gradients.prunable import PrunableWeight


@dataclass(frozen=True)
class Candidates:
    """The live weights of a step, as a pattern is given them (docs/extending/pattern.md).

    Attributes:
        weights: What is known of each parameter, in order; their sizes add up to d.
        live: Weights kept before the step, [d] bool.
        scores: Saliency >= 0 of the n live weights, in order, [n].
    """

    weights: Sequence[PrunableWeight]
    live: Tensor
    scores: Tensor

    def live_counts(self) -> list[int]:
        """How many weights of each parameter are alive."""
        return [int(torch.count_nonzero(p)) for p in self.live.split([weight.size for weight in self.weights])]


@dataclass(frozen=True)
class Units:
    """What a step may drop: units of live weights that go together, ordered by parameter.

    Units that differ in size are ranked by their score a weight.

    What a pattern returns (docs/extending/pattern.md).

    Attributes:
        scores: What dropping each unit costs, [u].
        counts: How many units each parameter has, or each group of `Pattern.together`.
        unit_of: The unit of each live weight, [n] int64, -1 for a weight that this step may not
            drop; None where unit i is weight i.
        sizes: Live weights of each unit, [u] int64; None where each unit has one.
    """

    scores: Tensor
    counts: Sequence[int]
    unit_of: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def ranking(self) -> Tensor:
        """Scores a weight, [u]: the numbers by which units are ranked."""
        return self.scores if self.sizes is None else self.scores / self.sizes

    def by_parameter(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values of all units, [u], as one piece for each parameter."""
        return values.split(list(self.counts))

    def droppable(self) -> list[int]:
        """How many weights of each parameter the step may drop."""
        if self.sizes is None:
            return list(self.counts)
        return [int(sizes.sum()) for sizes in self.by_parameter(self.sizes)]

    def lowest(self, counts: Sequence[int]) -> Tensor:
        """The units to drop for each parameter's count of weights, or as many as whole units allow.

        Args:
            counts: Weights to drop of each parameter.

        Returns:
            Mask over the live weights, [n], True = dropped. Ties go to the lower index.
        """
        chosen, ranking = torch.zeros_like(self.scores, dtype=torch.bool), self.ranking
        starts = [0, *torch.tensor(list(self.counts)).cumsum(0).tolist()]
        for (start, stop), count in zip(pairwise(starts), counts, strict=True):
            if self.sizes is None:
                chosen[start:stop] = lowest(ranking[start:stop], count)
                continue
            order = torch.argsort(ranking[start:stop], stable=True)
            chosen[start + order[: int((self.sizes[start:stop][order].cumsum(0) <= count).sum())]] = True
        return self.weights_of(chosen)

    def weights_of(self, chosen: Tensor) -> Tensor:
        """The live weights of the chosen units, [u] bool -> [n] bool."""
        if self.unit_of is None:
            return chosen
        if not chosen.numel():  # a pattern may leave nothing to drop
            return torch.zeros_like(self.unit_of, dtype=torch.bool)
        return chosen[self.unit_of.clamp(min=0)] & (self.unit_of >= 0)


@dataclass(frozen=True)
class Broken:
    """Units of one parameter, or of several that share units, that are not as the pattern has them.

    Attributes:
        name: Of the parameter.
        count: How many units.
        first: The first of them in words, as "2 of 8 weights kept of output channel 3".
    """

    name: str
    count: int
    first: str


@dataclass(frozen=True)
class Promise:
    """What a pattern says of finished masks, and where it does not hold.

    Attributes:
        pattern: The pattern's name.
        text: What should hold, as a sentence without its full stop.
        broken: Where it does not.
    """

    pattern: str
    text: str
    broken: Sequence[Broken]


class Pattern(ABC):
    """Which zeros a pruned network may have. Derive from it: docs/extending/pattern.md.

    Attributes:
        sparsity: The share of zeros that the pattern itself fixes, or None where the caller
            chooses.
    """

    sparsity: float | None = None

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights that the pattern cannot describe.

        Args:
            weights: What is known of each weight.

        Raises:
            ValueError: If the pattern cannot describe a weight; the error names the weight.
        """
        return

    def passes_over(self, name: str) -> str | None:
        """Why a weight stays dense that is prunable but none of the pattern's; by default all are.

        Args:
            name: Of the parameter.

        Returns:
            "it ...", for the report, and for the error where the weight is asked for by name; None
            for a weight of the pattern.
        """
        return None

    def least_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """How many weights of each parameter stay, however far pruning goes; by default none.

        Args:
            weights: What is known of each parameter.
            live: Weights that are alive, [d] bool.

        Returns:
            A count for each parameter. No step changes it.
        """
        return [0] * len(weights)

    def most_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """How many weights of each parameter the pattern allows in the end; by default all live.

        Args:
            weights: What is known of each parameter.
            live: Weights that are alive, [d] bool.

        Returns:
            A count for each parameter, at least `least_kept`. No step changes it.
        """
        return [int(piece.sum()) for piece in live.split([weight.size for weight in weights])]

    def together(self, weights: Sequence[PrunableWeight]) -> list[list[int]]:
        """Which parameters share units, as the projections of one attention do; by default none do.

        Args:
            weights: What is known of each parameter.

        Returns:
            Indices of parameters, in groups; every parameter is in one. Groups come in the order of
            their first member, and `Units.counts` has a number for each group.
        """
        return [[index] for index in range(len(weights))]

    def promises(self, weights: Sequence[PrunableWeight], kept: Tensor) -> list[Promise]:
        """What holds of finished masks, for `mfac.verify`; by default nothing is said.

        Args:
            weights: What is known of each parameter.
            kept: The masks, [d] bool.

        Returns:
            Promises, each with the units that break it.
        """
        return []

    @abstractmethod
    def units(self, candidates: Candidates) -> Units:
        """What the next step may drop.

        Args:
            candidates: The live weights and their saliencies.

        Returns:
            Units of live weights.
        """


class Unstructured(Pattern):
    """Any weights."""

    def __repr__(self) -> str:
        return "unstructured"

    def units(self, candidates: Candidates) -> Units:
        """Every live weight for itself."""
        return Units(candidates.scores, candidates.live_counts())
