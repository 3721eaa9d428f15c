"""What a pruning run will do, take and leave, known before it begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from mfac.core.memory import GIB
from mfac.curvature.held_out import HeldOutDamping
from mfac.gradients.backward import GradientSource, LossFunction
from mfac.gradients.batches import BatchStream, DataEndedError
from mfac.gradients.collecting import resolve_mode
from mfac.gradients.modes import model_mode
from mfac.gradients.nested import num_samples
from mfac.gradients.prunable import describe_weights
from mfac.gradients.randomness import Randomness
from mfac.pruning.batchnorm import normalised_layers
from mfac.pruning.checked import SCALES
from mfac.pruning.effort import candidates, choose
from mfac.pruning.memory import Activations, BatchSize, check_memory, run_bytes
from mfac.pruning.probe import Probe
from mfac.pruning.run import EVALUATED
from mfac.pruning.schedule import kept_by
from mfac.pruning.settings import Settings
from mfac.pruning.target import final_count
from mfac.pruning.targets import Targets
from mfac.pruning.torch_masks import live_weights

_TIMED_BATCHES = 2  # after one that warms up


@dataclass(frozen=True)
class PruningPlan:
    """What `mfac.prune` will do with the same arguments. `print` it.

    Attributes:
        tensors: Name of each weight tensor that is pruned, and its size.
        left_dense: Name of every other weight tensor, and why it is not pruned.
        weights: How many weights are pruned, d.
        kept: How many of the d weights are left.
        num_gradients: m, of a stage.
        stages: How often gradients are collected.
        steps: Pruning steps in all.
        batches: How many batches are gone through for gradients, in all.
        bytes: Memory that the run takes beside the model; with a batch's activations where a batch
            was timed.
        disk_bytes: Room in the folder of gradients; 0 where they are in memory.
        seconds: Estimated; None where nothing was timed.
        notes: What was decided and why, in sentences.
    """

    tensors: dict[str, int]
    left_dense: dict[str, str]
    weights: int
    kept: int
    num_gradients: int
    stages: int
    steps: int
    batches: int
    bytes: int
    disk_bytes: int
    seconds: float | None
    notes: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of zeros at the end."""
        return (self.weights - self.kept) / self.weights

    def __str__(self) -> str:
        time_ = "" if self.seconds is None else f", about {_duration(self.seconds)}"
        disk = f", {self.disk_bytes / GIB:.2f} GiB on disk" if self.disk_bytes else ""
        lines = [
            f"plan: {self.weights} weights in {len(self.tensors)} tensors, {self.kept} of them kept "
            f"(sparsity {self.sparsity:.4f})",
            f"  {_count(self.stages, 'stage')} of {_count(self.num_gradients, 'gradient')}, "
            f"{_count(self.batches, 'batch', 'es')}, {_count(self.steps, 'step')}"
            if self.batches
            else f"  {_count(self.steps, 'step')} without gradients",
            f"  {self.bytes / GIB:.2f} GiB beside the model{disk}{time_}",
        ]
        lines += [f"  {note}" for note in self.notes]
        width = max(map(len, [*self.tensors, *self.left_dense]))
        lines += [f"  {name:<{width}}  {size} weights" for name, size in self.tensors.items()]
        lines += [f"  {name:<{width}}  left dense: it {why}" for name, why in self.left_dense.items()]
        return "\n".join(lines)


def _count(number: int, word: str, plural: str = "s") -> str:
    return f"{number} {word}{'' if number == 1 else plural}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


