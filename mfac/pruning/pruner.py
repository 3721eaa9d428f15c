"""Optimal Brain Surgeon on the empirical Fisher: one call that prunes a network."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from mfac.curvature.damping import Damping, relative
from mfac.curvature.held_out import HeldOutDamping
from mfac.gradients.backward import LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import check_model_and_loss
from mfac.gradients.modes import Mode
from mfac.gradients.parameters import Selection
from mfac.gradients.randomness import generators_kept
from mfac.gradients.ranks import Ranks
from mfac.masks.patterns import Pattern
from mfac.pruning.allocation import Allocation, AllocationName
from mfac.pruning.batchnorm import normalised_layers, reestimate_batchnorm
from mfac.pruning.checkpoint import Checkpoint
from mfac.pruning.compensation import Compensation, CompensationName
from mfac.pruning.plan import Planner, PruningPlan
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.run import Run
from mfac.pruning.saliency import Saliency, SaliencyName
from mfac.pruning.schedule import Schedule, ScheduleName
from mfac.pruning.settings import Effort, GradientsIn, checked_settings
from mfac.pruning.targets import ExistingZeros, choose_targets
from mfac.pruning.torch_masks import update_torch_masks_

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def prune(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    sparsity: float | None = None,
    params: Selection = None,
    saliency: SaliencyName | Saliency = "greedy",
    compensation: CompensationName | Compensation = "auto",
    pattern: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
    allocation: AllocationName | Allocation | Mapping[str, float] = "global",
    num_gradients: int | None = None,
    damping: Damping | HeldOutDamping | Literal["auto"] = relative(0.02),  # ruff: ignore[function-call-in-default-argument]  a frozen value
    block_size: int | None = None,
    recomputations: int = 4,
    stages: int | None = None,
    seed: int = 0,
    *,
    schedule: ScheduleName | Schedule = "geometric",
    existing_zeros: ExistingZeros = "auto",
    mode: Mode = "auto",
    per_sample: bool = False,
    batchnorm_batches: int = 100,
    step_check: bool = False,
    refits: int = 0,
    effort: Effort = "default",
    time_budget: float | None = None,
    gradients: GradientsIn = "ram",
    checkpoint: str | os.PathLike[str] | None = None,
    process_group: ProcessGroup | None = None,
    verbose: bool = False,
    progress: Callable[[PruningStep], None] | None = None,
) -> PruningReport:
    """Prunes a trained model in place with second-order information, without fine-tuning.

    Each stage collects fresh gradients at the weights as they then are, and drops in
    `recomputations` steps the weights of least saliency over all layers together, while
    compensation moves the kept ones; the density falls geometrically over all steps. Weights that
    are zero already count as dropped and stay zero; see `existing_zeros`. The report lists every
    weight tensor that is left dense, and why: frozen, without a gradient, of an embedding.

    With an N:M pattern at most N of M successive weights are kept. Groups of M run along the input
    channels: dimension 1 of the weights of Linear layers and convolutions, which are the channels
    of one group of a grouped convolution, so that a depthwise one has groups of one weight;
    dimension 0 of transposed convolutions, within each of their groups. A last group of r < M
    weights keeps min(N, r). Masks have the parameter's shape, whatever its memory format. By the
    saliencies of a step, weights below the N highest of their group may go, and the step drops the
    lowest of all such weights.

    Args:
        model: The model; its weights are changed in place. The model is run in evaluation mode and
            put back in its own mode.
        loss_fn: `loss_fn(model, batch)` returns a scalar, the mean over the batch.
        data: An iterable of batches, gone through again from the start when it ends. Each stage
            takes `num_gradients` batches; batches of 16 samples serve well.
        sparsity: Share of zeros among the prunable weights, in [0, 1); None for 0.9. With a pattern
            N:M None, or 1 - N/M, from which layers with short last groups fall short.
        params: Which weights: None for those of every Linear, convolution, recurrent layer,
            attention projection and Hugging Face `Conv1D` that require a gradient and get one;
            names or shell-style patterns, the parameters themselves, or a predicate of name and
            parameter. Names are without the prefixes of wrappers. A weight that layers share counts
            once; with an N:M pattern the weight is grouped as in the first of the layers.
        saliency: "greedy", what a block of weights has lost when the weight goes, one after the
            other; "obs", w²/(2 (F⁻¹)_pp); "magnitude"; "obd"; "snip"; "wanda"; "refined", exchanges
            that lower the joint objective; or a `Saliency`.
        compensation: "joint", the exact minimiser over the kept weights; "greedy", the exact
            minimiser inside blocks; "shrunk", the exact minimiser for the mean of the whole Fisher
            and its blocks; "auto", in each step whichever of "joint" and "greedy" has the least
            loss on eight batches apart from those of the gradients; "summed", the sum of
            single-weight updates, as M-FAC's own pruner; "none"; or a `Compensation`.
        pattern: "unstructured"; "N:M" with 1 <= N < M <= 64, as "2:4"; "AxB", blocks of A outputs
            by B inputs; "rows"; "channels"; a `Pattern`; or one of these for each name or
            shell-style pattern.
        allocation: "global", one ranking over all parameters with a floor for each (`mfac.Global`);
            "uniform", the same density everywhere; "erk", densities by the shapes, which favour
            small layers; a sparsity for each name or shell-style pattern, as
            {"head.*": 0.5, "*": 0.9}; or an `Allocation`.
        num_gradients: m, gradients of a stage; None for as many as `effort` or `time_budget`
            allows, and no more than a pass over the data has.
        damping: λ > 0, or `mfac.relative(c)`, relative to the first stage's gradients and held from
            then on; or "auto", `mfac.held_out()`, chosen on the first stage's gradients.
        block_size: For a block-diagonal Fisher over the live weights; None for the full matrix.
        recomputations: Pruning steps within a stage, on the same gradients.
        stages: How often fresh gradients are collected; None for as often as `effort` or
            `time_budget` allows.
        seed: Of torch's generator while `data` is gone through, so that a shuffling loader gives
            the same batches each time; the caller's generator is not touched, and a loader's own
            is put back.
        schedule: How the number of kept weights falls over all steps: "geometric", "cubic" or
            "linear"; or a `Schedule`.
        existing_zeros: How weights that are already zero count. "keep": as pruned. "ignore": like
            any other weight. "auto": as pruned, but a tensor of zeros alone, a branch that starts
            at zero, stays whole.
        mode: The model's mode while gradients are collected, as for `collect_gradients`.
        per_sample: One gradient a sample in place of one a batch.
        batchnorm_batches: Batches on which the running statistics of batch-norm layers are
            re-estimated after pruning; 0 for not at all. Frozen layers keep theirs, batches of one
            sample are passed over, and if a batch fails the network stays pruned: a warning says
            what to call.
        step_check: Whether the change of the kept weights is scaled by 1, ½, ¼ or 0 in each step,
            whichever has the least loss on eight batches apart from those of the gradients.
        refits: Solves of the kept weights after the last stage, each with fresh gradients.
        effort: Decides the numbers that are left open, after a batch has been timed. "default": 8
            stages of 256 gradients, or fewer where 8 stages take more than 120 seconds; "fast": 4
            of 128, 20 seconds; "best": 16 of 512, half an hour. Where an effort does not fit its
            seconds, its numbers depend on the clock: give the numbers to repeat a run.
        time_budget: Seconds that the run may take, in place of an effort.
        gradients: Where the gradients are kept: "ram"; "bf16", in memory in bfloat16, half as much
            and no second copy; or a folder, for a file in bfloat16 of which only tiles of columns
            are in memory.
        checkpoint: A folder that holds the run after each stage. The same call goes on from there,
            and ends with the masks of a run that was never stopped; after a finished run the call
            gives the result again. Other arguments or another model are refused; data and loss are
            not compared.
        process_group: Of `torch.distributed`. Every process makes the same call with the same data.
            Each process computes a share of the gradients and sends the share to all, d numbers a
            gradient; every process holds all gradients.
        verbose: Whether to time a batch and print the plan first (`mfac.plan`).
        progress: Called with a `PruningStep` after each step.

    Returns:
        Masks, achieved sparsity and what each step was predicted to cost.

    Raises:
        MemoryError: If the gradients take more memory than there is; before anything is computed.
        TypeError: If a parameter is of the wrong type.
        ValueError: If a value is out of range, the data runs out, the loss is no scalar or a
            gradient is not finite. The model is then as it was, as after any other exception.

    Cost: time O(stages · recomputations · d m²) beyond the gradients; memory two windows of m
    gradients of the live weights.

    Source: docs/derivation.md, "Pruning"; M-FAC, section 4; the joint update is numbered there as a
    difference.

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
    settings = checked_settings(locals())
    check_model_and_loss(model, loss_fn)
    targets = choose_targets(model, params, existing_zeros, passes_over=settings.rules.pattern.passes_over)
    with torch.random.fork_rng(devices=[]), generators_kept(data):
        torch.default_generator.manual_seed(seed)
        stream, ranks = BatchStream(data), Ranks(process_group)
        identity = {**settings.described(), "params": repr(targets.vector.names)}
        saved = None if checkpoint is None else Checkpoint.of(Path(checkpoint), identity, model)
        state = ranks.same(saved.load() if saved is not None and ranks.rank == 0 else None)
        with _restored_on_error(model):
            if state is None:
                planner = Planner(model, loss_fn, stream, targets, settings)
                settings, planned = planner.settle(timed=verbose, refuse=True)
                chosen = ranks.same((settings.rank, settings.total_stages))  # by one clock
                settings, found_mode = replace(settings, num_gradients=chosen[0], stages=chosen[1]), planner.mode
                if verbose and ranks.rank == 0:
                    print(planned)
                run = Run(model, loss_fn, stream, targets, settings, found_mode, ranks)
            else:
                settings, found_mode = replace(settings, **state["chosen"]), state["run"]["mode"]
                run = Run(model, loss_fn, stream, targets, settings, found_mode, ranks)
                run.load_state_dict(state["run"])
            report = run.run(progress, saved.save_run if saved is not None and ranks.rank == 0 else None)
            update_torch_masks_(model, report.masks)
        if batchnorm_batches and report.steps and normalised_layers(model):
            _reestimate(model, loss_fn, stream, batchnorm_batches, found_mode)
    return report


