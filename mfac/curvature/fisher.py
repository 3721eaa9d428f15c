"""The static empirical Fisher: factor once, apply many."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from mfac.core import ops
from mfac.core.checks.numbers import check_count
from mfac.core.checks.tensors import check_finite_rows, check_vectors, check_window
from mfac.curvature.block_diagonal import BlockDiagonalFisher
from mfac.curvature.damping import Damping, check_damping, check_inverse_range, resolve_damping
from mfac.curvature.dual import DualFisher, window_dot
from mfac.curvature.primal import PrimalFisher

_ELEMENTS_AT_ONCE = 4096
_COLUMNS_AT_ONCE = 8192


class _Form(Protocol):
    """What the three forms of the inverse share; everything in float64."""

    def ihvp(self, v: Tensor) -> Tensor: ...
    def matvec(self, v: Tensor) -> Tensor: ...
    def inverse_diagonal(self) -> Tensor: ...
    def inverse_elements(self, i: Tensor, j: Tensor) -> Tensor: ...
    def inverse_submatrix(self, rows: Tensor, cols: Tensor) -> Tensor: ...
    def logdet(self) -> float: ...


class EmpiricalFisher:
    r"""The damped empirical Fisher of m gradients, and products with its inverse.

    .. math:: F = \lambda I + \frac{1}{m} \sum_{i=1}^{m} g_i g_i^\top
              \qquad F^{-1} = \frac{1}{\lambda}
              \left(I - G^\top (m \lambda I + G G^\top)^{-1} G \right)

    Factoring costs O(dm²) in time and O(m²) in memory beyond the gradients, an
    inverse-Hessian-vector product O(dm). Where m >= d (or m >= B within a block) the primal d x d
    matrix is the smaller one, and is factored instead. All products of rows are accumulated in
    float64 and everything m x m is float64, so a float32 window loses only the rounding of the
    result. `inverse_diagonal` alone may be computed in float32, where its error has a bound. The
    gradients are kept by reference and never written to: leave them unchanged while this object is
    in use. Costs below are those of the dual form, m < d; the primal form holds d x d matrices, no
    larger.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 3.1, with the differences that
    docs/derivation.md numbers: (1) matrix products and a Cholesky factorisation in place of the
    paper's m rank-one steps; (2) the primal form.

    Args:
        grads: G, [m, d], one gradient a row; float32 or float64, rows contiguous.
        damping: λ > 0, or `mfac.relative(c)`.
        block_size: B, for a Fisher of diagonal blocks of B consecutive columns; None for the full
            matrix. Memory of the factors is then ceil(d/B) · min(m, B)² float64.
        store_columns: Hold U = L⁻¹G, [m, d] float64, so that an element of F⁻¹ costs O(m);
            otherwise each column asked for costs a triangular solve, O(m²). Of use to the full dual
            form only.

    Attributes:
        grads: G, by reference.
        rank: m.
        dim: d.
        damping: λ, a number.
        block_size: B, or None.
        dtype: The gradients' dtype.
        device: The gradients' device.

    Raises:
        TypeError: If `grads` is not a float32 or float64 tensor.
        ValueError: If `grads` has another shape than [m, d], is empty, not contiguous in its rows
            or not finite, or if a parameter is out of range.
        torch.linalg.LinAlgError: If λ is so small that the matrix is not numerically positive
            definite.

    Example:
        >>> import torch, mfac
        >>> grads = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
        >>> F = mfac.EmpiricalFisher(grads, damping=0.5)
        >>> F.ihvp(torch.ones(3))
        tensor([0.6667, 0.4000, 0.6667])
        >>> F.inverse_diagonal()
        tensor([1.3333, 0.4000, 1.3333])
    """

    def __init__(
        self,
        grads: Tensor,
        damping: Damping = 1e-5,
        block_size: int | None = None,
        *,
        store_columns: bool = False,
    ) -> None:
        window = check_window("grads", grads)
        damping = check_damping(damping)
        self.grads = window
        self.rank, self.dim = window.shape
        self.block_size = None if block_size is None else check_count("block_size", block_size, least=1)
        self.dtype, self.device = window.dtype, window.device
        num_terms = float(self.rank)
        whole = self.block_size is None or self.block_size >= self.dim

        gram = ops.gram(window) if whole and self.rank < self.dim else None
        squared_norms = ops.squared_norms(window) if gram is None else gram.diagonal()  # [m]
        check_finite_rows("grads", window, squared_norms)
        trace = float(squared_norms.sum()) if not isinstance(damping, float) else 0.0
        self.damping = resolve_damping(damping, trace, num_terms, self.dim)

        if self.rank < min(self.dim, self.dim if self.block_size is None else self.block_size):
            check_inverse_range(self.damping, self.dtype)

        self._form: _Form
        if gram is not None:
            self._form = DualFisher(window, self.damping, num_terms, gram, store_columns)
        elif whole:
            self._form = PrimalFisher(window, self.damping, num_terms)
        else:
            assert self.block_size is not None
            self._form = BlockDiagonalFisher(window, self.block_size, self.damping, num_terms)

    def __repr__(self) -> str:
        return (
            f"EmpiricalFisher(rank={self.rank}, dim={self.dim}, damping={self.damping:g}, block_size={self.block_size})"
        )

    def ihvp(self, v: Tensor, refine: int = 0) -> Tensor:
        """Products F⁻¹v with the inverse Fisher, for one or many vectors.

        Args:
            v: [d] or [k, d], in the gradients' dtype.
            refine: Steps of iterative refinement y <- y + F⁻¹(v - Fy), two more passes each. For λ
                below about 1e-6 · ‖G‖²/m, where the subtraction in F⁻¹ cancels.

        Returns:
            F⁻¹v, like `v`. For a gradient v the product is in units of the parameters. Time O(kdm),
            extra memory O(kd).

        Raises:
            TypeError: If the dtype differs from the gradients'.
            ValueError: If the shape is wrong, or `refine` negative.
        """
        vectors = check_vectors("v", v, self.dim, self.dtype, self.device).double()  # [k, d]
        check_count("refine", refine)
        result = self._form.ihvp(vectors)
        for _ in range(refine):
            result += self._form.ihvp(vectors - self._form.matvec(result))
        return result.to(self.dtype).reshape(v.shape)

    def ihvp_of_combination(self, coefficients: Tensor) -> Tensor:
        """Products F⁻¹Gᵀa with combinations of the gradients, in the push-through form n Gᵀ C⁻¹ a.

        The push-through form subtracts nothing, so nothing cancels.

        Args:
            coefficients: a, [m] or [k, m] float64.

        Returns:
            [d] or [k, d] in the gradients' dtype. Time O(kdm): one pass. Accurate at any λ.

        Raises:
            ValueError: If the Fisher is block-diagonal or the shape is wrong.
            TypeError: If `coefficients` is not float64.
        """
        if not isinstance(self._form, (DualFisher, PrimalFisher)):
            raise ValueError(
                f"Parameter `block_size` should be None for a product with a combination. Found {self.block_size}."
            )
        a = check_vectors("coefficients", coefficients, self.rank, torch.float64, self.device, size="m")
        result = self._form.ihvp_of_combination(a.contiguous())
        return result.to(self.dtype).reshape(*coefficients.shape[:-1], self.dim)

    def dot(self, v: Tensor) -> Tensor:
        """Products Gv with the gradients, accumulated in float64.

        Args:
            v: [d] or [k, d], in the gradients' dtype.

        Returns:
            [m] or [k, m] float64. Time O(kdm): one pass.

        Raises:
            TypeError: If the dtype differs from the gradients'.
            ValueError: If the shape is wrong.
        """
        vectors = check_vectors("v", v, self.dim, self.dtype, self.device)
        return self._dot(vectors.contiguous()).reshape(*v.shape[:-1], self.rank)

    def _dot(self, vectors: Tensor) -> Tensor:
        return window_dot(self.grads, vectors)

    def gram(self) -> Tensor:
        """The Gram matrix GGᵀ of the rows, undamped.

        Returns:
            [m, m] float64. A copy in the dual form, otherwise time O(m²d).
        """
        return self._form.gram.clone() if isinstance(self._form, DualFisher) else ops.gram(self.grads)

    def tiles(self) -> Iterator[Tensor]:
        """Goes over the gradients by tiles of successive columns.

        Yields:
            Columns of G, [m, width]: here all of them at once.
        """
        yield self.grads

    def columns(self, index: Tensor) -> Tensor:
        """Some columns of the gradients.

        Args:
            index: Which, [s] int64.

        Returns:
            [m, s].
        """
        return self.grads.index_select(1, index)

    def restricted(self, kept: Tensor) -> EmpiricalFisher:
        """The Fisher over some of the columns, of the same gradients and with the same λ.

        Args:
            kept: Which columns, [d] bool.

        Returns:
            The Fisher over the kept columns; its blocks are blocks of the kept columns. Time and
            memory O(m) a column, beyond factoring: O(m²) for each of the fewer, kept or dropped.
        """
        grads = self.grads.index_select(1, kept.nonzero()[:, 0])
        gram = self._gram_of(kept, grads.shape[1])
        if gram is None:
            return EmpiricalFisher(grads, self.damping, self.block_size)
        return EmpiricalFisher._of_gram(grads, self.damping, gram)

    def _gram_of(self, kept: Tensor, count: int) -> Tensor | None:
        """GGᵀ over kept columns, [m, m] float64, where it costs less as a difference; else None."""
        if not isinstance(self._form, DualFisher) or 2 * count < self.dim or count <= self.rank:
            return None
        dropped = torch.zeros_like(self._form.gram)
        for tile in self._tiles_of(~kept):
            dropped += ops.gram(tile)
        return self._form.gram_without(dropped)

    def _tiles_of(self, chosen: Tensor) -> Iterator[Tensor]:
        """Some of the columns, by tiles."""
        for index in chosen.nonzero()[:, 0].split(_COLUMNS_AT_ONCE):
            yield self.grads.index_select(1, index)

    @classmethod
    def _of_gram(cls, grads: Tensor, damping: float, gram: Tensor) -> EmpiricalFisher:
        """The dual form over gradients that are known to be good, of which GGᵀ is known."""
        fisher = cls.__new__(cls)
        fisher.grads, fisher.damping, fisher.block_size = grads, damping, None
        fisher.rank, fisher.dim = grads.shape
        fisher.dtype, fisher.device = grads.dtype, grads.device
        fisher._form = DualFisher(grads, damping, float(fisher.rank), gram, False)
        return fisher

    def damped(self, damping: float) -> EmpiricalFisher:
        """The Fisher of the same gradients with another λ.

        Args:
            damping: λ > 0.

        Returns:
            The Fisher. Time as for a new one.
        """
        return EmpiricalFisher(self.grads, damping, self.block_size)

    def matvec(self, v: Tensor) -> Tensor:
        """Products Fv = λv + Gᵀ(Gv)/m with the Fisher itself.

        Args:
            v: [d] or [k, d], in the gradients' dtype.

        Returns:
            Fv, like `v`. Time O(kdm), extra memory O(kd).

        Raises:
            TypeError: If the dtype differs from the gradients'.
            ValueError: If the shape is wrong.
        """
        vectors = check_vectors("v", v, self.dim, self.dtype, self.device).double()
        return self._form.matvec(vectors).to(self.dtype).reshape(v.shape)

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of F⁻¹.

        Returns:
            [d] in the gradients' dtype, positive. Time O(dm²), column tile by column tile. Float32
            gradients take float32 arithmetic where the error is known to be at most 2⁻¹⁸ = 4e-6 of
            an entry, and float64 elsewhere (docs/derivation.md, "Precision").
        """
        return self._form.inverse_diagonal().to(self.dtype)

    def inverse_element(self, i: int | Tensor, j: int | Tensor) -> Tensor:
        """Entries (F⁻¹)_ij.

        Args:
            i: Row, an integer in [-d, d) or an integer tensor.
            j: Column, of the same shape.

        Returns:
            A tensor of the indices' shape (a scalar for integers) in the gradients' dtype. Time
            O(m) an entry with `store_columns`, otherwise O(m²).

        Raises:
            TypeError: If an index is not an integer.
            ValueError: If the shapes differ or an index is out of range.
        """
        rows, cols = self._check_index("i", i), self._check_index("j", j)
        if rows.shape != cols.shape:
            raise ValueError(
                f"Parameter `j` should have the shape of `i`, {list(rows.shape)}. Found shape {list(cols.shape)}."
            )
        pieces = zip(rows.reshape(-1).split(_ELEMENTS_AT_ONCE), cols.reshape(-1).split(_ELEMENTS_AT_ONCE), strict=True)
        values = [self._form.inverse_elements(a, b) for a, b in pieces]
        return torch.cat(values).to(self.dtype).reshape(rows.shape)

    def inverse_submatrix(self, rows: Tensor, cols: Tensor) -> Tensor:
        """The submatrix `F⁻¹[rows][:, cols]`.

        Args:
            rows: Row indices, an integer vector.
            cols: Column indices, an integer vector.

        Returns:
            [len(rows), len(cols)] in the gradients' dtype. Time O(m) an entry and O(m²) a row or
            column.

        Raises:
            TypeError: If an index is not an integer.
            ValueError: If an index is not a vector or out of range.
        """
        row_index, col_index = self._check_index("rows", rows), self._check_index("cols", cols)
        for name, index in (("rows", row_index), ("cols", col_index)):
            if index.dim() != 1:
                raise ValueError(f"Parameter `{name}` should be a vector of indices. Found shape {list(index.shape)}.")
        return self._form.inverse_submatrix(row_index, col_index).to(self.dtype)

    def logdet(self) -> Tensor:
        """The log-determinant of F.

        Returns:
            A float64 scalar. Time O(m).
        """
        return torch.tensor(self._form.logdet(), dtype=torch.float64, device="cpu")

    def _check_index(self, name: str, index: int | Tensor) -> Tensor:
        if not isinstance(index, (Integral, Tensor)) or (
            isinstance(index, Tensor) and index.device not in {torch.device("cpu"), self.device}
        ):
            raise TypeError(f"Parameter `{name}` should be an integer or a CPU tensor of integers. Found {index!r}.")
        if isinstance(index, Integral) and not -self.dim <= index < self.dim:
            raise ValueError(f"Parameter `{name}` should be in [-{self.dim}, {self.dim}). Found {index}.")
        tensor = torch.as_tensor(index, device=self.device)
        if tensor.dtype not in {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}:
            raise TypeError(f"Parameter `{name}` should be an integer or a tensor of integers. Found {tensor.dtype}.")
        tensor = tensor.long()
        outside = (tensor < -self.dim) | (tensor >= self.dim)
        if bool(outside.any()):
            raise ValueError(
                f"Parameter `{name}` should be in [-{self.dim}, {self.dim}). Found {int(tensor[outside][0])}."
            )
        return tensor % self.dim


def ihvp(grads: Tensor, v: Tensor, damping: Damping = 1e-5, block_size: int | None = None, refine: int = 0) -> Tensor:
    """Inverse-Hessian-vector products with the empirical Fisher of `grads`, in one call.

    Computes (λI + GᵀG/m)⁻¹ v. For more than one call on the same gradients keep an
    `EmpiricalFisher`.

    Args:
        grads: G, [m, d], one gradient a row; float32 or float64. Not written to.
        v: [d] or [k, d], in the same dtype.
        damping: λ > 0, or `mfac.relative(c)`.
        block_size: For a block-diagonal Fisher; None for the full matrix.
        refine: Steps of iterative refinement.

    Returns:
        Like `v`. Time O(dm² + kdm), memory beyond the gradients O(m² + kd).

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or value is wrong.
        torch.linalg.LinAlgError: If λ is too small for float64.

    Example:
        >>> import torch, mfac
        >>> mfac.ihvp(torch.eye(2, 3), torch.ones(3), damping=0.5)
        tensor([1., 1., 2.])
    """
    return EmpiricalFisher(grads, damping, block_size).ihvp(v, refine)
