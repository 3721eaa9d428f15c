"""Checks of saved states."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from torch import Tensor

from mfac.core.checks.numbers import check_count, check_number
from mfac.core.devices import check_device


def check_like(name: str, entry: str, found: object, expected: Tensor) -> None:
    """Refuses an entry of a state that is no tensor of the expected shape and dtype.

    Args:
        name: Of the parameter that holds the state.
        entry: Of the entry.
        found: What it holds.
        expected: A tensor like which it should be.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If its shape or dtype differs, or there are no kernels for its device.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"Parameter `{name}` should have a tensor as {entry!r}. Found {type(found).__name__}.")
    check_device(f"{name}[{entry!r}]", found.device)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"Parameter `{name}` should have {entry!r} of shape {list(expected.shape)} and {expected.dtype}. "
            f"Found shape {list(found.shape)} and {found.dtype}."
        )


def check_state(name: str, state: Mapping[str, Any], mine: Mapping[str, Any], optional: Container[str]) -> None:
    """Refuses a state that lacks an entry or has one of another kind.

    Args:
        name: Of the parameter that holds the state.
        state: What was given.
        mine: A state like which it should be: tensors, floats, and counts, -1 or more.
        optional: Entries that may be None.

    Raises:
        KeyError: If an entry is missing.
        TypeError: If an entry is of another type.
        ValueError: If a tensor is of another shape or dtype, or a number out of range.
    """
    for entry, expected in mine.items():
        if entry not in state:
            raise KeyError(f"Parameter `{name}` should have an entry {entry!r}. Found {sorted(state)}.")
        if isinstance(expected, Tensor):
            check_like(name, entry, state[entry], expected)
        elif isinstance(expected, float):
            check_number(f"{name}[{entry!r}]", state[entry])
        elif state[entry] is not None or entry not in optional:
            check_count(f"{name}[{entry!r}]", state[entry], least=-1)
