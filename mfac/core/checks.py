"""The checks of arguments that every public function shares, and the one form their errors take.

Every message names the parameter, what it should be and what was found::

    Parameter `v` should have last dimension d=1000. Found shape [5, 999].

Shapes and values raise `ValueError`, types and dtypes `TypeError`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from mfac.core.devices import check_device, check_same_device

VECTOR_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)


def names_of(choices: Sequence[object]) -> str:
    """Joins choices for a message: ``'a', 'b' or 'c'``."""
    words = [
        str(choice).removeprefix("torch.") if isinstance(choice, torch.dtype) else repr(choice) for choice in choices
    ]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


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
        raise TypeError(f"Parameter `{name}` should be {names_of(choices)}. Found {dtype}.")


def check_rows(name: str, tensor: Tensor) -> None:
    """Accepts a real floating-point tensor whose last dimension is contiguous.

    Args:
        name: The parameter's name.
        tensor: What was given for it.

    Raises:
        TypeError: If `tensor` is not a strided tensor of float32 or float64.
        ValueError: If there are no kernels for its device or its last dimension is not contiguous.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"Parameter `{name}` should be a tensor. Found {type(tensor).__name__}.")
    check_dtype(name, tensor.dtype)
    if tensor.layout != torch.strided:
        raise TypeError(f"Parameter `{name}` should be a strided tensor. Found layout {tensor.layout}.")
    check_device(name, tensor.device)
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"Parameter `{name}` should be contiguous in its last dimension. Found strides {tuple(tensor.stride())} "
            f"for shape {list(tensor.shape)}; pass `{name}.contiguous()`."
        )


def check_window(name: str, window: Tensor) -> Tensor:
    """Accepts a window of gradients, [m, d] with m, d >= 1.

    Args:
        name: The parameter's name.
        window: What was given for it.

    Returns:
        The window, detached from autograd; never a copy.

    Raises:
        ValueError: If it is not a matrix or has no row or no column.
    """
    check_rows(name, window)
    if window.dim() != 2:
        raise ValueError(f"Parameter `{name}` should have shape [m, d]. Found shape {list(window.shape)}.")
    if window.shape[0] < 1 or window.shape[1] < 1:
        raise ValueError(
            f"Parameter `{name}` should have at least one row and one column. Found shape {list(window.shape)}."
        )
    return window.detach()


def check_vectors(
    name: str, vectors: Tensor, dim: int, dtype: torch.dtype, device: torch.device, size: str = "d"
) -> Tensor:
    """Accepts one vector [d] or several [k, d].

    Args:
        name: The parameter's name.
        vectors: What was given for it.
        dim: d.
        dtype: The dtype it should have.
        device: Where it should be.
        size: What d is called.

    Returns:
        The vectors as [k, d], detached from autograd; a view.

    Raises:
        TypeError: If the dtype differs.
        ValueError: If the shape is neither [d] nor [k, d], or the device differs.
    """
    check_rows(name, vectors)
    check_same_device(name, vectors.device, device)
    if vectors.dtype != dtype:
        whose = "the gradients' dtype" if size == "d" else "dtype"
        raise TypeError(f"Parameter `{name}` should have {whose} {dtype}. Found {vectors.dtype}.")
    if vectors.dim() not in {1, 2}:
        raise ValueError(
            f"Parameter `{name}` should have shape [{size}] or [k, {size}]. Found shape {list(vectors.shape)}."
        )
    if vectors.shape[-1] != dim:
        raise ValueError(
            f"Parameter `{name}` should have last dimension {size}={dim}. Found shape {list(vectors.shape)}."
        )
    return vectors.detach().reshape(-1, dim)


def vector_dtype(window_dtype: torch.dtype) -> torch.dtype:
    """Of the vectors that go with a window of a given format: float64 with float64, float32 with any other."""
    return torch.float64 if window_dtype == torch.float64 else torch.float32


def check_window_vectors(
    name: str, vectors: Tensor, dim: int, window_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Accepts one vector [d] or several [k, d] for a window of a given format.

    Args:
        name: The parameter's name.
        vectors: What was given for it.
        dim: d.
        window_dtype: Of the window. float64 takes float64, any other float32, bfloat16 and float16 their own too.
        device: Of the window.

    Returns:
        The vectors as [k, d] in float64 or float32, detached from autograd.

    Raises:
        TypeError: If the dtype is another.
        ValueError: If the shape or the device is wrong.
    """
    wanted = vector_dtype(window_dtype)
    if isinstance(vectors, Tensor) and vectors.dtype != wanted and window_dtype not in VECTOR_DTYPES:
        choices = (wanted, window_dtype) if window_dtype.is_floating_point else (wanted,)
        check_dtype(name, vectors.dtype, choices)
        vectors = vectors.to(wanted)
    return check_vectors(name, vectors, dim, wanted, device).contiguous()


def check_count(name: str, value: int, least: int = 0) -> int:
    """Accepts an integer that is not too small.

    Args:
        name: The parameter's name.
        value: What was given for it.
        least: The smallest value allowed.

    Returns:
        The value.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Parameter `{name}` should be an integer. Found {value!r}.")
    if value < least:
        raise ValueError(f"Parameter `{name}` should be at least {least}. Found {value}.")
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
        raise ValueError(f"Parameter `{name}` should be {names_of(choices)}. Found {value!r}.")
    return value


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


def check_finite_rows(name: str, window: Tensor, squared_norms: Tensor) -> None:
    """Refuses a window that holds a NaN or an infinity.

    Args:
        name: The parameter's name.
        window: The window, [m, d], looked through only to word the message.
        squared_norms: Sums of squares that are finite if and only if all rows are; any shape.

    Raises:
        ValueError: If `squared_norms` is not finite, naming the first bad row.
    """
    if bool(torch.isfinite(squared_norms).all()):
        return
    for row in range(window.shape[0]):
        if not bool(torch.isfinite(window[row]).all()):
            raise ValueError(f"Parameter `{name}` should be finite. Found a NaN or infinity in row {row}.")
    raise ValueError(f"Parameter `{name}` should have rows whose squared norm is finite in float64. Found an overflow.")


def check_out(
    name: str, out: object, dim: int, dtype: torch.dtype, device: torch.device, apart_from: Iterable[Tensor] = ()
) -> None:
    """Refuses anything but a contiguous vector of a size, dtype and device that may be written to.

    Args:
        name: Of the parameter.
        out: What was given.
        dim: d.
        dtype: That it should have.
        device: Where it should be.
        apart_from: Tensors whose memory it should not share.

    Raises:
        TypeError: If it is no tensor, or of another dtype.
        ValueError: If its shape is not [d], or it is on another device, not contiguous, requires a gradient or shares
            memory.
    """
    if not isinstance(out, Tensor) or out.dtype != dtype:
        found = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise TypeError(f"Parameter `{name}` should be a tensor of {dtype}. Found {found}.")
    check_same_device(name, out.device, device)
    if out.shape != (dim,) or not out.is_contiguous():
        raise ValueError(
            f"Parameter `{name}` should be contiguous of shape [d={dim}]. Found shape {list(out.shape)}"
            f"{'' if out.is_contiguous() else ', not contiguous'}."
        )
    if out.requires_grad:
        raise ValueError(f"Parameter `{name}` should not require a gradient: it is overwritten. Found one that does.")
    storage = out.untyped_storage().data_ptr()
    if any(tensor.untyped_storage().data_ptr() == storage for tensor in apart_from):
        raise ValueError(f"Parameter `{name}` should have memory of its own. Found a part of the window.")


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
