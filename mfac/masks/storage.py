"""Files of named tensors: safetensors or torch's own, without code; written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SUFFIXES = (".safetensors", ".pt", ".pth")


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Accepts a path whose suffix says in which form it is written, before anything is computed.

    Args:
        path: The path.

    Returns:
        The path.

    Raises:
        ValueError: If the suffix is another.
        ImportError: If it is that of safetensors, and safetensors is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"Parameter `path` should end in '.safetensors', or in '.pt' or '.pth' for torch's own form. "
            f"Found {str(path)!r}."
        )
    if path.suffix == ".safetensors" and find_spec("safetensors") is None:
        raise ImportError(
            f"Files that end in '.safetensors' need safetensors: `pip install safetensors`. A path that ends in '.pt' "
            f"needs nothing. Found {str(path)!r}."
        )
    return path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Generator[str]:
    """A file beside another, which takes its place at the end of the block.

    Args:
        path: What is written, or stays as it was where the block raises.

    Yields:
        The path to write to.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_tensors(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> int:
    """Writes tensors and their description into one file, which appears whole or not at all.

    Args:
        path: Its suffix chooses the form.
        kind: What the file holds, such as "mfac.masks"; `read_tensors` asks for the same.
        tensors: By name, contiguous, no two of the same memory.
        about: By key, what JSON can hold.

    Returns:
        The size of the file in bytes.

    Raises:
        ValueError: If the suffix is unknown.
        ImportError: If safetensors is asked for and not installed.
    """
    path = check_suffix(path)
    with whole_file(path) as temporary:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(on_cpu, temporary, {"format": kind, "about": json.dumps(about)})
        else:
            torch.save({"format": kind, "about": json.dumps(about), "tensors": on_cpu}, temporary)
    return path.stat().st_size


def read_tensors(
    path: str | os.PathLike[str], kind: str, names: Collection[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Args:
        path: The file.
        kind: What it should hold.
        names: Of the tensors that are wanted, where a file holds them; the rest is not read. None
            for all.

    Returns:
        Tensors on the CPU by name, and their description.

    Raises:
        ValueError: If the file cannot be read or holds something else, or its suffix is unknown.
        ImportError: If it is of safetensors, and safetensors is not installed.
        FileNotFoundError: If there is no such file.
    """
    path = check_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"Parameter `path` should be a file. Found none at {str(path)!r}.")
    try:
        found = _read(path, names)
    except ImportError:
        raise
    except Exception as error:  # of a file that is cut short or none of ours: whatever reading runs into
        raise ValueError(
            f"Parameter `path` should be a file of {kind!r}. Found one at {str(path)!r} that cannot be read "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(found, dict) or found.get("format") != kind:
        said = f"one of {found['format']!r}" if isinstance(found, dict) and "format" in found else "something else"
        raise ValueError(f"Parameter `path` should be a file of {kind!r}. Found {said} at {str(path)!r}.")
    tensors = found["tensors"]
    if names is not None:  # copies, as the file may be written anew
        tensors = {name: tensors[name].clone() for name in _wanted(tensors, names)}
    return tensors, json.loads(found["about"])


def _read(path: Path, names: Collection[str] | None) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=names is not None)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        return {**about, "tensors": {name: file.get_tensor(name) for name in _wanted(file.keys(), names)}}


def _wanted(held: Collection[str], names: Collection[str] | None) -> list[str]:
    return [name for name in held if names is None or name in names]


def _umask() -> int:
    """The mask of new files' permissions, which `mkstemp` leaves aside."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
