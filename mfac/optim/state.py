"""The state of windows as entries of parameters, where `torch.optim` and its tools look for it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.state import check_like
from mfac.optim.group_window import GroupWindow
from mfac.optim.options import check_options, in_group, same, unpacked
from mfac.optim.version_1 import upgraded

_SHAPING = ("rank", "window_dtype", "density")
"""Options that decide which tensors a state has."""

ELEMENTWISE = frozenset({"momentum", "square_average", "compensation"})
"""Entries of a parameter that have a value for each weight, beside the rows of its window.

Others may have its shape by chance, as `window_gram` that of a matrix with as many rows and columns
as the window has gradients."""

_OWN = (
    " Of a window in 8 bits or with a density below 1 each process saves parts of its own: it goes on with as many "
    "processes as saved it, with parameters spread in the same way, and not from a whole state."
)


def published(mine: GroupWindow) -> dict[Tensor, dict[str, Any]]:
    """What `state` holds of each parameter of a group, tensors by reference.

    Of each parameter: "rows" of the window, [m, *shape]; "momentum", "square_average", "step",
    "present" and "compensation" where it has them; "columns", its size, and under a mask "kept",
    the entries that have columns. The first parameter holds the parts of the whole window:
    "window_gram" and "window_inverse", [m, m]; "window_shift"; "window_ages", [m];
    "window_counts": pushes, newest row, replaced rows.

    Returns:
        Entries by parameter.
    """
    columns, pieces, window = mine.columns, mine.columns.pieces, mine.window
    found: dict[Tensor, dict[str, Any]] = {
        p: {"columns": torch.tensor(mine.columns.widths[j], device="cpu")} for j, p in enumerate(columns.parameters)
    }
    storage = dict(window.format.tensors())
    flat = {"rows": storage.pop("rows", None), "momentum": mine.average}
    if mine.metric is not None:
        flat["square_average"] = mine.metric.square_average
    for name, tensor in flat.items():
        if tensor is not None:
            for parameter, view in zip(columns.parameters, columns.views(tensor), strict=True):
                found[parameter][name] = pieces.published(parameter, view)
    for j, parameter in enumerate(columns.parameters):
        if (index := columns.kept[j]) is not None:
            found[parameter]["kept"] = index
        if mine.rule.metric:
            found[parameter]["present"] = mine.present[j]
        if mine.metric is not None:
            found[parameter]["step"] = mine.metric.counts[j]
        compensation = mine.compensations[j]
        if compensation is not None:
            found[parameter]["compensation"] = pieces.published(parameter, compensation)
    state = window.window_state()
    newest = -1 if state["newest"] is None else state["newest"]
    head = found[columns.parameters[0]]
    head["window_gram"], head["window_inverse"] = state["gram"], state["inverse"]
    head["window_shift"] = torch.tensor(state["shift"], dtype=torch.float64, device="cpu")
    head["window_ages"] = state["ages"]
    counts = [state["pushes"], newest, state["replaced"]]
    head["window_counts"] = torch.tensor(counts, dtype=torch.int64, device="cpu")
    for name, tensor in storage.items():
        head[pieces.key(f"window_{name}")] = tensor
    return found


def is_shown(mine: GroupWindow, state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
    """Whether `state` has what a window keeps, and nothing that it keeps no more."""
    shown = [state.get(parameter, {}) for parameter in mine.columns.parameters]
    compensated = [compensation is not None for compensation in mine.compensations]
    return (
        bool(shown[0])
        and ("momentum" in shown[0]) == (mine.average is not None)
        and ["compensation" in entries for entries in shown] == compensated
    )


class Loaded:
    """A state dict, checked against the groups that are to take it up.

    Args:
        state_dict: What `MFAC.state_dict` returned, of this version or of 0.1.
        current: The groups.
        defaults: All options.

    Attributes:
        groups: The options that each group will have.

    Raises:
        KeyError: If an entry or option is missing.
        ValueError: If groups differ in number, size, order or what a window is made with, or an
            option is out of range.
    """

    def __init__(
        self, state_dict: Mapping[str, Any], current: list[dict[str, Any]], defaults: Mapping[str, Any]
    ) -> None:
        for name in ("state", "param_groups"):
            if name not in state_dict:
                raise KeyError(f"Parameter `state_dict` should have an entry {name!r}. Found {sorted(state_dict)}.")
        old = "window" in state_dict
        saved = deepcopy(state_dict["param_groups"])  # a rate may be a tensor
        if [len(group["params"]) for group in saved] != [len(group["params"]) for group in current]:
            raise ValueError(
                "Parameter `state_dict` should have the parameter groups of this optimizer, "
                f"{[len(group['params']) for group in current]} parameters. "
                f"Found {[len(group['params']) for group in saved]}."
            )
        self._current = current
        self.groups: list[dict[str, Any]] = []
        for i, (group, mine) in enumerate(zip(saved, current, strict=True)):
            self.groups.append(_options(i, group, mine, defaults, old))
        keys = chain.from_iterable(group["params"] for group in saved)
        parameters = chain.from_iterable(group["params"] for group in current)
        self._keys = {parameter: key for parameter, key in zip(parameters, keys, strict=True)}
        self._state = upgraded(state_dict, current, self._keys) if old else state_dict["state"]

    def restore(self, groups: list[dict[str, Any]]) -> None:
        """Writes the options into groups."""
        for group, options in zip(groups, self.groups, strict=True):
            group.update(options)

    def entries(self, parameter: Tensor) -> Mapping[str, Any]:
        """What the state has of a parameter."""
        found: Mapping[str, Any] = self._state.get(self._keys[parameter], {})
        return found

    def parameters(self, i: int) -> list[Tensor]:
        """The parameters of group i that have columns in the window."""
        return [p for p in self._current[i]["params"] if "columns" in self.entries(p)]

    def kept(self, parameter: Tensor, known: Tensor | None) -> Tensor | None:
        """The entries of a parameter that have columns, [k] int64; None for all.

        Args:
            parameter: The parameter.
            known: What this optimizer keeps of it; it counts where the state does not say.

        Returns:
            `known` itself where it is the same.

        Raises:
            ValueError: If the state's is no list of entries of the parameter.
        """
        found = self.entries(parameter).get("kept")
        if found is None:
            return None if int(self.entries(parameter).get("columns", -1)) == parameter.numel() else known
        inside = isinstance(found, Tensor) and found.dim() == 1 and found.dtype == torch.int64
        if not inside or (len(found) and not 0 <= int(found.min()) <= int(found.max()) < parameter.numel()):
            raise ValueError(
                f"Parameter `state_dict` should have as 'kept' entries of a parameter of {parameter.numel()}, int64. "
                f"Found {found!r}."
            )
        index: Tensor = found.to(parameter.device)
        return known if known is not None and torch.equal(known, index) else index.clone()

    def fill(self, i: int, mine: GroupWindow) -> None:
        """Copies the state of group i into a window made for `parameters(i)`.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is no tensor.
            ValueError: If one is of another shape or dtype.
        """
        first = self.entries(mine.columns.parameters[0])
        compensated = any("compensation" in self.entries(p) for p in mine.columns.parameters)
        mine.start(momentum="momentum" in first, compensated=compensated)
        wanted = published(mine)
        self._check_names(i, mine, wanted)
        for parameter, expected in wanted.items():
            where, found = self._where(i, parameter), self.entries(parameter)
            for name, tensor in expected.items():
                if name == "columns":
                    if int(found[name]) != int(tensor):
                        raise ValueError(f"The {where} should have {int(tensor)} columns. Found {int(found[name])}.")
                    continue
                _copy(where, name, mine.columns.pieces.taken(parameter, found[name], tensor), tensor)
        self._set_numbers(mine, first)

    def _check_names(self, i: int, mine: GroupWindow, wanted: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Raises a KeyError for an entry that is missing, in all processes if in one."""
        absent = [(p, name) for p, expected in wanted.items() for name in expected if name not in self.entries(p)]
        if not mine.columns.pieces.any(bool(absent)):
            return
        if not absent:
            raise KeyError(f"The state of group {i} should have all entries. Another process has not found its own.")
        parameter, name = absent[0]
        found = sorted(self.entries(parameter))
        stem = name.split(".")[0]
        own = any(other.split(".")[0] == stem for other in found)
        raise KeyError(
            f"The {self._where(i, parameter)} should have an entry {name!r}. Found {found}.{_OWN if own else ''}"
        )

    def _check_norms(self, mine: GroupWindow, gram: Tensor) -> None:
        """Refuses rows that are not those of K: parts of them may be other processes'."""
        rows = mine.window.format
        norms = [_squared_norm(rows.as_dense(slice(i, i + 1))[0]) for i in range(rows.rank)]
        squares = mine.columns.pieces.sum_(torch.stack(norms))
        wanted = gram.diagonal().to(squares)
        # Far beyond rounding, of products in float32 at worst.
        if not bool(((squares - wanted).abs() <= 1e-3 * wanted).all()):
            raise ValueError(
                "Parameter `state_dict` should have rows whose squared norms are the diagonal of 'window_gram', up to "
                f"{float(wanted.max()):.3g}. Found {float(squares.max()):.3g}.{_OWN}"
            )

    def _where(self, i: int, parameter: Tensor) -> str:
        number = next(j for j, p in enumerate(self._current[i]["params"]) if p is parameter)
        return f"state_dict['state'] of parameter {number} of group {i}"

    def _set_numbers(self, mine: GroupWindow, first: Mapping[str, Any]) -> None:
        pushes, newest, replaced = (int(n) for n in first["window_counts"])
        ages = first["window_ages"]
        if newest >= 0 and not (newest < len(ages) and int(ages[newest]) >= 0):
            raise ValueError(f"Parameter `state_dict` should have a filled row as the newest. Found {newest}.")
        window = mine.window
        storage = window.format.tensors()
        window.format.check_tensors(storage)
        window.format.load_(storage)
        window.ring.load_({"ages": ages, "pushes": pushes, "newest": newest if newest >= 0 else None})
        self._check_norms(mine, first["window_gram"])
        window.capacitance.forget()
        window.capacitance.shift, window.capacitance.replaced = float(first["window_shift"]), replaced


