"""Which zeros a pruned network may have: any, up to a sparsity; or N:M, at most N of M successive weights kept."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mfac.core import ops
from mfac.core.checks.numbers import check_number
from mfac.gradients.parameters import PRUNABLE_LAYERS
from mfac.masks.masks import lowest, num_dropped_at

DEFAULT_SPARSITY = 0.9
MOST_IN_GROUP = 64  # of the operator


class Pattern(Protocol):
    """How many weights are left in the end, and which go on the way there."""

    def num_kept(self, live: Tensor) -> int:
        """How many weights are left after the last step.

        Args:
            live: Weights kept before the first, [d] bool.
        """

    def dropped(self, saliency: Tensor, live: Tensor, count: int) -> Tensor:
        """Which weights a step drops.

        Args:
            saliency: ρ >= 0 of the live weights, in order.
            live: Weights kept before the step, [d] bool.
            count: How many live weights to drop.

        Returns:
            Mask over the live weights, True = dropped.
        """


@dataclass(frozen=True)
class Unstructured:
    """Any weights, up to a share of all."""

    sparsity: float
    dim: int

    def num_kept(self, live: Tensor) -> int:
        """What the sparsity leaves, or fewer where fewer are alive."""
        return min(int(live.sum()), self.dim - num_dropped_at(self.sparsity, self.dim))

    def dropped(self, saliency: Tensor, live: Tensor, count: int) -> Tensor:
        """The lowest saliencies."""
        return lowest(saliency, count)


@dataclass(frozen=True)
class SemiStructured:
    """N:M, at most `keep` of `group` successive weights along the input channels of each layer.

    Attributes:
        keep: N.
        group: M.
        layouts: Of each parameter in turn, (outer, axis, inner): its shape as the groups see it, row-major.
    """

    keep: int
    group: int
    layouts: tuple[tuple[int, int, int], ...]

    def mask(self, scores: Tensor) -> Tensor:
        """Which weights the pattern keeps by these scores, [d] -> [d] bool."""
        pieces = scores.split([outer * axis * inner for outer, axis, inner in self.layouts])
        masks = [
            ops.nm_mask(piece.view(layout), self.keep, self.group)
            for piece, layout in zip(pieces, self.layouts, strict=True)
        ]
        return torch.cat([mask.view(-1) for mask in masks])

    def num_kept(self, live: Tensor) -> int:
        """Of every group N, or as many as it has or are alive: no step changes that."""
        return int((self.mask(live.float()) & live).sum())

    def dropped(self, saliency: Tensor, live: Tensor, count: int) -> Tensor:
        """The lowest saliencies of those weights that the pattern drops by the saliencies of this step."""
        scores = saliency.new_full(live.shape, -1.0).masked_scatter_(live, saliency)  # what is dead goes first
        candidates = ~self.mask(scores)[live]
        chosen = torch.zeros_like(candidates)
        return chosen.masked_scatter_(candidates, lowest(saliency[candidates], count))


def resolve_pattern(
    pattern: str, sparsity: float | None, model: nn.Module, selected: Mapping[str, nn.Parameter]
) -> Pattern:
    """The pattern that `mfac.prune` was asked for, over the parameters selected.

    Args:
        pattern: "unstructured" or "N:M".
        sparsity: Share of zeros; None for 0.9, or with N:M for what that gives.
        model: Whose layers say which axis of a weight its input channels are.
        selected: The parameters to prune.

    Returns:
        The pattern.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the pattern is none of these, the sparsity is out of range or not the pattern's own, or a
            parameter has no input channels to group.
    """
    if sparsity is not None:
        check_number("sparsity", sparsity, least=0, below=1)
    if pattern == "unstructured":
        return _unstructured(DEFAULT_SPARSITY if sparsity is None else sparsity, selected)
    keep, group = _parse(pattern)
    if sparsity is not None and abs(sparsity - (1 - keep / group)) > 1e-6:
        raise ValueError(
            f"Parameter `sparsity` should be left out with pattern={pattern!r}, which fixes it, or be "
            f"{1 - keep / group:g}. Found {sparsity!r}."
        )
    layouts = _layouts(model, selected)
    for name in selected:
        if name not in layouts:
            raise ValueError(
                f"Parameter `params` should select weights of Linear layers and convolutions with pattern={pattern!r}. "
                f"Found {name!r}, which has no input channels to group."
            )
    return SemiStructured(keep, group, tuple(layouts[name] for name in selected))


def _unstructured(sparsity: float, selected: Mapping[str, nn.Parameter]) -> Unstructured:
    dim = sum(parameter.numel() for parameter in selected.values())
    if num_dropped_at(sparsity, dim) == dim:
        raise ValueError(
            f"Parameter `sparsity` should leave at least one of the {dim} prunable weights. Found {sparsity!r}."
        )
    return Unstructured(sparsity, dim)


def _parse(pattern: str) -> tuple[int, int]:
    if not isinstance(pattern, str):
        raise TypeError(f"Parameter `pattern` should be a string. Found {type(pattern).__name__}.")
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", pattern)
    keep, group = map(int, found.groups()) if found else (0, 0)
    if not 1 <= keep < group <= MOST_IN_GROUP:
        raise ValueError(
            f"Parameter `pattern` should be 'unstructured' or 'N:M' with 1 <= N < M <= {MOST_IN_GROUP}. "
            f"Found {pattern!r}."
        )
    return keep, group


def _layouts(model: nn.Module, selected: Mapping[str, nn.Parameter]) -> dict[str, tuple[int, int, int]]:
    """(outer, axis, inner) of the selected weights of Linears and convolutions, by the first layer that has each."""
    names = {id(parameter): name for name, parameter in selected.items()}
    layouts: dict[str, tuple[int, int, int]] = {}
    for layer in model.modules():
        if isinstance(layer, PRUNABLE_LAYERS) and (name := names.get(id(layer.weight))):
            shape = selected[name].shape
            if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                # [in, out / groups, ...], with the input channels of each of the layer's groups in turn
                layout = layer.groups, shape[0] // layer.groups, math.prod(shape[1:])
            else:
                layout = shape[0], shape[1], math.prod(shape[2:])
            layouts.setdefault(name, layout)
    return layouts
