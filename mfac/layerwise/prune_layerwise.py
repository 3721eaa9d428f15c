"""`mfac.prune_layerwise`: one call that prunes or rounds a model layer by layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from mfac.core.checks.choices import check_flag
from mfac.core.checks.numbers import check_number
from mfac.curvature.damping import Damping, check_damping
from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module
from mfac.gradients.parameters import Selection
from mfac.layerwise import tree
from mfac.layerwise.allocation import AllocationName, by_loss, by_name, by_shape, check_allocation
from mfac.layerwise.calling import (
    Forward,
    by_number,
    call_model,
    check_batches,
    listed_batches,
    patterns_by_weight,
    plainly_called,
    up_to,
)
from mfac.layerwise.chain import InMemory, NamedBlock, find_chains
from mfac.layerwise.checkpoint import Checkpoint
from mfac.layerwise.chosen import choose_views
from mfac.layerwise.fingerprint import of_function, of_rest
from mfac.layerwise.finish import (
    FinishResult,
    FisherFinish,
    check_loss,
    checked_finish,
    finish_with_fisher,
    language_loss,
)
from mfac.layerwise.grid import Grid
from mfac.layerwise.heeding import Heeding, heeding_of
from mfac.layerwise.hessian import DAMPING
from mfac.layerwise.processes import Processes
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.run import LayerwiseRun, Results, Settings
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.solver import SolverName, resolve_solver
from mfac.layerwise.solvers.sweep import keep_zeros
from mfac.layerwise.views import check_weights
from mfac.layerwise.weight_files import Source
from mfac.layerwise.weights_on_disk import OUTSIDE, WeightsOnDisk
from mfac.masks.patterns import Pattern, resolve_pattern


def prune_layerwise(
    model: nn.Module,
    data: Iterable[Any],
    sparsity: float | Mapping[str, float] = 0.5,
    pattern: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
    method: SolverName | LayerSolver = "alps",
    *,
    allocation: AllocationName = "auto",
    refit: bool = False,
    quantize: Grid | None = None,
    blocks: Sequence[str] | None = None,
    damping: Damping = DAMPING,
    weigh_inputs: bool = False,
    weigh_outputs: bool = False,
    finish: Literal["fisher"] | FisherFinish | None = None,
    loss_fn: LossFunction | None = None,
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
        model: Its linear layers, convolutions, transformers' `Conv1D`, the projections of
            `MultiheadAttention`, recurrent layers and stacks of experts are pruned, frozen or not.
            In evaluation mode meanwhile.
        data: Batches, each what model(**batch), model(*batch) or model(batch) takes; all of them
            are used, and kept in memory. Labels in a tuple, as (inputs, labels), are left out.
        sparsity: Share of zeros in [0, 1) of all weights together, or one for each name or
            shell-style pattern of names. 0 with `quantize` rounds alone.
        pattern: "unstructured", "N:M", "AxB", an object, or one for each name, as for `prune`.
        method: "alps", "sparsegpt", "exact_obs", "wanda", "magnitude"; "keep_zeros", which rounds a
            sparse model and leaves its zeros, whatever `sparsity`; or a function of Hessian,
            weight, pattern and grid (docs/extending/layer_solver.md).
        allocation: Which layers are sparser than others. "uniform": none; "erk": by shape;
            "global": one threshold on what weights cost, as shares of their layers; "auto":
            "uniform" in models with a list of like blocks, and "global" in others. Where `sparsity`
            has names or the pattern fixes it, these decide.
        refit: Whether kept weights are fitted exactly on the mask that the method finds.
        quantize: Steps that kept weights are rounded to, in the same sweep.
        blocks: Names of the modules that are run one after the other; None to look for them.
        damping: λ of H = XᵀX/n + λI, or relative to the mean of its diagonal.
        weigh_inputs: Whether positions of a linear layer's inputs, as tokens, count by how much the
            loss heeds the layer's output there, its squared gradient on the dense model, and at
            least as in the mean; inputs longer than four times the median count as of that length.
            Of language models it keeps the values of the few tokens that all others attend to. With
            both `quantize` and `finish` it counts in the rounding alone.
        weigh_outputs: Whether outputs of a layer count by how much the loss heeds them, the mean
            square of its gradients there, on the dense model. Zeros then fall where the loss heeds
            them least.
        finish: "fisher": in the end the kept weights of all layers move together along the loss, a
            pass over seven of eight batches with `mfac.MFAC`; the eighth say whether it helped. Or
            a `FisherFinish` with other numbers. With `quantize` weights are pruned first, then
            finished, and then rounded in a second sweep that keeps the zeros.
        loss_fn: loss_fn(model, batch) -> scalar for these three; None for the next token's negative
            log likelihood, as for `evaluate_perplexity`.
        params: Which weights, as for `prune`; None for all of known layers.
        forward: Runs the model on a batch, in place of the call above.
        checkpoint: A folder; solved blocks are written there, and a run that finds them goes on.
        progress: Called with a weight's name, how many are solved, and how many there are; with
            both `quantize` and `finish` once in each sweep.
        process_group: Of `torch.distributed`. Every rank has the same model and data, runs its
            share of the batches and solves its share of the matrices; all end with the same bits.
        weights: A folder or files of safetensors, for a model larger than memory, whose parameters
            are on the meta device. One block at a time is read; what lies outside of the blocks
            stays in memory, and dense. Names are those of the state dict, with or without an index.
            Weights come to the device of the first batch, in the model's dtype.
        output: With `weights`, the folder that the pruned model goes to: a file for each block in
            the dtypes that `weights` has, an index as Hugging Face has it, what describes the model
            beside its weights, and masks, which the report reads when they are used. The model
            itself stays on the meta device.

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

    Cost: about four passes over the data; for each layer that of the method, as their docstrings
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
        if not isinstance(model, nn.Module):
            raise TypeError(f"Parameter `model` should be a torch.nn.Module. Found {model!r:.200}.")
        solver = resolve_solver(method)
        resolved = resolve_pattern(pattern)
        if progress is not None and not callable(progress):
            raise TypeError(f"Parameter `progress` should be a function or None. Found {type(progress).__name__}.")
        check_flag("refit", refit)
        check_flag("weigh_outputs", weigh_outputs)
        check_flag("weigh_inputs", weigh_inputs)
        check_damping(damping)
        if quantize is not None and not isinstance(quantize, Grid):
            raise TypeError(
                f"Parameter `quantize` should be a mfac.Grid or None, as mfac.Grid(bits=4). Found {quantize!r}."
            )
        if solver is keep_zeros and quantize is None:
            raise ValueError(
                "Parameter `quantize` should be given with method='keep_zeros', which leaves zeros as they are and "
                "changes nothing else. Found None."
            )
        check_allocation(allocation)
        if allocation == "global" and weights is not None:
            raise ValueError(
                'Parameter `allocation` should be "uniform" or "erk" with `weights`: one threshold for all layers '
                "needs all of them in memory. Found 'global'."
            )
        finishing = checked_finish(finish, weights is not None)
        if loss_fn is not None and not callable(loss_fn):
            raise TypeError(f"Parameter `loss_fn` should be a function or None. Found {loss_fn!r}.")
        if (weigh_outputs or weigh_inputs) and weights is not None:
            name = "weigh_outputs" if weigh_outputs else "weigh_inputs"
            raise ValueError(f"Parameter `{name}` should be False with `weights`: it runs the whole model.")
        for key, share in sparsity.items() if isinstance(sparsity, Mapping) else (("", sparsity),):
            check_number(f"sparsity[{key!r}]" if key else "sparsity", share, least=0, below=1)
        on_disk = not (weights is None and output is None)
        batches = listed_batches(data)
        call = forward if forward is not None else call_model
        chosen = choose_views(model, params, batches, call, on_disk)
        views, left_dense = chosen.views, chosen.left_dense
        chains = find_chains(model, views, blocks)
        store = where_weights_are(model, chains, batches[0], weights, output, processes)
        if isinstance(store, WeightsOnDisk):
            outside = [view.name for view in views if not any(block.holds_alone(view) for block in chains[0])]
            left_dense.update(dict.fromkeys(outside, OUTSIDE))
            views = [view for view in views if view.name not in outside]
        if not views:
            raise ValueError(
                f"Parameter `params` should select a weight whose inputs can be seen. Found {sorted(left_dense)}."
            )
        selected = {view.name: view.parameter for view in views}
        check_weights(views)
        described = [one for one in chosen.described(model) if one.name in selected]
        patterns = patterns_by_weight(resolved, described)
        shares = by_name(sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}, list(selected))
    processes.check_same(batches, views)

    def finished(saved: Checkpoint | None) -> Callable[[Any, Results], None]:
        def tell(views: Any, results: Results) -> None:
            if saved is not None:
                saved.write(views, results)
            if progress is not None:
                progress(views[-1].name, len(results.layers) + len(results.left_dense), len(selected))

        return tell

    inner = inner_module(model)
    finished_with: FinishResult | None = None
    with model_mode(model, "eval"), plainly_called(model), torch.no_grad(), ExitStack() as stack:
        with processes.together():
            stack.enter_context(store)
            if store.on_disk:
                check_batches(model, batches, up_to(chains[0][0], call))

        run_batch = by_number(inner, batches, call)
        free = [view for view in views if patterns[view.name].sparsity is None]
        kind = ("uniform" if chains else "global") if allocation == "auto" else allocation
        if kind != "uniform" and not isinstance(sparsity, Mapping) and sparsity > 0 and free:
            every = list(range(len(batches)))
            shares |= (
                by_shape(free, sparsity)
                if kind == "erk"
                else by_loss(free, run_batch, every, sparsity, damping, processes)
            )
        loss = loss_fn if loss_fn is not None else partial(language_loss, run=call)
        if finishing is not None or weigh_outputs or weigh_inputs:
            with processes.together():
                check_loss(loss, inner, batches[0], loss_fn is None)
        heeded = Heeding()
        if weigh_outputs or weigh_inputs:
            with processes.together():
                heeded = heeding_of(inner, views, batches, loss, weigh_outputs, weigh_inputs)
        settings = Settings(solver, shares, patterns, refit, quantize, damping, heeded)
        twice = finishing is not None and quantize is not None
        first = replace(settings, grid=None, heeding=replace(heeded, inputs={})) if twice else settings

        about = (
            {}
            if checkpoint is None
            else {
                "model": of_rest(inner, views),
                "forward": of_function(call),
                "loss_fn": of_function(loss) if weigh_outputs or weigh_inputs or finishing is not None else "",
            }
        )

        def swept(settings: Settings, folder: Path | None) -> tuple[Results, Checkpoint | None]:
            saved = None
            with processes.together():
                if folder is not None:
                    saved = Checkpoint(folder, settings, list(selected), batches, processes, about)
            hooks = finished(saved), saved.restore if saved is not None else lambda views, results: False
            return LayerwiseRun(views, run_batch, len(batches), settings, *hooks, processes, store).all(chains), saved

        folder = None if checkpoint is None else Path(checkpoint)
        results, saved = swept(first, folder)
        if finishing is not None and results.masks:
            with processes.together():
                finished_with = saved.restore_finish(views, finishing) if saved is not None else None
                if finished_with is None:
                    finished_with = finish_with_fisher(inner, results.masks, batches, loss, finishing)
                    if saved is not None:
                        saved.write_finish(views, finishing, finished_with)
        if twice and results.masks:
            rounding = replace(settings, solver=keep_zeros, refit=False)
            rounded, _ = swept(rounding, None if folder is None else folder / "rounded")
            results = rounded.after(results)
        if not results.masks:
            raise ValueError(
                f"Parameter `data` should reach the layers that are pruned. Found that no batch reaches one of "
                f"{len(views)}, as {views[0].name!r}; the model is as it was."
            )
        if isinstance(store, WeightsOnDisk):
            store.finish(results.masks)
            results.notes += store.notes
    report = LayerwiseReport(
        {name: results.masks[name] for name in selected if name in results.masks},
        left_dense={**left_dense, **results.left_dense},
        layers=results.layers,
        seconds_forward=results.seconds_forward,
        notes=results.notes,
        finish=finished_with,
        layouts={name: layout for name, layout in chosen.layouts.items() if name in results.masks},
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
