"""Checks of tensors: windows, vectors, results to be written to."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mfac.core.checks.choices import VECTOR_DTYPES, check_dtype
from mfac.core.devices import check_device, check_same_device


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
    """Of the vectors that go with a window: float64 with float64, float32 with any other."""
    return torch.float64 if window_dtype == torch.float64 else torch.float32


def check_window_vectors(
    name: str, vectors: Tensor, dim: int, window_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Accepts one vector [d] or several [k, d] for a window of a given format.

    Args:
        name: The parameter's name.
        vectors: What was given for it.
        dim: d.
        window_dtype: Of the window. float64 takes float64, any other float32, bfloat16 and float16
            their own too.
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
        ValueError: If its shape is not [d], or it is on another device, not contiguous, requires a
            gradient or shares memory.
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
