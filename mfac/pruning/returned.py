"""What objects of the caller's own return: checked, and named with the object that returned it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mfac.masks.patterns import Units


def check_vector(name: str, origin: object, method: str, value: Any, size: int, wanted: str) -> Tensor:
    """Accepts a vector of real numbers of a size.

    Args:
        name: Of the parameter that the object was given as.
        origin: The object.
        method: Of the object, that returned the value.
        value: What it returned.
        size: How many numbers there should be.
        wanted: What they should be, as "a score for each of the 480 live weights".

    Returns:
        The value.

    Raises:
        TypeError: If it is no tensor of real numbers.
        ValueError: If its shape is another.
    """
    source = f"{type(origin).__name__}.{method}()"
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
        found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else _kind(value)
        raise TypeError(
            f"Parameter `{name}` should return {wanted}, as a tensor of numbers. Found {found} from {source}."
        )
    if value.shape != (size,):
        raise ValueError(f"Parameter `{name}` should return {wanted}. Found shape {list(value.shape)} from {source}.")
    return value


def check_scores(origin: object, method: str, value: Any, size: int, what: str) -> Tensor:
    """Accepts scores: finite, and at least 0.

    Args:
        origin: The saliency.
        method: Of the saliency.
        value: What it returned.
        size: How many scores there should be.
        what: What they are of, as "live weights".

    Returns:
        The scores.

    Raises:
        TypeError: If they are no tensor of real numbers.
        ValueError: If their shape is another, or a score is negative or not finite.
    """
    scores = check_vector("saliency", origin, method, value, size, f"a score for each of the {size} {what}")
    if not bool((scores >= 0).all()) or not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"Parameter `saliency` should return finite scores >= 0. Found others from "
            f"{type(origin).__name__}.{method}()."
        )
    return scores


def check_update(origin: object, value: Any, size: int) -> Tensor:
    """Accepts a change of the live weights.

    Args:
        origin: The compensation.
        value: What it returned.
        size: How many live weights there are.

    Returns:
        The change.

    Raises:
        TypeError: If it is no tensor of real numbers.
        ValueError: If its shape is another, or it is not finite.
    """
    wanted = f"a finite change of each of the {size} live weights"
    delta = check_vector("compensation", origin, "update", value, size, wanted)
    if not bool(torch.isfinite(delta).all()):
        raise ValueError(
            f"Parameter `compensation` should return {wanted}. Found some that are not finite from "
            f"{type(origin).__name__}.update()."
        )
    return delta


def check_choice_of(name: str, origin: object, method: str, value: Any, size: int, wanted: str) -> Tensor:
    """Accepts a mask.

    Args:
        name: Of the parameter that the object was given as.
        origin: The object.
        method: Of the object, that returned the value.
        value: What it returned.
        size: How many entries there should be.
        wanted: What they should say.

    Returns:
        The mask.

    Raises:
        TypeError: If it is no tensor of bool.
        ValueError: If its shape is another.
    """
    source = f"{type(origin).__name__}.{method}()"
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        found = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else _kind(value)
        raise TypeError(f"Parameter `{name}` should return {wanted}, as a tensor of bool. Found {found} from {source}.")
    if value.shape != (size,):
        raise ValueError(f"Parameter `{name}` should return {wanted}. Found shape {list(value.shape)} from {source}.")
    return value


def check_counts(name: str, origin: object, method: str, value: Any, size: int | None = None) -> list[int]:
    """Accepts a list of integers.

    Args:
        name: Of the parameter that the object was given as.
        origin: The object.
        method: Of the object, that returned the value.
        value: What it returned.
        size: How many there should be; None for any number.

    Returns:
        The integers.

    Raises:
        TypeError: If it is something else.
        ValueError: If there is another number of them.
    """
    source = f"{type(origin).__name__}.{method}()"
    if not isinstance(value, Sequence) or not all(isinstance(n, Integral) for n in value):
        found = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else _kind(value)
        raise TypeError(f"Parameter `{name}` should return a list of integers. Found {found} from {source}.")
    if size is not None and len(value) != size:
        raise ValueError(
            f"Parameter `{name}` should return {size} integers, one a parameter. Found {len(value)} from {source}."
        )
    return [int(n) for n in value]


def check_units(origin: object, value: Any, live: int, groups: int) -> Units:
    """Accepts the units of a step.

    Args:
        origin: The pattern.
        value: What it returned.
        live: How many weights are alive.
        groups: How many parameters there are, or groups of parameters that share units.

    Returns:
        The units.

    Raises:
        TypeError: If it is no `Units`, or holds something else than tensors and integers.
        ValueError: If the numbers do not go together.
    """
    if not isinstance(value, Units):
        source = f"{type(origin).__name__}.units()"
        raise TypeError(f"Parameter `pattern` should return mfac.Units. Found {_kind(value)} from {source}.")
    counts = check_counts("pattern", origin, "units", value.counts, groups)
    total = sum(counts)
    wanted = f"a score for each of the {total} units that its counts add up to"
    check_vector("pattern", origin, "units", value.scores, total, wanted)
    if value.unit_of is not None:
        check_vector("pattern", origin, "units", value.unit_of, live, f"the unit of each of the {live} live weights")
    elif total != live:
        raise ValueError(
            f"Parameter `pattern` should return a unit for each of {live} live weights, or `unit_of`. Found {total} "
            f"units and no `unit_of` from {type(origin).__name__}.units()."
        )
    if value.sizes is not None:
        check_vector("pattern", origin, "units", value.sizes, total, f"the sizes of the {total} units")
    return value


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
