"""A layer-wise run: segments in order, stages within them, each solved on what came before."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mfac.curvature.damping import Damping
from mfac.layerwise.chain import Chain, NamedBlock
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.order import Segment, segments_of
from mfac.layerwise.report import LayerResult
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.solver import solved
from mfac.layerwise.statistics import Gram, Key, Stage, grams_of, stages_of
from mfac.layerwise.views import LayerView
from mfac.masks.patterns import Pattern

NO_SAMPLES = "saw no sample of the calibration data"


@dataclass(frozen=True)
class Settings:
    """What is asked of every weight."""

    solver: LayerSolver
    sparsity: Mapping[str, float]
    patterns: Mapping[str, Pattern]
    refit: bool
    grid: Grid | None
    damping: Damping


@dataclass
class Results:
    """What a run has found so far.

    Attributes:
        layers: Results by weight.
        masks: Masks by weight, of the weight's shape.
        left_dense: Weights that no sample reached, and why they stay.
        notes: Sentences for the report.
        seconds_forward: Time of passes.
    """

    layers: dict[str, LayerResult] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    left_dense: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds_forward: float = 0.0


class LayerwiseRun:
    """Goes through a model.

    Args:
        views: The weights.
        run: Runs the model on a batch, by its number.
        batches: How many batches.
        settings: What is asked for.
        finished: Called with the weights of each block, or run of layers, that is solved.
        restore: Puts back what an earlier run found of such weights; whether it did.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        run: Callable[[int], Any],
        batches: int,
        settings: Settings,
        finished: Callable[[Sequence[LayerView], Results], None],
        restore: Callable[[Sequence[LayerView], Results], bool],
    ) -> None:
        self.views, self._run, self.settings = views, run, settings
        self.batches = list(range(batches))
        self.results = Results()
        self._finished, self._restore = finished, restore

    def all(self, chains: Sequence[Sequence[NamedBlock]]) -> Results:
        """Solves every weight."""
        for segment in segments_of(self.views, chains, self._run):
            if segment.chain is None or not self._blocks(segment):
                self._stages(self._run, segment.views, lambda _: None)
        return self.results

    def _blocks(self, segment: Segment) -> bool:
        """Solves a chain block by block; False where its blocks cannot be run by themselves."""
        assert segment.chain is not None
        chain = Chain(segment.chain, self._run, self.batches)
        began = time.perf_counter()
        if (why := chain.begin()) is not None:
            self.results.notes.append(
                f"The whole model was run again for each layer of {segment.chain[0].name!r} and the like, as {why}."
            )
            return False
        self.results.seconds_forward += time.perf_counter() - began
        for block in segment.chain:
            views = [view for view in segment.views if block.holds(view)]
            self._stages(chain.run, views, _like_experts)
            began = time.perf_counter()
            chain.advance()
            self.results.seconds_forward += time.perf_counter() - began
        return True

    def _stages(self, run: Callable[[int], Any], views: Sequence[LayerView], like: Callable[[str], str | None]) -> None:
        if not views or self._restore(views, self.results):
            return
        began = time.perf_counter()
        stages = stages_of(run, views, like)
        self.results.seconds_forward += time.perf_counter() - began
        for stage in stages:
            began = time.perf_counter()
            grams = grams_of(run, stage, self.batches)
            self.results.seconds_forward += time.perf_counter() - began
            self._solve(stage, grams)
        self._finished(views, self.results)

    def _solve(self, stage: Stage, grams: dict[Key, Gram]) -> None:
        hessians: dict[Key, Hessian] = {}
        users = [key for view in stage.views for key in dict.fromkeys(stage.keys[view.name])]
        for view in stage.views:
            keys = stage.keys[view.name]
            if not all(key in grams for key in keys):
                self.results.left_dense[view.name] = NO_SAMPLES
                continue
            for key in dict.fromkeys(keys):
                if key not in hessians:
                    gram = grams[key]
                    hessians[key] = Hessian(gram.total.div_(gram.count), self.settings.damping)
            self._solve_view(
                view, [hessians[key] for key in keys], sum(grams[key].count for key in dict.fromkeys(keys))
            )
            for key in dict.fromkeys(keys):  # whose factors nobody needs any more
                users.remove(key)
                if key not in users:
                    del hessians[key], grams[key]

    def _solve_view(self, view: LayerView, hessians: list[Hessian], samples: int) -> None:
        began = time.perf_counter()
        matrices = view.matrices()
        patterns = matrix_patterns(view, self.settings.patterns[view.name], self.settings.sparsity[view.name])
        found = [
            solved(self.settings.solver, hessian, matrix, pattern, self.settings.refit, self.settings.grid)
            for hessian, matrix, pattern in zip(hessians, matrices, patterns, strict=True)
        ]
        whole = sum(float(h.error(w).sum()) for h, w in zip(hessians, matrices, strict=True))
        lost = sum(float(h.error(s.weight - w).sum()) for h, w, s in zip(hessians, matrices, found, strict=True))
        view.write([solution.weight for solution in found])
        self.results.masks[view.name] = view.assembled([solution.kept for solution in found], torch.bool)
        worst = max(hessians, key=lambda h: h.damping / h.asked)
        if worst.damping > worst.asked:
            self.results.notes.append(
                f"The damping of {view.name!r} was raised {worst.damping / worst.asked:g}-fold to {worst.damping:.3g}, "
                f"as its Hessian had no factor."
            )
        self.results.layers[view.name] = LayerResult(
            lost / whole if whole > 0 else 0.0,
            max(h.damping for h in hessians),
            worst.damping / worst.asked,
            samples,
            sum(int(h.dead.sum()) for h in hessians),
            time.perf_counter() - began,
            tuple(solution.grid for solution in found if solution.grid is not None),
        )


def matrix_patterns(view: LayerView, pattern: Pattern, sparsity: float) -> list[MatrixPattern]:
    """The pattern on each matrix of a weight, with counts that add up to the weight's exactly."""
    shapes = [tuple(index.shape) for index in view.index]
    total = sum(rows * columns for rows, columns in shapes)
    kept = total - round(sparsity * total)
    found, seen = [], 0
    for rows, columns in shapes:
        of_matrix = MatrixPattern.of(pattern, rows, columns, view.positions, sparsity)
        if pattern.sparsity is None:
            share = kept * (seen + rows * columns) // total - kept * seen // total
            of_matrix = MatrixPattern(pattern, rows, columns, view.positions, share)
        seen += rows * columns
        found.append(of_matrix)
    return found


def _like_experts(name: str) -> str | None:
    """A name without the number of an expert; None for what is no expert's."""
    parts = name.split(".")
    for place, (part, after) in enumerate(pairwise(parts)):
        if "expert" in part.lower() and after.isdecimal():
            return ".".join([*parts[: place + 1], "*", *parts[place + 2 :]])
    return None


def sparsities(sparsity: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """The sparsity of each weight, by the first name or pattern that matches it."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(names, float(sparsity))
    found = {}
    for name in names:
        key = next((key for key in sparsity if key == name), None)
        key = next((k for k in sparsity if fnmatch.fnmatchcase(name, k)), None) if key is None else key
        if key is None:
            raise ValueError(
                f"Parameter `sparsity` should give every weight one. Found none for {name!r}; '*' stands for all "
                f"others."
            )
        found[name] = float(sparsity[key])
    return found
