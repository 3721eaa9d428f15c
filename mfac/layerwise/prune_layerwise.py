"""`mfac.prune_layerwise`: one call that prunes or rounds a model layer by layer."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mfac.core.checks.choices import check_flag
from mfac.core.checks.numbers import check_number
from mfac.curvature.damping import Damping, check_damping
from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module
from mfac.gradients.parameters import Selection
from mfac.gradients.prunable import PrunableWeight, describe_weights
from mfac.layerwise import tree
from mfac.layerwise.chain import InMemory, NamedBlock, find_chains
from mfac.layerwise.checkpoint import Checkpoint
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import DAMPING
from mfac.layerwise.processes import Processes
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.run import LayerwiseRun, Settings
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.solver import SolverName, resolve_solver
from mfac.layerwise.statistics import EnoughError
from mfac.layerwise.views import views_of
from mfac.layerwise.weight_files import Source
from mfac.layerwise.weights_on_disk import OUTSIDE, WeightsOnDisk
from mfac.masks.patterns import ByName, Pattern, resolve_pattern
from mfac.pruning.targets import choose_targets

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch: model, batch -> anything."""


def prune_layerwise(
    model: nn.Module,
    data: Iterable[Any],
    sparsity: float | Mapping[str, float] = 0.5,
    pattern: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
    method: SolverName | LayerSolver = "alps",
    *,
    refit: bool = False,
    quantize: Grid | None = None,
    blocks: Sequence[str] | None = None,
    damping: Damping = DAMPING,
    params: Selection = None,
    forward: Forward | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    process_group: dist.ProcessGroup | None = None,
    weights: Source | None = None,
    output: str | os.PathLike[str] | None = None,
) -> LayerwiseReport:
    """Prunes a model in place, each layer so that its outputs stay as they are on the data.

    Layers are solved in the order in which the model runs them, on the outputs of the layers solved
    before. Where the model has a list of like blocks, as transformers have, activations are kept
    between blocks and one block runs at a time; otherwise the model runs again for each layer, up
    to that layer.

    Args:
        model: Its linear layers, convolutions, transformers' `Conv1D` and the projections of
            `MultiheadAttention` are pruned, frozen or not. In evaluation mode meanwhile.
        data: Batches, each what model(**batch), model(*batch) or model(batch) takes; all of them
            are used, and kept in memory.
        sparsity: Share of zeros in each weight, in [0, 1), or one for each name or shell-style
            pattern of names. 0 with `quantize` rounds alone.
        pattern: "unstructured", "N:M", "AxB", an object, or one for each name, as for `prune`.
        method: "alps", "sparsegpt", "exact_obs", "wanda", "magnitude", or a function of Hessian,
            weight, pattern and grid (docs/extending/layer_solver.md).
        refit: Whether kept weights are fitted exactly on the mask that the method finds.
        quantize: Steps that kept weights are rounded to, in the same sweep.
        blocks: Names of the modules that are run one after the other; None to look for them.
        damping: λ of H = XᵀX/n + λI, or relative to the mean of its diagonal.
        params: Which weights, as for `prune`; None for all of known layers.
        forward: Runs the model on a batch, in place of the call above.
        checkpoint: A folder; solved blocks are written there, and a run that finds them goes on.
        progress: Called with a weight's name, how many are solved, and how many there are.
        process_group: Of `torch.distributed`. Every rank has the same model and data, runs its
            share of the batches and solves its share of the matrices; all end with the same bits.
        weights: A folder or files of safetensors, for a model larger than memory, whose parameters
            are on the meta device. One block at a time is read; what lies outside of the blocks
            stays in memory, and dense. Names are those of the state dict, with or without an index.
            Weights come to the device of the first batch, in the model's dtype.
        output: With `weights`, the folder that the pruned model goes to: a file for each block in
            the dtypes that `weights` has, an index as Hugging Face has it, and masks, which the
            report reads when they are used. The model itself stays on the meta device.

    Returns:
        Masks, the error of each layer, and what was left dense and why.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a number is out of range, a weight that is asked for cannot be solved, the
            data is empty or has fewer batches than there are ranks, the model does not take a
            batch, or inputs of a layer are not finite. With `weights`, also if the model has no one
            list of like blocks, or is not what the files hold, both before a weight is read; or if
            its blocks cannot be run by themselves, before one is solved.
        RuntimeError: If another rank failed, or `torch.distributed` is not initialised.
        NotPositiveDefiniteError: If a Hessian has no factor at the highest damping.

    Cost: about three passes over the data; for each layer that of the method, as their docstrings
    say. Memory: one block's inputs for all batches and one Hessian with its factors. With `weights`
    these are read about four times; the model takes the memory of one block and what is outside.

    Source: SparseGPT (2301.00774), ALPS (2406.07831), OBC (2208.11580), Wanda (2306.11695), GPTQ
    (2210.17323).

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> report = mfac.prune_layerwise(model, [torch.randn(64, 8)], sparsity=0.5)
        >>> report.sparsity
        0.5
    """
    processes = Processes(process_group)
    with processes.together():
        solver = resolve_solver(method)
        resolved = resolve_pattern(pattern)
        check_flag("refit", refit)
        check_damping(damping)
        if quantize is not None and not isinstance(quantize, Grid):
            raise TypeError(f"Parameter `quantize` should be a mfac.Grid or None. Found {type(quantize).__name__}.")
        for key, share in sparsity.items() if isinstance(sparsity, Mapping) else (("", sparsity),):
            check_number(f"sparsity[{key!r}]" if key else "sparsity", share, least=0, below=1)
        on_disk = not (weights is None and output is None)
        targets = choose_targets(model, params, "ignore", frozen=True, on_disk=on_disk)
        views, unseen = views_of(model, list(targets.vector.names))
        left_dense = {**targets.left_dense, **{one.name: one.why for one in unseen}}
        batches = listed_batches(data)
        chains = find_chains(model, views, blocks)
        store = where_weights_are(model, chains, batches[0], weights, output, processes)
        if isinstance(store, WeightsOnDisk):
            outside = [view.name for view in views if not any(block.holds(view) for block in chains[0])]
            left_dense.update(dict.fromkeys(outside, OUTSIDE))
            views = [view for view in views if view.name not in outside]
        if not views:
            raise ValueError(
                f"Parameter `params` should select a weight whose inputs can be seen. Found {sorted(left_dense)}."
            )
        selected = {view.name: view.parameter for view in views}
        described = describe_weights(model, selected)
        patterns = patterns_by_weight(resolved, described)
        settings = Settings(solver, sparsities(sparsity, list(selected)), patterns, refit, quantize, damping)
        call = forward if forward is not None else call_model
        saved = Checkpoint(checkpoint, settings, list(selected), processes) if checkpoint is not None else None
    processes.check_batches(len(batches))

    def finished(views: Any, results: Any) -> None:
        if saved is not None:
            saved.write(views, results)
        if progress is not None:
            progress(views[-1].name, len(results.layers) + len(results.left_dense), len(selected))

    def restore(views: Any, results: Any) -> bool:
        return saved is not None and saved.restore(views, results)

    inner = inner_module(model)
    with model_mode(model, "eval"), without_caches(model), torch.no_grad(), ExitStack() as stack:
        with processes.together():
            stack.enter_context(store)
            check_first(model, batches[0], up_to(chains[0][0], call) if store.on_disk else call)
        run = LayerwiseRun(
            views, lambda n: call(inner, batches[n]), len(batches), settings, finished, restore, processes, store
        )
        results = run.all(chains)
        if isinstance(store, WeightsOnDisk):
            store.finish(results.masks)
            results.notes += store.notes
    report = LayerwiseReport(
        {name: results.masks[name] for name in selected if name in results.masks},
        left_dense={**left_dense, **results.left_dense},
        layers=results.layers,
        seconds_forward=results.seconds_forward,
        notes=results.notes,
    )
    solved = [weight for weight in described if weight.name in results.masks]
    if isinstance(store, WeightsOnDisk):
        dense = {name: store.zeros[name] for name in report.left_dense if name in store.zeros}
        report.record_zeros_(resolved, store.kept_zeros, dense)
        for weight in solved:  # each by itself, so that its mask alone is in memory
            for one in patterns[weight.name].promises([weight], report.masks[weight.name].reshape(-1)):
                report.broken_units.update({broken.name: broken.count for broken in one.broken})
    else:
        report.record_(model, resolved, solved)
    return report


