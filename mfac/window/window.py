"""The dynamic empirical Fisher: a sliding window of gradients, O(dm + m²) a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice, check_storage
from mfac.core.checks.numbers import check_count
from mfac.core.checks.state import check_state
from mfac.core.checks.tensors import check_out, check_window_vectors
from mfac.core.devices import capabilities, check_fits, usable_device
from mfac.curvature.damping import Damping, check_damping
from mfac.window.capacitance import InverseCapacitance
from mfac.window.descent import Descent
from mfac.window.formats.named import Format, named_format
from mfac.window.refused import Refusals
from mfac.window.ring import Ring
from mfac.window.sliding import SlidingFisher

_NO_SHIFT = 1e-200


class GradientWindow:
    r"""The damped empirical Fisher of the last m gradients, and products with its inverse.

    .. math:: F = \lambda I + \frac{1}{n} \sum_i g_i g_i^\top

    A push replaces the oldest row: one pass over the window and O(m²) for the inverse of the m x m
    capacitance. `precondition` is a second pass. Memory: `nbytes`, which is the window and 2m²
    float64, and O(d). The first push allocates the memory, so `nbytes` can be asked for before.

    The window may be compressed: `dtype` 16 or 8 bits wide, or `density` < 1. F is then exactly the
    Fisher of the rows as they were rounded, and `precondition` is exact for the newest stored row.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 3.2, with the differences that
    docs/derivation.md numbers: (3) O(dm + m²) in place of O(dm + m³); (4) for the newest gradient
    the push-through form n Gᵀ C⁻¹ eⱼ, which does not subtract.

    Args:
        rank: m, the rows of the window.
        dim: d.
        damping: λ > 0, `mfac.relative(c)` or `mfac.row_relative(ρ)`. The second follows the window
            and so has the capacitance factored anew, O(m³), before the first product after a push;
            the third is held until the rows' mean squared norm leaves half to twice what it was.
        dtype: Of the window: float32, float64, bfloat16, float16 or int8, the last with a scale for
            every 1024 columns of a row. Gradients and vectors are float64 for a float64 window;
            otherwise float32, or the window's dtype if that is a float. `precondition` returns
            float64 or float32.
        density: Share of the entries that a row keeps, in (0, 1]. Below 1, of every block of at
            most 16384 columns the largest in magnitude; the entries left out are added to the next
            gradient (error feedback).
        device: Where the window is: "cpu", or a CUDA GPU. On a GPU a step never waits for a result:
            a gradient that is refused becomes a row of zeros, and the error comes from the next
            call, not from a property; where C⁻¹ is found to have drifted, the step is zero, and C⁻¹
            is computed anew in the next.
        normalize: The divisor n. "rank": m from the first gradient on, as in the paper; while the
            window fills, steps are larger by about m over the number of gradients held. "filled":
            the number of gradients held; the capacitance is then factored anew, O(m³), at every
            push until the window is full.
        format: A format of your own, in place of `dtype` and `density`: called with m, d and the
            device, it gives an object like `mfac.window.formats.base.Rows`
            (docs/extending/window_format.md).

    Attributes:
        rank: m.
        dim: d.
        dtype: Of the window.
        density: Share of the entries that a row keeps.
        vector_dtype: Of what `precondition` returns, float32 or float64.
        device: Of the window.
        format: The object that stores the rows. It and the next three are for inspection: they may
            change.
        ring: Which row holds which push.
        capacitance: The inverse capacitance.
        algebra: The Fisher over the rows, without checks.

    Raises:
        TypeError: If a type or dtype is wrong.
        ValueError: If a value is out of range.

    Example:
        >>> import torch, mfac
        >>> W = mfac.GradientWindow(rank=2, dim=3, damping=0.5)
        >>> W.push(torch.tensor([1.0, 0.0, 1.0]))
        >>> W.push(torch.tensor([0.0, 2.0, 0.0]))
        >>> W.precondition()
        tensor([0.0000, 0.8000, 0.0000])
    """

    def __init__(
        self,
        rank: int,
        dim: int,
        damping: Damping = 1e-5,
        dtype: torch.dtype = torch.float32,
        density: float = 1.0,
        device: str | torch.device = "cpu",
        normalize: str = "rank",
        format: Format | None = None,
    ) -> None:
        rank, dim = check_count("rank", rank, least=1), check_count("dim", dim, least=1)
        damping = check_damping(damping)
        density = check_storage("dtype", dtype, density)
        if format is not None and (dtype, density) != (torch.float32, 1):
            raise ValueError(f"Parameter `format` should be given alone. Found {dtype} and density {density:g} beside.")
        place = usable_device("device", device)
        check_choice("normalize", normalize, ("rank", "filled"))
        defers = capabilities(place).defers

        self.format = (format or named_format(dtype, density))(rank, dim, place)
        self.ring = Ring(rank)
        # A relative damping has no value yet; the first solve factors with the one it has then, as
        # no gradients give this one.
        shift = rank * damping if isinstance(damping, float) else _NO_SHIFT
        self.capacitance = InverseCapacitance(rank, shift, place, defers)
        self.algebra = SlidingFisher(self.format, self.ring, self.capacitance, damping, normalize)
        self._refusals = Refusals(defers)
        self.rank, self.dim, self.normalize = rank, dim, normalize
        self.dtype, self.density, self.device = self.format.dtype, self.format.density, place
        self.vector_dtype = self.format.vector_dtype

    def __repr__(self) -> str:
        sparse = f", density={self.density:g}" if self.density < 1 else ""
        shape = f"rank={self.rank}, dim={self.dim}, num_filled={self.num_filled}"
        return f"GradientWindow({shape}, dtype={self.dtype}{sparse}, nbytes={self.nbytes:.3g})"

    @property
    def num_filled(self) -> int:
        """How many rows hold a gradient, 0 to m."""
        return self.ring.num_filled

    @property
    def newest(self) -> int | None:
        """The row of the newest gradient, or None."""
        return self.ring.newest

    @property
    def num_terms(self) -> int:
        """n, the divisor of the sum over gradients."""
        return self.algebra.num_terms

    @property
    def damping(self) -> float:
        """λ as it stands now."""
        return self.algebra.damping

    @property
    def rows(self) -> Tensor:
        """The window, [m, d], in ring order, to be read; of int8 or sparse rows a dense copy."""
        return self.format.as_dense()

    @property
    def nbytes(self) -> int:
        """Bytes of the window and two m x m matrices, known before the first push allocates any."""
        return self.format.nbytes + 2 * 8 * self.rank**2

    def push(self, gradient: Tensor) -> None:
        """Writes a gradient into an empty row, or over the oldest row where no row is empty.

        Args:
            gradient: [d], in the window's vector dtype (see `dtype`).

        Raises:
            MemoryError: If the machine cannot hold the window, at the first push.
            TypeError: If the dtype is wrong.
            ValueError: If the shape is wrong or the gradient holds a NaN or infinity; the window is
                as it was. On a GPU a gradient with a NaN or infinity is reported by the next push:
                its row counts as zeros, and the gradient of the next push has not been pushed.
        """
        g = self._vectors("gradient", gradient)
        if gradient.dim() != 1:
            raise ValueError(
                f"Parameter `gradient` should have shape [d={self.dim}]. Found shape {list(gradient.shape)}."
            )
        self._refusals.report()
        if self.ring.pushes == 0:
            check_fits("`rank` and `dim`", self.nbytes, self.device)
        row = self.ring.next_row
        products = self._refusals.push_(self.format, row, g.view(-1))
        self.ring.write(row)
        self.algebra.replace(row, products)

    def take_over(self, other: GradientWindow, columns: list[tuple[Tensor, Tensor]]) -> None:
        """Makes this window, still empty, hold some columns of another's rows, each pushed anew.

        The other columns are zero. O(dm²), and the capacitance is factored at the next product.

        Args:
            other: Of the same rank and format.
            columns: Columns of `other`, and where they are in this window.
        """
        if other.ring.pushes == 0:
            return
        flat = torch.zeros(self.dim, dtype=self.vector_dtype, device=self.device)
        for row, filled in enumerate(other.ring.filled):
            if not filled:
                continue
            dense = other.format.as_dense(slice(row, row + 1))[0]
            for theirs, mine in columns:
                flat[mine] = dense[theirs].to(flat.dtype)
            products = self.format.push_(row, flat)
            self.format.take_residue_(other.format, [])  # what this row leaves out is no part of the next
            self.capacitance.gram[row] = products
            self.capacitance.gram[:, row] = products
        self.format.take_residue_(other.format, columns)
        self.ring.load_(other.ring.state())
        self.capacitance.shift = other.capacitance.shift
        self.capacitance.replaced = -1

    def remove(self, row: int) -> None:
        """Takes a gradient out of the window; its row is empty and the next to be written.

        Args:
            row: The gradient's row in ring order, 0 <= row < m: while nothing has been overwritten,
                the number of the push.

        Raises:
            TypeError: If `row` is not an integer.
            ValueError: If `row` is out of range or empty.
        """
        self._refusals.report()
        if check_count("row", row) >= self.rank or not self.ring.filled[row]:
            raise ValueError(
                f"Parameter `row` should be one of the {self.num_filled} filled rows of {self.rank}. Found {row}."
            )
        self.format.clear_(row, torch.ones((), dtype=torch.bool, device=self.device))
        self.ring.clear(row)
        self.algebra.replace(row, torch.zeros(self.rank, dtype=torch.float64, device=self.device))

    def ihvp(self, v: Tensor, refine: int = 0) -> Tensor:
        """Products F⁻¹v for any vectors.

        Args:
            v: [d] or [k, d], in the window's vector dtype (see `dtype`).
            refine: Steps of iterative refinement y <- y + F⁻¹(v - Fy), two more passes each.

        Returns:
            Like `v`. Two passes over the window for each vector; where d or more rows are filled, a
            factorisation of the d x d matrix.

        Raises:
            RuntimeError: If the window is empty.
            TypeError: If the dtype is wrong.
            ValueError: If the shape is wrong.
            torch.linalg.LinAlgError: If λ is too small for float64.
        """
        vectors = self._vectors("v", v).double()
        check_count("refine", refine)
        self._check_filled()
        if self.format.is_whole and self.num_filled >= self.dim:
            return self.algebra.by_primal(vectors, refine).to(v.dtype).reshape(v.shape)
        result = self.algebra.solve(vectors)
        for _ in range(refine):
            result += self.algebra.solve(vectors - self.algebra.multiply(result))
        return result.to(v.dtype).reshape(v.shape)

    def matvec(self, v: Tensor) -> Tensor:
        """Products Fv with the Fisher itself.

        Args:
            v: [d] or [k, d], in the window's vector dtype (see `dtype`).

        Returns:
            Like `v`. Two passes over the window for each vector.

        Raises:
            RuntimeError: If the window is empty.
            TypeError: If the dtype is wrong.
            ValueError: If the shape is wrong.
        """
        vectors = self._vectors("v", v).double()
        self._check_filled()
        return self.algebra.multiply(vectors).to(v.dtype).reshape(v.shape)

    def precondition(self, *, out: Tensor | None = None) -> Tensor:
        """F⁻¹g for the newest gradient g, in the push-through form, which does not subtract.

        The error is about ε·(‖G‖²/(nλ))^1.5 where rows are nearly dependent, with ε = 1e-16, and
        far less elsewhere.

        Args:
            out: [d], contiguous, without gradient and of the result's dtype, to be overwritten with
                the result in place of a new tensor.

        Returns:
            [d] float64 for a float64 window, float32 for any other, in units of the parameters. One
            pass over the window and O(m²); where d or more rows are filled, a factorisation of the
            d x d matrix.

        Raises:
            RuntimeError: If there is no newest gradient: nothing was pushed, or it was removed.
            TypeError: If `out` is of another dtype.
            ValueError: If `out` is of another shape, not contiguous, requires a gradient, or is
                part of the window.
            torch.linalg.LinAlgError: If λ is too small for float64.
        """
        if out is None:
            out = torch.empty(self.dim, dtype=self.vector_dtype, device=self.device)
        else:
            apart = self.format.tensors().values()
            check_out("out", out, self.dim, self.vector_dtype, self.device, apart_from=apart)
        return self.algebra.newest_into(out, self._newest())

    @torch.no_grad()
    def descend_(self, descent: Descent, coefficients: Tensor | None, factor: float) -> None:
        """Moves weights along u = factor · Gᵀc, in the pass that computes it; for `mfac.MFAC`.

        Args:
            descent: Which weights, how far, and with which momentum.
            coefficients: c, [m] float64; None for u = F⁻¹g of the newest gradient in the primal
                form, whatever the factor.
            factor: See above.

        Raises:
            RuntimeError: If there is no newest gradient.
            torch.linalg.LinAlgError: If λ is too small for float64; nothing has moved.
        """
        newest = self._newest()
        if coefficients is not None and descent.fuses(self.dim, self.vector_dtype):
            self.format.descend_(descent, coefficients.unsqueeze(0), factor, newest)
            return
        move = torch.empty((1, self.dim), dtype=self.vector_dtype, device=self.device)
        if coefficients is None:
            self.algebra.newest_into(move[0], newest)
        else:
            self.format.combine_(move, coefficients.unsqueeze(0), 0.0, factor)
        descent.apply_(move[0], self.carried_columns())

    def carried_columns(self) -> Tensor | None:
        """Which entries the newest row of a sparse window carries.

        Returns:
            The columns of the entries, [k] int64, ascending; None where rows are dense, or there is
            no newest row. O(k).
        """
        return None if self.newest is None else self.format.carried(self.newest)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """What a window made with the same arguments needs to go on bit by bit as this one.

        Args:
            copy: Whether tensors are copied, which takes the window's memory once more, or given by
                reference.

        Returns:
            Tensors and numbers, as `load_state_dict` takes them.
        """
        self._refusals.report()
        self.capacitance.look_back()
        state = self._state()
        return {name: value.clone() if copy and isinstance(value, Tensor) else value for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of another window.

        Args:
            state: What `state_dict` returned. Copied.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is of another type.
            ValueError: If a tensor is of another shape or dtype. After any of these the window is
                as it was.
        """
        self.check_state(state)
        self._refusals = Refusals(self.capacitance.defers)
        for part in (self.format, self.capacitance, self.ring):
            part.load_(state)

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises as `load_state_dict` does for a state that does not fit; changes nothing."""
        check_state("state", state, self._state(), optional={"newest"})
        self.format.check_tensors(state)
        newest = state["newest"]
        if newest is not None and not (0 <= newest < self.rank and state["ages"][newest] >= 0):
            raise ValueError(f"Parameter `state` should have a filled row as 'newest'. Found {newest!r}.")

    def _state(self) -> dict[str, Any]:
        """The state by reference."""
        return {**self.format.tensors(), **self.window_state()}

    def window_state(self) -> dict[str, Any]:
        """The state without the rows' storage, by reference: the m x m parts and the ring."""
        return {**self.capacitance.state(), **self.ring.state()}

    def _vectors(self, name: str, vectors: Tensor) -> Tensor:
        return check_window_vectors(name, vectors, self.dim, self.dtype, self.device)

    def _check_filled(self) -> None:
        self._refusals.report()
        if self.num_filled == 0:
            raise RuntimeError("The window is empty. Call push() first.")

    def _newest(self) -> int:
        if self.newest is None:
            raise RuntimeError("The window has no newest gradient to precondition. Call push() first.")
        return self.newest
