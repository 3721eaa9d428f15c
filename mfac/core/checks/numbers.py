"""Checks of counts and real numbers."""

from __future__ import annotations

from numbers import Integral, Real


def check_count(name: str, value: int, least: int = 0, most: int | None = None) -> int:
    """Accepts an integer in a range.

    Args:
        name: The parameter's name.
        value: What was given for it.
        least: The smallest value allowed.
        most: The largest; None for any.

    Returns:
        The value.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Parameter `{name}` should be an integer. Found {value!r}.")
    if value < least:
        raise ValueError(f"Parameter `{name}` should be at least {least}. Found {value}.")
    if most is not None and value > most:
        raise ValueError(f"Parameter `{name}` should be at most {most}. Found {value}.")
    return int(value)


def check_number(
    name: str,
    value: float,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """Accepts a finite real number in a range.

    Args:
        name: The parameter's name.
        value: What was given for it.
        above: The value must be greater.
        least: The value must be at least this.
        below: The value must be smaller.
        most: The value must be at most this.

    Returns:
        The value, as a float.

    Raises:
        TypeError: If `value` is not a real number.
        ValueError: If it is not finite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Parameter `{name}` should be a real number. Found {value!r}.")
    if not isinstance(value, float | int):
        value = float(value)  # numpy's narrow numbers compare in their own range
    bounds = [
        f"> {above:g}" if above is not None else "",
        f">= {least:g}" if least is not None else "",
        f"< {below:g}" if below is not None else "",
        f"<= {most:g}" if most is not None else "",
    ]
    inside = (above is None or value > above) and (least is None or value >= least)
    inside = inside and (below is None or value < below) and (most is None or value <= most)
    if not -1e308 < value < 1e308 or not inside:  # also NaN, and integers beyond float
        raise ValueError(
            f"Parameter `{name}` should be finite and {' and '.join(filter(None, bounds))}. Found {value!r}."
        )
    return float(value)
