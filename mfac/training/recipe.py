"""What a recipe is: it makes the first masks, says when masks change, and how.

To add one, derive from `Recipe`, or put an `Exchange` together (docs/extending/recipe.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_number
from mfac.core.selection import highest, lowest
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern, resolve_pattern
from mfac.pruning.allocation import Allocation, AllocationName, Global, resolve_allocation
from mfac.pruning.compensation import COMPENSATIONS
from mfac.pruning.context import StepContext
from mfac.pruning.obs import Rules, choose_dropped
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.pruning.target import final_count
from mfac.training.context import ChangeContext, resolve_saliency
from mfac.training.drop import Drop
from mfac.training.grow import Grow
from mfac.training.share import Share
from mfac.training.start import Start
from mfac.training.when import When


class Recipe(ABC):
    """Which masks a training has, from its first step to its last.

    A recipe holds choices alone; what it remembers during a training is in
    `ChangeContext.memory`. So one recipe serves several trainings.

    Attributes:
        watches: Whether `watch` sees the gradients of every step.
        snapshot_at: After which step the engine keeps a copy of the model, 0 for before the first;
            None for no copy.
        rewinds_to_snapshot: Whether the copy has the optimizer's state too, for `rewinds`.
    """

    watches = False
    snapshot_at: int | None = None
    rewinds_to_snapshot = False

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses weights that the recipe is not for.

        Args:
            weights: What is known of each parameter with a mask.
            kept: The masks that the training is given, [d] bool.

        Raises:
            ValueError: If there are such.
        """
        return

    def start(self, context: ChangeContext) -> Tensor:
        """The masks that the first step has; by default those that the training is given.

        Args:
            context: Before the first step.

        Returns:
            [d] bool, of no weight that was dropped already.
        """
        return context.kept

    def needs_gradient(self, step: int) -> bool:
        """Whether the change after a step asks for that step's gradients.

        Args:
            step: From 1.

        Returns:
            False by default.
        """
        return False

    def is_before_update(self, step: int) -> bool:
        """Whether masks change before the optimizer moves the weights in a step, not after.

        Args:
            step: From 1.

        Returns:
            False by default.
        """
        return False

    def watch(self, gradients: Sequence[Tensor], memory: MutableMapping[str, Any]) -> None:
        """Sees the gradients of a step, before masks are applied to them.

        Args:
            gradients: Of each parameter, [size]; not to be changed.
            memory: As `ChangeContext.memory`.
        """
        return

    @abstractmethod
    def is_due(self, step: int) -> bool:
        """Whether masks change in a step.

        Args:
            step: From 1.
        """

    @abstractmethod
    def change(self, context: ChangeContext) -> Tensor:
        """The masks after a step that changes them.

        Args:
            context: The change.

        Returns:
            [d] bool.
        """

    def rewinds(self, step: int) -> bool:
        """Whether model and optimizer go back to the snapshot after a step's change.

        Args:
            step: From 1.

        Returns:
            False by default.
        """
        return False

    def position(self, step: int) -> int:
        """How many steps a learning-rate schedule has behind it; less than `step` after a rewind.

        Args:
            step: Steps of the optimizer so far.

        Returns:
            `step` by default.
        """
        return step


class Cut:
    """Drops weights to a number: by saliency, pattern and allocation, as `mfac.prune` does.

    Args:
        saliency: What a weight is worth.
        pattern: Which zeros there may be.
        allocation: How many of each parameter; "global" is one ranking in which each parameter
            keeps at least a tenth of the overall density.
    """

    def __init__(
        self,
        saliency: SaliencyName | Saliency,
        pattern: str | Pattern,
        allocation: AllocationName | Allocation,
    ) -> None:
        self.rules = Rules(
            resolve_saliency(saliency),
            resolve_pattern(pattern),
            Global(chains=False) if allocation == "global" else resolve_allocation(allocation),
            COMPENSATIONS["none"](),
        )

    def final(self, sparsity: float | None, weights: Sequence[PrunableWeight], kept: Tensor) -> int:
        """How many weights are kept in the end.

        Args:
            sparsity: Share of zeros; None for what the pattern fixes.
            weights: What is known of each parameter.
            kept: Masks before, [d] bool.

        Returns:
            The number.

        Raises:
            ValueError: If there are fewer live weights already, or the pattern does not fit.
        """
        count, live = final_count(self.rules, sparsity, weights, kept), int(kept.sum())
        total = kept.numel()
        if sparsity is not None and total - round(sparsity * total) > live:
            raise ValueError(
                f"Parameter `sparsity` should not be below that of the masks at the start, {1 - live / total:.4f}. "
                f"Found {sparsity!r}."
            )
        return count

    def __call__(self, context: ChangeContext, kept: int, finally_kept: int) -> Tensor:
        """The masks after a cut.

        Args:
            context: The change.
            kept: How many weights are left after it.
            finally_kept: How many after the last.

        Returns:
            [d] bool.
        """
        masks = context.kept.clone()
        if kept < int(masks.sum()):
            step: StepContext = context.step_context(self.rules.saliency.needs_fisher)
            masks[context.kept] = ~choose_dropped(self.rules, step, kept, finally_kept)
        return masks


