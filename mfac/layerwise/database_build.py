"""A database built: every layer solved at every level, on what the dense model's layers see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfac.curvature.damping import Damping
from mfac.layerwise.database_files import SolvedLevel, layer_path, read_about, write_index, write_layer
from mfac.layerwise.fingerprint import of_data, of_function, of_weights
from mfac.layerwise.grid import Grid
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.hessians import Hessians
from mfac.layerwise.level import Level
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.processes import Processes
from mfac.layerwise.run import has_inputs, is_seen, matrix_patterns
from mfac.layerwise.solution import LayerSolution, LayerSolver
from mfac.layerwise.solver import solved
from mfac.layerwise.solvers.exact_obs import check_obs_pattern, exact_obs, mask_of_order, obs_on_mask, obs_order
from mfac.layerwise.stage_solver import untouched
from mfac.layerwise.statistics import Key, merged_stages
from mfac.layerwise.views import LayerView
from mfac.masks.patterns import Pattern, Unstructured, resolve_pattern


@dataclass(frozen=True)
class DatabaseSettings:
    """What is asked of every weight.

    Attributes:
        solver: Of one layer.
        levels: Of each weight.
        patterns: Of each weight, for levels that have none of their own.
        refit: Whether kept weights are fitted exactly.
        damping: λ, or relative to the mean of the diagonal.
    """

    solver: LayerSolver
    levels: Mapping[str, Sequence[Level]]
    patterns: Mapping[str, Pattern]
    refit: bool
    damping: Damping

    def pattern(self, name: str, level: Level) -> Pattern:
        """Of a weight at a level; one without zeros follows no pattern but its own."""
        if level.pattern is not None:
            return resolve_pattern(level.pattern)
        return self.patterns[name] if level.sparsity > 0 else Unstructured()


class DatabaseBuild:
    """Goes through the layers of a dense model, which stays as it is.

    Args:
        views: The weights.
        run: Runs the model on a batch, by its number.
        batches: The batches.
        settings: What is asked for.
        folder: That files are written to.
        progress: Called with a weight's name, how many are done, and how many there are.
        about: What else an earlier build in the folder should have had.

    Raises:
        ValueError: If a level does not fit a weight, or the folder has another database.
    """

    def __init__(
        self,
        views: Sequence[LayerView],
        run: Callable[[int], Any],
        batches: Sequence[Any],
        settings: DatabaseSettings,
        folder: Path,
        progress: Callable[[str, int, int], None] | None,
        about: Mapping[str, str],
    ) -> None:
        self._about = about
        self.views, self._run, self.settings, self.folder = views, run, settings, folder
        self.batches, self._data = list(range(len(batches))), of_data(batches)
        self._progress = progress
        self._check_levels()
        self._asked = self._described()
        self._paths = {view.name: layer_path(folder, number, view.name) for number, view in enumerate(views)}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"Parameter `folder` should be a folder. Found a file at {str(folder)!r}.")
        folder.mkdir(parents=True, exist_ok=True)
        self._done = {view.name for view in views if self._paths[view.name].exists()}
        self._check_done()

    def all(self, left_dense: Mapping[str, str]) -> None:
        """Solves what no earlier build has solved, and writes the index.

        Args:
            left_dense: Weights without a view, and why.
        """
        unseen = {}
        waiting = [view for view in self.views if view.name not in self._done]
        for stage, grams in Processes().grams(self._run, merged_stages(self._run, waiting), self.batches):
            seen = [view for view in stage.views if is_seen(view, stage, grams)]
            unseen.update({view.name: view.when_unseen for view in stage.views if view not in seen})
            keys_of: dict[str, list[Key | None]] = {}
            for view in seen:
                keys_of[view.name] = [
                    key if has_inputs(key, grams) or not view.partial else None for key in stage.keys[view.name]
                ]
            uses = (key for of_view in keys_of.values() for key in of_view if key is not None)
            hessians = Hessians(grams, self.settings.damping, uses)
            for view in seen:
                keys = [key for key in keys_of[view.name] if key is not None]
                of_matrices = [None if key is None else hessians.take(key) for key in keys_of[view.name]]
                counts = [0 if key is None else grams[key].count for key in keys_of[view.name]]
                self._solve(view, of_matrices, counts, sum(grams[key].count for key in dict.fromkeys(keys)))
                for key in keys:
                    if hessians.release(key):
                        del grams[key]
        layers = {view.name: read_about(self._paths[view.name]) for view in self.views if view.name in self._done}
        write_index(self.folder, layers, {**left_dense, **unseen}, self._asked)

    def _solve(self, view: LayerView, hessians: list[Hessian | None], counts: list[int], samples: int) -> None:
        """All levels of a weight; of its matrices those without samples stay dense in each."""
        matrices = view.matrices()
        every = sum(counts) / len([count for count in counts if count])  # rows of a matrix, in the mean
        shares = [count / every for count in counts]
        whole = sum(
            share * float(h.error(w).sum())
            for h, w, share in zip(hessians, matrices, shares, strict=True)
            if h is not None
        )
        orders: dict[tuple[int, object], tuple[Tensor, Tensor]] = {}
        weight = view.parameter.detach()
        levels = []
        for level in self.settings.levels[view.name]:
            if level.is_dense:
                levels.append(SolvedLevel(level.key, weight, torch.ones_like(weight, dtype=torch.bool), (), 0.0, 0.0))
                continue
            patterns = matrix_patterns(view, self.settings.pattern(view.name, level), level.sparsity)
            found = [
                self._solved(hessian, matrix, pattern, level.grid, orders, number)
                if hessian is not None
                else untouched(matrix, level.grid, weight.dtype).solution
                for number, (hessian, matrix, pattern) in enumerate(zip(hessians, matrices, patterns, strict=True))
            ]
            lost = sum(
                share * float(h.error(s.weight.to(weight.dtype) - w).sum())
                for h, w, s, share in zip(hessians, matrices, found, shares, strict=True)
                if h is not None
            )
            levels.append(
                SolvedLevel(
                    level.key,
                    view.assembled([solution.weight for solution in found], weight.dtype),
                    view.assembled([solution.kept for solution in found], torch.bool),
                    [solution.grid for solution in found if solution.grid is not None],
                    lost / whole if whole > 0 else 0.0,
                    lost,
                )
            )
        about = {
            "asked": self._asked,
            "samples": samples,
            "damping": max(hessian.damping for hessian in hessians if hessian is not None),
            "matrices": len(matrices),
        }
        write_layer(self._paths[view.name], levels, about)
        self._done.add(view.name)
        if self._progress is not None:
            self._progress(view.name, len(self._done), len(self.views))

    def _solved(
        self,
        hessian: Hessian,
        matrix: Tensor,
        pattern: MatrixPattern,
        grid: Grid | None,
        orders: dict[tuple[int, object], tuple[Tensor, Tensor]],
        number: int,
    ) -> LayerSolution:
        """A matrix at a level; of ExactOBS the order of a matrix serves all its levels."""
        ranked = self.settings.solver is exact_obs and (pattern.is_unstructured or pattern.nm is not None)
        if not ranked or self.settings.refit:
            return solved(self.settings.solver, hessian, matrix, pattern, self.settings.refit, grid)
        live = matrix.masked_fill(hessian.dead, 0).contiguous()
        drop = matrix.numel() - pattern.kept
        if drop == 0:
            return obs_on_mask(hessian, live, torch.ones_like(live, dtype=torch.bool), grid)
        if (number, pattern.nm) not in orders:
            orders[number, pattern.nm] = obs_order(hessian, live, pattern)
        return obs_on_mask(hessian, live, mask_of_order(*orders[number, pattern.nm], drop), grid)

    def _check_levels(self) -> None:
        for view in self.views:
            for level in self.settings.levels[view.name]:
                if level.is_dense:
                    continue
                pattern = self.settings.pattern(view.name, level)
                if level.pattern is None and pattern.sparsity is not None:
                    raise ValueError(
                        f"Parameter `levels` should have no sparsities where `pattern` fixes it, as "
                        f"{str(pattern)!r} does. Found {level.key!r} for {view.name!r}."
                    )
                if self.settings.solver is exact_obs:
                    for of_matrix in matrix_patterns(view, pattern, level.sparsity):
                        check_obs_pattern(of_matrix)

    def _check_done(self) -> None:
        for name in sorted(self._done):
            found = read_about(self._paths[name])["asked"]
            if different := [key for key, asked in self._asked.items() if found.get(key) != asked]:
                raise ValueError(
                    f"Parameter `folder` should be empty, or of a build of the same. Found one with another "
                    f"`{different[0]}` at {str(self.folder)!r}."
                )

    def _described(self) -> dict[str, Any]:
        """What two builds have in common if one can go on where the other stopped."""
        settings = self.settings
        return {
            "model": of_weights(self.views),
            "method": of_function(settings.solver),
            "levels": {name: [level.key for level in settings.levels[name]] for name in settings.levels},
            "pattern": {name: str(settings.patterns[name]) for name in settings.patterns},
            "refit": settings.refit,
            "damping": str(settings.damping),
            "data": self._data,
            **self._about,
        }
