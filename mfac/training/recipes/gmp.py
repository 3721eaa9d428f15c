"""Gradual magnitude pruning, plain and GMP*."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mfac.core.checks.numbers import check_number
from mfac.core.named import resolve
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern
from mfac.pruning.allocation import Allocation, AllocationName
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.pruning.schedule import SCHEDULES, Schedule, ScheduleName, kept_by
from mfac.training.context import ChangeContext
from mfac.training.recipe import Cut, Recipe, check_sparsity
from mfac.training.when import Every


class GMP(Recipe):
    """GMP*: a large first cut, then small ones, ever smaller; what is dropped stays dropped.

    After the steps `begin`, `begin + every`, ..., up to `end`, the weights of the least saliency
    go. The first cut reaches `first_sparsity`, the last `sparsity`; between them live weights fall
    as the cube of the way still left. `first_sparsity=0` is plain gradual magnitude pruning.

    The published recipe cuts ten times an epoch, restarts the learning rate on the way
    (`mfac.recipes.rewinding`), and leaves the last tenth of the training to recover in.

    Args:
        sparsity: Share of zeros in the end; None where the pattern fixes it.
        end: The last step that may cut, counted from 1.
        begin: The first.
        every: Steps from one cut to the next.
        first_sparsity: Share of zeros after the first cut, at most `sparsity`.
        saliency: What a weight is worth: "magnitude", or any of `mfac.prune` that asks for no
            activations. Those that need a Fisher take the live window of `mfac.MFAC`, or collect
            gradients where the training is given `loss_fn` and `data`.
        allocation: How many weights of each parameter, as of `mfac.prune`.
        pattern: As of `mfac.prune`.
        schedule: "cubic", "linear", "geometric" or a `mfac.Schedule`: after the first cut.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the first cut is beyond the last.

    Source: Kurtic, Alistarh, "GMP*" (2210.06384), section 3; Zhu, Gupta, "To prune, or not to
    prune" (1710.01878), equation 1.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> training = mfac.MaskedTraining(model, optimizer, mfac.recipes.GMP(0.9, end=30, every=10))
        >>> for _ in range(40):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 10)).square().mean().backward()
        ...     optimizer.step()
        ...     _ = training.step()
        >>> tuple((change.step, round(change.sparsity, 2)) for change in training.changes)
        ((1, 0.5), (11, 0.85), (21, 0.9))
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        end: int,
        begin: int = 1,
        every: int = 1,
        first_sparsity: float = 0.5,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: AllocationName | Allocation = "global",
        pattern: str | Pattern = "unstructured",
        schedule: ScheduleName | Schedule = "cubic",
    ) -> None:
        self.sparsity = None if sparsity is None else check_sparsity(sparsity)
        self.first_sparsity = check_number("first_sparsity", first_sparsity, least=0, below=1)
        if self.sparsity is not None and self.first_sparsity > self.sparsity:
            raise ValueError(
                f"Parameter `first_sparsity` should be at most `sparsity`, {sparsity!r}. Found {first_sparsity!r}."
            )
        self.when = Every(every, end, begin)
        self.cut = Cut(saliency, pattern, allocation)
        self.schedule: Schedule = resolve("schedule", schedule, SCHEDULES, Schedule)  # type: ignore[type-abstract]

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses masks at the start that are sparser than the end."""
        self.cut.final(self.sparsity, weights, kept)

    def is_due(self, step: int) -> bool:
        """At every cut."""
        return self.when.is_due(step)

    def counts(self, live: int, final: int, total: int) -> list[int]:
        """How many weights are kept after each cut.

        Args:
            live: Before the first.
            final: After the last.
            total: d.

        Returns:
            A number for each cut.
        """
        cuts = len(self.when.events())
        if cuts == 1:
            return [final]
        first = max(final, min(live, total - round(self.first_sparsity * total)))
        if self.first_sparsity == 0:
            return [final] * cuts if live == final else kept_by(self.schedule, live, final, cuts)
        rest = kept_by(self.schedule, first, final, cuts - 1) if first > final else [final] * (cuts - 1)
        return [first, *rest]

    def change(self, context: ChangeContext) -> Tensor:
        """The next cut."""
        memory: dict[str, Any] = context.memory  # type: ignore[assignment]
        if "counts" not in memory:
            final = self.cut.final(self.sparsity, context.weights, context.kept)
            memory["counts"] = self.counts(int(context.kept.sum()), final, context.kept.numel())
        counts = memory["counts"]
        return self.cut(context, counts[self.when.number(context.step)], counts[-1])
