"""Optimal Brain Surgeon on the empirical Fisher: one call that prunes a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from mfac.core.checks.choices import check_choice
from mfac.core.checks.numbers import check_count
from mfac.core.named import resolve
from mfac.curvature.damping import Damping, check_damping, relative
from mfac.gradients.backward import LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import check_model_and_loss, resolve_mode
from mfac.gradients.modes import Mode
from mfac.gradients.parameters import Selection
from mfac.gradients.threads import threads_restored
from mfac.masks.patterns import Pattern, resolve_pattern
from mfac.pruning.allocation import Allocation, AllocationName, resolve_allocation
from mfac.pruning.batchnorm import normalised_layers, reestimate_batchnorm
from mfac.pruning.compensation import COMPENSATIONS, Compensation, CompensationName
from mfac.pruning.memory import check_memory
from mfac.pruning.obs import Rules
from mfac.pruning.report import PruningReport, PruningStep
from mfac.pruning.run import Run, Settings
from mfac.pruning.saliency import SALIENCIES, Saliency, SaliencyName
from mfac.pruning.schedule import SCHEDULES, Schedule, ScheduleName
from mfac.pruning.targets import ExistingZeros, choose_targets
from mfac.pruning.torch_masks import update_torch_masks_


def prune(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    sparsity: float | None = None,
    params: Selection = None,
    saliency: SaliencyName | Saliency = "obs",
    compensation: CompensationName | Compensation = "joint",
    pattern: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
    allocation: AllocationName | Allocation | Mapping[str, float] = "global",
    num_gradients: int = 256,
    damping: Damping = relative(0.02),  # ruff: ignore[function-call-in-default-argument]  a frozen value
    block_size: int | None = None,
    recomputations: int = 4,
    stages: int = 8,
    seed: int = 0,
    *,
    schedule: ScheduleName | Schedule = "geometric",
    existing_zeros: ExistingZeros = "auto",
    mode: Mode = "auto",
    per_sample: bool = False,
    batchnorm_batches: int = 100,
    step_check: bool = False,
    refits: int = 0,
    progress: Callable[[PruningStep], None] | None = None,
) -> PruningReport:
    """Prunes a model in place with second-order information, from trained weights and without fine-tuning.

    Each stage collects fresh gradients at the weights as they then are, and drops in `recomputations` steps the
    weights of least saliency over all layers together, while compensation moves the kept ones; the density falls
    geometrically over all steps. Weights that are zero already count as dropped and stay zero; see `existing_zeros`.
    The report lists every weight tensor that is left dense, and why: frozen, without a gradient, of an embedding.

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
        params: Which weights: None for those of every Linear, convolution, recurrent layer, attention projection and
            Hugging Face `Conv1D` that require a gradient and get one; names or shell-style patterns, the parameters
            themselves, or a predicate of name and parameter. Names are without the prefixes of wrappers. A weight that
            layers share counts once; with an N:M pattern it is grouped as in the first of them.
        saliency: "obs", w²/(2 (F⁻¹)_pp); "magnitude"; "obd"; "snip"; "wanda"; "greedy", OBS to exhaustion inside
            blocks; "refined", exchanges that lower the joint objective; or a `Saliency`.
        compensation: "joint", the exact minimiser over the kept weights; "summed", the sum of single-weight updates,
            as M-FAC's own pruner; "greedy", exact inside blocks; "none"; or a `Compensation`.
        pattern: "unstructured"; "N:M" with 1 <= N < M <= 64, as "2:4"; "AxB", blocks of A outputs by B inputs; "rows";
            "channels"; a `Pattern`; or one of these for each name or shell-style pattern.
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
        existing_zeros: What weights that are zero already are: "keep", pruned; "ignore", weights like any other;
            "auto", pruned, but in a tensor of zeros alone, a branch that starts at zero: that stays whole.
        mode: Of the model while gradients are collected, as for `collect_gradients`.
        per_sample: One gradient a sample in place of one a batch.
        batchnorm_batches: Batches on which the running statistics of batch-norm layers are re-estimated after pruning;
            0 for not at all. Frozen layers keep theirs, batches of one sample are passed over, and if a batch fails
            the network stays pruned: a warning says what to call.
        step_check: Whether the change of the kept weights is scaled by 1, ½, ¼ or 0 in each step, whichever has the
            least loss on 16 batches that are taken for it. Data that can be gone through only once is not checked.
        refits: Solves of the kept weights after the last stage, each with fresh gradients.
        progress: Called with a `PruningStep` after each step.

    Returns:
        Masks, achieved sparsity and what each step was predicted to cost.

    Raises:
        MemoryError: If the gradients take more memory than there is; before anything is computed.
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
    rules = Rules(
        resolve("saliency", saliency, SALIENCIES, Saliency),  # type: ignore[type-abstract]
        resolve_pattern(pattern),
        resolve_allocation(allocation),
        resolve("compensation", compensation, COMPENSATIONS, Compensation),  # type: ignore[type-abstract]
    )
    check_choice("existing_zeros", existing_zeros, ("auto", "keep", "ignore"))
    check_choice("mode", mode, ("auto", "eval", "train"))
    check_count("batchnorm_batches", batchnorm_batches)
    if check_count("seed", seed) >= 2**63:
        raise ValueError(f"Parameter `seed` should be below 2**63. Found {seed}.")

    settings = Settings(
        rules=rules,
        schedule=resolve("schedule", schedule, SCHEDULES, Schedule),  # type: ignore[type-abstract]
        sparsity=sparsity,
        num_gradients=check_count("num_gradients", num_gradients, least=1),
        damping=check_damping(damping),
        block_size=None if block_size is None else check_count("block_size", block_size, least=1),
        recomputations=check_count("recomputations", recomputations, least=1),
        stages=check_count("stages", stages, least=1),
        per_sample=per_sample,
        keep_zeros=existing_zeros != "ignore",
        step_check=step_check,
        refits=check_count("refits", refits),
    )
    targets = choose_targets(model, params, existing_zeros)
    check_memory(targets.vector, num_gradients, recomputations, needs_fisher=rules.needs_fisher)
    with torch.random.fork_rng(devices=[]), threads_restored():
        torch.default_generator.manual_seed(seed)
        stream = BatchStream(data)
        with _restored_on_error(model):
            found_mode = resolve_mode(model, loss_fn, stream, mode) if rules.needs_fisher else "eval"
            report = Run(model, loss_fn, stream, targets, settings, found_mode).run(progress)
            update_torch_masks_(model, report.masks)
        if batchnorm_batches and report.steps and normalised_layers(model):
            _reestimate(model, loss_fn, stream, batchnorm_batches, found_mode)
    return report


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
