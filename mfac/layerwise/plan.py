"""What a layer-wise run will do, take and leave, known before it begins."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module, named_parameters
from mfac.gradients.parameters import Selection
from mfac.layerwise import tree
from mfac.layerwise.calling import Forward, by_number, call_model, listed_batches, plainly_called
from mfac.layerwise.chain import NamedBlock, find_chains
from mfac.layerwise.chosen import choose_views
from mfac.layerwise.finish import FisherFinish, bytes_of_finish, check_loss, checked_finish, language_loss
from mfac.layerwise.gram import AT_ONCE
from mfac.layerwise.order import segments_of
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.solver import SolverName, resolve_solver
from mfac.layerwise.statistics import EnoughError, like_experts
from mfac.layerwise.views import LayerView

_HELD: dict[str, tuple[float, float]] = {
    "magnitude": (2, 6.5),
    "wanda": (2, 7),
    "sparsegpt": (4, 7.5),
    "exact_obs": (5, 8),
    "alps": (7.5, 14),
}
"""Float64 matrices that a solver holds at its peak, measured: of H's size, and of the layer's."""


@dataclass(frozen=True)
class LayerwisePlan:
    """What `plan_layerwise` found.

    Attributes:
        weights: Name to shape of every weight that is solved, in order.
        left_dense: Name of every other weight tensor, and why.
        chains: For each chain of blocks the names of its blocks; activations are kept between them.
        batches: How many.
        activation_bytes: Inputs of one block for all batches; 0 without a chain.
        hessian_bytes: The Hessian with what is made of it, of the layer that takes most, and those
            of the experts that are solved with it, float64.
        solver_bytes: What the solver holds of the weights of that layer, float64.
        finish_bytes: What `finish` takes when the rest is done; 0 without.
        passes: How many passes of all data through the whole model, parts of passes added up.
        seconds_a_pass: As the first batch took.
    """

    weights: dict[str, tuple[int, ...]]
    left_dense: dict[str, str]
    chains: list[list[str]]
    batches: int
    activation_bytes: int
    hessian_bytes: int
    solver_bytes: int
    finish_bytes: int
    passes: float
    seconds_a_pass: float

    @property
    def bytes(self) -> int:
        """Memory beside the model and the data, at the most."""
        return max(self.activation_bytes + self.hessian_bytes + self.solver_bytes, self.finish_bytes)

    @property
    def seconds(self) -> float:
        """Of all passes, without the solver."""
        return self.passes * self.seconds_a_pass

    def __str__(self) -> str:
        size = sum(torch.Size(shape).numel() for shape in self.weights.values())
        kinds = (self.bytes, self.activation_bytes, self.hessian_bytes, self.solver_bytes, self.finish_bytes)
        every, activations, hessians, weights, finish = (f"{count / 2**20:.0f}" for count in kinds)
        lines = [
            f"{len(self.weights)} weight tensors, {size} weights, {self.batches} batches",
            f"  memory beside the model: {every} MiB: {activations} activations, {hessians} Hessians, {weights} "
            f"of the solver" + (f"; in the end {finish} of the finish" if self.finish_bytes else ""),
            f"  about {self.passes:.1f} passes over the data, {self.seconds:.0f} s, and the solver",
        ]
        lines += [f"  blocks {chain[0]!r} to {chain[-1]!r}, one at a time" for chain in self.chains]
        lines += [f"  {name} is left dense: it {why}" for name, why in self.left_dense.items()]
        return "\n".join(lines)


@torch.no_grad()
def planned(
    views: Sequence[LayerView],
    chains: Sequence[Sequence[NamedBlock]],
    run: Callable[[int], Any],
    batches: int,
    left_dense: dict[str, str],
    method: str = "alps",
    finish_bytes: int = 0,
) -> LayerwisePlan:
    """A plan, from two passes of the first batch.

    Args:
        views: The weights.
        chains: Of blocks.
        run: Runs the model on a batch, by its number.
        batches: How many.
        left_dense: What is not solved, and why.
        method: The solver's name; another counts as "sparsegpt".
        finish_bytes: What a finish takes.

    Returns:
        The plan.
    """
    began = time.perf_counter()
    run(0)
    seconds = time.perf_counter() - began
    segments = segments_of(views, chains, run)
    activations, passes = 0, 1.0
    for segment in segments:
        if segment.chain is None:
            passes += 0.5 * len(segment.views) + 0.5  # each runs as far as its layer
            continue
        activations = max(activations, _argument_bytes(segment.chain[0], run) * batches)
        # For each block the way to each of its stages and the way through.
        passes += 2.5
    hessians, weights = _HELD.get(method, _HELD["sparsegpt"])
    together: Counter[str] = Counter()  # sums of inputs that are there at once, as those of all experts
    for view in views:
        together[like_experts(view.name) or view.name] += sum(8 * columns**2 for _, columns in view.shapes)
    takes = [
        (
            int(8 * (hessians - 1) * columns**2)
            + together[like_experts(view.name) or view.name]
            + 4 * AT_ONCE * columns,
            int(8 * weights * rows * columns),
        )
        for view in views
        for rows, columns in view.shapes
    ]
    hessian_bytes, solver_bytes = max(takes, key=sum)
    return LayerwisePlan(
        {view.name: tuple(view.parameter.shape) for view in views},
        left_dense,
        [[block.name for block in chain] for chain in chains],
        batches,
        activations,
        hessian_bytes,
        solver_bytes,
        finish_bytes,
        passes,
        seconds * batches,
    )


def _argument_bytes(block: NamedBlock, run: Callable[[int], Any]) -> int:
    """What the first batch passes to a block."""
    found = 0

    def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal found
        found = sum(x.numel() * x.element_size() for x in tree.tensors((positional, named)).values())
        raise EnoughError

    handle = block.module.register_forward_pre_hook(hook, with_kwargs=True)
    with suppress(EnoughError):
        run(0)
    handle.remove()
    return found


def plan_layerwise(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sparsity: float | Mapping[str, float] = 0.5,
    method: SolverName | LayerSolver = "alps",
    finish: Literal["fisher"] | FisherFinish | None = None,
    loss_fn: LossFunction | None = None,
    params: Selection = None,
    blocks: Sequence[str] | None = None,
    forward: Forward | None = None,
) -> LayerwisePlan:
    """What `prune_layerwise` with the same arguments will do; nothing is changed.

    Args:
        model: The model.
        data: Batches; all are counted, and the first is run.
        sparsity: Share of zeros, or one for each name; what a finish takes depends on it.
        method: As for `prune_layerwise`.
        finish: As for `prune_layerwise`.
        loss_fn: As for `prune_layerwise`.
        params: Which weights.
        blocks: Names of blocks; None to look for them.
        forward: Runs the model on a batch.

    Returns:
        Weights, blocks, memory and passes. Three passes of one batch.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If nothing is left to solve, the data is empty or the model does not take it.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> mfac.plan_layerwise(model, [torch.randn(64, 8)]).weights
        {'0.weight': (16, 8), '2.weight': (4, 16)}
    """
    resolve_solver(method)
    name = method if isinstance(method, str) else ""
    finishing = checked_finish(finish)
    if (empty := next((name for name, p in named_parameters(model).items() if p.is_meta), None)) is not None:
        raise ValueError(
            f"Parameter `model` should have its weights in memory, as a plan runs it. Found {empty!r} on the meta "
            f"device: plan with a model of fewer blocks, and `prune_layerwise` the whole out of files."
        )
    batches = listed_batches(data)
    call = forward if forward is not None else call_model
    chosen = choose_views(model, params, batches, call)
    views, left_dense = chosen.views, chosen.left_dense
    inner = inner_module(model)
    with model_mode(model, "eval"), plainly_called(model):
        chains = find_chains(model, views, blocks)
        finish_bytes = 0
        if finishing is not None:
            loss = loss_fn if loss_fn is not None else partial(language_loss, run=call)
            check_loss(loss, inner, batches[0], loss_fn is None)
            names = [view.name for view in views]
            least = min(sparsity.values(), default=0.0) if isinstance(sparsity, Mapping) else sparsity
            finish_bytes = bytes_of_finish(inner, names, 1 - least, batches[0], loss, finishing)
        return planned(views, chains, by_number(inner, batches, call), len(batches), left_dense, name, finish_bytes)
