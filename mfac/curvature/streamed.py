"""The full Fisher over gradients read by column tiles: in bfloat16 in memory, or in a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.tensors import check_finite_rows
from mfac.core.memory import release_freed
from mfac.curvature.damping import Damping, check_damping, check_inverse_range, resolve_damping
from mfac.curvature.diagonal import whitened_norms
from mfac.curvature.dual import DualFisher, window_combine_, window_dot
from mfac.curvature.fisher import EmpiricalFisher
from mfac.gradients.store import GradientStore

IN_MEMORY = 1 << 25  # entries of a window that is small enough to be held in full: 128 MiB in float32


class StreamedFisher(EmpiricalFisher):
    """`EmpiricalFisher` of the live columns of a store, with the same products, one pass each.

    Beside vectors of d numbers it holds one tile of columns and m x m matrices. Columns that are
    dropped stay in the store and are passed over. Products are those of the rows as stored: rounded
    to bfloat16, which changes an entry by at most 2⁻⁹ of it.

    Args:
        store: G, [m, d].
        damping: λ > 0, or relative.
        live: Which columns the Fisher is over, [d] bool: n of them.

    Attributes:
        rank: m.
        dim: n.
        damping: λ.
        block_size: None.
        dtype: Of results.

    Raises:
        ValueError: If a row is not finite, or m >= n.
        torch.linalg.LinAlgError: If λ is too small for float64.
    """

    def __init__(
        self, store: GradientStore, damping: Damping, live: Tensor | None = None, *, _gram: Tensor | None = None
    ) -> None:
        self.store, self.live = store, live
        self.rank, self.dim = store.rank, store.dim if live is None else int(live.sum())
        self.block_size, self.dtype, self.device = None, store.dtype, store.device
        if self.rank >= self.dim:
            raise ValueError(f"Parameter `store` should have more columns than rows. Found [{self.rank}, {self.dim}].")
        gram = torch.zeros((self.rank, self.rank), dtype=torch.float64) if _gram is None else _gram
        for _, tile in store.tiles(live) if _gram is None else ():
            gram += ops.gram(tile)
        check_finite_rows("grads", gram, gram.diagonal())
        damping = check_damping(damping)
        trace = float(gram.diagonal().sum()) if not isinstance(damping, float) else 0.0
        self.damping = resolve_damping(damping, trace, float(self.rank), self.dim)
        check_inverse_range(self.damping, self.dtype)
        self._dual = _StreamedDual(store, live, self.dim, self.damping, gram)
        self._form = self._dual

    def _dot(self, vectors: Tensor) -> Tensor:
        return self._dual.dot(vectors)

    @property
    def grads(self) -> NoReturn:  # type: ignore[override]
        """Not in memory.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            'The gradients of this Fisher are not in memory as a tensor. gradients="ram" holds them so; `dot`, '
            "`matvec` and `restricted` need no tensor."
        )

    def tiles(self) -> Iterator[Tensor]:
        """Goes over the gradients by tiles of successive columns.

        Yields:
            Columns of G, [m, width], read from the store; a tile is not kept.
        """
        for _, tile in self.store.tiles(self.live):
            yield tile

    def columns(self, index: Tensor) -> Tensor:
        """Some columns of the gradients, [m, s] in `dtype`; one pass over the store."""
        return self._dual._gather(index).to(self.dtype)

    def restricted(self, kept: Tensor) -> EmpiricalFisher:
        """F over some of the columns, with the same λ; in memory where few are left.

        Args:
            kept: Which, [n] bool.

        Returns:
            The Fisher.
        """
        live, count = self._within(kept), int(kept.sum())
        if _fits(self.rank, count):
            return fisher_of(self.store, self.damping, live)
        return StreamedFisher(self.store, self.damping, live, _gram=self._gram_of(kept, count))

    def _within(self, chosen: Tensor) -> Tensor:
        """Which columns of the store are chosen of the live ones."""
        if self.live is None:
            return chosen
        within = self.live.clone()
        within[self.live] = chosen
        return within

    def _tiles_of(self, chosen: Tensor) -> Iterator[Tensor]:
        for _, tile in self.store.tiles(self._within(chosen)):
            yield tile

    def damped(self, damping: float) -> EmpiricalFisher:
        """F with another λ."""
        return StreamedFisher(self.store, damping, self.live)


def fisher_of(store: GradientStore, damping: Damping, live: Tensor | None = None) -> EmpiricalFisher:
    """The Fisher over columns of a store, streamed where they are many.

    Args:
        store: G, [m, d].
        damping: λ > 0, or relative.
        live: Which columns, [d] bool; None for all.

    Returns:
        The Fisher. With at most 2²⁵ entries, or with m >= n, it holds them in memory.
    """
    count = store.dim if live is None else int(live.sum())
    if not _fits(store.rank, count):
        return StreamedFisher(store, damping, live)
    release_freed()  # tiles of before, of which the C library may have kept some
    window = torch.empty((store.rank, count), dtype=store.dtype)
    for columns, tile in store.tiles(live):
        window[:, columns] = tile
    return EmpiricalFisher(window, damping)


def _fits(rank: int, count: int) -> bool:
    """Whether a window is held in memory, as it is small, or has no dual form."""
    return rank >= count or rank * count <= IN_MEMORY


class _StreamedDual(DualFisher):
    """`DualFisher` whose passes go over the store's tiles."""

    def __init__(self, store: GradientStore, live: Tensor | None, dim: int, damping: float, gram: Tensor) -> None:
        self.store, self.live, self.stored = store, live, None
        self._factor(dim, damping, float(store.rank), gram)

    def dot(self, v: Tensor) -> Tensor:
        result = v.new_zeros((v.shape[0], self.rank), dtype=torch.float64)
        for columns, tile in self.store.tiles(self.live):
            result += window_dot(tile, v[:, columns].contiguous())
        return result

    def combine_(self, out: Tensor, coefficients: Tensor, alpha: float, beta: float) -> Tensor:
        for columns, tile in self.store.tiles(self.live):
            out[:, columns] = window_combine_(out[:, columns].contiguous(), tile, coefficients, alpha, beta)
        return out

    def _whitened_norms(self) -> Tensor:
        norms = torch.empty(self.dim, dtype=torch.float64)
        for columns, tile in self.store.tiles(self.live):
            norms[columns] = whitened_norms(tile, self.factor)
        return norms

    def _gather(self, index: Tensor) -> Tensor:
        found = torch.empty((self.rank, index.numel()), dtype=torch.float64)
        for columns, tile in self.store.tiles(self.live):
            inside = (index >= columns.start) & (index < columns.stop)
            found[:, inside] = tile[:, index[inside] - columns.start].double()
        return found