class Exchange(Recipe):
    """Sparse training: at times some weights are dropped, and as many others come back at zero.

    The number of live weights is the same after every step. A parameter always keeps one weight at
    least, and what is dropped does not come back in the same change.

    Args:
        when: After which steps.
        drop: What goes, and how much of each parameter.
        grow: What comes back.
        share: How much in each parameter.
        start: The first masks; a training that is given masks starts with those.

    Raises:
        TypeError: If a part is of another kind.

    Example:
        >>> import torch, mfac
        >>> from mfac import recipes
        >>> recipe = recipes.Exchange(
        ...     recipes.Every(10, end=100), recipes.ShareOfLive(recipes.Cosine(0.3, end=100)),
        ...     recipes.Random(), recipes.SameLayer(), recipes.RandomMasks(0.5),
        ... )
        >>> model = torch.nn.Linear(8, 8)
        >>> training = mfac.MaskedTraining(model, torch.optim.SGD(model.parameters(), lr=0.1), recipe)
        >>> training.masks.sparsity
        0.5
    """

    def __init__(self, when: When, drop: Drop, grow: Grow, share: Share, start: Start) -> None:
        for name, part, kind in (
            ("when", when, When),
            ("drop", drop, Drop),
            ("grow", grow, Grow),
            ("share", share, Share),
            ("start", start, Start),
        ):
            if not isinstance(part, kind):
                raise TypeError(f"Parameter `{name}` should be a {kind.__name__}. Found {type(part).__name__}.")
        self.when, self.drop, self.grow, self.share, self.first = when, drop, grow, share, start

    @property
    def watches(self) -> bool:  # type: ignore[override]
        """Whether what grows goes by the gradients of every step."""
        return self.grow.watches

    def watch(self, gradients: Sequence[Tensor], memory: MutableMapping[str, Any]) -> None:
        """Shows them to what grows."""
        self.grow.watch(gradients, memory)

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses a start that does not fit the masks given."""
        self.first.check(weights, kept)

    def start(self, context: ChangeContext) -> Tensor:
        """The masks of `start`."""
        return self.first.masks(context)

    def is_due(self, step: int) -> bool:
        """As `when` says."""
        return self.when.is_due(step)

    def needs_gradient(self, step: int) -> bool:
        """At changes, where what grows asks for it."""
        return self.grow.needs_gradient and self.is_due(step)

    def change(self, context: ChangeContext) -> Tensor:
        """Drops, then grows as many."""
        kept, sizes = context.kept, context.sizes
        scores = context.scores(self.drop.saliency)
        live = context.counts(kept)
        wanted = [min(n, max(0, of - 1)) for n, of in zip(self.drop.counts(context, scores), live, strict=True)]
        goes = torch.zeros_like(kept)
        pieces = zip(goes.split(sizes), scores.split(sizes), kept.split(sizes), strict=True)
        for count, (out, of, alive) in zip(self.share.limits(context, wanted), pieces, strict=True):
            out[alive] = lowest(of[alive], count)
        comes = torch.zeros_like(kept)
        pieces = zip(comes.split(sizes), self.grow.scores(context).split(sizes), kept.split(sizes), strict=True)
        for count, (new, of, alive) in zip(self.share.counts(context, goes), pieces, strict=True):
            new[~alive] = highest(of[~alive], count)
        return kept & ~goes | comes


def check_sparsity(sparsity: float) -> float:
    """Accepts a share of zeros between none and all.

    Args:
        sparsity: What was given for it.

    Returns:
        The share.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is out of range.
    """
    return check_number("sparsity", sparsity, above=0, below=1)
