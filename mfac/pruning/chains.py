"""Chains of weights through successive layers: they keep a very sparse network connected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.axes import as_matrix


def best_chains(weights: Sequence[PrunableWeight], scores: Tensor, most: int) -> Tensor:
    """The weights of the best chains to each output of a run of layers, by dynamic programming.

    Layers form a run as long as each has as many input channels as the one before it has outputs,
    or a multiple, as after flattening. Only shapes are looked at. Where a network connects its
    layers in another way, a few weights are chosen for nothing, and no other harm is done. Within a
    layer scores count by their rank, so that no layer's scale rules.

    Args:
        weights: What is known of each parameter, in the network's order.
        scores: Of all d weights, -inf where there is none any more.
        most: How many weights may be chosen at most.

    Returns:
        [d] bool; nothing where a run's chains do not fit.
    """
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    starts = [0]
    for weight in weights:
        starts.append(starts[-1] + weight.size)
    runs = _runs(weights)
    shares = [most * len(run) // max(1, sum(map(len, runs))) for run in runs]
    for run, share in zip(runs, shares, strict=True):
        tables = [_table(weights[i], scores[starts[i] : starts[i + 1]]) for i in run]
        for index, entries in zip(run, _chains(tables, share), strict=True):
            chosen[starts[index] + entries] = True
    return chosen & torch.isfinite(scores)


def _runs(weights: Sequence[PrunableWeight]) -> list[list[int]]:
    """Successive parameters whose shapes chain, two or more."""
    runs: list[list[int]] = []
    outputs = 0
    for index, weight in enumerate(weights):
        if weight.layout is None:
            outputs = 0
            continue
        outs, ins, _ = as_matrix(weight).shape
        if outputs and (ins * weight.groups) % outputs == 0:
            runs[-1].append(index)
        else:
            runs.append([index])
        outputs = outs
    return [run for run in runs if len(run) > 1]


def _table(weight: PrunableWeight, scores: Tensor) -> tuple[Tensor, Tensor, int]:
    """The best entry from each input to each output: its rank in (0, 1] or -inf, and its number."""
    entries = as_matrix(weight).to(scores.device)
    ranks = torch.empty_like(scores, dtype=torch.float64)
    ranks[torch.argsort(scores, stable=True)] = torch.linspace(
        1 / scores.numel(), 1, scores.numel(), dtype=torch.float64, device=scores.device
    )
    ranks = ranks.masked_fill(~torch.isfinite(scores) & (scores < 0), -torch.inf)
    best, where = ranks[entries].max(2)  # [outs, inputs]
    number = entries.gather(2, where[:, :, None])[:, :, 0]
    return best, number, weight.groups


def _chains(tables: list[tuple[Tensor, Tensor, int]], most: int) -> list[Tensor]:
    """Each layer's entries of the best chains to the last layer's outputs, the best first."""
    reached: Tensor | None = None  # the best sum to each output channel so far
    ways: list[tuple[Tensor, Tensor]] = []  # per layer: the entry to each output, and the output before it
    for best, number, groups in tables:
        outs, ins = best.shape
        offset = (torch.arange(outs, device=best.device) // (outs // groups) * ins)[:, None]
        channel = offset + torch.arange(ins, device=best.device)  # of all input channels
        before = torch.zeros_like(channel) if reached is None else channel * reached.numel() // (ins * groups)
        total = best if reached is None else best + reached[before]
        reached, at = total.max(1)
        ways.append((number.gather(1, at[:, None])[:, 0], before.gather(1, at[:, None])[:, 0]))
    assert reached is not None
    ends = torch.argsort(reached, descending=True, stable=True)[: most // len(tables)]
    ends = ends[torch.isfinite(reached[ends])]
    found: list[Tensor] = []
    for entry, before in reversed(ways):
        found.append(entry[ends].unique())
        ends = before[ends]
    return found[::-1]
