"""A layer-wise run on disk after each block, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.processes import Processes
from mfac.layerwise.report import LayerResult
from mfac.layerwise.run import Results, Settings
from mfac.layerwise.views import LayerView
from mfac.masks.storage import read_tensors, write_tensors

_KIND = "mfac.layerwise"


class Checkpoint:
    """A folder with a file for each block, or each run of layers, that is solved.

    Args:
        folder: Made where it is not there.
        settings: What is asked for; a run that asks for something else is refused.
        names: Of all weights.
        processes: The first one writes, and all read.

    Raises:
        ValueError: If `folder` is a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: Settings, names: Sequence[str], processes: Processes
    ) -> None:
        self._processes = processes
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"Parameter `checkpoint` should be a folder. Found a file at {str(folder)!r}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._asked = {
            "method": getattr(settings.solver, "__name__", type(settings.solver).__name__),
            "sparsity": {name: settings.sparsity[name] for name in names},
            "pattern": {name: str(settings.patterns[name]) for name in names},
            "refit": settings.refit,
            "weigh_outputs": bool(settings.heeding.outputs),
            "weigh_inputs": bool(settings.heeding.inputs),
            "quantize": None if settings.grid is None else asdict(settings.grid),
            "damping": str(settings.damping),
        }

    def write(self, views: Sequence[LayerView], results: Results) -> None:
        """Writes what was found of some weights, on the first process."""
        if self._processes.rank:
            return
        tensors: dict[str, torch.Tensor] = {}
        layers: dict[str, object] = {}
        for view in views:
            if view.name not in results.layers:
                continue
            layer = results.layers[view.name]
            layers[view.name] = {key: value for key, value in vars(layer).items() if key != "grids"}
            tensors[f"{view.name}|weight"] = view.parameter.detach()
            tensors[f"{view.name}|mask"] = results.masks[view.name]
            for number, values in enumerate(layer.grids):
                tensors[f"{view.name}|scales{number}"] = values.scales
                tensors[f"{view.name}|zeros{number}"] = values.zeros
        left = {view.name: results.left_dense[view.name] for view in views if view.name in results.left_dense}
        write_tensors(self._path(views), _KIND, tensors, {"asked": self._asked, "layers": layers, "left": left})

    @torch.no_grad()
    def restore(self, views: Sequence[LayerView], results: Results) -> bool:
        """Puts back what an earlier run found of some weights.

        Args:
            views: The weights.
            results: What is found; added to.

        Returns:
            Whether there was something.

        Raises:
            ValueError: If the earlier run was asked for something else, or a process does not find
                what the first one does.
        """
        path = self._path(views)
        if not self._processes.same(path.exists()):
            return False
        with self._processes.together():
            self._read(path, views, results)
        return True

    def _read(self, path: Path, views: Sequence[LayerView], results: Results) -> None:
        if not path.exists():
            raise ValueError(
                f"Parameter `checkpoint` should be a folder that all ranks of `process_group` see. Found none of the "
                f"first rank's files at {str(self.folder)!r}."
            )
        tensors, about = read_tensors(path, _KIND)
        for key, asked in self._asked.items():
            if about["asked"][key] != asked:
                raise ValueError(
                    f"Parameter `checkpoint` should be a folder of a run with the same settings. Found one with "
                    f"another `{key}` at {str(self.folder)!r}."
                )
        for view in views:
            if view.name not in about["layers"]:
                continue
            view.parameter.copy_(tensors[f"{view.name}|weight"])
            results.masks[view.name] = tensors[f"{view.name}|mask"].to(view.parameter.device)
            layer = LayerResult(**about["layers"][view.name])
            asked = about["asked"]["quantize"]
            if asked is not None:
                grids = [
                    GridValues(Grid(**asked), tensors[f"{view.name}|scales{n}"], tensors[f"{view.name}|zeros{n}"])
                    for n in range(len(view.shapes))
                ]
                layer = replace(layer, grids=tuple(grids))
            results.layers[view.name] = layer
        results.left_dense.update(about["left"])

    def _path(self, views: Sequence[LayerView]) -> Path:
        names = "\n".join(view.name for view in views)
        return self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.pt"
