"""One pruning run: the flat weights, which weights are alive, and the steps that change both."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mfac.core.memory import release_freed
from mfac.curvature.damping import Damping, relative, resolve_damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.curvature.held_out import HeldOutDamping, cautious_choice, left_out_errors
from mfac.gradients.backward import GradientSource, LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.input_norms import input_norms
from mfac.gradients.modes import model_mode
from mfac.gradients.prunable import describe_weights
from mfac.gradients.randomness import Randomness
from mfac.gradients.ranks import Ranks
from mfac.pruning.budget import Budget
from mfac.pruning.checked import refit_update
from mfac.pruning.context import StepContext
from mfac.pruning.counts import settle
from mfac.pruning.obs import prune_step, scored_units
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.rows import StageGradients
from mfac.pruning.schedule import Schedule, kept_by
from mfac.pruning.settings import Settings
from mfac.pruning.target import final_count
from mfac.pruning.targets import Targets
from mfac.pruning.torch_masks import live_weights

INPUT_BATCHES = 32  # whose activations a saliency is given that asks for them
NO_GRADIENT = "gets no gradient: the loss does not depend on it, or only in batches that were not seen"
_SHORT = 0.1  # of the weights: by so much a run may miss its sparsity without a word
EVALUATED = 8  # batches that the loss is measured on


class StepNumbers(NamedTuple):
    """What the report says of a step: λ and ½ δᵀFδ, None without a Fisher, and the step's scale."""

    damping: float | None
    predicted_increase: float | None
    scale: float | None