def where_weights_are(
    model: nn.Module,
    chains: Sequence[Sequence[NamedBlock]],
    batch: Any,
    weights: Source | None,
    output: str | os.PathLike[str] | None,
    processes: Processes,
) -> InMemory:
    """In the model, or in files; then the files are compared with the model.

    Args:
        model: The model.
        chains: Of its blocks.
        batch: One, whose first tensor says which device is meant.
        weights: Files, or None.
        output: A folder, or None.
        processes: That prune together.

    Returns:
        A context in which the model runs.

    Raises:
        ValueError: If one of `weights` and `output` is missing, or as `WeightsOnDisk` says.
    """
    if (weights is None) != (output is None):
        given, other = ("output", "weights") if weights is None else ("weights", "output")
        raise ValueError(f"Parameter `{other}` should be given together with `{given}`. Found None.")
    if weights is None or output is None:
        return InMemory()
    device = next((x.device for x in tree.tensors(batch).values()), torch.device("cpu"))
    return WeightsOnDisk(model, chains, weights, output, device, processes)


def up_to(block: NamedBlock, call: Forward) -> Forward:
    """A call that ends where a block begins.

    Args:
        block: The block.
        call: Runs the model.

    Returns:
        The call.
    """

    def stop(*_: Any) -> None:
        raise EnoughError

    def stopped(model: nn.Module, batch: Any) -> None:
        handle = block.module.register_forward_pre_hook(stop)
        try:
            with suppress(EnoughError):
                call(model, batch)
        finally:
            handle.remove()

    return stopped


