"""Arguments and results of modules as a flat list of leaves, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything that is no tuple, list or dict, with the way to it.

    Args:
        value: What is looked through.
        path: The way to it.

    Yields:
        Path and leaf.
    """
    if isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def replaced(value: Any, function: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """The same with every leaf replaced; containers are copies.

    Args:
        value: What is copied.
        function: Path and leaf -> the new leaf.
        path: The way to it.

    Returns:
        The copy.
    """
    if isinstance(value, tuple | list):
        items = [replaced(item, function, (*path, number)) for number, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {key: replaced(item, function, (*path, key)) for key, item in value.items()}
    return function(path, value)


def tensors(value: Any) -> dict[Path, Tensor]:
    """The leaves that are tensors, by path."""
    return {path: leaf for path, leaf in leaves(value) if isinstance(leaf, Tensor)}


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are one and the same, or equal.

    Args:
        a: A leaf.
        b: Another.

    Returns:
        Whether they are; of tensors with shape, dtype and device.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    return isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b
