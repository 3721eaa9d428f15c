"""A layer-wise run: segments in order, stages within them, each solved on what came before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mfac.curvature.damping import Damping
from mfac.layerwise.chain import Chain, InMemory, NamedBlock
from mfac.layerwise.gram import Gram
from mfac.layerwise.grid import Grid
from mfac.layerwise.heeding import Heeding
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.order import Segment, segments_of
from mfac.layerwise.processes import Processes
from mfac.layerwise.report import LayerResult
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.stage_solver import MatrixTask, SolvedMatrix, StageSolver, untouched
from mfac.layerwise.statistics import Key, Stage, like_experts, stages_of
from mfac.layerwise.views import LayerView
from mfac.masks.patterns import Pattern


@dataclass(frozen=True)
class Settings:
    """What is asked of every weight; `heeding`: how much its outputs and positions count."""

    solver: LayerSolver
    sparsity: Mapping[str, float]
    patterns: Mapping[str, Pattern]
    refit: bool
    grid: Grid | None
    damping: Damping
    heeding: Heeding = field(default_factory=Heeding)


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

    def after(self, pruned: Results) -> Results:
        """These of a second sweep that rounded what the first one had pruned, with its masks."""
        layers = {
            name: replace(layer, seconds=layer.seconds + pruned.layers[name].seconds)
            for name, layer in self.layers.items()
        }
        notes = [*pruned.notes, *(note for note in self.notes if note not in pruned.notes)]
        seconds = pruned.seconds_forward + self.seconds_forward
        return Results(layers, pruned.masks, pruned.left_dense | self.left_dense, notes, seconds)


class LayerwiseRun:
    """Goes through a model.

    Args:
        views: The weights.
        run: Runs the model on a batch, by its number.
        batches: How many batches.
        settings: What is asked for.
        finished: Called with the weights of each block, or run of layers, that is solved.
        restore: Puts back what an earlier run found of such weights; whether it did. As `finished`,
            it is called by all processes.
        processes: That share the batches and the solutions.
        store: Where the weights of blocks are.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        run: Callable[[int], Any],
        batches: int,
        settings: Settings,
        finished: Callable[[Sequence[LayerView], Results], None],
        restore: Callable[[Sequence[LayerView], Results], bool],
        processes: Processes,
        store: InMemory,
    ) -> None:
        self.views, self._run, self.settings = views, run, settings
        self.batches, self._processes, self._store = list(range(batches)), processes, store
        self.results = Results()
        self._finished, self._restore = finished, restore

    def all(self, chains: Sequence[Sequence[NamedBlock]]) -> Results:
        """Solves every weight."""
        if self._store.on_disk:  # a chain, and weights of its blocks alone
            self._blocks(Segment(list(self.views), list(chains[0])))
            return self.results
        with self._processes.together():
            segments = segments_of(self.views, chains, self._run, self.batches)
        for segment in segments:
            if segment.chain is None or not self._blocks(segment):
                self._one_by_one(segment.views)
        in_chains = [segment.chain[0].name for segment in segments if segment.chain is not None]
        for chain in chains:
            if chain and chain[0].name not in in_chains:
                self.results.notes.append(
                    f"The whole model was run again for each layer of {chain[0].name!r} and the like, as other layers "
                    f"are called between its blocks."
                )
        return self.results

    def _blocks(self, segment: Segment) -> bool:
        """Solves a chain block by block; False where its blocks cannot be run by themselves."""
        assert segment.chain is not None
        chain = Chain(segment.chain, self._run, self._processes.held(self.batches), self._store)
        began = time.perf_counter()
        with self._processes.together():
            why = _shared(segment) or chain.begin()
        if (why := next((one for one in self._processes.gathered(why) if one is not None), None)) is not None:
            if self._store.on_disk:
                raise ValueError(
                    f"Parameter `model` should have blocks that can be run by themselves, with `weights`. Found that "
                    f"{why}."
                )
            self.results.notes.append(
                f"The whole model was run again for each layer of {segment.chain[0].name!r} and the like, as {why}."
            )
            return False
        self.results.seconds_forward += time.perf_counter() - began
        for block in segment.chain:
            views = [view for view in segment.views if block.holds(view)]
            with self._store.held(block, self.results.masks):
                self._stages(chain.run, views, like_experts)
                began = time.perf_counter()
                with self._processes.together():
                    chain.advance()
            self.results.seconds_forward += time.perf_counter() - began
        return True

    def _stages(self, run: Callable[[int], Any], views: Sequence[LayerView], like: Callable[[str], str | None]) -> None:
        """Solves the weights of a block, and is finished with all of them at once."""
        if not views or self._restore(views, self.results):
            return
        for stage in self._stages_of(run, views, like):
            self._stage(run, stage)
        with self._processes.together():
            self._finished(views, self.results)

    def _one_by_one(self, views: Sequence[LayerView]) -> None:
        """Solves weights by runs of the whole model, and is finished with each stage by itself."""
        for stage in self._stages_of(self._run, views, lambda _: None):
            if not self._restore(stage.views, self.results):
                self._stage(self._run, stage)
                with self._processes.together():
                    self._finished(stage.views, self.results)

    def _stages_of(
        self, run: Callable[[int], Any], views: Sequence[LayerView], like: Callable[[str], str | None]
    ) -> list[Stage]:
        began = time.perf_counter()
        with self._processes.together():
            # Of the blocks of a chain each process has its own batches, and the first.
            batches = self.batches if run is self._run or self._processes.size == 1 else self.batches[:1]
            stages = [stage.apart(self.settings.heeding.inputs) for stage in stages_of(run, views, like, batches)]
        self.results.seconds_forward += time.perf_counter() - began
        return stages

    def _stage(self, run: Callable[[int], Any], stage: Stage) -> None:
        began = time.perf_counter()
        for part, grams in self._processes.grams(run, [stage], self.batches, self.settings.heeding.inputs):
            self.results.seconds_forward += time.perf_counter() - began
            self._solve(part, grams)
            began = time.perf_counter()

    def _solve(self, stage: Stage, grams: dict[Key, Gram]) -> None:
        views = [view for view in stage.views if is_seen(view, stage, grams)]
        self.results.left_dense |= {view.name: view.when_unseen for view in stage.views if view not in views}
        for view in views:
            if not any(has_inputs(key, grams) for key in stage.keys[view.name]):
                raise ValueError(
                    f"Parameter `data` should reach every layer with inputs that are not all zero. Found only zeros at "
                    f"{view.name!r}. If no layer before it has lost all of its weights, give other data, or begin with "
                    f"a dense model and leave it out of `params`."
                )
        counts = [[grams[key].count if key in grams else 0 for key in stage.keys[view.name]] for view in views]
        samples = [
            sum(grams[key].count for key in dict.fromkeys(stage.keys[view.name]) if key in grams) for view in views
        ]
        asked = self.settings
        tasks = []
        for view in views:
            patterns = matrix_patterns(view, asked.patterns[view.name], asked.sparsity[view.name])
            pairs = zip(stage.keys[view.name], patterns, strict=True)
            outputs = asked.heeding.outputs.get(view.name, [None] * len(view.shapes))
            tasks.append(
                [
                    MatrixTask(view, number, key, pattern, outputs[number])
                    for number, (key, pattern) in enumerate(pairs)
                    if not view.partial or has_inputs(key, grams)
                ],
            )
        numbers = [[task.number for task in of_view] for of_view in tasks]
        solver = StageSolver(self._processes, asked.solver, asked.refit, asked.grid, asked.damping)
        solved = solver.solve(tasks, grams)
        for view, count, rows, places, found in zip(views, samples, counts, numbers, solved, strict=True):
            self._put(view, self._with_unseen(view, places, found), count, rows)

    def _with_unseen(
        self, view: LayerView, places: Sequence[int], found: Sequence[SolvedMatrix]
    ) -> Sequence[SolvedMatrix]:
        """All matrices of a weight, with those that no sample reached as they are."""
        if len(places) == len(view.shapes):
            return found
        solved, matrices = dict(zip(places, found, strict=True)), view.matrices()
        unseen = [number for number in range(len(matrices)) if number not in solved]
        stays = "are rounded to the nearest step" if self.settings.grid is not None else "stay dense"
        self.results.notes.append(
            f"Of the {len(matrices)} matrices of {view.name!r} {len(unseen)} saw no sample of the calibration data and "
            f"{stays}: {', '.join(map(str, unseen[:20]))}{', ...' if len(unseen) > 20 else ''}."
        )
        dtype = view.parameter.dtype
        return [
            solved[number] if number in solved else untouched(matrix, self.settings.grid, dtype)
            for number, matrix in enumerate(matrices)
        ]

    def _put(self, view: LayerView, found: Sequence[SolvedMatrix], samples: int, counts: Sequence[int]) -> None:
        """Writes a solution into its weight, and notes it; `counts` are the rows of each matrix."""
        view.write([one.solution.weight for one in found])
        self.results.masks[view.name] = view.assembled([one.solution.kept for one in found], torch.bool)
        worst = max(found, key=lambda one: one.raised)
        if worst.raised > 1:
            self.results.notes.append(
                f"The damping of {view.name!r} was raised {worst.raised:g}-fold to {worst.damping:.3g}, "
                f"as its Hessian had no factor."
            )
        pairs = list(zip(found, counts, strict=True))  # of sums over rows, not of means
        whole, lost = (sum(getattr(one, what) * count for one, count in pairs) for what in ("whole", "lost"))
        self.results.layers[view.name] = LayerResult(
            lost / whole if whole > 0 else 0.0,
            max(one.damping for one in found),
            worst.raised,
            samples,
            sum(one.dead for one in found),
            sum(one.seconds for one in found),
            tuple(one.solution.grid for one in found if one.solution.grid is not None),
        )


def is_seen(view: LayerView, stage: Stage, grams: Mapping[Key, Gram]) -> bool:
    """Whether there are inputs of all matrices of a weight, or of some, where that is enough."""
    keys = stage.keys[view.name]
    if view.partial:
        return any(has_inputs(key, grams) for key in keys)
    return all(key in grams for key in keys)


def has_inputs(key: Key, grams: Mapping[Key, Gram]) -> bool:
    """Whether inputs are there and not all zero, as those of experts without a token may be."""
    return key in grams and bool(grams[key].total.diagonal().any())


def _shared(segment: Segment) -> str | None:
    """Why blocks cannot be solved one by one, where a weight is of several of them."""
    for view in segment.views:
        if not any(block.holds_alone(view) for block in segment.chain or ()):
            return f"{view.name!r} is the weight of layers in several places"
    return None


def matrix_patterns(view: LayerView, pattern: Pattern, sparsity: float) -> list[MatrixPattern]:
    """The pattern on each matrix of a weight, with counts that add up to the weight's exactly."""
    shapes = view.shapes
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
