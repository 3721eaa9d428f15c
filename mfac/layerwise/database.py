"""A database of layers: each weight of a model at several levels, to be stitched together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.core.checks.choices import check_choice, check_flag, did_you_mean
from mfac.curvature.damping import Damping, check_damping
from mfac.gradients.examples import call_with
from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module, named_parameters
from mfac.gradients.parameters import Selection
from mfac.layerwise.calling import (
    Forward,
    by_number,
    call_model,
    listed_batches,
    patterns_by_weight,
    plainly_called,
)
from mfac.layerwise.chosen import choose_views
from mfac.layerwise.database_build import DatabaseBuild, DatabaseSettings
from mfac.layerwise.database_files import LayerEntry, LevelEntry, read_index, read_level
from mfac.layerwise.fingerprint import of_function, of_rest
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.hessian import DAMPING
from mfac.layerwise.level import LevelKey, Levels, levels_by_weight
from mfac.layerwise.solution import LayerSolver
from mfac.layerwise.solver import SolverName, resolve_solver
from mfac.layerwise.views import check_weights
from mfac.masks.patterns import Pattern, resolve_pattern
from mfac.pruning.flops import counted_flops

CostTable = Mapping[str, Mapping[LevelKey, float]]
"""{weight: {level: cost}}."""

_SCALE_BITS = 16  # of a scale; a zero takes the bits of the grid


class LayerDatabase:
    """Every weight of a dense model at several levels of sparsity and precision, on disk.

    Each layer is solved by itself, on what it sees in the dense model. Levels of different layers
    can then be put together in any way, without solving anything again: `stitch` writes them into
    a model, `mfac.spdy_search` looks for the best within a budget.

    A layer is called by its weight's name, and a level by its key: a sparsity such as 0.5, or words
    such as "2:4 4bit" (`mfac.Level`). Make a database with `LayerDatabase.build`, and find one
    again with `LayerDatabase.open`.

    Args:
        folder: Of a database that was built to its end.

    Raises:
        ValueError: If there is none.

    Source: OBC (Frantar, Singh, Alistarh 2022, 2208.11580), section 6.

    Example:
        >>> import tempfile, torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> folder = tempfile.mkdtemp()
        >>> levels = [0.0, 0.5, "2:4 4bit"]
        >>> database = mfac.LayerDatabase.build(model, [torch.randn(64, 8)], levels, folder=folder)
        >>> database.levels("0.weight")
        [0.0, 0.5, '2:4 4bit']
        >>> masks = database.stitch({"0.weight": 0.5, "2.weight": "2:4 4bit"}, model)
        >>> int(masks["0.weight"].sum()), int((model[0].weight != 0).sum())
        (64, 64)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._layers, self._left_dense = read_index(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> LayerDatabase:
        """The database of a folder.

        Args:
            folder: That `build` wrote to.

        Returns:
            The database; its weights are read when they are asked for.

        Raises:
            ValueError: If there is none, or its build was stopped.
        """
        return cls(folder)

    @classmethod
    def build(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        levels: Levels | Mapping[str, Levels] | None = None,
        *,
        folder: str | os.PathLike[str],
        method: SolverName | LayerSolver = "exact_obs",
        pattern: str | Pattern | Mapping[str, str | Pattern] = "unstructured",
        quantize: Grid | None = None,
        refit: bool = False,
        damping: Damping = DAMPING,
        params: Selection = None,
        forward: Forward | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> LayerDatabase:
        """Solves every layer of a dense model at every level.

        Args:
            model: The model, which stays as it is; in evaluation mode meanwhile.
            data: Batches, as for `mfac.prune_layerwise`.
            levels: Sparsities, keys or `mfac.Level`s, for all weights or for each name or
                shell-style pattern of names. None for 0 and the densities that fall by a tenth each
                down to 1 %.
            folder: What is solved is written there, a file a layer. A build that was stopped goes
                on where it was, if model, number of batches and arguments are the same.
            method: As for `mfac.prune_layerwise`. ExactOBS ranks the weights of a layer once for
                all sparsities.
            pattern: Of levels that name none.
            quantize: Grid of levels that name none; a level of no zeros, 0.0, stays as it is.
            refit: Whether kept weights are fitted exactly on the mask found; "exact_obs" and "alps"
                do without.
            damping: λ of H = XᵀX/n + λI, or relative to the mean of its diagonal.
            params: Which weights; None for all of known layers.
            forward: Runs the model on a batch.
            progress: Called with a weight's name, how many are done, and how many there are.

        Returns:
            The database.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If a number is out of range, a level does not fit a weight, the data is
                empty or does not fit, or the folder holds another build.

        Cost: a few passes over the data, one for each GiB of Hessians; for each layer and level
        that of the method. ExactOBS: O(rows · columns³/3) for all orders, and the same again about
        four times for the weights of all 44 levels. Disk: about eleven times the weights with the
        default levels.
        """
        solver, resolved = resolve_solver(method), resolve_pattern(pattern)
        check_flag("refit", refit)
        check_damping(damping)
        if quantize is not None and not isinstance(quantize, Grid):
            raise TypeError(f"Parameter `quantize` should be a mfac.Grid or None. Found {type(quantize).__name__}.")
        batches = listed_batches(data)
        call = forward if forward is not None else call_model
        chosen = choose_views(model, params, batches, call)
        views, left_dense = chosen.views, chosen.left_dense
        check_weights(views)
        weights = chosen.described(model)
        by_weight = levels_by_weight(levels, [view.name for view in views], quantize)
        for weight in weights:  # the patterns that levels name; that of all is checked with the rest
            for level in by_weight[weight.name]:
                if level.pattern is not None:
                    patterns_by_weight(resolve_pattern(level.pattern), [weight])
        settings = DatabaseSettings(solver, by_weight, patterns_by_weight(resolved, weights), refit, damping)
        with model_mode(model, "eval"), plainly_called(model), torch.no_grad():
            inner = inner_module(model)
            about = {"model beside its weights": of_rest(inner, views), "forward": of_function(call)}
            runner = by_number(inner, batches, call)
            run = DatabaseBuild(views, runner, batches, settings, Path(folder), progress, about)
            run.all(left_dense)
        return cls(folder)

    @property
    def layers(self) -> list[str]:
        """Names of the weights that have levels."""
        return list(self._layers)

    @property
    def left_dense(self) -> dict[str, str]:
        """Other weights, and why they have none."""
        return dict(self._left_dense)

    @property
    def errors(self) -> dict[str, dict[LevelKey, float]]:
        """{layer: {level: error}}, tr(δHδᵀ)/tr(WHWᵀ).

        0 is no change of the layer's outputs on the data, 1 is as if the layer were gone.
        """
        return {name: {key: level.error for key, level in layer.levels.items()} for name, layer in self._layers.items()}

    @property
    def absolute_errors(self) -> dict[str, dict[LevelKey, float]]:
        """{layer: {level: error}}, tr(δHδᵀ) with H = XᵀX/n.

        The squared change of the layer's outputs for one row of inputs, in the square of their
        unit.
        """
        return {
            name: {key: level.absolute_error for key, level in layer.levels.items()}
            for name, layer in self._layers.items()
        }

    def levels(self, layer: str) -> list[LevelKey]:
        """The keys of a layer's levels, in the order in which they were given."""
        return list(self._layer(layer).levels)

    def sparsity(self, layer: str, level: LevelKey) -> float:
        """The share of zeros of a layer at a level."""
        return 1 - self._level(layer, level).kept / self._layer(layer).size

    def load(self, layer: str, level: LevelKey) -> Tensor:
        """A weight at a level.

        Args:
            layer: Name of the weight.
            level: Key of the level.

        Returns:
            The weight, in its shape and the dtype that it was built in, on the CPU.

        Raises:
            ValueError: If the database has no such layer, or the layer no such level.
        """
        self._level(layer, level)
        return read_level(self.folder, self._layer(layer), level)[0]

    def mask(self, layer: str, level: LevelKey) -> Tensor:
        """Which weights a level keeps, True = kept; as `load`."""
        self._level(layer, level)
        return read_level(self.folder, self._layer(layer), level)[1]

    def grids(self, layer: str, level: LevelKey) -> tuple[GridValues, ...]:
        """Scales and zeros of each matrix of a weight; none where it was not rounded."""
        self._level(layer, level)
        return read_level(self.folder, self._layer(layer), level)[2]

    @torch.no_grad()
    def stitch(self, profile: Mapping[str, LevelKey], model: nn.Module) -> dict[str, Tensor]:
        """Writes layers at their levels into a model.

        Args:
            profile: {layer: level}; layers that are not named stay as they are.
            model: Changed in place; its dtypes and devices stay.

        Returns:
            {layer: mask}, True = kept, on the model's devices; what `mfac.Masks` takes.

        Raises:
            ValueError: If a layer or level is unknown, or the model has no such weight. Nothing is
                changed then.
        """
        parameters = self.parameters_of(model, profile)
        for layer, level in profile.items():
            self._level(layer, level)
        masks = {}
        for layer, level in profile.items():
            weight, kept, _ = read_level(self.folder, self._layer(layer), level)
            parameters[layer].copy_(weight)
            masks[layer] = kept.to(parameters[layer].device)
        return masks

    def parameters_of(self, model: nn.Module, layers: Iterable[str]) -> dict[str, nn.Parameter]:
        """The weights of a model that layers of the database are of.

        Args:
            model: The model.
            layers: Names of weights.

        Returns:
            By name.

        Raises:
            ValueError: If the database has no such layer, or the model no such weight of that
                shape.
        """
        named = named_parameters(model)
        found = {}
        for layer in layers:
            shape = list(self._layer(layer).shape)
            if layer not in named or list(named[layer].shape) != shape or not named[layer].is_floating_point():
                what = f"{named[layer].dtype}, {list(named[layer].shape)}" if layer in named else "no such parameter"
                raise ValueError(
                    f"Parameter `model` should have a weight {layer!r} of shape {shape}, as the database has. "
                    f"Found {what}."
                )
            found[layer] = named[layer]
        return found

    def costs(
        self, unit: Literal["flops", "bytes", "bits"], model: nn.Module | None = None, example: Any = None
    ) -> dict[str, dict[LevelKey, float]]:
        """What each layer costs at each level, for `mfac.spdy_search` and `mfac.allocate`.

        Args:
            unit: "bits" and "bytes" of a compact form: the kept values, in the bits of the grid or
                of the weight's dtype; one bit for each weight where any are zero; for each scale of
                a grid 16 bits and its zero's. "flops": a product and a sum for each use of a kept
                weight in one forward pass.
            model: Whose layers are called, for "flops".
            example: Its input, as for `mfac.cost_table`.

        Returns:
            {layer: {level: cost}}.

        Raises:
            ValueError: If the unit is another, or a layer is not called.
        """
        check_choice("unit", unit, ("flops", "bytes", "bits"))
        if unit == "flops":
            if model is None or example is None:
                raise ValueError('Parameters `model` and `example` should be given for unit="flops". Found None.')
            return self.flops(model, lambda: call_with(model, example))
        bits = {
            name: {key: _bits(layer, level) for key, level in layer.levels.items()}
            for name, layer in self._layers.items()
        }
        if unit == "bits":
            return bits
        return {name: {key: float(-(-cost // 8)) for key, cost in levels.items()} for name, levels in bits.items()}

    def flops(self, model: nn.Module, run: Callable[[], object]) -> dict[str, dict[LevelKey, float]]:
        """Operations of each layer at each level.

        Args:
            model: The model.
            run: Calls it.

        Returns:
            {layer: {level: operations}}.

        Raises:
            ValueError: If a layer is not called.
        """
        with model_mode(model, "eval"), counted_flops(model) as counts, torch.no_grad():
            run()
        if uncounted := [name for name in self._layers if name not in counts]:
            raise ValueError(
                f"Parameter `model` should call every layer of the database. Found no call of {uncounted}."
            )
        return {
            name: {key: counts[name] * level.kept / layer.size for key, level in layer.levels.items()}
            for name, layer in self._layers.items()
        }

    def __repr__(self) -> str:
        levels = sum(len(layer.levels) for layer in self._layers.values())
        return f"LayerDatabase({len(self._layers)} layers, {levels} solutions)"

    def _layer(self, layer: str) -> LayerEntry:
        if layer not in self._layers:
            raise ValueError(
                f"Parameter `layer` should be one of the database's, {self.layers}. Found {layer!r}"
                f"{did_you_mean(layer, self._layers)}"
            )
        return self._layers[layer]

    def _level(self, layer: str, level: LevelKey) -> LevelEntry:
        levels = self._layer(layer).levels
        if level not in levels:
            raise ValueError(
                f"Parameter `level` should be one of {layer!r} in the database, {list(levels)}. Found {level!r}."
            )
        return levels[level]


def _bits(layer: LayerEntry, level: LevelEntry) -> float:
    own = torch.finfo(layer.dtype).bits
    width = own if level.grid is None else level.grid.bits
    steps = 0 if level.grid is None else level.steps * (_SCALE_BITS + level.grid.bits)
    return float(level.kept * width + (layer.size if level.kept < layer.size else 0) + steps)
