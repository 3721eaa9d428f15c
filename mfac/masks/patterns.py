"""Patterns: which zeros a pruned network may have, and so which weights a step may drop together.

To add one, derive from `Pattern` and give `prune` the object (docs/extending/pattern.md).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mfac import _C
from mfac.core import ops
from mfac.gradients.prunable import PrunableWeight

MOST_IN_GROUP = _C.limits()["nm_group"]


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
        return [int(piece.sum()) for piece in self.live.split([weight.size for weight in self.weights])]


@dataclass(frozen=True)
class Units:
    """What a step may drop: units of live weights that go together, ordered by parameter.

    What a pattern returns (docs/extending/pattern.md).

    Attributes:
        scores: What dropping each unit costs, [u].
        counts: How many units each parameter has.
        unit_of: The unit of each live weight, [n] int64, -1 for a weight that this step may not
            drop; None where unit i is weight i.
        sizes: Live weights of each unit, [u] int64; None where each has one.
    """

    scores: Tensor
    counts: Sequence[int]
    unit_of: Tensor | None = None
    sizes: Tensor | None = None

    def by_parameter(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values of all units, [u], as one piece for each parameter."""
        return values.split(list(self.counts))

    def droppable(self) -> list[int]:
        """How many weights of each parameter the step may drop."""
        if self.sizes is None:
            return list(self.counts)
        return [int(sizes.sum()) for sizes in self.by_parameter(self.sizes)]

    def lowest(self, counts: Sequence[int]) -> Tensor:
        """The units to drop so that each parameter loses its count of weights, or the most that whole units allow.

        Args:
            counts: Weights to drop of each parameter.

        Returns:
            Mask over the live weights, [n], True = dropped. Ties go to the lower index.
        """
        chosen = torch.zeros_like(self.scores, dtype=torch.bool)
        starts = [0, *torch.tensor(list(self.counts)).cumsum(0).tolist()]
        for (start, stop), count in zip(pairwise(starts), counts, strict=True):
            order = torch.argsort(self.scores[start:stop], stable=True)
            if self.sizes is not None:
                count = int((self.sizes[start:stop][order].cumsum(0) <= count).sum())
            chosen[start + order[:count]] = True
        return self.weights_of(chosen)

    def weights_of(self, chosen: Tensor) -> Tensor:
        """The live weights of the chosen units, [u] bool -> [n] bool."""
        if self.unit_of is None:
            return chosen
        return chosen[self.unit_of.clamp(min=0)] & (self.unit_of >= 0)


class Pattern(ABC):
    """Which zeros a pruned network may have. Derive from it: docs/extending/pattern.md.

    Attributes:
        sparsity: The share of zeros that the pattern itself fixes, or None where the caller chooses.
    """

    sparsity: float | None = None

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights that the pattern cannot describe.

        Args:
            weights: What is known of each.

        Raises:
            ValueError: If there is such a weight, naming it.
        """
        return

    def least_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """How many weights of each parameter stay, however far pruning goes; by default none.

        Args:
            weights: What is known of each parameter.
            live: Weights that are alive, [d] bool.

        Returns:
            A count for each parameter. No step changes it.
        """
        return [0] * len(weights)

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

    def units(self, candidates: Candidates) -> Units:
        """Every live weight for itself."""
        return Units(candidates.scores, candidates.live_counts())


class NM(Pattern):
    """N:M, at most `keep` of `group` successive weights along the input channels of each layer.

    A step may drop the weights that lie, by the saliencies of that step, below the `keep` highest of
    their group. A last group of r < `group` weights keeps min(`keep`, r).

    Args:
        keep: N >= 1.
        group: M, N < M <= 64.

    Raises:
        ValueError: If N and M are not in these ranges.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 4)
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> _ = mfac.prune(model, loss_fn, data, pattern=mfac.NM(2, 4), num_gradients=16, stages=1)
        >>> int((model.weight != 0).view(4, 2, 4).sum(2).max())
        2
    """

    def __init__(self, keep: int, group: int) -> None:
        if not 1 <= keep < group <= MOST_IN_GROUP:
            raise ValueError(
                f"Parameter `pattern` should be N:M with 1 <= N < M <= {MOST_IN_GROUP}. Found {keep}:{group}."
            )
        self.keep, self.group = keep, group
        self.sparsity = 1 - keep / group

    def __repr__(self) -> str:
        return f"{self.keep}:{self.group}"

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights without input channels.

        Args:
            weights: What is known of each.

        Raises:
            ValueError: If a weight has none.
        """
        for weight in weights:
            if weight.layout is None:
                raise ValueError(
                    f"Parameter `params` should select weights of layers whose input channels are known with "
                    f"pattern={str(self)!r}. Found {weight.name!r}, which has no input channels to group."
                )

    def mask(self, weights: Sequence[PrunableWeight], scores: Tensor) -> Tensor:
        """Which weights the pattern keeps by these scores, [d] -> [d] bool."""
        masks = []
        for weight, piece in zip(weights, scores.split([weight.size for weight in weights]), strict=True):
            assert weight.layout is not None
            masks.append(ops.nm_mask(piece.view(weight.layout), self.keep, self.group).view(-1))
        return torch.cat(masks)

    def least_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """Of every group N, or as many as it has or are alive."""
        kept = self.mask(weights, live.float()) & live
        return [int(piece.sum()) for piece in kept.split([weight.size for weight in weights])]

    def units(self, candidates: Candidates) -> Units:
        """The weights below the highest of their group, each for itself; what is dead goes first."""
        live, scores = candidates.live, candidates.scores
        of_all = scores.new_full(live.shape, -1.0).masked_scatter_(live, scores)
        open_ = ~self.mask(candidates.weights, of_all) & live  # [d]
        counts = [int(piece.sum()) for piece in open_.split([weight.size for weight in candidates.weights])]
        chosen = open_[live]  # [n]
        unit_of = torch.where(chosen, chosen.cumsum(0) - 1, -1)
        return Units(scores[chosen], counts, unit_of)


def resolve_pattern(pattern: str | Pattern) -> Pattern:
    """The pattern that a name stands for, or the pattern itself.

    Args:
        pattern: "unstructured", "N:M", or an object.

    Returns:
        The pattern.

    Raises:
        TypeError: If it is neither a string nor a `Pattern`.
        ValueError: If the string is no pattern's name.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if not isinstance(pattern, str):
        raise TypeError(f"Parameter `pattern` should be a string or a Pattern. Found {type(pattern).__name__}.")
    if pattern == "unstructured":
        return Unstructured()
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", pattern)
    keep, group = map(int, found.groups()) if found else (0, 0)
    if not 1 <= keep < group <= MOST_IN_GROUP:
        raise ValueError(
            f"Parameter `pattern` should be 'unstructured', 'N:M' with 1 <= N < M <= {MOST_IN_GROUP}, or a Pattern. "
            f"Found {pattern!r}."
        )
    return NM(keep, group)
