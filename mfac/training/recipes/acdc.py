"""AC/DC: sparse and dense phases in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_count
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern
from mfac.pruning.allocation import Allocation, AllocationName
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.training.context import ChangeContext
from mfac.training.recipe import Cut, Recipe, check_sparsity
from mfac.training.when import check_end


class ACDC(Recipe):
    """AC/DC: dense warm-up, then sparse and dense phases in turn, and a sparse end.

    Each sparse phase takes the weights that are largest then; each dense phase brings all others
    back, at zero. So the training ends with a sparse model, and on the way makes a dense one:
    `training.snapshot`, the model at the end of the last dense phase.

    Args:
        sparsity: Share of zeros of the sparse phases; None where the pattern fixes it.
        end: Steps of the whole training.
        warmup: Steps before the first sparse phase; None for a tenth.
        phase: Steps of a phase; None for a twentieth.
        final: Steps of the last sparse phase; None for three twentieths. The dense phase before it
            is as long as is left.
        saliency: What a weight is worth, as of `mfac.recipes.GMP`.
        allocation: As of `mfac.prune`; "global" is the published one.
        pattern: As of `mfac.prune`.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the phases do not fit.

    Source: Peste, Iofinova, Vladu, Alistarh, "AC/DC" (2106.12379), section 3 and Table 7. Only the
    state of weights that come back is zero; the paper resets the momentum of all.

    Example:
        >>> import mfac
        >>> mfac.recipes.ACDC(0.9, end=100, warmup=20, phase=20, final=30).phases
        [(20, 'sparse'), (40, 'dense'), (70, 'sparse')]
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        end: int,
        warmup: int | None = None,
        phase: int | None = None,
        final: int | None = None,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: AllocationName | Allocation = "global",
        pattern: str | Pattern = "unstructured",
    ) -> None:
        self.sparsity = None if sparsity is None else check_sparsity(sparsity)
        check_count("end", end, least=1)
        self.warmup = max(1, round(0.1 * end)) if warmup is None else check_count("warmup", warmup, least=1)
        length = max(1, round(0.05 * end)) if phase is None else check_count("phase", phase, least=1)
        last = max(1, round(0.15 * end)) if final is None else check_count("final", final, least=1)
        check_end(end, self.warmup + last)
        self.end, self.cut = end, Cut(saliency, pattern, allocation)
        self.phases: list[tuple[int, str]] = []
        begin = self.warmup
        while begin + 2 * length <= end - last:
            self.phases += [(begin, "sparse"), (begin + length, "dense")]
            begin += 2 * length
        self.phases.append((end - last, "sparse"))
        self.snapshot_at = end - last
        self._kinds = dict(self.phases)

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses masks with zeros: dense phases would bring them back."""
        if not bool(kept.all()):
            raise ValueError("Parameter `masks` should be left out: dense phases have no masks. Found zeros in them.")
        self.cut.final(self.sparsity, weights, kept)

    def is_due(self, step: int) -> bool:
        """Where a phase begins."""
        return step in self._kinds

    def change(self, context: ChangeContext) -> Tensor:
        """Everything, or what the sparse phase keeps."""
        everything = torch.ones_like(context.kept)
        if self._kinds[context.step] == "dense":
            return everything
        kept = self.cut.final(self.sparsity, context.weights, everything)
        return self.cut(context, kept, kept)