def call_model(model: nn.Module, batch: Any) -> Any:
    """model(**batch) for a dict, model(*batch) for a tuple or list, otherwise model(batch).

    Of a tuple or list the model gets as many items as it has positional parameters, so that
    (inputs, labels) serve a model of inputs alone.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        What the model returns.
    """
    if isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch[: _positional(model)])
    return model(batch)


def _positional(model: nn.Module) -> int:
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return 1 if isinstance(model, nn.Sequential) else 1 << 30
    return sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)


def patterns_by_weight(pattern: Pattern, weights: Sequence[PrunableWeight]) -> dict[str, Pattern]:
    """The pattern of each weight alone.

    Args:
        pattern: For all weights.
        weights: What is known of each.

    Returns:
        {weight: pattern}.

    Raises:
        ValueError: If the pattern has units of several weights, or does not fit a weight.
    """
    pattern.check(weights)
    if any(len(group) > 1 for group in pattern.together(weights)):
        raise ValueError(
            f"Parameter `pattern` should have units within single weights, as layers are solved one at a time. "
            f"Found {str(pattern)!r}."
        )
    if not isinstance(pattern, ByName):
        return {weight.name: pattern for weight in weights}
    return {
        weight.name: next(one for key, one in pattern.patterns.items() if fnmatchcase(weight.name, key))
        for weight in weights
    }


def listed_batches(data: Iterable[Any]) -> list[Any]:
    """All batches.

    Args:
        data: An iterable that ends.

    Returns:
        The batches, at least one.

    Raises:
        TypeError: If it is a tensor, or no iterable.
        ValueError: If it is empty.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(f"Parameter `data` should be an iterable of batches. Found {type(data).__name__}.")
    batches = list(data)
    if not batches:
        raise ValueError("Parameter `data` should hold at least one batch. Found none.")
    return batches


def check_first(model: nn.Module, batch: Any, call: Forward) -> None:
    """Refuses batches that are longer than the model takes, or that it does not take at all.

    Args:
        model: The model.
        batch: The first batch.
        call: Runs the model on it.

    Raises:
        ValueError: If it does not take the batch.
    """
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    length = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() == 2 else 0
    if isinstance(most, int) and length > most:
        raise ValueError(
            f"Parameter `data` should yield sequences of at most {most} tokens, which the model's positions allow. "
            f"Found {length}."
        )
    try:
        call(inner_module(model), batch)
    except Exception as error:
        raise ValueError(
            f"Parameter `data` should yield batches that the model takes. Found that the first raises "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def without_caches(model: nn.Module) -> Generator[None]:
    """Models of transformers keep keys and values of earlier calls unless told otherwise.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    config = getattr(inner_module(model), "config", None)
    had = getattr(config, "use_cache", None)
    if config is None or had is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = had
