"""Lottery tickets: rounds of training, pruning and rewinding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mfac.core.checks.numbers import check_count, check_number
from mfac.gradients.prunable import PrunableWeight
from mfac.pruning.allocation import Allocation, AllocationName
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.training.context import ChangeContext
from mfac.training.recipe import Cut, Recipe


class LotteryTicket(Recipe):
    """Rounds: train, drop a share of what is left, and go back to the weights of an early step.

    The first round has `round_steps` steps, the others `round_steps - rewind_step`, as they go on
    from step `rewind_step`; after `rounds` rounds comes one more, which is the ticket's training.
    After round n exactly round(total · (1 - rate)ⁿ) weights are left, and every parameter, buffer
    and state of the optimizer is what it was after step `rewind_step`, with dropped weights and
    their state at zero. A learning-rate schedule starts again too: drive it by
    `training.position`, as `LambdaLR(optimizer, lambda _: factor(training.position))`.

    Args:
        rounds: How often weights are dropped.
        round_steps: Steps of a training.
        rewind_step: Which step to go back to; 0 for the start.
        rate: Share of the live weights that goes in a round.
        saliency: What a weight is worth, as of `mfac.recipes.GMP`.
        allocation: As of `mfac.prune`; `mfac.Global(floor=0)` is the published one.

    Raises:
        TypeError: If a type is wrong.
        ValueError: If a number is out of range, or the rewind is to the end of a round.

    Source: Frankle, Dziugaite, Roy, Carbin, "Linear Mode Connectivity and the Lottery Ticket
    Hypothesis" (1912.05671), Algorithm 2.

    Example:
        >>> import mfac
        >>> recipe = mfac.recipes.LotteryTicket(rounds=3, round_steps=100, rewind_step=10)
        >>> recipe.ends, recipe.steps, recipe.position(100), recipe.position(101)
        ([100, 190, 280], 370, 10, 11)
    """

    rewinds_to_snapshot = True

    def __init__(
        self,
        *,
        rounds: int,
        round_steps: int,
        rewind_step: int = 0,
        rate: float = 0.2,
        saliency: SaliencyName | Saliency = "magnitude",
        allocation: AllocationName | Allocation = "global",
    ) -> None:
        check_count("rounds", rounds, least=1)
        check_count("round_steps", round_steps, least=1)
        if check_count("rewind_step", rewind_step) >= round_steps:
            raise ValueError(
                f"Parameter `rewind_step` should be below `round_steps`, {round_steps}. Found {rewind_step}."
            )
        self.rate = check_number("rate", rate, above=0, below=1)
        self.round_steps, self.snapshot_at = round_steps, rewind_step
        length = round_steps - rewind_step
        self.ends = [round_steps + number * length for number in range(rounds)]
        self.steps = self.ends[-1] + length
        self.cut = Cut(saliency, "unstructured", allocation)

    def check(self, weights: Sequence[PrunableWeight], kept: Tensor) -> None:
        """Refuses so many rounds that nothing would be left."""
        if round(int(kept.sum()) * (1 - self.rate) ** len(self.ends)) < 1:
            raise ValueError(
                f"Parameter `rounds` should leave some of the {int(kept.sum())} weights. Found {len(self.ends)} rounds "
                f"of {self.rate:g}."
            )

    def is_due(self, step: int) -> bool:
        """At the end of each round but the last."""
        return step in self.ends

    def change(self, context: ChangeContext) -> Tensor:
        """What the next round keeps."""
        first = context.memory.setdefault("first", int(context.kept.sum()))
        counts = [round(first * (1 - self.rate) ** (number + 1)) for number in range(len(self.ends))]
        return self.cut(context, counts[self.ends.index(context.step)], counts[-1])

    def rewinds(self, step: int) -> bool:
        """At the end of each round but the last."""
        return step in self.ends

    def position(self, step: int) -> int:
        """Steps since the start of the training that the round stands for."""
        done = [end for end in self.ends if end <= step]
        return step if not done else int(self.snapshot_at or 0) + step - done[-1]
