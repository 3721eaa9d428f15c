"""What a recipe is made of, in words, so that a training is not resumed with another."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

from torch import Tensor, nn

_PLAIN = (str, int, float, bool, type(None))


def describe(value: object) -> Any:
    """A recipe or a part of one, as nested dicts, lists and plain values.

    Args:
        value: The object.

    Returns:
        {"is": class, name: value, ...} of an object; of anything else itself, or its type's name.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, FunctionType | type):
        return {"is": value.__qualname__}
    own = getattr(value, "__dict__", None)
    if own is None or isinstance(value, nn.Module):
        return {"is": type(value).__name__}
    return {"is": type(value).__name__, **{name: describe(item) for name, item in sorted(own.items())}}


def difference(mine: Any, saved: Any, where: str = "recipe") -> str | None:
    """The first place in which two descriptions differ, in words.

    Args:
        mine: One.
        saved: The other.
        where: What they are of.

    Returns:
        As "recipe.when.end is 90, not 100"; None where they are the same.
    """
    if isinstance(mine, dict) and isinstance(saved, dict):
        if mine.get("is") != saved.get("is"):
            return f"{where} is {mine.get('is')}, not {saved.get('is')}"
        for name in [*mine, *(key for key in saved if key not in mine)]:
            if found := difference(mine.get(name), saved.get(name), f"{where}.{name}"):
                return found
        return None
    return None if mine == saved else f"{where} is {mine!r}, not {saved!r}"
