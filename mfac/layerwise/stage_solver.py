"""The matrices of a stage, each solved once: by this process, or shared out among several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfac.curvature.damping import Damping
from mfac.layerwise.gram import Gram
from mfac.layerwise.grid import Grid, GridValues, single
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.hessians import Hessians
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.processes import Processes
from mfac.layerwise.solution import LayerSolution, LayerSolver
from mfac.layerwise.solver import solved
from mfac.layerwise.solvers.exact_obs import exact_obs, mask_of_order, obs_on_mask, obs_order
from mfac.layerwise.solvers.refit import refit as refit_weights
from mfac.layerwise.solvers.sweep import sweep
from mfac.layerwise.statistics import Key
from mfac.layerwise.views import LayerView
from mfac.masks.patterns import Blocks


@dataclass(frozen=True)
class MatrixTask:
    """A matrix that is to be solved.

    Attributes:
        view: Its weight.
        number: Which of the weight's matrices it is.
        key: Of its inputs.
        pattern: What is kept.
        outputs: How much each output counts, [rows]; None for all alike.
    """

    view: LayerView
    number: int
    key: Key
    pattern: MatrixPattern
    outputs: Tensor | None = None

    @property
    def cost(self) -> int:
        """Proportional to the time that most solvers take."""
        return self.pattern.columns**2 * (self.pattern.columns + self.pattern.rows)


@dataclass(frozen=True)
class SolvedMatrix:
    """What was found of a matrix.

    Attributes:
        solution: Weights, of the parameter's dtype, and mask.
        whole: tr(WHWᵀ), without damping.
        lost: tr(δHδᵀ), without damping.
        damping: λ that was taken.
        raised: How many times what was asked for that is.
        dead: How many columns were always zero.
        seconds: Wall time, on the process that solved it.
    """

    solution: LayerSolution
    whole: float
    lost: float
    damping: float
    raised: float
    dead: int
    seconds: float


class StageSolver:
    """Solves the matrices of stages.

    By several processes each solves some of the matrices, and all receive the solutions. What is on
    its own for each row is shared out by rows: the order of `exact_obs`, and weights that are
    fitted on a mask.

    Args:
        processes: That share the work.
        solver: Of one matrix.
        refit: Whether kept weights are fitted exactly.
        grid: Steps, or None.
        damping: λ, or relative to the mean of the diagonal.
    """

    def __init__(
        self, processes: Processes, solver: LayerSolver, refit: bool, grid: Grid | None, damping: Damping
    ) -> None:
        self._processes, self._solver, self._refit, self._grid = processes, solver, refit, grid
        self._damping = damping

    def solve(self, tasks: Sequence[Sequence[MatrixTask]], grams: dict[Key, Gram]) -> Iterator[list[SolvedMatrix]]:
        """Solves all matrices of a stage.

        Args:
            tasks: For each weight those of its matrices.
            grams: Of all keys; they are used up.

        Yields:
            For each weight its matrices, solved. The weight itself is not changed.

        Raises:
            RuntimeError: If another process failed.
        """
        if self._processes.size > 1:
            yield from self._shared(tasks, grams)
            return
        hessians = Hessians(grams, self._damping, (task.key for of_view in tasks for task in of_view))
        for of_view in tasks:
            matrices = of_view[0].view.matrices()
            found = []
            for task in of_view:
                found.append(self._solved(task, hessians.take(task.key), matrices[task.number]))
                if hessians.release(task.key):
                    grams.pop(task.key)
            yield found

    def _solved(self, task: MatrixTask, hessian: Hessian, weight: Tensor) -> SolvedMatrix:
        began = time.perf_counter()
        solution = self._weighted(task, hessian, weight, self._refit, self._grid)
        return _measured(hessian, weight, solution, began, task.view.parameter.dtype)

    def _weighted(
        self, task: MatrixTask, hessian: Hessian, weight: Tensor, refit: bool, grid: Grid | None
    ) -> LayerSolution:
        """A solution in which rows count by their outputs' weights: rows are scaled, and back."""
        if task.outputs is None:
            return solved(self._solver, hessian, weight, task.pattern, refit, grid)
        root = task.outputs.sqrt()[:, None].to(weight)
        found = solved(self._solver, hessian, weight * root, task.pattern, refit, grid)
        if found.grid is None:
            return LayerSolution(found.weight / root, found.kept)
        values = GridValues(found.grid.grid, single(found.grid.scales / root), found.grid.zeros)
        return LayerSolution(values.weights(found.grid.integers(found.weight)), found.kept, values)

    def _shared(self, tasks: Sequence[Sequence[MatrixTask]], grams: dict[Key, Gram]) -> Iterator[list[SolvedMatrix]]:
        every = [task for of_view in tasks for task in of_view]
        owners = self._owners(every)
        mine = self._own(tasks, owners, grams)
        hessians = Hessians(grams, self._damping, (task.key for task in every if self._by_rows(task)))
        for of_view in tasks:
            matrices: Sequence[Tensor] = ()
            found = []
            for task in of_view:
                place = (task.view.name, task.number)
                one = None if place not in owners else self._received(task, mine.pop(place, None), owners[place])
                if self._by_rows(task):
                    matrices = matrices or task.view.matrices()
                    one = self._of_rows(task, hessians.take(task.key), matrices[task.number], one)
                    hessians.release(task.key)
                assert one is not None
                found.append(one)
            yield found

    def _is_exact(self, task: MatrixTask) -> bool:
        return self._solver is exact_obs and not isinstance(task.pattern.pattern, Blocks)

    def _refits(self, task: MatrixTask) -> bool:
        return self._refit and task.pattern.kept < task.pattern.rows * task.pattern.columns

    def _by_rows(self, task: MatrixTask) -> bool:
        """Whether all processes have a part in the solution."""
        return self._is_exact(task) or self._refits(task)

    def _owners(self, tasks: Sequence[MatrixTask]) -> dict[tuple[str, int], int]:
        """Who solves which matrix: the dearest first, each by who has least to do."""
        load = [0] * self._processes.size
        owners = {}
        for task in sorted((task for task in tasks if not self._is_exact(task)), key=lambda task: -task.cost):
            owner = load.index(min(load))
            load[owner] += task.cost
            owners[task.view.name, task.number] = owner
        return owners

    def _own(
        self,
        tasks: Sequence[Sequence[MatrixTask]],
        owners: dict[tuple[str, int], int],
        grams: dict[Key, Gram],
    ) -> dict[tuple[str, int], SolvedMatrix]:
        """Solves this process's matrices, before anything is sent: nobody waits meanwhile."""
        found = {}
        rank = self._processes.rank
        with self._processes.together():
            own = [[task for task in of_view if owners.get((task.view.name, task.number)) == rank] for of_view in tasks]
            hessians = Hessians(grams, self._damping, (task.key for of_view in own for task in of_view))
            for of_view in own:
                matrices = of_view[0].view.matrices() if of_view else ()
                for task in of_view:
                    began = time.perf_counter()
                    hessian, weight = hessians.take(task.key), matrices[task.number]
                    if self._refits(task):  # the mask alone; its weights are fitted by all
                        solution = self._weighted(task, hessian, weight, False, None)
                    else:
                        solution = self._weighted(task, hessian, weight, False, self._grid)
                    one = _measured(hessian, weight, solution, began, task.view.parameter.dtype)
                    found[task.view.name, task.number] = one
                    hessians.release(task.key)
        return found

    def _received(self, task: MatrixTask, mine: SolvedMatrix | None, owner: int) -> SolvedMatrix:
        """A solution on all processes, from the one that has it."""
        tensors = None
        if mine is not None:
            numbers = (mine.whole, mine.lost, mine.damping, mine.raised, mine.dead, mine.seconds)
            tensors = [torch.tensor(numbers, dtype=torch.float64), mine.solution.weight, mine.solution.kept]
            if (values := mine.solution.grid) is not None:
                tensors += [values.scales, values.zeros]
            tensors = [tensor.to(task.view.parameter.device) for tensor in tensors]
        sent, *parts = self._processes.broadcast(tensors, owner, task.view.parameter.device)
        whole, lost, damping, raised, dead, seconds = sent.tolist()
        return SolvedMatrix(self._put_together(parts), whole, lost, damping, raised, int(dead), seconds)

    def _of_rows(self, task: MatrixTask, hessian: Hessian, weight: Tensor, found: SolvedMatrix | None) -> SolvedMatrix:
        """The part of a solution that is on its own for each row."""
        began = time.perf_counter()
        if found is None:
            kept = self._exact_mask(task, hessian, weight)
        else:
            kept = found.solution.kept
            hessian.damping = found.damping  # which a factor may have raised, on its owner

        def finish(rows: Tensor, kept_rows: Tensor) -> list[Tensor]:
            if bool(kept_rows.all()) and self._grid is None:
                done = LayerSolution(rows, kept_rows)
            elif not self._refits(task):
                done = obs_on_mask(hessian, rows.masked_fill(hessian.dead, 0), kept_rows, self._grid)
            else:
                done = LayerSolution(refit_weights(hessian, rows, kept_rows), kept_rows)
                if self._grid is not None:
                    done = sweep(hessian, done.weight, task.pattern, self._grid, kept_rows)
            values = [] if done.grid is None else [done.grid.scales, done.grid.zeros]
            return [done.weight.masked_fill(~kept_rows, 0), kept_rows, *values]

        solution = self._put_together(self._processes.by_rows(finish, weight, kept))
        earlier = 0.0 if found is None else found.seconds
        return _measured(hessian, weight, solution, began - earlier, task.view.parameter.dtype)

    def _exact_mask(self, task: MatrixTask, hessian: Hessian, weight: Tensor) -> Tensor:
        """The mask of `exact_obs`."""
        drop = weight.numel() - task.pattern.kept
        if drop == 0:
            return torch.ones_like(weight, dtype=torch.bool)
        live = weight.masked_fill(hessian.dead, 0)
        if task.outputs is not None:
            live = live * task.outputs.sqrt()[:, None]
        order, losses = self._processes.by_rows(lambda rows: obs_order(hessian, rows, task.pattern), live)
        return mask_of_order(order, losses, drop)

    def _put_together(self, parts: Sequence[Tensor]) -> LayerSolution:
        weight, kept, *values = parts
        if not values:
            return LayerSolution(weight, kept)
        assert self._grid is not None
        return LayerSolution(weight, kept, GridValues(self._grid, *values))


