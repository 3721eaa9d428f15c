"""Optimal Brain Surgeon on the empirical Fisher: one call that prunes a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mfac.core.checks.numbers import check_count
from mfac.core.named import resolve
from mfac.curvature.damping import Damping, check_damping, relative
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import LossFunction, check_model_and_loss, gather_rows, window_dtype
from mfac.gradients.parameters import Selection, flatten, prunable_weights, select_parameters, write_flat_
from mfac.gradients.prunable import describe_weights
from mfac.gradients.threads import threads_restored
from mfac.masks.masks import unflatten_mask
from mfac.masks.patterns import Pattern, resolve_pattern
from mfac.pruning.allocation import Allocation, AllocationName, resolve_allocation
from mfac.pruning.batchnorm import normalised_layers, reestimate_statistics
from mfac.pruning.compensation import COMPENSATIONS, Compensation, CompensationName
from mfac.pruning.context import StepContext
from mfac.pruning.obs import Rules, prune_step
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.saliency import SALIENCIES, Saliency, SaliencyName
from mfac.pruning.schedule import SCHEDULES, Schedule, ScheduleName, check_schedule
from mfac.pruning.target import final_count


def prune(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    sparsity: float | None = None,
    params: Selection = None,
    saliency: SaliencyName | Saliency = "obs",
    compensation: CompensationName | Compensation = "joint",
    pattern: str | Pattern = "unstructured",
    allocation: AllocationName | Allocation | Mapping[str, float] = "global",
    num_gradients: int = 256,
    damping: Damping = relative(0.02),  # ruff: ignore[function-call-in-default-argument]  a frozen value
    block_size: int | None = None,
    recomputations: int = 4,
    stages: int = 8,
    seed: int = 0,
    *,
    schedule: ScheduleName | Schedule = "geometric",
    per_sample: bool = False,
    batchnorm_batches: int = 100,
    progress: Callable[[PruningStep], None] | None = None,
) -> PruningReport:
    """Prunes a model in place with second-order information, from trained weights and without fine-tuning.

    Each stage collects fresh gradients at the weights as they then are, and drops in `recomputations` steps the
    weights of least saliency over all layers together, while compensation moves the kept ones; the density falls
    geometrically over all steps. Weights that are zero already count as dropped and stay zero.

    With an N:M pattern at most N of M successive weights are kept. Groups of M run along the input channels: dimension
    1 of the weights of Linear layers and convolutions, which are the channels of one group of a grouped convolution, so
    that a depthwise one has groups of one weight; dimension 0 of transposed convolutions, within each of their groups.
    A last group of r < M weights keeps min(N, r). Masks have the parameter's shape, whatever its memory format. Each
    step drops the lowest of those weights that lie, by the saliencies of that step, below the N highest of their group.

    Args:
        model: The model; its weights are changed in place. It is run in evaluation mode and put back in its own.
        loss_fn: `loss_fn(model, batch)` returns a scalar, the mean over the batch.
        data: An iterable of batches, gone through again from the start when it ends. Each stage takes `num_gradients`
            batches; batches of 16 samples serve well.
        sparsity: Share of zeros among the prunable weights, in [0, 1); None for 0.9. With a pattern N:M None, or
            1 - N/M, from which layers with short last groups fall short.
        params: Which weights: None for those of every Linear and convolution; names or shell-style patterns, the
            parameters themselves, or a predicate of name and parameter. With an N:M pattern weights of Linears and
            convolutions only; one that layers share is grouped as in the first of them.
        saliency: "obs", w²/(2 (F⁻¹)_pp), or "magnitude"; or a `Saliency` of your own.
        compensation: "joint", the exact minimiser over the kept weights; "summed", the sum of single-weight updates,
            as M-FAC's own pruner; "none"; or a `Compensation`.
        pattern: "unstructured", or "N:M" with 1 <= N < M <= 64, as "2:4"; or a `Pattern`.
        allocation: "global", one ranking over all parameters with a floor for each (`mfac.Global`); "uniform", the
            same density everywhere; "erk", densities by the shapes, which favour small layers; a sparsity for each
            name or shell-style pattern, as {"head.*": 0.5, "*": 0.9}; or an `Allocation`.
        num_gradients: m, gradients of a stage.
        damping: λ > 0, or `mfac.relative(c)`, relative to the first stage's gradients and held from then on.
        block_size: For a block-diagonal Fisher over the live weights; None for the full matrix.
        recomputations: Pruning steps within a stage, on the same gradients.
        stages: How often fresh gradients are collected.
        seed: Of torch's generator while `data` is gone through, so that a shuffling loader gives the same batches each
            time; the caller's generator is not touched.
        schedule: How the number of kept weights falls over all steps: "geometric", "cubic" or "linear"; or a
            `Schedule`.
        per_sample: One gradient a sample in place of one a batch.
        batchnorm_batches: Batches on which the running statistics of all batch-norm layers, those in evaluation mode
            too, are re-estimated after pruning; 0 for not at all. Batches of one sample are passed over; without any
            others the statistics stay.
        progress: Called with a `PruningStep` after each step.

    Returns:
        Masks, achieved sparsity and what each step was predicted to cost.

    Raises:
        TypeError: If a parameter is of the wrong type.
        ValueError: If a value is out of range, the data runs out, the loss is no scalar or a gradient is not finite.
            The model is then as it was, as after any other exception.

    Cost: time O(stages · recomputations · d m²) beyond the gradients; memory two windows of m gradients of the live
    weights.

    Source: docs/derivation.md, "Pruning"; M-FAC, section 4; the joint update is numbered there as a difference.

    Example:
        >>> import torch, mfac
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(8, 2)
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(32)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> report = mfac.prune(model, loss_fn, data, sparsity=0.5, num_gradients=32, stages=2)
        >>> report.sparsity, int((model.weight == 0).sum())
        (0.5, 8)
        >>> model = torch.nn.Linear(8, 2)
        >>> report = mfac.prune(model, loss_fn, data, pattern="2:4", num_gradients=32, stages=2)
        >>> (model.weight != 0).view(2, 2, 4).sum(2).tolist()
        [[2, 2], [2, 2]]
    """
    check_model_and_loss(model, loss_fn)
    settings = _Settings(
        rules=Rules(
            resolve("saliency", saliency, SALIENCIES, Saliency),  # type: ignore[type-abstract]
            resolve_pattern(pattern),
            resolve_allocation(allocation),
            resolve("compensation", compensation, COMPENSATIONS, Compensation),  # type: ignore[type-abstract]
        ),
        schedule=resolve("schedule", schedule, SCHEDULES, Schedule),  # type: ignore[type-abstract]
        num_gradients=check_count("num_gradients", num_gradients, least=1),
        damping=check_damping(damping),
        block_size=None if block_size is None else check_count("block_size", block_size, least=1),
        recomputations=check_count("recomputations", recomputations, least=1),
        stages=check_count("stages", stages, least=1),
        per_sample=per_sample,
    )
    check_count("batchnorm_batches", batchnorm_batches)
    if check_count("seed", seed) >= 2**63:
        raise ValueError(f"Parameter `seed` should be below 2**63. Found {seed}.")
    selected = select_parameters(model, params, prunable_weights)
    with torch.random.fork_rng(devices=[]), _restored_on_error(model), threads_restored():
        torch.default_generator.manual_seed(seed)
        stream = BatchStream(data)
        report = _Pruning(model, loss_fn, stream, selected, sparsity, settings).run(progress)
        if batchnorm_batches and report.steps and normalised_layers(model):
            reestimate_statistics(model, loss_fn, islice(stream.rest(), batchnorm_batches))
    return report


@dataclass(frozen=True)
class _Settings:
    rules: Rules
    schedule: Schedule
    num_gradients: int
    damping: Damping
    block_size: int | None
    recomputations: int
    stages: int
    per_sample: bool

    @property
    def total_steps(self) -> int:
        return self.stages * self.recomputations if self.rules.needs_fisher else 1


class _Pruning:
    """One run: the flat weights, which of them are alive, and the steps that change both.

    `weights` and `live` are over all d prunable weights; what a step computes with is over the live ones only.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        stream: BatchStream,
        selected: dict[str, nn.Parameter],
        sparsity: float | None,
        settings: _Settings,
    ) -> None:
        self.model, self.loss_fn, self.stream = model, loss_fn, stream
        self.selected, self.settings = selected, settings
        self.parameters = describe_weights(model, selected)
        self.weights = flatten(selected.values(), window_dtype(selected))  # [d]
        if not bool(torch.isfinite(self.weights).all()):
            raise ValueError("Parameter `model` should have finite weights. Found a NaN or infinity.")
        self.live = self.weights != 0  # [d]
        self.finally_kept = final_count(settings.rules, sparsity, self.parameters, self.live)
        self.damping = settings.damping
        self.fisher: EmpiricalFisher | None = None  # over the live weights, while a stage goes on
        self.report = PruningReport({})

    def run(self, progress: Callable[[PruningStep], None] | None) -> PruningReport:
        settings, dim = self.settings, self.weights.numel()
        live, kept_after = int(self.live.sum()), []
        if live > self.finally_kept:  # otherwise as sparse as asked for already
            kept_after = settings.schedule.kept(live, self.finally_kept, settings.total_steps)
            check_schedule(settings.schedule, kept_after, live, self.finally_kept, settings.total_steps)
        for step, kept in enumerate(kept_after, start=1):
            start = time.perf_counter()
            damping, increase = self._step(step, kept)
            stage = (step - 1) // settings.recomputations + 1
            reached = 1 - int(self.live.sum()) / dim
            seconds = time.perf_counter() - start
            done = PruningStep(step, settings.total_steps, stage, reached, damping, increase, seconds)
            self.report.steps.append(done)
            if progress is not None:
                progress(done)
        self.report.masks = unflatten_mask(self.live, self.selected)
        return self.report

    def _step(self, step: int, kept: int) -> tuple[float | None, float | None]:
        """Drops all but `kept` of the live weights and moves those; returns λ and ½ δᵀFδ."""
        rules, stage_goes_on = self.settings.rules, step % self.settings.recomputations != 0
        if (step - 1) % self.settings.recomputations == 0:
            self.fisher = None  # the last stage's gradients go before the next ones come
        if rules.needs_fisher and self.fisher is None:
            self.fisher = self._fresh_fisher()
        context = StepContext(self.weights[self.live], self.fisher, self.parameters, self.live)
        outcome = prune_step(rules, context, kept, self.finally_kept)
        damping = None if self.fisher is None else self.fisher.damping
        self.fisher = context.kept_fisher if self.fisher is not None and stage_goes_on else None
        self._apply(outcome.delta, outcome.dropped)
        return damping, outcome.predicted_increase

    def _fresh_fisher(self) -> EmpiricalFisher:
        """F of fresh gradients at the weights as they are, over the live weights alone."""
        settings = self.settings
        columns = None if bool(self.live.all()) else self.live.nonzero()[:, 0]
        grads = gather_rows(
            self.model,
            self.loss_fn,
            self.stream,
            self.selected,
            settings.num_gradients,
            settings.per_sample,
            columns,
        )
        fisher = EmpiricalFisher(grads, self.damping, settings.block_size)
        self.damping = fisher.damping  # a relative one is relative to the first stage's gradients
        return fisher

    def _apply(self, delta: Tensor, dropped: Tensor) -> None:
        """Moves the live weights by δ, sets the dropped ones to exactly zero, and writes them to the model."""
        moved = (self.weights[self.live].double() + delta).to(self.weights.dtype)
        self.weights[self.live] = torch.where(dropped, 0, moved)
        self.live[self.live.clone()] = ~dropped
        self.weights[~self.live] = 0
        write_flat_(self.selected.values(), self.weights)


@contextmanager
def _restored_on_error(model: nn.Module) -> Generator[None]:
    """Puts parameters and buffers back as they were if the block does not end well."""
    before = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise
