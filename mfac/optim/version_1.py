"""States of version 0.1, which had one window for all groups and kept it outside `state`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def upgraded(
    state_dict: Mapping[str, Any], groups: list[dict[str, Any]], keys: Mapping[Tensor, Any]
) -> dict[Any, dict[str, Any]]:
    """The `state` that a state dict of version 0.1 stands for.

    Args:
        state_dict: With the entries "window" and "momentum".
        groups: Of the optimizer that takes it up.
        keys: The name of each parameter in the state.

    Returns:
        Entries for each parameter. Where there are several groups, each gets its columns of the
        rows, and their Gram matrix.

    Raises:
        KeyError: If an entry is missing.
        ValueError: If the window has another width; or is in 8 bits or sparse, whose columns cannot
            be told apart, and there are several groups.
    """
    window, momentum = state_dict["window"], state_dict.get("momentum")
    for name in ("gram", "inverse", "shift", "ages", "pushes", "newest", "replaced"):
        if name not in window:
            raise KeyError(f"Parameter `state_dict['window']` should have an entry {name!r}. Found {sorted(window)}.")
    widths = [sum(p.numel() for p in group["params"]) for group in groups]
    storage = {name: t for name, t in window.items() if name in ("scales", "values", "indices", "error")}
    rows = window.get("rows")
    if len(groups) > 1 and (storage or rows is None):
        raise ValueError(
            "Parameter `state_dict` should have a window of floats, or one parameter group: since version 0.2 every "
            f"group has a window of its own. Found {sorted(storage)} and {len(groups)} groups."
        )
    if rows is not None and rows.shape[1] != sum(widths):
        raise ValueError(
            f"Parameter `state_dict` should have 'rows' of {sum(widths)} columns. Found shape {list(rows.shape)}."
        )
    found: dict[Any, dict[str, Any]] = {}
    column = 0
    for group, width in zip(groups, widths, strict=True):
        first, begin = True, column
        for p in group["params"]:
            entries = found[keys[p]] = {"columns": torch.tensor(p.numel())}
            place, shape = slice(column, column + p.numel()), p.shape or (1,)
            if rows is not None:
                entries["rows"] = rows[:, place].reshape(rows.shape[0], *shape)
            if momentum is not None:
                entries["momentum"] = momentum[place].reshape(shape)
            column += p.numel()
            if first:
                entries |= _head(window, rows if len(groups) > 1 else None, slice(begin, begin + width))
                entries |= {f"window_{name}": tensor for name, tensor in storage.items()}
                first = False
    return found


def _head(window: Mapping[str, Any], rows: Tensor | None, columns: slice) -> dict[str, Any]:
    """The parts of a whole window; of some columns alone if rows are given."""
    gram, replaced = window["gram"], window["replaced"]
    if rows is not None:
        mine = rows[:, columns].double()
        gram, replaced = mine @ mine.T, -1
    newest = -1 if window["newest"] is None else window["newest"]
    return {
        "window_gram": gram,
        "window_inverse": window["inverse"],
        "window_shift": torch.tensor(window["shift"], dtype=torch.float64),
        "window_ages": window["ages"],
        "window_counts": torch.tensor([window["pushes"], newest, replaced], dtype=torch.int64),
    }
