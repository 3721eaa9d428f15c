"""What the pruner's steps ask for beside the Fisher: saliencies, and masks of N:M patterns."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mfac.bench.measurement import READ, Measurement, Setting
from mfac.bench.timing import check, relative_error
from mfac.core import ops

PATTERNS = ((2, 4), (4, 8), (16, 32))
LAYERS = {"Linear": (512, 512, 1), "conv": (256, 256, 9)}
"""Weights [out, in, kernel]."""


def plain_saliency(weights: Tensor, inverse_diagonal: Tensor) -> Tensor:
    """What plain torch would do for w²/(2 (F⁻¹)_pp) in float64: four passes, one allocation."""
    return weights.to(torch.float64, copy=True).square_().div_(inverse_diagonal).mul_(0.5)


def plain_mask(scores: Tensor, keep: int, group: int) -> Tensor:
    """`nm_mask` in plain torch for complete groups: a stable sort, or all pairs in small groups."""
    outer, axis, inner = scores.shape
    groups = scores.view(outer, axis // group, group, inner)
    if group > 8:
        highest = groups.argsort(dim=2, stable=True)[:, :, group - keep :]
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, highest, True).view(scores.shape)
    above = torch.zeros(groups.shape, dtype=torch.uint8, device=scores.device)
    for i in range(1, group):
        for j in range(i):
            later_is_higher = groups[:, :, i] >= groups[:, :, j]
            above[:, :, i] += later_is_higher
            above[:, :, j] += ~later_is_higher
    return (above >= group - keep).view(scores.shape)


def pruning(setting: Setting) -> list[Measurement]:
    """Saliencies and masks, against compositions of plain torch, timed in turn.

    Args:
        setting: Shapes and rounds.

    Returns:
        A line for each dtype of the weights, and for each pattern and layout of a layer.
    """
    lines = []
    for dtype in (torch.float32, torch.float64):
        for dim in (setting.dim, 16 * setting.dim):
            weights, diagonal = setting.normal(dim, dtype=dtype), setting.normal(dim, dtype=dtype).abs() + 1
            ours = partial(ops.obs_saliency, weights, diagonal)
            plain = partial(plain_saliency, weights, diagonal)
            check("obs_saliency", relative_error(ours(), plain()), 1e-14)
            seconds, rates = setting.time({"ours": ours, "plain": plain}, READ, rounds=3 * setting.rounds)
            work = weights.nbytes + diagonal.nbytes + 8.0 * dim
            lines.append(
                Measurement(
                    "obs_saliency",
                    *(1, dim, str(dtype).removeprefix("torch."), seconds["ours"], work, rates[READ]),
                    plain=seconds["plain"],
                )
            )
    for layer, shape in LAYERS.items():
        scores = setting.normal(*shape, dtype=torch.float64)
        for keep, group in PATTERNS:
            ours, plain = partial(ops.nm_mask, scores, keep, group), partial(plain_mask, scores, keep, group)
            check("nm_mask", float((ours() != plain()).sum()), 0)
            seconds, rates = setting.time({"ours": ours, "plain": plain}, READ, rounds=3 * setting.rounds)
            lines.append(
                Measurement(
                    f"nm_mask {keep}:{group}, {layer}",
                    *(1, scores.numel(), "float64", seconds["ours"], 9.0 * scores.numel(), rates[READ]),
                    plain=seconds["plain"],
                )
            )
    return lines
