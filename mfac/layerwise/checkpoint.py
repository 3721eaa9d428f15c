"""A layer-wise run on disk after each block, so that a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mfac.layerwise.fingerprint import of_data, of_function, of_weights
from mfac.layerwise.finish import FinishResult, FisherFinish
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
        settings: What is asked for; a run that asks for something else is refused, and so is one of
            another model.
        names: Of all weights.
        data: The batches; those of the earlier run should be the same.
        processes: The first one writes, and all read.
        about: What else an earlier run should have had, by the names of parameters.

    Raises:
        ValueError: If `folder` is a file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: Settings,
        names: Sequence[str],
        data: Sequence[Any],
        processes: Processes,
        about: Mapping[str, str],
    ) -> None:
        self._processes = processes
        self._before: dict[Path, str] = {}
        self._noted = 0  # how many notes are of what was written before
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"Parameter `checkpoint` should be a folder. Found a file at {str(folder)!r}.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._finish = self.folder / "finish.pt"
        self._asked = {
            "method": of_function(settings.solver),
            "sparsity": {name: settings.sparsity[name] for name in names},
            "pattern": {name: str(settings.patterns[name]) for name in names},
            "refit": settings.refit,
            "weigh_outputs": bool(settings.heeding.outputs),
            "weigh_inputs": bool(settings.heeding.inputs),
            "quantize": None if settings.grid is None else asdict(settings.grid),
            "damping": str(settings.damping),
            "data": of_data(data),
            **about,
        }
        self._needs_dense = bool(settings.heeding.outputs or settings.heeding.inputs)

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
        path = self._path(views)
        about = {"asked": self._asked, "layers": layers, "left": left, "before": self._before[path]}
        about["notes"] = results.notes[self._noted :]
        self._noted = len(results.notes)
        write_tensors(path, _KIND, tensors, about)

    @torch.no_grad()
    def restore(self, views: Sequence[LayerView], results: Results) -> bool:
        """Puts back what an earlier run found of some weights.

        Args:
            views: The weights.
            results: What is found; added to.

        Returns:
            Whether there was something.

        Raises:
            ValueError: If the earlier run was asked for something else, or was of another model or
                other data, or a process does not find what the first one does.
        """
        path = self._path(views)
        self._before[path] = of_weights(views)
        if not self._processes.same(path.exists()):
            return False
        with self._processes.together():
            self._read(path, views, results)
        return True

    def write_finish(self, views: Sequence[LayerView], asked: FisherFinish, result: FinishResult) -> None:
        """Writes the weights that a finish has left, on the first process."""
        if self._processes.rank == 0:
            weights = {view.name: view.parameter.detach() for view in views}
            write_tensors(self._finish, _KIND, weights, {"finish": asdict(asked), "result": asdict(result)})

    @torch.no_grad()
    def restore_finish(self, views: Sequence[LayerView], asked: FisherFinish) -> FinishResult | None:
        """Puts back the weights that a finish of an earlier run left.

        Args:
            views: The weights.
            asked: The finish that is asked for.

        Returns:
            What the finish did; None where there was none, or one of other numbers.
        """
        if not self._finish.exists():
            return None
        tensors, about = _read_file(self._finish)
        if about["finish"] != asdict(asked):
            return None
        for view in views:
            view.parameter.copy_(tensors[view.name])
        return FinishResult(**about["result"])

    def _read(self, path: Path, views: Sequence[LayerView], results: Results) -> None:
        if not path.exists():
            raise ValueError(
                f"Parameter `checkpoint` should be a folder that all ranks of `process_group` see. Found none of the "
                f"first rank's files at {str(self.folder)!r}."
            )
        tensors, about = _read_file(path)
        for key, asked in self._asked.items():
            if about["asked"][key] != asked:
                raise ValueError(
                    f"Parameter `checkpoint` should be a folder of a run with the same settings. Found one with "
                    f"another `{key}` at {str(self.folder)!r}."
                )
        self._check_model(path, views, tensors, about)
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
        results.notes += [note for note in about.get("notes", ()) if note not in results.notes]
        self._noted = len(results.notes)

    def _check_model(
        self, path: Path, views: Sequence[LayerView], tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]
    ) -> None:
        """Refuses weights other than those that the earlier run found and those that it left."""
        if self._before[path] == about["before"]:
            return
        solved = [view for view in views if view.name in about["layers"]]
        if all(torch.equal(view.parameter.cpu(), tensors[f"{view.name}|weight"]) for view in solved):
            if not self._needs_dense:
                return
            raise ValueError(
                f"Parameter `model` should be the dense model again: `weigh_inputs` and `weigh_outputs` look at the "
                f"whole of it. Found {views[0].name!r} as the earlier run at {str(self.folder)!r} left it."
            )
        raise ValueError(
            f"Parameter `checkpoint` should be a folder of a run on this model. Found one at {str(self.folder)!r} in "
            f"which {views[0].name!r} and the like had other weights."
        )

    def _path(self, views: Sequence[LayerView]) -> Path:
        names = "\n".join(view.name for view in views)
        return self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:16]}.pt"


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        return read_tensors(path, _KIND)
    except Exception as error:  # of a file that is cut short or none of ours: whatever reading runs into
        raise ValueError(
            f"Parameter `checkpoint` should be a folder whose files can be read. Found {str(path)!r}, which cannot "
            f"({type(error).__name__}: {error}); without the file its part is done anew."
        ) from error
