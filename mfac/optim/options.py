"""The options of a parameter group: their defaults, their checks, and how a state holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice, check_flag, check_storage, did_you_mean
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.named import resolve
from mfac.curvature.damping import (
    Damping,
    RelativeDamping,
    RowRelativeDamping,
    check_damping,
    relative,
    row_relative,
)
from mfac.optim.rules.base import Rule
from mfac.optim.rules.named import DEFAULT, RULES

_OF_OTHERS = (
    *("params", "param_names", "name", "lr_scale", "swa_lr", "initial_lr", "max_lr", "min_lr"),
    *("base_momentum", "max_momentum"),
)
"""Keys of a group that torch, its schedulers and trainers write."""

OPTIONS = (
    *("lr", "rank", "damping", "momentum", "weight_decay", "window_dtype", "density", "rule", "normalize"),
    *("decoupled_weight_decay", "nesterov", "maximize", "centred", "trust_region", "grafting", "update_rms"),
    *("orthogonal", "beta2", "eps", "rounding", "window_format"),
)
"""What may stand in a group, beside its parameters."""

FIXED = ("rule", "rank", "window_dtype", "density", "normalize", "window_format")
"""Options that a window is made with."""

_PLAIN = {
    "lr": 1e-3,
    "rank": 32,
    "damping": row_relative(1.0),
    "momentum": 0.0,
    "grafting": 0.0,
    "orthogonal": False,
}
"""What a rule that has no default of its own leaves to."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Of parameters."""

MOST_ROWS = 1 << 16
"""Of a window: its matrices of m x m float64 would take 34 GB each."""

ROUNDINGS = ("stochastic", "compensated", "nearest")


def rule_of(group: Mapping[str, Any]) -> Rule:
    """The rule object of a group."""
    return resolve("rule", group["rule"], RULES, Rule)  # type: ignore[type-abstract]


def _check_parameters(group: dict[str, Any]) -> None:
    """Refuses parameters that no step moves; a repeated one counts once."""
    group["params"] = list(dict.fromkeys(group["params"]))  # torch has warned
    for number, parameter in enumerate(group["params"]):
        if parameter.dtype not in DTYPES:
            raise TypeError(
                f"Parameter `params` should be real floating-point, of 16, 32 or 64 bits. "
                f"Found {parameter.dtype} as number {number}, shape {list(parameter.shape)}."
            )


def complete(group: dict[str, Any], number: int) -> None:
    """Gives the options that a group leaves open, None, the defaults of its rule, and checks all.

    Args:
        group: Of an optimizer.
        number: Which, for messages.

    Raises:
        TypeError: If a parameter has no dtype that is known, or an option is of another type.
        ValueError: If an option is out of range.
    """
    with in_group(number):
        _check_parameters(group)
        if group["rule"] == "auto":
            group["rule"] = "paper" if isinstance(group["damping"], Real | RelativeDamping) else DEFAULT
        for name, value in {**_PLAIN, **rule_of(group).defaults}.items():
            if group[name] is None:
                group[name] = value
        check_options(group)


def refuse_unknown(group: Mapping[str, Any], number: int) -> None:
    """Raises a TypeError for a key of group `number` that is no option, with the nearest one."""
    if not isinstance(group, Mapping):
        raise TypeError(f"Parameter `param_group` should be a dict with 'params'. Found {type(group).__name__}.")
    for key in group:
        if key not in OPTIONS and key not in _OF_OTHERS:
            raise TypeError(
                f"Parameter `params` should have groups with the options {sorted(OPTIONS)}. "
                f"Found {key!r}{did_you_mean(key, OPTIONS)} It is {group[key]!r} in group {number}."
            )


