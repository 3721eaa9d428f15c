"""Which items of a tuple or list go into a model, and which are labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.naming import inner_module

_UNCOUNTED = -100  # a label that torch's and Hugging Face's losses pass over
_LABELS = ("label", "target")


class AmbiguousItemError(ValueError):
    """Raised for an item that may be labels, or an argument that the model can do without."""


def taken(model: nn.Module, batch: Sequence[Any]) -> list[Any]:
    """The items of a batch that the model is called with: all that are inputs.

    A model gets the items for parameters without a default, and no more items than it has
    positional parameters. For a parameter with a default, an item is labels, and the items end
    before it, if

    * it is the first item's integers, in place or shifted by one, or -100; or
    * the parameter's name speaks of a mask, and it is none: a mask is boolean, floating-point, or
      zeros and ones, and has two dimensions or more.

    A parameter whose name speaks of labels or targets gets them.

    Args:
        model: The model.
        batch: The items.

    Returns:
        The first of them.

    Raises:
        AmbiguousItemError: If an item has an integer for each sample, as classes, and the model has
            another parameter with a default there.
    """
    parameters = list(inspect.signature(inner_module(model).forward).parameters.values())
    unnamed = any(one.kind == inspect.Parameter.VAR_POSITIONAL for one in parameters)
    if isinstance(inner_module(model), nn.Sequential):
        return list(batch[:1])
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [one for one in parameters if one.kind in kinds]
    found: list[Any] = []
    for place, item in enumerate(batch):
        if place >= len(named) and not unnamed:
            break
        parameter = named[place] if place < len(named) else None
        optional = parameter is None or parameter.default is not inspect.Parameter.empty
        if place and optional and _is_labels(batch[0], item, parameter):
            break
        found.append(item)
    return found


def by_name(model: nn.Module, batch: Any) -> Any:
    """A tuple or list of token ids, a mask that the model takes, and perhaps labels, as a dict.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        With `input_ids`, `attention_mask` and `labels`; any other batch as it is.
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3) or not _takes_mask(model):
        return batch
    try:
        masked = len(taken(model, batch)) >= 2
    except AmbiguousItemError:  # as labels it is refused for its shape
        return batch
    if not masked:
        return batch
    return dict(zip(("input_ids", "attention_mask", "labels"), batch, strict=False))


def _takes_mask(model: nn.Module) -> bool:
    names = list(inspect.signature(inner_module(model).forward).parameters)
    return len(names) > 1 and names[1] == "attention_mask"


def _is_labels(inputs: Any, item: Any, parameter: inspect.Parameter | None) -> bool:
    name = parameter.name.lower() if parameter is not None else ""
    if any(word in name for word in _LABELS) or not isinstance(item, Tensor):
        return False
    if isinstance(inputs, Tensor) and _repeats(inputs, item):
        return True
    if "mask" in name:
        return not _is_mask(item)
    if parameter is not None and item.dim() == 1 and _is_integer(item):
        raise AmbiguousItemError(
            f"Parameter `data` should say which items are labels. Found integers of shape {list(item.shape)}, which "
            f"may be classes or the model's {parameter.name!r}: yield the inputs alone, or a dict of arguments by name."
        )
    return False


def _repeats(inputs: Tensor, item: Tensor) -> bool:
    """Whether an item is the labels of a language model's inputs."""
    if inputs.dim() != 2 or inputs.shape != item.shape or not (_is_integer(inputs) and _is_integer(item)):
        return False
    if inputs.device != item.device:
        return False
    uncounted = item == _UNCOUNTED
    in_place, shifted = (item == inputs) | uncounted, (item[:, :-1] == inputs[:, 1:]) | uncounted[:, :-1]
    return bool(in_place.all()) or (item.shape[1] > 1 and bool(shifted.all()))


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def _is_mask(x: Tensor) -> bool:
    if x.dim() < 2:
        return False
    return not _is_integer(x) or bool(((x == 0) | (x == 1)).all())
