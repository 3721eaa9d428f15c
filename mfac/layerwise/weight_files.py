"""A model's weights in files of safetensors: read one tensor at a time, and written in shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfac.masks.storage import whole_file

INDEX = "model.safetensors.index.json"
"""What Hugging Face calls the index of a model in several files."""
_DESCRIBING = {".json", ".txt", ".model", ".jinja"}
"""Suffixes of what stands beside weights: the model's numbers, tokenizers and their templates."""
_FLOATING = {"F64", "F32", "F16", "BF16"}

Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder, a file, or several files."""


class WeightFiles:
    """Tensors of some files, of which headers alone are read until one is asked for.

    Args:
        source: A folder with *.safetensors, of which an index names those that count; a file; or
            files.

    Raises:
        ValueError: If there is no such file, or a name is in two of them.
        ImportError: If safetensors is not installed.
    """

    def __init__(self, source: Source) -> None:
        if find_spec("safetensors") is None:
            raise ImportError("Parameter `weights` needs safetensors: `pip install safetensors`.")
        from safetensors import safe_open

        self.paths = _paths(source)
        folder = Path(source) if isinstance(source, str | os.PathLike) else None
        self._folder = folder if folder is not None and folder.is_dir() else None
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        for path in self.paths:
            file: Any = self._open.enter_context(safe_open(path, framework="pt"))
            names: list[str] = list(file.keys())  # the file itself cannot be iterated over
            for name in names:
                if name in self._files:
                    raise ValueError(f"Parameter `weights` should have each name once. Found {name!r} in two files.")
                self._files[name] = file

    @property
    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._files)

    def beside(self) -> list[Path]:
        """Files of a folder given that describe the model, as its configuration."""
        found = sorted(self._folder.iterdir()) if self._folder is not None else []
        return [path for path in found if path.is_file() and path.suffix in _DESCRIBING and path.name != INDEX]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def is_floating(self, name: str) -> bool:
        """Whether a tensor is of a dtype that weights are computed in, or cast from."""
        return self._files[name].get_slice(name).get_dtype() in _FLOATING

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        return self._files[name].get_tensor(name)

    def close(self) -> None:
        """Closes the files; nothing can be read after."""
        self._open.close()
        self._files.clear()


def _paths(source: Source) -> list[Path]:
    several = [source] if isinstance(source, str | os.PathLike) else list(source)
    if len(several) == 1 and Path(several[0]).is_dir():
        folder = Path(several[0])
        if (folder / INDEX).exists():
            of_name = json.loads((folder / INDEX).read_text())["weight_map"]
            paths = [folder / name for name in sorted(set(of_name.values()))]
        else:
            paths = sorted(folder.glob("*.safetensors"))
    else:
        paths = [Path(one) for one in several]
    if not paths:
        raise ValueError(f"Parameter `weights` should be files of safetensors, or a folder of them. Found {source!r}.")
    for path in paths:
        if not path.is_file():
            raise ValueError(f"Parameter `weights` should name files that are there. Found none at {str(path)!r}.")
    return paths


class Shards:
    """A folder of a model in several files, with an index once all are there.

    Args:
        folder: Made where it is not there.
        count: How many files there will be.
        source: Files that must not be overwritten.

    Raises:
        ValueError: If it is a file, holds the source, or holds other files of safetensors.
    """

    def __init__(self, folder: str | os.PathLike[str], count: int, source: Iterable[Path]) -> None:
        self.folder, self._count = Path(folder), count
        self._places: dict[str, str] = {}
        self._size = 0
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"Parameter `output` should be a folder. Found a file at {str(folder)!r}.")
        if any(path.resolve().parent == self.folder.resolve() for path in source):
            raise ValueError(f"Parameter `output` should be another folder than `weights`. Found {str(folder)!r}.")
        own = {self._name(number) for number in range(count)}
        if other := sorted(path.name for path in self.folder.glob("*.safetensors") if path.name not in own):
            raise ValueError(f"Parameter `output` should hold no files of another model. Found {other[0]!r}.")

    def _name(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self._count:05d}.safetensors"

    def begin(self) -> None:
        """Makes the folder; the index of an earlier run goes, as its files are replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes one file.

        Args:
            number: Which, from 0.
            tensors: By name; contiguous, no two of the same memory.
        """
        from safetensors.torch import save_file

        with whole_file(self.folder / self._name(number)) as temporary:
            save_file(dict(tensors), temporary, {"format": "pt"})
        for name, tensor in tensors.items():
            self._places[name] = self._name(number)
            self._size += tensor.numel() * tensor.element_size()

    def end(self) -> None:
        """Writes the index."""
        index = {"metadata": {"total_size": self._size}, "weight_map": dict(sorted(self._places.items()))}
        with whole_file(self.folder / INDEX) as temporary:
            Path(temporary).write_text(json.dumps(index, indent=2) + "\n")

    def spilled(self, number: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that are read from a file when they are used, and take no memory until then."""
        path = self.folder / "masks" / f"{number:05d}.pt"
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as temporary:
            torch.save({name: tensor.cpu() for name, tensor in tensors.items()}, temporary)
        return self.read_spilled(number)

    def read_spilled(self, number: int) -> dict[str, Tensor]:
        """What `spilled` wrote, as another process may have."""
        return torch.load(self.folder / "masks" / f"{number:05d}.pt", mmap=True, weights_only=True)
