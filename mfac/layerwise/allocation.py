"""How many weights each layer keeps: all the same share, by shape, or by what layers lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice
from mfac.core.selection import highest
from mfac.curvature.damping import Damping
from mfac.gradients.naming import check_all_match, first_match
from mfac.layerwise.hessians import Hessians
from mfac.layerwise.processes import Processes
from mfac.layerwise.statistics import merged_stages
from mfac.layerwise.views import LayerView
from mfac.pruning.allocation import apportion

AllocationName = Literal["auto", "uniform", "erk", "global"]

FLOOR = 0.1
"""The least that "global" leaves a layer, of what all the same share would leave it."""


def check_allocation(allocation: AllocationName) -> AllocationName:
    """Accepts a name.

    Args:
        allocation: What was given.

    Returns:
        The same.

    Raises:
        ValueError: If it is no allocation's.
    """
    check_choice("allocation", allocation, ("auto", "uniform", "erk", "global"))
    return allocation


def by_shape(views: Sequence[LayerView], sparsity: float) -> dict[str, float]:
    """ERK: density in proportion to Σ shape / Π shape, at most 1.

    Args:
        views: The weights.
        sparsity: Of all together.

    Returns:
        Name to sparsity.

    Source: RigL (Evci et al. 2019, 1911.11134).
    """
    sizes = [view.parameter.numel() for view in views]
    counts = apportion(
        sum(sizes) - round(sparsity * sum(sizes)),
        [float(sum(view.parameter.shape)) for view in views],
        [0] * len(views),
        sizes,
    )
    return _sparsities(views, counts)


@torch.no_grad()
def by_loss(
    views: Sequence[LayerView],
    run: Callable[[int], Any],
    batches: Sequence[int],
    sparsity: float,
    damping: Damping,
    processes: Processes,
) -> dict[str, float]:
    """One threshold for all layers on what dropping a weight costs, as a share of its layer.

    The cost of a weight is w²/(H⁻¹)_jj over tr(WHWᵀ), on the dense model's own inputs. Each layer
    keeps at least a tenth of what the same share for all would leave it.

    Args:
        views: The weights.
        run: Runs the model on a batch, by its number.
        batches: Which batches.
        sparsity: Of all together.
        damping: Of H.
        processes: That share the batches.

    Returns:
        Name to sparsity. A pass over the data for each GiB of Hessians; what no batch reaches has
        the same share.
    """
    scores: dict[str, Tensor] = {}
    for stage, grams in processes.grams(run, merged_stages(run, views), batches):
        seen = [view for view in stage.views if all(key in grams for key in stage.keys[view.name])]
        hessians = Hessians(grams, damping, (key for view in seen for key in stage.keys[view.name]))
        for view in seen:
            keys = stage.keys[view.name]
            rows = [grams[key].count / grams[keys[0]].count for key in keys]  # as multiples of the first matrix's
            each = list(zip(map(hessians.take, keys), view.matrices(), rows, strict=True))
            whole = sum(float(hessian.error(matrix).sum()) * share for hessian, matrix, share in each)
            parts = [(w.square() / hessian.inverse.diagonal()).flatten() * share for hessian, w, share in each]
            scores[view.name] = (torch.cat(parts) / max(whole, torch.finfo(torch.float64).tiny)).float()
            for key in keys:
                hessians.release(key)
    counted = [view for view in views if view.name in scores]
    found = {view.name: sparsity for view in views}
    if not counted:
        return found
    for view in counted:
        least = min(view.parameter.numel(), round(FLOOR * (1 - sparsity) * view.parameter.numel()))
        scores[view.name].masked_fill_(highest(scores[view.name], least), torch.inf)
    every = torch.cat([scores[view.name].cpu() for view in counted])
    kept = highest(every, every.numel() - round(sparsity * every.numel()))
    counts = [int(part.sum()) for part in kept.split([scores[view.name].numel() for view in counted])]
    return {**found, **_sparsities(counted, counts)}


def _sparsities(views: Sequence[LayerView], counts: Sequence[int]) -> dict[str, float]:
    return {view.name: 1 - count / view.parameter.numel() for view, count in zip(views, counts, strict=True)}


def by_name(sparsity: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The sparsity of each weight, by the first name or pattern that matches it.

    Args:
        sparsity: Name or shell-style pattern to sparsity.
        names: Of the weights.

    Returns:
        Name to sparsity.

    Raises:
        ValueError: If a weight has none, or a pattern matches none.
    """
    found = {}
    for name in names:
        key = first_match(name, sparsity)
        if key is None:
            raise ValueError(
                f"Parameter `sparsity` should give every weight one. Found none for {name!r}; '*' stands for all "
                f"others."
            )
        found[name] = float(sparsity[key])
    check_all_match("sparsity", sparsity, names)
    return found
