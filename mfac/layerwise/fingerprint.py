"""Short digests by which a run on disk knows the model, the data and the method that it was of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mfac.layerwise import tree
from mfac.layerwise.views import LayerView


def of_weights(views: Sequence[LayerView]) -> str:
    """Of the names and values of weights as they stand."""
    digest = hashlib.sha256()
    for view in views:
        digest.update(view.name.encode())
        _add(digest, view.parameter)
    return digest.hexdigest()


def of_data(batches: Iterable[Any]) -> str:
    """Of all tensors in batches and where in a batch they stand."""
    digest = hashlib.sha256()
    for batch in batches:
        for path, leaf in tree.leaves(batch):
            digest.update(repr(path).encode())
            if isinstance(leaf, Tensor):
                digest.update(repr(tuple(leaf.shape)).encode())
                _add(digest, leaf)
    return digest.hexdigest()


def of_function(function: Callable[..., Any]) -> str:
    """Name of a function, and of one without a name of its own what it does."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if code is None or "<" not in name:
        return str(name)
    constants = [value for value in code.co_consts if not hasattr(value, "co_code")]  # whose text is a place in memory
    what = repr((code.co_names, code.co_freevars, constants)).encode()
    return f"{name} {hashlib.sha256(code.co_code + what).hexdigest()[:16]}"


def _add(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().view(-1)
    digest.update(str(flat.dtype).encode())
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
