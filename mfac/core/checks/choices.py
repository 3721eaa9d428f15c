"""Checks of what is chosen among names, dtypes and formats of a window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import torch

from mfac.core.checks.numbers import check_number

VECTOR_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)


def names_of(choices: Sequence[object]) -> str:
    """Joins choices for a message: ``'a', 'b' or 'c'``."""
    words = [
        str(choice).removeprefix("torch.") if isinstance(choice, torch.dtype) else repr(choice) for choice in choices
    ]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def did_you_mean(value: object, choices: Iterable[str]) -> str:
    """The end of a message about a name: a full stop, and the nearest choice where one is near."""
    near = get_close_matches(value, list(choices), 1) if isinstance(value, str) else []
    return f". Did you mean {near[0]!r}?" if near else "."


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Accepts one of several words.

    Args:
        name: The parameter's name.
        value: What was given for it.
        choices: The words allowed.

    Returns:
        The value.

    Raises:
        ValueError: If `value` is none of `choices`.
    """
    if value not in choices:
        raise ValueError(
            f"Parameter `{name}` should be {names_of(choices)}. Found {value!r}{did_you_mean(value, choices)}"
        )
    return value


def check_flag(name: str, value: bool) -> bool:
    """Accepts True or False alone, as a word such as "no" would count as true.

    Args:
        name: The parameter's name.
        value: What was given for it.

    Returns:
        The value.

    Raises:
        TypeError: If `value` is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"Parameter `{name}` should be True or False. Found {value!r}.")
    return value


def check_dtype(name: str, dtype: torch.dtype, choices: Sequence[torch.dtype] = VECTOR_DTYPES) -> None:
    """Accepts the dtypes that have kernels.

    Args:
        name: The parameter's name.
        dtype: What was given for it.
        choices: The dtypes allowed.

    Raises:
        TypeError: If `dtype` is none of `choices`.
    """
    if dtype not in choices:
        kind, found = ("", dtype) if isinstance(dtype, torch.dtype) else ("a torch.dtype, ", repr(dtype))
        raise TypeError(f"Parameter `{name}` should be {kind}{names_of(choices)}. Found {found}.")


def check_storage(name: str, dtype: torch.dtype, density: float) -> float:
    """Accepts a format of a window's rows.

    Args:
        name: The name of the dtype's parameter.
        dtype: Of the stored entries.
        density: Share of the entries stored, in (0, 1].

    Returns:
        The density, as a float.

    Raises:
        TypeError: If `dtype` has no kernels or `density` is not a number.
        ValueError: If `density` is out of range, or below 1 for int8.
    """
    check_dtype(name, dtype, STORAGE_DTYPES)
    share = check_number("density", density, above=0, most=1)
    if share < 1 and dtype == torch.int8:
        raise ValueError(
            f"Parameter `density` should be 1 for an int8 window: sparse rows hold float values. Found {density!r}."
        )
    return share
