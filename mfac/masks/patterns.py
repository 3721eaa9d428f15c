"""Patterns by name: which zeros a pruned network may have, and so which weights drop together.

To add one, derive from `Pattern` and give `prune` the object (docs/extending/pattern.md).
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Mapping

from torch import nn

from mfac.core.checks.choices import did_you_mean
from mfac.masks.kinds.base import Candidates, Pattern, Units, Unstructured
from mfac.masks.kinds.by_name import ByName
from mfac.masks.kinds.grouped import Blocks, Channels, Rows
from mfac.masks.kinds.heads import Heads
from mfac.masks.kinds.nm import MOST_IN_GROUP, NM

__all__ = [
    "MOST_IN_GROUP",
    "NM",
    "Blocks",
    "ByName",
    "Candidates",
    "Channels",
    "Heads",
    "Pattern",
    "Rows",
    "Units",
    "Unstructured",
]

PATTERNS: Mapping[str, Callable[[], Pattern]] = {"unstructured": Unstructured, "rows": Rows, "channels": Channels}
"""Patterns without numbers, by name; "N:M" and "AxB" have two."""


def resolve_pattern(pattern: str | Pattern | Mapping[str, str | Pattern]) -> Pattern:
    """The pattern that a name stands for, or the pattern itself.

    Args:
        pattern: "unstructured", "N:M", "AxB", "rows", "channels", one of these or an object for
            each name or shell-style pattern of parameters, or an object.

    Returns:
        The pattern.

    Raises:
        TypeError: If it is neither a string, a mapping nor a `Pattern`.
        ValueError: If the string is no pattern's name.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if isinstance(pattern, Mapping):
        return ByName({name: resolve_pattern(value) for name, value in pattern.items()})
    if not isinstance(pattern, str):
        raise TypeError(
            f"Parameter `pattern` should be a string, a mapping or a Pattern. Found {type(pattern).__name__}."
        )
    if pattern in PATTERNS:
        return PATTERNS[pattern]()
    if found := re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", pattern):
        return Blocks(*map(int, found.groups()))
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", pattern)
    keep, group = map(int, found.groups()) if found else (0, 0)
    if not 1 <= keep < group <= MOST_IN_GROUP:
        raise ValueError(
            f"Parameter `pattern` should be 'unstructured', 'N:M' with 1 <= N < M <= {MOST_IN_GROUP}, 'AxB' for blocks "
            f"of A outputs by B inputs, 'rows', 'channels', mfac.Heads(model), or a Pattern. Found {pattern!r}"
            f"{did_you_mean(pattern, PATTERNS)}"
        )
    return NM(keep, group)


def pattern_of_text(text: str, model: nn.Module) -> Pattern | None:
    """The pattern whose name a report holds.

    Args:
        text: The pattern as text, `str(pattern)`.
        model: Where the attentions are looked for that heads belong to.

    Returns:
        The pattern; None where the text does not say enough, as of a pattern of the caller's own.
    """
    if text.startswith("heads of "):
        try:
            found: Pattern = Heads(model)
        except ValueError:
            return None
        return found if str(found) == text else None
    if text.startswith("{"):
        entries = re.findall(r"""('[^']*'|"[^"]*"): ([^,{}]+)[,}]""", text)
        parts = {literal_eval(key): pattern_of_text(value, model) or Unstructured() for key, value in entries}
        return ByName(parts) if parts else None
    try:
        return resolve_pattern(text)
    except ValueError:
        return None
