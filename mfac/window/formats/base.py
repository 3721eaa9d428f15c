"""What a format of a window's rows is: one class that stores rows and takes products with them.

Whatever the format, the window *is* the rounded rows: `push_` returns the products of the row as it
was rounded, so the Gram matrix made of the products is the stored rows' own (docs/derivation.md,
"Compressed windows"). Storage is allocated on first use; `nbytes` is known before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.tensors import vector_dtype
from mfac.window.descent import Descent


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros for storage that is read in every step: on the CPU in huge pages."""
    if device.type == "cpu":
        return ops.zeros_in_huge_pages(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def in_range(vector: Tensor, dtype: torch.dtype) -> bool:
    """Whether every entry is finite, also in the dtype of rows; the host waits."""
    if vector.numel() == 0:
        return True
    largest = torch.linalg.vector_norm(vector, torch.inf)
    return bool(largest.isfinite()) and (not dtype.is_floating_point or bool(largest.to(dtype).isfinite()))


class Rows(ABC):
    """Rows g_1 ... g_m of length d in some format. Vectors are float32, or float64 as the rows are.

    Args:
        rank: m.
        dim: d.
        dtype: Of the stored entries.
        device: Where.

    Attributes:
        density: Share of the entries that a row keeps.
        total_dim: d over all processes, where each has some of the columns.
        is_whole: Whether this process has all columns.
    """

    density = 1.0
    is_whole = True

    def __init__(self, rank: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rank, self.dim = rank, dim
        self.dtype, self.vector_dtype = dtype, vector_dtype(dtype)
        self.device = device
        self.total_dim = dim

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes they take once allocated."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The storage by name, by reference, as a state holds it."""

    @abstractmethod
    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        """The rows asked for, [k, d], as floats: by reference where they are stored so."""

    @abstractmethod
    def push_(self, row: int, gradient: Tensor) -> Tensor:
        """Writes a gradient [d]; its products with all rows, [m] float64, or NaN and no write."""

    def written_by_push(self, row: int) -> list[Tensor]:
        """What `push_` writes, by reference: a row of every tensor, or what a format says."""
        return [tensor[row] for tensor in self.tensors().values()]

    @abstractmethod
    def clear_(self, row: int, where: Tensor) -> None:
        """Makes a row zero if `where`, one bool on the device, is true; the host does not wait."""

    @abstractmethod
    def dot(self, vectors: Tensor) -> Tensor:
        """`vectors` [k, d] times Gᵀ: [k, m] float64."""

    @abstractmethod
    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        """In place: out [k, d] <- alpha·out + beta·coefficients [k, m] G."""

    def descend_(self, descent: Descent, coefficients: Tensor, beta: float, newest: int) -> None:
        """Moves weights along beta·coefficients [1, m] G; with a kernel for it, in the same pass.

        Args:
            descent: Which weights and average; `descent.fuses` holds.
            coefficients: [1, m] float64.
            beta: Their factor.
            newest: The row that the direction belongs to.
        """
        move = torch.empty((1, self.dim), dtype=self.vector_dtype, device=self.device)
        self.combine_(move, coefficients, 0.0, beta)
        descent.apply_(move[0], self.carried(newest))

    def carried(self, row: int) -> Tensor | None:
        """Columns of the entries that a row carries, [k] int64, ascending; None for all."""
        return None

    def take_residue_(self, other: Rows, columns: list[tuple[Tensor, Tensor]]) -> None:
        """Takes over what another's rows have left out, in some columns; zero in the rest."""
        return

    def holds(self, gradient: Tensor) -> bool:
        """Whether the entries of a gradient [d] are such as `push_` writes; the host waits."""
        return in_range(gradient, self.dtype)

    def why_refused(self, gradient: Tensor) -> str:
        """What is wrong with a gradient that `push_` did not write, for an error's message."""
        if not bool(torch.isfinite(gradient).all()):
            return "a NaN or infinity"
        if self.dtype == self.vector_dtype:
            return "a squared norm that overflows float64"
        return f"an entry of {float(gradient.abs().max()):.3g}, which a window of {self.dtype} cannot hold"

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuses storage, of the right shapes, that this format cannot hold. Most can hold any."""
        return

    def load_(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a copy of storage that `check_tensors` accepts."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
