"""A database on disk: a file for each layer, with every level's kept values, and an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.level import LevelKey
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.masks.storage import SUFFIXES, read_tensors, whole_file, write_tensors

INDEX = "database.json"
_LAYER, _FORMAT = "mfac.layer_database.layer", "mfac.layer_database"


@dataclass(frozen=True)
class SolvedLevel:
    """A layer at a level.

    Attributes:
        key: Of the level.
        weight: Of the layer's shape and dtype.
        kept: Bool, of that shape.
        grids: Scales and zeros of each matrix; empty where nothing was rounded.
        error: tr(δHδᵀ)/tr(WHWᵀ).
        absolute_error: tr(δHδᵀ), H = XᵀX/n.
    """

    key: LevelKey
    weight: Tensor
    kept: Tensor
    grids: Sequence[GridValues]
    error: float
    absolute_error: float


@dataclass(frozen=True)
class LevelEntry:
    """What the index says of a level, without its weights.

    Attributes:
        key: Of the level.
        error: Relative.
        absolute_error: The mean over inputs of the squared change of the outputs.
        kept: How many weights are.
        grid: Steps, or None.
        steps: How many pairs of scale and zero there are.
    """

    key: LevelKey
    error: float
    absolute_error: float
    kept: int
    grid: Grid | None
    steps: int


@dataclass(frozen=True)
class LayerEntry:
    """What the index says of a layer.

    Attributes:
        file: Its name in the folder.
        shape: Of the weight.
        dtype: Of the weight.
        samples: Rows of inputs that the layer saw.
        damping: The largest λ of its matrices.
        matrices: How many matrices the weight is made of.
        levels: By key, in the order in which they were given.
    """

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    samples: int
    damping: float
    matrices: int
    levels: Mapping[LevelKey, LevelEntry]

    @property
    def size(self) -> int:
        """How many weights."""
        return torch.Size(self.shape).numel()


def layer_path(folder: Path, number: int, name: str) -> Path:
    """The file of a layer: the one that is there, or the one to write.

    Args:
        folder: Of the database.
        number: Of the layer, so that no two names meet in one file.
        name: Of the weight.

    Returns:
        The path; of safetensors where that is installed.
    """
    stem = f"{number:04d}.{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:100]}"
    for suffix in SUFFIXES:
        if (path := folder / f"{stem}{suffix}").exists():
            return path
    return folder / f"{stem}{'.safetensors' if find_spec('safetensors') is not None else '.pt'}"


def write_layer(path: Path, levels: Sequence[SolvedLevel], about: Mapping[str, Any]) -> None:
    """Writes a layer at all its levels, whole or not at all.

    Args:
        path: Of the file.
        levels: The solutions.
        about: What else is known of the layer.
    """
    tensors: dict[str, Tensor] = {}
    described = []
    for number, level in enumerate(levels):
        tensors[f"{number}|kept"] = pack_bits(level.kept)
        tensors[f"{number}|values"] = level.weight[level.kept]
        for place, values in enumerate(level.grids):
            tensors[f"{number}|scales{place}"], tensors[f"{number}|zeros{place}"] = values.scales, values.zeros
        described.append(
            {
                "key": level.key,
                "error": level.error,
                "absolute_error": level.absolute_error,
                "kept": int(level.kept.sum()),
                "grid": asdict(level.grids[0].grid) if level.grids else None,
                "steps": sum(values.scales.numel() for values in level.grids),
            }
        )
    weight = levels[0].weight
    shape, dtype = list(weight.shape), str(weight.dtype).removeprefix("torch.")
    write_tensors(path, _LAYER, tensors, {**about, "shape": shape, "dtype": dtype, "levels": described})


def read_about(path: Path) -> dict[str, Any]:
    """What a layer's file says of the layer, without its weights."""
    return {**read_tensors(path, _LAYER, ())[1], "file": path.name}


def read_level(folder: Path, entry: LayerEntry, key: LevelKey) -> tuple[Tensor, Tensor, tuple[GridValues, ...]]:
    """Weight, mask and grids of a layer at a level, on the CPU.

    Args:
        folder: Of the database.
        entry: The layer.
        key: The level, which it has.

    Returns:
        The weight in the dtype that it was built in, the mask, and a grid for each matrix.
    """
    number = list(entry.levels).index(key)
    grid = entry.levels[key].grid
    parts = [f"{kind}{n}" for kind in ("scales", "zeros") for n in range(entry.matrices)] if grid is not None else []
    found, _ = read_tensors(folder / entry.file, _LAYER, [f"{number}|{part}" for part in ("kept", "values", *parts)])
    kept = unpack_bits(found[f"{number}|kept"], entry.shape)
    weight = torch.zeros(entry.shape, dtype=entry.dtype)
    weight[kept] = found[f"{number}|values"]
    if grid is None:
        return weight, kept, ()
    values = [
        GridValues(grid, found[f"{number}|scales{n}"], found[f"{number}|zeros{n}"]) for n in range(entry.matrices)
    ]
    return weight, kept, tuple(values)


def write_index(folder: Path, layers: Mapping[str, Any], left_dense: Mapping[str, str], asked: Any) -> None:
    """Writes the index, which says that a database is whole.

    Args:
        folder: Of the database.
        layers: What each layer's file says of itself.
        left_dense: Weights without a level, and why.
        asked: What was asked for.
    """
    about = {name: {key: value for key, value in layer.items() if key != "asked"} for name, layer in layers.items()}
    content = {"format": _FORMAT, "asked": asked, "layers": about, "left_dense": left_dense}
    with whole_file(folder / INDEX) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_index(folder: str | os.PathLike[str]) -> tuple[dict[str, LayerEntry], dict[str, str]]:
    """The layers of a database, and what it left dense.

    Args:
        folder: Of the database.

    Returns:
        {weight: entry} and {weight: why}.

    Raises:
        ValueError: If there is no database, or one whose build was stopped, or a file is missing.
    """
    path = Path(folder) / INDEX
    if not path.exists():
        raise ValueError(
            f"Parameter `folder` should hold a database that was built to its end. Found no {INDEX} at "
            f"{str(folder)!r}; `mfac.LayerDatabase.build` with this folder goes on where it was stopped."
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != _FORMAT:
        raise ValueError(f"Parameter `folder` should hold a database. Found another {INDEX} at {str(folder)!r}.")
    layers = {}
    for name, about in content["layers"].items():
        if not (Path(folder) / about["file"]).exists():
            raise ValueError(f"Parameter `folder` should hold the file {about['file']!r} of {name!r}. Found none.")
        levels = [
            LevelEntry(**{**level, "grid": None if level["grid"] is None else Grid(**level["grid"])})
            for level in about["levels"]
        ]
        layers[name] = LayerEntry(
            about["file"],
            tuple(about["shape"]),
            getattr(torch, about["dtype"]),
            about["samples"],
            about["damping"],
            about["matrices"],
            {level.key: level for level in levels},
        )
    return layers, content["left_dense"]