def untouched(weight: Tensor, grid: Grid | None, dtype: torch.dtype) -> SolvedMatrix:
    """A matrix without samples: dense, and with a grid rounded to the nearest of its steps.

    Args:
        weight: [rows, columns] float64.
        grid: Steps, or None.
        dtype: Of the parameter.

    Returns:
        The matrix, without an error.
    """
    kept = torch.ones_like(weight, dtype=torch.bool)
    found = LayerSolution(weight, kept)
    if grid is not None:
        values = grid.fit(weight)
        found = LayerSolution(values.weights(values.integers(weight)), kept, values)
    return SolvedMatrix(LayerSolution(found.weight.to(dtype), kept, found.grid), 0.0, 0.0, 0.0, 1.0, 0, 0.0)


def _measured(
    hessian: Hessian, weight: Tensor, solution: LayerSolution, began: float, dtype: torch.dtype
) -> SolvedMatrix:
    """A solution as a parameter of a dtype has it, with its errors."""
    written = solution.weight.to(dtype)
    whole = float(hessian.error(weight).sum())
    lost = float(hessian.error(written - weight).sum())
    return SolvedMatrix(
        LayerSolution(written, solution.kept, solution.grid),
        whole,
        lost,
        hessian.damping,
        hessian.damping / hessian.asked,
        int(hessian.dead.sum()),
        time.perf_counter() - began,
    )