class Run:
    """A run over the d prunable weights; a step computes with the live weights only.

    Args:
        model: Its weights are changed.
        loss_fn: The loss.
        stream: Of batches.
        targets: What is pruned.
        settings: How, with numbers of gradients and stages chosen.
        mode: Of the model while gradients are collected.
        ranks: The processes that share the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        stream: BatchStream,
        targets: Targets,
        settings: Settings,
        mode: Literal["eval", "train"],
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.loss_fn, self.stream, self.settings, self.mode = model, loss_fn, stream, settings, mode
        self.ranks = Ranks() if ranks is None else ranks
        self.damping: Damping | HeldOutDamping = settings.damping
        self.fisher: EmpiricalFisher | None = None  # over the live weights, while a stage goes on
        self.report = PruningReport({})
        self.kept_after: list[int] | None = None  # of each step, once it is known
        self._evaluation: list[tuple[int, Any]] | None = None  # batches of the stage, numbered
        self._randomness: Randomness | None = None  # that every evaluation of the stage begins with
        self._unused: set[str] = set()
        self._take(targets)

    def _take(self, targets: Targets) -> None:
        """Sets the pruned weights, and all that follows from them."""
        self.targets, self.vector = targets, targets.vector
        self.source = GradientSource(self.model, self.loss_fn, self.vector, self.settings.per_sample)
        self.parameters = describe_weights(self.model, self.vector.parameters)
        self.weights = self.vector.flat()  # [d]
        if not bool(torch.isfinite(self.weights).all()):
            raise ValueError("Parameter `model` should have finite weights. Found a NaN or infinity.")
        self.live = live_weights(self.model, self.vector, self.weights, self.settings.existing_zeros)
        self.finally_kept = final_count(self.settings.rules, self.settings.sparsity, self.parameters, self.live)

    def run(
        self, progress: Callable[[PruningStep], None] | None, after_stage: Callable[[Run], None] | None = None
    ) -> PruningReport:
        """Takes all steps that are left.

        Args:
            progress: Called after each.
            after_stage: Called when the last step of a stage is done, and nothing of the stage is
                needed any more.

        Returns:
            The report; the model is pruned.

        Raises:
            ValueError: If no unit of the pattern is small enough to go.
        """
        settings, start = self.settings, time.perf_counter()
        if self.kept_after is None:
            self.plan_steps(settings.schedule, settings.total_steps)
        assert self.kept_after is not None
        total, alive, anew = len(self.kept_after), int(self.live.sum()), not self.report.steps
        for step, kept in list(enumerate(self.kept_after, start=1))[len(self.report.steps) :]:
            found = self.step(kept, stage_goes_on=step % settings.recomputations != 0 and step < total)
            stage = (step - 1) // settings.recomputations + 1
            reached = 1 - int(self.live.sum()) / self.vector.dim
            seconds, start = time.perf_counter() - start, time.perf_counter()
            done = PruningStep(
                *(step, settings.total_steps, stage, reached, found.damping, found.predicted_increase, seconds),
                found.scale,
            )
            self.report.steps.append(done)
            if progress is not None:
                progress(done)
            if after_stage is not None and self.fisher is None:
                after_stage(self)
        if anew and self.kept_after and int(self.live.sum()) == alive:
            raise ValueError(
                f"Parameter `pattern` should have units small enough to go. Found {str(settings.rules.pattern)!r}, of "
                f"which no unit fits into the {alive - self.finally_kept} weights that the run may drop."
            )
        left = int(self.live.sum())
        short = left - self.finally_kept > _SHORT * self.vector.dim
        if self.kept_after and short and settings.rules.allocation.shares_total:
            warnings.warn(
                f"The network is at a sparsity of {1 - left / self.vector.dim:.3f}, where "
                f"{1 - self.finally_kept / self.vector.dim:.3f} was asked for: whole units of the pattern fit in no "
                f"better.",
                stacklevel=3,
            )
        if not self.kept_after:
            self.reread_weights()  # under torch's pruning a weight that is masked need not be zero
        elif settings.rules.needs_fisher:
            self._refit(settings.refits)
        self.finish_report()
        return self.report

    def _refit(self, solves: int) -> None:
        """Solves for the kept weights once more, each time with fresh gradients."""
        for _ in range(solves):
            self._evaluation = None
            assert not isinstance(self.damping, HeldOutDamping)  # the first stage has chosen
            self.fisher = self._gradients().fisher(self.damping)
            delta, scale = refit_update(self._context())
            self._apply(delta, torch.zeros_like(delta, dtype=torch.bool))
            self.report.refits.append(scale)
        self.fisher = None

    def _context(self) -> StepContext:
        """The live weights as saliencies and compensations see them."""
        return StepContext(
            *(self.weights[self.live], self.fisher, self.parameters, self.live),
            self.evaluate if self.settings.rules.evaluations or self.settings.refits else None,
            self._input_norms,
        )

    def _input_norms(self) -> dict[str, Tensor]:
        """Norms of the input channels on the stream's next batches."""
        return input_norms(self.model, islice(self.stream.rest(), INPUT_BATCHES), self.loss_fn, self.mode, "data")

    def _settle(self) -> None:
        """Lets an allocation by the first scores say how many weights are kept in the end."""
        budget = isinstance(self.settings.rules.allocation, Budget)
        if budget and int(self.live.sum()) > self.finally_kept:
            context, rules = self._context(), self.settings.rules
            units = scored_units(rules, context, rules.saliency.scores(context))
            self.finally_kept = settle(rules.allocation, context, units) or self.finally_kept

    def plan_steps(self, schedule: Schedule, steps: int) -> None:
        """Finds how many weights each step leaves.

        The first gradients are collected, as they say which weights are pruned.

        Args:
            schedule: Of the kept counts.
            steps: How many there are.
        """
        settings = self.settings
        if settings.rules.needs_fisher and int(self.live.sum()) > self.finally_kept:
            self._first_stage()
        self._settle()
        live, self.kept_after = int(self.live.sum()), []
        if live > self.finally_kept:  # otherwise as sparse as asked for already
            self.kept_after = kept_by(schedule, live, self.finally_kept, steps)

    def reread_weights(self) -> None:
        """Takes over the model's weights, and sets dropped weights to zero in model and run."""
        self.weights = self.vector.flat()
        self.weights[~self.live] = 0
        self.vector.zero_(~self.live)

    def finish_report(self) -> None:
        """Writes masks and what was left dense into the report."""
        of_each = {name: mask.clone() for name, mask in self.vector.pieces(self.live)}
        for name, parameter in self.targets.whole.items():
            of_each[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        self.report.masks = of_each
        self.report.left_dense = self.targets.left_dense
        self.report.record_(self.model, self.settings.rules.pattern, self.parameters)

    def _first_stage(self) -> None:
        """Collects the first gradients, and leaves out the weights that they say nothing of."""
        grads = self._gradients(or_fewer=self.settings.or_fewer)
        self.settings = replace(self.settings, num_gradients=grads.store.rank)  # of all stages, as of the first
        if self.source.unused:
            begin, columns = 0, []
            for name, size in zip(self.vector.names, self.vector.sizes, strict=True):
                piece = self.live[begin : begin + size]
                columns.append(piece & (name not in self.source.unused))
                begin += size
            used = torch.cat(columns)[self.live]
            self.leave_out(self.source.unused)
            grads = grads.restricted(used)
        self.fisher = self._factored(grads)

    def _factored(self, grads: StageGradients) -> EmpiricalFisher:
        """The Fisher over a stage's gradients, with some λ while the run's own is to be chosen."""
        return grads.fisher(relative(0.02) if isinstance(self.damping, HeldOutDamping) else self.damping)

    def leave_out(self, names: set[str]) -> None:
        """Takes weights without a gradient off what is pruned.

        Args:
            names: Of the parameters.
        """
        self._unused = set(names)
        self._take(self.targets.without(names, NO_GRADIENT))

    def step(self, kept: int, *, stage_goes_on: bool) -> StepNumbers:
        """Drops all but `kept` of the live weights, and moves the kept ones.

        Gradients are collected where a stage begins.

        Args:
            kept: How many weights stay.
            stage_goes_on: Whether the next step takes the same gradients.

        Returns:
            Numbers for the report.
        """
        rules = self.settings.rules
        if rules.needs_fisher and self.fisher is None:
            self._evaluation = None
            self.fisher = self._factored(self._gradients())
        if self.fisher is not None:
            if isinstance(self.damping, HeldOutDamping):
                self._choose_damping(self.damping)
            self.damping = self.fisher.damping  # a relative one is relative to the first stage's gradients
        release_freed()  # what the last step worked with, or the way to the Fisher
        context = self._context()
        outcome = prune_step(rules, context, kept, self.finally_kept)
        damping = None if self.fisher is None else self.fisher.damping
        self.fisher = context.kept_fisher if self.fisher is not None and stage_goes_on else None
        self.ranks.agree_(outcome.delta, outcome.dropped)
        self._apply(outcome.delta, outcome.dropped)
        return StepNumbers(damping, outcome.predicted_increase, outcome.scale)

    def _gradients(self, *, or_fewer: bool = False) -> StageGradients:
        """Fresh gradients at the weights as they are, of the live weights alone."""
        live = None if bool(self.live.all()) else self.live
        found = StageGradients.collect(
            self.source, self.stream, self.settings, self.mode, live, or_fewer=or_fewer, ranks=self.ranks
        )
        release_freed()  # activations and single gradients
        return found

    def _choose_damping(self, candidates: HeldOutDamping) -> None:
        """Takes the candidate that best predicts the first stage's effect on left-out gradients."""
        assert self.fisher is not None and self.kept_after is not None
        fisher, weights = self.fisher, self.weights[self.live]
        kept = self.kept_after[min(self.settings.recomputations, len(self.kept_after)) - 1]
        scores = weights.double().square() / fisher.inverse_diagonal().double()
        dropped = torch.zeros_like(self.live[self.live])
        dropped[torch.argsort(scores, stable=True)[: weights.numel() - kept]] = True
        effect = fisher.dot(torch.where(dropped, weights, 0))
        trace = float(fisher.gram().trace())
        dampings = [resolve_damping(relative(c), trace, fisher.rank, fisher.dim) for c in candidates.scales]
        errors = left_out_errors(fisher.restricted(~dropped).gram(), effect, dampings)
        self.fisher = fisher.damped(dampings[cautious_choice(errors)])

    def evaluate(self, delta: Tensor) -> float:
        """The loss after a change of the live weights, on batches outside the stage's gradients.

        Args:
            delta: δ, [n].

        Returns:
            The mean loss of eight batches, or of as many as there are, with the same random numbers
            each time. The weights are as before.
        """
        if self._evaluation is None:
            self._evaluation, self._randomness = self.stream.others(EVALUATED), Randomness.of(None)
        assert self._randomness is not None
        outside = Randomness.of(None)
        moved = self.weights.clone()
        moved[self.live] = (self.weights[self.live].double() + delta).to(moved.dtype)
        try:
            self.vector.write_(moved)
            self._randomness.restore(None)
            with model_mode(self.model, self.mode):
                losses = [self.source.loss(batch) for _, batch in self._evaluation]
        finally:
            self.vector.write_(self.weights)
            outside.restore(None)
        if not all(map(math.isfinite, losses)):
            self._check_evaluation()
        return sum(losses) / len(losses)

    def _check_evaluation(self) -> None:
        """Tells a batch whose loss is never finite from weights that are bad."""
        assert self._evaluation is not None
        with model_mode(self.model, self.mode):
            for number, batch in self._evaluation:
                if not math.isfinite(loss := self.source.loss(batch)):
                    raise ValueError(
                        f"Parameter `loss_fn` should return a finite loss. Found {loss} in batch {number} of the data "
                        f"(counted from 0), one of those that steps are compared on."
                    )

    def _apply(self, delta: Tensor, dropped: Tensor) -> None:
        """Moves the live weights by δ, sets dropped ones to exactly zero, and writes the model."""
        moved = (self.weights[self.live].double() + delta).to(self.weights.dtype)
        self.weights[self.live] = torch.where(dropped, 0, moved)
        self.live[self.live.clone()] = ~dropped
        self.weights[~self.live] = 0
        self.vector.write_(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """What the next stage needs to know, as tensors, numbers and strings."""
        allocation = self.settings.rules.allocation
        return {
            "weights": self.weights.clone(),
            "live": self.live.clone(),
            "damping": self.damping if isinstance(self.damping, float) else None,
            "unused": sorted(self._unused),
            "kept_after": self.kept_after,
            "levels": (allocation.chosen, allocation.chosen_kept) if isinstance(allocation, Budget) else None,
            "steps": [list(vars(step).values()) for step in self.report.steps],
            "mode": self.mode,
            "stream": self.stream.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, write: bool = True) -> None:
        """Goes on where another run was.

        Args:
            state: Of `state_dict`.
            write: Whether the model gets the weights of then.

        Raises:
            ValueError: If it is of a model with other weights, or the data ends before.
        """
        if state["unused"]:
            self.leave_out(set(state["unused"]))
        if state["live"].shape != self.live.shape:
            raise ValueError(
                f"Parameter `state` should be of a model with {self.live.numel()} prunable weights. "
                f"Found {state['live'].numel()}."
            )
        if isinstance(self.settings.rules.allocation, Budget):
            self.settings.rules.allocation.chosen, self.settings.rules.allocation.chosen_kept = state["levels"]
        self.live, self.kept_after = state["live"].clone().to(self.live.device), state["kept_after"]
        steps: Sequence[Sequence[Any]] = state["steps"]
        self.report.steps = [PruningStep(*values) for values in steps]
        if self.settings.rules.needs_fisher and steps:
            self.damping = state["damping"]
        if write:
            self.weights = state["weights"].to(self.weights)
            self.vector.write_(self.weights)
        self.stream.load_state_dict(state["stream"])