class Planner:
    """Finds the numbers that were left open, and the run's costs; the model stays as it is.

    Args:
        model: The model.
        loss_fn: The loss.
        stream: Of batches; the first is looked at and stays in it.
        targets: What is pruned.
        settings: What was asked for.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, stream: BatchStream, targets: Targets, settings: Settings
    ) -> None:
        self.model, self.loss_fn, self.stream = model, loss_fn, stream
        self.targets, self.settings = targets, settings
        self.parameters = describe_weights(model, targets.vector.parameters)
        weights = targets.vector.flat()
        live = live_weights(model, targets.vector, weights, settings.existing_zeros)
        self.live = int(live.sum())
        self.finally_kept = final_count(settings.rules, settings.sparsity, self.parameters, live)
        self.mode: Literal["eval", "train"] = "eval"
        self._probe = Probe(settings, self.parameters, self.live, targets.vector.device)
        self._batch_seconds: float | None = None
        self._loss_seconds = 0.0  # of a batch that only goes forward
        self._activations = 0  # bytes of a batch, once one was timed
        self._rows_a_batch = 1
        self._unused: set[str] = set()  # weights without a gradient in the batch that was timed

    def settle(self, *, timed: bool, refuse: bool) -> tuple[Settings, PruningPlan]:
        """Chooses what is open.

        Args:
            timed: Whether seconds are wanted even where nothing is to be chosen by them.
            refuse: Whether to refuse what does not fit in memory, before anything is computed.

        Returns:
            Settings with all numbers, and the plan.

        Raises:
            MemoryError: If `refuse`, and the run takes more than there is.
            DataEndedError: If gradients are needed, and there is no batch.
        """
        settings = self.settings
        if not settings.rules.needs_fisher or self.live <= self.finally_kept:
            settled = replace(settings, num_gradients=settings.num_gradients or 1, stages=settings.stages or 1)
            planned = self._plan(settled, None, ())
            if refuse:
                check_memory(planned.bytes, settled, self.targets.vector)
            if settings.rules.needs_loss:
                self.mode = resolve_mode(self.model, self.loss_fn, self.stream, settings.mode)
            return settled, planned
        most = self._rows_of_a_pass()
        if most == 0 or self.stream.peek() is None:
            wanted = "gradients" if settings.num_gradients is None else f"num_gradients={settings.num_gradients}"
            raise DataEndedError(wanted, 0, can_restart=self.stream.can_restart)
        once = not self.stream.can_restart and settings.stages is None  # fresh gradients need data that is left
        options = candidates(replace(settings, stages=1) if once else settings, most)
        if refuse:
            check_memory(self._plan(options[0], None, ()).bytes, options[0], self.targets.vector)
        self.mode = resolve_mode(self.model, self.loss_fn, self.stream, settings.mode)
        open_ = settings.num_gradients is None or settings.stages is None
        if (timed or open_) and self.stream.peek() is not None:
            self._time_a_batch()
        notes = ["the data can be gone through once, so that one stage takes all of it"] if once else []
        chosen = choose(options, self.seconds) if self._batch_seconds is not None else options[0]
        if open_ and chosen != options[0]:
            wanted = f"effort={settings.effort!r}" if settings.time_budget is None else f"{settings.time_budget:g} s"
            notes.append(
                f"{options[0].total_stages} stages of {options[0].rank} gradients would take about "
                f"{_duration(self.seconds(options[0]))}, more than {wanted} allows"
            )
        if settings.num_gradients is None and most is not None and chosen.rank == most:
            notes.append(f"a pass over the data has {most} gradients, and a stage takes no more")
        if self._unused:
            notes.append(
                f"no gradient in the first batch: {', '.join(sorted(self._unused))}; weights that get none in all "
                f"batches are left dense"
            )
        seconds = None if self._batch_seconds is None else self.seconds(chosen)
        return chosen, self._plan(chosen, seconds, tuple(notes))

    def _plan(self, settings: Settings, seconds: float | None, notes: tuple[str, ...]) -> PruningPlan:
        vector = self.targets.vector
        fisher = settings.rules.needs_fisher and self.live > self.finally_kept
        batch = BatchSize(self._rows_a_batch, self._activations)
        in_memory, on_disk = run_bytes(self.model, vector, settings, self.kept_counts(settings), self.live, batch)
        return PruningPlan(
            tensors=dict(zip(vector.names, vector.sizes, strict=True)),
            left_dense=self.targets.left_dense,
            weights=vector.dim,
            kept=self.finally_kept,
            num_gradients=settings.rank,
            stages=settings.total_stages,
            steps=len(self.kept_counts(settings)),
            batches=settings.total_stages * self._batches(settings) if fisher else 0,
            bytes=in_memory,
            disk_bytes=on_disk,
            seconds=seconds,
            notes=notes,
        )

    def kept_counts(self, settings: Settings) -> list[int]:
        """Weights that are left after each step."""
        if self.live <= self.finally_kept:
            return []
        return kept_by(settings.schedule, self.live, self.finally_kept, settings.total_steps)

    def seconds(self, settings: Settings) -> float:
        """What a run takes: its batches, and its steps by the weights that are alive in each."""
        assert self._batch_seconds is not None
        alive = [self.live, *self.kept_counts(settings)]
        before, after = alive[:-1], alive[1:]
        times = self._probe.times(settings.rank)
        factored = sum(before[:: settings.recomputations]) + sum(after)
        seconds = sum(before) * (times.step + times.choosing) + len(before) * self.targets.vector.dim * times.chaining
        if isinstance(settings.damping, HeldOutDamping):  # a step of the first stage to see what would be dropped
            seconds += self.live * times.step
            factored += 2 * self.live
        factored += settings.refits * alive[-1]
        batches = (settings.total_stages + settings.refits) * self._batches(settings)
        seconds += factored * times.factoring + batches * self._batch_seconds
        return seconds + self._evaluations(settings, len(before)) * self._loss_seconds

    def _evaluations(self, settings: Settings, steps: int) -> int:
        """Batches that go forward alone: for checked steps, and for batch normalisation."""
        checked = (steps * settings.rules.evaluations + settings.refits * len(SCALES)) * EVALUATED
        batches = settings.batchnorm_batches if normalised_layers(self.model) else 0
        there = self.stream.length
        return checked + (batches if there is None else min(batches, there))

    def _batches(self, settings: Settings) -> int:
        return -(-settings.rank // self._rows_a_batch)

    def _rows_of_a_pass(self) -> int | None:
        batch = self.stream.peek()
        if self.settings.per_sample and batch is not None:
            self._rows_a_batch = num_samples(batch) or 1
        return None if self.stream.length is None else self.stream.length * self._rows_a_batch

    def _time_a_batch(self) -> None:
        """Seconds of one batch's gradients: the mean of a few, after one that warms up."""
        batch = self.stream.peek()
        source = GradientSource(self.model, self.loss_fn, self.targets.vector, self.settings.per_sample)
        before, seconds = Randomness.of(None), []
        with model_mode(self.model, self.mode):
            for _ in range(1 + _TIMED_BATCHES):
                start = time.perf_counter()
                for rows in source.rows(batch, 0):
                    bool(torch.isfinite(rows.clone().sum()))
                seconds.append(time.perf_counter() - start)
            start, activations = time.perf_counter(), Activations(self.model)
            with activations.counted():
                source.loss(batch)
            self._loss_seconds, self._activations = time.perf_counter() - start, activations.total
        before.restore(None)
        self._unused = set(source.unused)
        self._batch_seconds = sum(seconds[1:]) / _TIMED_BATCHES
