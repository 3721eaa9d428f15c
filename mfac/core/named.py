"""A choice that is given by its name or as an object of one's own: the form of every seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from mfac.core.checks.choices import did_you_mean, names_of

T = TypeVar("T")


def resolve(name: str, value: object, known: Mapping[str, Callable[[], T]], kind: type[T]) -> T:
    """The object that a name stands for, or the object itself.

    Args:
        name: The parameter's name.
        value: What was given for it.
        known: Names, and what makes the object of each.
        kind: The class that an object of one's own is derived from.

    Returns:
        The object.

    Raises:
        TypeError: If `value` is neither a name nor such an object.
        ValueError: If `value` is a name that nothing stands for.
    """
    if isinstance(value, kind):
        return value
    choices = f"{names_of(list(known))}, or {_article(kind.__name__)} {kind.__name__}"
    if not isinstance(value, str):
        found = repr(value) if isinstance(value, type) else type(value).__name__
        raise TypeError(f"Parameter `{name}` should be {choices}. Found {found}.")
    if value not in known:
        raise ValueError(f"Parameter `{name}` should be {choices}. Found {value!r}{did_you_mean(value, known)}")
    return known[value]()


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOU" else "a"
