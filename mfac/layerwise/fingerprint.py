"""Short digests by which a run on disk knows the model, the data and the method that it was of."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

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
    """Of all that is in batches and where in a batch it stands."""
    digest = hashlib.sha256()
    for batch in batches:
        _add_leaves(digest, batch)
    return digest.hexdigest()


def of_rest(model: nn.Module, views: Sequence[LayerView]) -> str:
    """Of what a model computes with beside some weights: its other parameters, and buffers."""
    own = {id(view.parameter) for view in views}
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in own and not tensor.is_meta:
            digest.update(name.encode())
            _add(digest, tensor)
    return digest.hexdigest()


def of_function(function: Callable[..., Any]) -> str:
    """Name of a function; of one without a name of its own what it does, and with which values."""
    if isinstance(function, partial):
        given = _of_object((function.args, sorted(function.keywords.items())))
        return f"partial {of_function(function.func)} {hashlib.sha256(given).hexdigest()[:16]}"
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if code is None:  # an object that is called, or something built in
        values = getattr(function, "__dict__", {})
        return f"{name} {hashlib.sha256(_of_object(values)).hexdigest()[:16]}" if values else str(name)
    if "<" not in name:
        return str(name)
    constants = [value for value in code.co_consts if not hasattr(value, "co_code")]  # whose text is a place in memory
    what = repr((code.co_names, code.co_freevars, constants)).encode()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # of a name that has no value yet
            held = cell.cell_contents
            what += of_function(held).encode() if callable(held) else _of_object(held)
    return f"{name} {hashlib.sha256(code.co_code + what).hexdigest()[:16]}"


def _of_object(value: Any) -> bytes:
    """Bytes that tell values apart."""
    digest = hashlib.sha256()
    _add_leaves(digest, value)
    return digest.digest()


def _add_leaves(digest: Any, value: Any) -> None:
    """Adds all that is in a value and where it stands; of what cannot be pickled its type alone."""
    for path, leaf in tree.leaves(value):
        digest.update(repr(path).encode())
        if isinstance(leaf, Tensor):
            digest.update(repr(tuple(leaf.shape)).encode())
            _add(digest, leaf)
            continue
        try:
            digest.update(pickle.dumps(leaf))
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
            digest.update(type(leaf).__qualname__.encode())


def _add(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().view(-1)
    digest.update(str(flat.dtype).encode())
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