@contextmanager
def in_group(number: int) -> Generator[None, None, None]:
    """Adds to what is said of an option in which group it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} It is in group {number}.") from None


def check_options(group: Mapping[str, Any], begun: bool = False) -> None:
    """Raises for an option of a group that is missing or out of range.

    Args:
        group: The group.
        begun: Whether it has stepped: a schedule may have taken its momentum to 0 on the way.

    Raises:
        KeyError: If one is missing.
        TypeError: If one is of another type.
        ValueError: If one is out of range, or does not go with another.
    """
    for name in OPTIONS:
        if name not in group:
            raise KeyError(f"Every parameter group should have an entry {name!r}. Found {sorted(group)}.")
    for name, check in _CHECKS.items():
        check(name, group[name])
    check_storage("window_dtype", group["window_dtype"], group["density"])
    rule = rule_of(group)
    if group["nesterov"] and group["momentum"] == 0 and not begun:
        raise ValueError("Parameter `nesterov` should be False where momentum is 0. Found True.")
    if rule.averages_updates and group["centred"]:
        raise ValueError(f"Parameter `centred` should be False for rule {group['rule']!r}. Found True.")
    if rule.metric and group["update_rms"] is not None:
        raise ValueError(
            f"Parameter `update_rms` should be None for rule {group['rule']!r}, whose updates have the scale of "
            f"Adam's. Found {group['update_rms']!r}."
        )


def check_changes(group: Mapping[str, Any], checked: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the options of a group where any has changed since the last step.

    Args:
        group: As it is.
        checked: Its options as they were when last checked.

    Returns:
        Its options as they are.

    Raises:
        ValueError: If one is out of range, or is one that the window was made with.
    """
    # A number in a tensor may have been changed in place.
    if all(group.get(name, checked) is value and not isinstance(value, Tensor) for name, value in checked.items()):
        return dict(checked)
    check_options(group, begun=True)
    for name in FIXED:
        if not same(group[name], checked[name]):
            raise ValueError(
                f"Parameter `{name}` of a group should stay as it was made, {checked[name]!r}: the window depends on "
                f"it. Found {group[name]!r}."
            )
    return {name: group[name] for name in OPTIONS}


def _number(**bounds: float) -> Callable[[str, Any], Any]:
    return lambda name, value: check_number(name, number_of(name, value), **bounds)


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: Any) -> None:
    check_flag(name, value)


def _check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"Parameter `{name}` should be a function of rank, dim and device, or None. Found {value!r}.")


def number_of(name: str, value: Any) -> Any:
    """A number, also of a tensor of one element, as schedulers and compilers give rates."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"Parameter `{name}` should be one number. Found shape {list(value.shape)}.")
        if value.is_complex():
            raise TypeError(f"Parameter `{name}` should be a real number. Found {value!r}.")
        return float(value)
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "lr": _number(least=0),
    "rank": lambda name, value: check_count(name, value, least=1, most=MOST_ROWS),
    "damping": lambda name, value: check_damping(value),
    "momentum": _number(least=0, below=1),
    "weight_decay": _number(least=0),
    "rule": lambda name, value: resolve(name, value, RULES, Rule),  # type: ignore[type-abstract]
    "normalize": lambda name, value: check_choice(name, value, ("rank", "filled")),
    "decoupled_weight_decay": _flag,
    "nesterov": _flag,
    "maximize": _flag,
    "centred": _flag,
    "orthogonal": _flag,
    "trust_region": _optional(_number(above=0)),
    "grafting": _number(least=0, most=1),
    "update_rms": _optional(_number(above=0)),
    "beta2": _number(least=0, below=1),
    "eps": _number(least=torch.finfo(torch.float32).tiny),
    "rounding": lambda name, value: check_choice(name, value, ROUNDINGS),
    "window_format": _optional(_check_callable),
}


def packed(value: Any) -> Any:
    """An option as a plain value, which `torch.load(weights_only=True)` and checkpoints accept."""
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, RowRelativeDamping):
        return f"row_relative({value.scale!r})"
    if isinstance(value, RelativeDamping):
        return f"relative({value.scale!r})"
    return None if isinstance(value, Rule) else value


def unpacked(value: Any) -> Any:
    """The option that `packed` made plain."""
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."), value)
    found = re.fullmatch(r"(row_relative|relative)\((.+)\)", value) if isinstance(value, str) else None
    return _damping(*found.groups()) if found else value


def _damping(kind: str, scale: str) -> Damping:
    return row_relative(float(scale)) if kind == "row_relative" else relative(float(scale))


def same(a: Any, b: Any) -> bool:
    """Whether two values of an option are the same."""
    return a is b or bool(type(a) is type(b) and a == b) or (isinstance(a, torch.dtype) and a == b)
