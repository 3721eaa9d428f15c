"""Batches of any make: tensors, tuples, lists, dicts, named tuples, and objects with tensors."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(batch: Any, *, alone: bool = True) -> Iterator[Tensor]:
    """Every tensor of a batch, or of what a model returns, depth first.

    Args:
        batch: The batch.
        alone: Whether there should be nothing else; otherwise it is passed over.

    Yields:
        The tensors.

    Raises:
        TypeError: If something in it is neither a tensor nor holds any, and `alone`.
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value, alone=alone)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from tensors_in(value, alone=alone)
    elif attributes := _tensor_attributes(batch):
        yield from attributes.values()
    elif alone:
        raise TypeError(
            f"Parameter `data` should yield tensors, or tuples, lists, dicts and objects of them, for per-sample "
            f"gradients. Found {type(batch).__name__}."
        )


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same batch with a function applied to every tensor; the batch itself is left as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        mapped = [map_tensors(value, function) for value in batch]
        if hasattr(batch, "_fields"):  # a named tuple
            return type(batch)(*mapped)
        return mapped if isinstance(batch, list) else tuple(mapped)
    changed = copy.copy(batch)
    for name, value in _tensor_attributes(batch).items():
        object.__setattr__(changed, name, function(value))
    return changed


def num_samples(batch: Any) -> int | None:
    """The first dimension of the first tensor in a batch, or None without a tensor."""
    try:
        tensor = next(tensors_in(batch), None)
    except TypeError:  # a batch of some type of the caller's own
        return None
    return None if tensor is None or tensor.dim() == 0 else tensor.shape[0]


def _tensor_attributes(batch: Any) -> dict[str, Tensor]:
    """Attributes of an object that are tensors; a dataclass's fields among them."""
    if dataclasses.is_dataclass(batch):
        found = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    else:
        found = dict(getattr(batch, "__dict__", {}))
        # such as transformers' BatchEncoding or a PyTorch Geometric batch, which keep tensors one
        # level down
        for store in ("data", "_store"):
            inner = found.get(store)
            if isinstance(inner, Mapping):
                return {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}