def _unwrapped(name: str) -> str:
    """A parameter's name without those of DDP, `DataParallel` and `torch.compile`."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def _squared_norm(row: Tensor) -> Tensor:
    """Of a row in float64, without a copy of it in float64."""
    return torch.stack([piece.double().square().sum() for piece in row.split(16384)]).sum()


def _copy(where: str, name: str, found: object, into: Any) -> None:
    local = into.to_local() if hasattr(into, "to_local") else into
    try:
        check_like("state_dict", name, found, local)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} It is in the {where}.") from None
    local.copy_(found)
    if name in ELEMENTWISE and not bool(torch.isfinite(local).all()):
        raise ValueError(f"Parameter `state_dict` should have finite numbers as {name!r}. It is in the {where}.")
    if name == "square_average" and bool((local < 0).any()):
        raise ValueError(f"Parameter `state_dict` should have squares as {name!r}, >= 0. It is in the {where}.")


def _options(
    i: int, saved: Mapping[str, Any], mine: Mapping[str, Any], defaults: Mapping[str, Any], old: bool
) -> dict[str, Any]:
    """The options of group i that a state gives, checked."""
    names, own = saved.get("param_names"), mine.get("param_names")
    if names and own and [*map(_unwrapped, names)] != [*map(_unwrapped, own)]:
        raise ValueError(
            f"Parameter `state_dict` should have the parameters of group {i} in the order {list(own)}. "
            f"Found {list(names)}."
        )
    if old and mine["rule"] != "paper":
        raise ValueError(
            f"Parameter `rule` should be 'paper' in group {i}, or `damping` a number, to take up a state of version "
            f"0.1, which had no other. Found {mine['rule']!r}."
        )
    found = {name: unpacked(value) for name, value in saved.items() if name not in ("params", "param_names")}
    kept = set(defaults) - set(saved) if old else {"window_format"}
    found |= {name: mine[name] for name in kept}
    if "rank" not in found and "rule" not in found:
        raise KeyError(
            f"Parameter `state_dict` should be of mfac.MFAC. Found group {i} with {sorted(found)}, as another "
            "optimizer has it."
        )
    if "rule" in found and found["rule"] is None:  # of one's own, which no state holds
        if isinstance(mine["rule"], str):
            raise ValueError(
                f"Parameter `rule` should be an object in group {i} to take up a state that was made with a rule of "
                f"one's own. Found {mine['rule']!r}."
            )
        found["rule"] = mine["rule"]
    with in_group(i):
        check_options(found, begun=True)
    for name in _SHAPING:
        if mine["window_format"] is None and not same(found[name], mine[name]):
            raise ValueError(
                f"Parameter `state_dict` should have {name} {mine[name]!r} in group {i}, as this optimizer has. "
                f"Found {found[name]!r}."
            )
    return found
