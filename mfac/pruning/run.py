"""One pruning run: the flat weights, which of them are alive, and the steps that change both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from mfac.curvature.damping import Damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.backward import GradientSource, LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import gather_rows
from mfac.gradients.input_norms import input_norms
from mfac.gradients.prunable import describe_weights
from mfac.pruning.budget import Budget
from mfac.pruning.checked import refit_update
from mfac.pruning.context import StepContext
from mfac.pruning.counts import settle
from mfac.pruning.held_out import HeldOut
from mfac.pruning.obs import Rules, prune_step, scored_units
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.schedule import Schedule, check_schedule
from mfac.pruning.target import final_count
from mfac.pruning.targets import Targets
from mfac.pruning.torch_masks import torch_masks

INPUT_BATCHES = 32  # whose activations a saliency is given that asks for them
NO_GRADIENT = "gets no gradient: the loss does not depend on it, or only in batches that were not seen"


@dataclass(frozen=True)
class Settings:
    """What a run was asked for, checked.

    Attributes:
        rules: Of a step.
        schedule: Of the kept counts.
        sparsity: Share of zeros, or None.
        num_gradients: m, of a stage.
        damping: λ, absolute or relative.
        block_size: Of a block-diagonal Fisher, or None.
        recomputations: Steps of a stage.
        stages: How many.
        per_sample: One gradient a sample.
        keep_zeros: Whether weights that are zero count as pruned.
        step_check: Whether the size of each step is checked on held-out batches.
        refits: Solves after the last stage, each with fresh gradients.
    """

    rules: Rules
    schedule: Schedule
    sparsity: float | None
    num_gradients: int
    damping: Damping
    block_size: int | None
    recomputations: int
    stages: int
    per_sample: bool
    keep_zeros: bool
    step_check: bool = False
    refits: int = 0

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.stages * self.recomputations if self.rules.needs_fisher else 1


class Run:
    """A run over the d prunable weights; what a step computes with is over the live ones only.

    Args:
        model: Its weights are changed.
        loss_fn: The loss.
        stream: Of batches.
        targets: What is pruned.
        settings: How.
        mode: Of the model while gradients are collected.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        stream: BatchStream,
        targets: Targets,
        settings: Settings,
        mode: Literal["eval", "train"],
    ) -> None:
        self.model, self.loss_fn, self.stream, self.settings, self.mode = model, loss_fn, stream, settings, mode
        self.damping = settings.damping
        self.fisher: EmpiricalFisher | None = None  # over the live weights, while a stage goes on
        self.held_out: HeldOut | None = None
        self.report = PruningReport({})
        self._take(targets)

    def _take(self, targets: Targets) -> None:
        """Sets what is pruned, and what follows from it."""
        self.targets, self.vector = targets, targets.vector
        self.source = GradientSource(self.model, self.loss_fn, self.vector, self.settings.per_sample)
        self.parameters = describe_weights(self.model, self.vector.parameters)
        self.weights = self.vector.flat()  # [d]
        if not bool(torch.isfinite(self.weights).all()):
            raise ValueError("Parameter `model` should have finite weights. Found a NaN or infinity.")
        self.live = self.weights != 0 if self.settings.keep_zeros else torch.ones_like(self.weights, dtype=torch.bool)
        masked = torch_masks(self.model)
        for name, piece in self.vector.pieces(self.live):
            if name in masked:
                piece &= masked[name]
        self.finally_kept = final_count(self.settings.rules, self.settings.sparsity, self.parameters, self.live)

    def run(self, progress: Callable[[PruningStep], None] | None) -> PruningReport:
        """Takes all steps.

        Args:
            progress: Called after each.

        Returns:
            The report; the model is pruned.
        """
        settings = self.settings
        if settings.step_check:
            self.held_out = HeldOut(self.model, self.loss_fn, self.stream, self.mode)
        start = time.perf_counter()
        if settings.rules.needs_fisher and int(self.live.sum()) > self.finally_kept:
            self._first_stage()
        self._settle()
        live, kept_after = int(self.live.sum()), []
        if live > self.finally_kept:  # otherwise as sparse as asked for already
            kept_after = settings.schedule.kept(live, self.finally_kept, settings.total_steps)
            check_schedule(settings.schedule, kept_after, live, self.finally_kept, settings.total_steps)
        for step, kept in enumerate(kept_after, start=1):
            damping, increase = self._step(step, kept)
            stage = (step - 1) // settings.recomputations + 1
            reached = 1 - int(self.live.sum()) / self.vector.dim
            seconds, start = time.perf_counter() - start, time.perf_counter()
            done = PruningStep(step, settings.total_steps, stage, reached, damping, increase, seconds)
            self.report.steps.append(done)
            if progress is not None:
                progress(done)
        self.fisher = None
        if settings.rules.needs_fisher and kept_after:
            for _ in range(settings.refits):
                self._factor(self._gradients())
                delta, _scale = refit_update(self._context())
                self._apply(delta, torch.zeros_like(delta, dtype=torch.bool))
            self.fisher = None
        self._finish_report()
        return self.report

    def _finish_report(self) -> None:
        of_each = {name: mask.clone() for name, mask in self.vector.pieces(self.live)}
        for name, parameter in self.targets.whole.items():
            of_each[name] = torch.ones(parameter.shape, dtype=torch.bool, device=parameter.device)
        self.report.masks = of_each
        self.report.left_dense = self.targets.left_dense

    def _first_stage(self) -> None:
        """Collects the first gradients, and leaves out the weights that they say nothing of."""
        grads = self._gradients()
        if self.source.unused:
            begin, columns = 0, []
            for name, size in zip(self.vector.names, self.vector.sizes, strict=True):
                piece = self.live[begin : begin + size]
                columns.append(piece & (name not in self.source.unused))
                begin += size
            used = torch.cat(columns)[self.live].nonzero()[:, 0]
            self._take(self.targets.without(self.source.unused, NO_GRADIENT))
            grads = grads.index_select(1, used)
        self._factor(grads)

    def _step(self, step: int, kept: int) -> tuple[float | None, float | None]:
        """Drops all but `kept` of the live weights and moves those; returns λ and ½ δᵀFδ."""
        rules, stage_goes_on = self.settings.rules, step % self.settings.recomputations != 0
        if rules.needs_fisher and self.fisher is None:
            self._factor(self._gradients())
        context = self._context()
        outcome = prune_step(rules, context, kept, self.finally_kept)
        damping = None if self.fisher is None else self.fisher.damping
        self.fisher = context.kept_fisher if self.fisher is not None and stage_goes_on else None
        self._apply(outcome.delta, outcome.dropped)
        return damping, outcome.predicted_increase

    def _context(self) -> StepContext:
        return StepContext(
            self.weights[self.live],
            self.fisher,
            self.parameters,
            self.live,
            self._loss_with if self.held_out else None,
            lambda: input_norms(self.model, islice(self.stream.rest(), INPUT_BATCHES), self.loss_fn),
        )

    def _loss_with(self, delta: Tensor) -> float:
        assert self.held_out is not None
        return self.held_out.loss(self.vector, self.weights, self.live, delta)

    def _settle(self) -> None:
        """Lets an allocation that goes by the first scores say how many weights are kept in the end."""
        if isinstance(self.settings.rules.allocation, Budget):
            context, rules = self._context(), self.settings.rules
            units = scored_units(rules, context, rules.saliency.scores(context))
            self.finally_kept = settle(rules.allocation, context, units) or self.finally_kept

    def _gradients(self) -> Tensor:
        """Fresh gradients at the weights as they are, of the live weights alone."""
        columns = None if bool(self.live.all()) else self.live.nonzero()[:, 0]
        return gather_rows(self.source, self.stream, self.settings.num_gradients, self.mode, columns)

    def _factor(self, grads: Tensor) -> None:
        self.fisher = EmpiricalFisher(grads, self.damping, self.settings.block_size)
        self.damping = self.fisher.damping  # a relative one is relative to the first stage's gradients

    def _apply(self, delta: Tensor, dropped: Tensor) -> None:
        """Moves the live weights by δ, sets the dropped ones to exactly zero, and writes them to the model."""
        moved = (self.weights[self.live].double() + delta).to(self.weights.dtype)
        self.weights[self.live] = torch.where(dropped, 0, moved)
        self.live[self.live.clone()] = ~dropped
        self.weights[~self.live] = 0
        self.vector.write_(self.weights)