def plan(*arguments: Any, **named: Any) -> PruningPlan:
    """What `prune` would do with the same arguments: weights, batches, bytes and seconds.

    Nothing is changed. The gradients of the first batch are computed three times, to time them,
    and a pruning step on random numbers. The batch's forward pass is run once more, to see what it
    keeps for the backward pass. Of a one-shot iterator the first batch is taken. The time that data
    takes to load is not counted.

    Args:
        *arguments: As of `prune`.
        **named: As of `prune`; arguments of progress and checkpoints are passed over.

    Returns:
        The plan. Its bytes are held to within 10 % on large networks and its seconds within a
        factor of 1.5 on a machine that does nothing else.

    Raises:
        TypeError: As `prune` does.
        ValueError: As `prune` does, where the error shows beforehand.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 2)
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(32)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> planned = mfac.plan(model, loss_fn, data, sparsity=0.5)
        >>> planned.weights, planned.kept, planned.num_gradients
        (16, 8, 32)
    """
    bound = signature(prune).bind(*arguments, **named)
    bound.apply_defaults()
    given = bound.arguments
    settings = checked_settings(given)
    check_model_and_loss(given["model"], given["loss_fn"])
    passes_over = settings.rules.pattern.passes_over
    targets = choose_targets(given["model"], given["params"], given["existing_zeros"], passes_over=passes_over)
    with torch.random.fork_rng(devices=[]), generators_kept(given["data"]):
        torch.default_generator.manual_seed(given["seed"])
        planner = Planner(given["model"], given["loss_fn"], BatchStream(given["data"]), targets, settings)
        return planner.settle(timed=True, refuse=False)[1]


plan.__signature__ = signature(prune).replace(return_annotation="PruningPlan")  # type: ignore[attr-defined]


def _reestimate(
    model: nn.Module, loss_fn: LossFunction, stream: BatchStream, count: int, mode: Literal["eval", "train"]
) -> None:
    """Batch normalisation, after the weights are final: what fails here undoes nothing."""
    try:
        reestimate_batchnorm(model, loss_fn, islice(stream.rest(), count), mode)
    except Exception as error:  # of the caller's data or loss: anything
        warnings.warn(
            f"The network is pruned, but its batch-norm statistics are those of before: a batch failed with "
            f"{type(error).__name__}: {error}. Call mfac.reestimate_batchnorm(model, loss_fn, batches).",
            stacklevel=3,
        )


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
