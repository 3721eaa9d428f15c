"""The dynamic empirical Fisher: a sliding window of gradients, O(dm + m²) a step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.choices import check_choice, check_storage
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.checks.state import check_state
from mfac.core.checks.tensors import check_out, check_window_vectors
from mfac.core.devices import usable_device
from mfac.curvature.damping import Damping, check_damping
from mfac.window.deferred import Reading
from mfac.window.descent import Descent, follow_average_
from mfac.window.formats import DenseRows, TopKRows
from mfac.window.push import Push
from mfac.window.sliding import Coefficients, SlidingFisher


class GradientWindow(SlidingFisher):
    r"""The damped empirical Fisher of the last m gradients, and products with its inverse.

    .. math:: F = \lambda I + \frac{1}{n} \sum_i g_i g_i^\top

    A push replaces the oldest row: one pass over the window and O(m²) for the inverse of the m x m capacitance.
    `precondition` is a second pass. Memory: `nbytes`, which is the window and 2m² float64, and O(d). It is allocated by
    the first push, so `nbytes` can be asked for before.

    The window may be compressed: `dtype` 16 or 8 bits wide, or `density` < 1. F is then exactly the Fisher of the rows
    as they were rounded, and `precondition` is exact for the newest of these.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), section 3.2, with the differences that
    docs/derivation.md numbers: (3) O(dm + m²) in place of O(dm + m³); (4) the push-through form n Gᵀ C⁻¹ eⱼ for the
    newest gradient, which does not subtract.

    Args:
        rank: m, the rows of the window.
        dim: d.
        damping: λ > 0, or `mfac.relative(c)`; the latter follows the window and so has the capacitance factored
            anew, O(m³), before the first product after a push.
        dtype: Of the window: float32, float64, bfloat16, float16 or int8, the last with a scale for every 1024 columns
            of a row. Gradients and vectors are float64 for a float64 window; otherwise float32, or the window's dtype
            if that is a float. `precondition` returns float64 or float32.
        density: Share of the entries that a row keeps, in (0, 1]. Below 1, of every block of at most 16384 columns the
            largest in magnitude; what is left out is added to the next gradient (error feedback).
        device: Where the window is: "cpu", or a CUDA GPU. There a step waits for nothing it computes: a gradient
            that is refused counts as zero, and the error comes from the next call, not from a property; where C⁻¹
            is found to have drifted, the step is zero too, and C⁻¹ is computed anew in the next.
        normalize: n: "rank" divides by m from the first gradient on, as the paper does, so that while the window fills
            steps are larger, about m over the number of gradients held; "filled" divides by that number, which has the
            capacitance factored anew, O(m³), at every push until the window is full.

    Attributes:
        rows: The window, [m, d], in ring order; read it, do not write to it. Of an int8 or sparse window a dense copy.
        num_filled: How many rows hold a gradient.
        newest: The row of the newest gradient, or None.
        nbytes: Bytes that window and capacitance take, or will take.
        rank: m.
        dim: d.
        damping: λ as it stands now.
        num_terms: n as it stands now.
        dtype: Of the window.
        device: Of the window.
        vector_dtype: Of what `precondition` returns, float32 or float64.
        density: Share of the entries that a row keeps.

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
    ) -> None:
        super().__init__(
            check_count("rank", rank, least=1),
            check_count("dim", dim, least=1),
            check_damping(damping),
            dtype,
            check_storage("dtype", dtype, density),
            usable_device("device", device),
            check_choice("normalize", normalize, ("rank", "filled")),
        )

    def __repr__(self) -> str:
        sparse = f", density={self.density:g}" if self.density < 1 else ""
        shape = f"rank={self.rank}, dim={self.dim}, num_filled={self.num_filled}"
        return f"GradientWindow({shape}, dtype={self.dtype}{sparse})"

    @property
    def rows(self) -> Tensor:
        """The rows, [m, d]: the window itself, or a dense float copy of an int8 or sparse one."""
        return self._rows.stored if isinstance(self._rows, DenseRows) else self._rows.dense(slice(None))

    @property
    def nbytes(self) -> int:
        """Bytes that the window and the two m x m matrices take, known before the first push allocates them."""
        return self._rows.nbytes + 2 * 8 * self.rank**2

    def push(self, gradient: Tensor) -> None:
        """Writes a gradient over the oldest row, or into an empty one while there is one.

        Args:
            gradient: [d], in the window's vector dtype (see `dtype`).

        Raises:
            TypeError: If the dtype is wrong.
            ValueError: If the shape is wrong or the gradient holds a NaN or infinity; the window is as it was. On a GPU
                also if the gradient of the push before did; then this one has not been pushed.
        """
        vectors = check_window_vectors("gradient", gradient, self.dim, self.dtype, self.device)
        if gradient.dim() != 1:
            raise ValueError(
                f"Parameter `gradient` should have shape [d={self.dim}]. Found shape {list(gradient.shape)}."
            )
        self._settle()
        g = vectors.view(-1)  # [d]
        row = self._ring.next_row
        products = self._rows.push_(row, g)
        squared_norm = products.select(0, row)
        if not self._defers and math.isnan(float(squared_norm)):
            raise ValueError(
                f"Parameter `gradient` should be finite. Found {self._why_refused(g)}; the window is unchanged."
            )
        written = self._ring.write(row)
        if self._defers:
            self._capacitance.look_back()
            self._unsettled = Push(written, self._capacitance.replaced, Reading(squared_norm))
        self._replace(row, products)

    def remove(self, row: int) -> None:
        """Takes a gradient out of the window; its row is empty and the next to be written.

        Args:
            row: Its row in ring order, 0 <= row < m: while nothing has been overwritten, the number of the push.

        Raises:
            TypeError: If `row` is not an integer.
            ValueError: If it is out of range or the row is empty.
        """
        self._settle()
        if check_count("row", row) >= self.rank or not self._ring.filled[row]:
            raise ValueError(
                f"Parameter `row` should be one of the {self.num_filled} filled rows of {self.rank}. Found {row}."
            )
        self._rows.clear_(row)
        self._ring.clear(row)
        self._replace(row, torch.zeros(self.rank, dtype=torch.float64, device=self.device))

    def ihvp(self, v: Tensor, refine: int = 0) -> Tensor:
        """Products F⁻¹v for any vectors.

        Args:
            v: [d] or [k, d], in the window's vector dtype (see `dtype`).
            refine: Steps of iterative refinement y <- y + F⁻¹(v - Fy), two more passes each.

        Returns:
            Like `v`. Two passes over the window for each vector; where d or more rows are filled, a factorisation of
            the d x d matrix.

        Raises:
            RuntimeError: If the window is empty.
            TypeError: If the dtype is wrong.
            ValueError: If the shape is wrong.
            torch.linalg.LinAlgError: If λ is too small for float64.
        """
        vectors = check_window_vectors("v", v, self.dim, self.dtype, self.device).double()
        check_count("refine", refine)
        self._check_filled()
        if self.num_filled >= self.dim:
            return self._as_static(v, refine)
        result = self._solve_any(vectors)
        for _ in range(refine):
            result += self._solve_any(vectors - self._multiply(result))
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
        vectors = check_window_vectors("v", v, self.dim, self.dtype, self.device).double()
        self._check_filled()
        return self._multiply(vectors).to(v.dtype).reshape(v.shape)

    def precondition(self, *, out: Tensor | None = None, momentum: float = 0.0) -> Tensor:
        """F⁻¹g for the newest gradient g, in the push-through form, which does not subtract.

        The error is about ε·(‖G‖²/(nλ))^1.5 where rows are nearly dependent, with ε = 1e-16, and far less where not.

        Args:
            out: [d], contiguous, without gradient and of the result's dtype, to be overwritten with the result in
                place of a new tensor.
            momentum: β; `out` becomes β·out + (1 - β)·F⁻¹g, the paper's momentum, in the same pass. 0 reads no `out`.

        Returns:
            [d] float64 for a float64 window, float32 for any other, in units of the parameters. One pass over the
            window and O(m²); where d or more rows are filled, a factorisation of the d x d matrix.

        Raises:
            RuntimeError: If there is no newest gradient: nothing was pushed, or it was removed.
            TypeError: If `out` is of another dtype.
            ValueError: If `out` is of another shape, not contiguous, requires a gradient, or is part of the window; if
                there is `momentum` but no `out`, or it is not in [0, 1).
            torch.linalg.LinAlgError: If λ is too small for float64.
        """
        check_number("momentum", momentum, least=0, below=1)
        if out is None:
            if momentum:
                raise ValueError(f"Parameter `out` should hold what `momentum` keeps of it. Found None and {momentum}.")
            out = torch.empty(self.dim, dtype=self.vector_dtype, device=self.device)
        else:
            check_out("out", out, self.dim, self.vector_dtype, self.device, apart_from=self._rows.tensors().values())
        return self._take_into(out, self._solve_newest(), momentum)

    @torch.no_grad()
    def descend_(self, descent: Descent, average: Tensor | None = None, momentum: float = 0.0) -> None:
        """Moves weights along v = F⁻¹g for the newest gradient g, in the pass over the window that computes it.

        Args:
            descent: Which weights, and how far.
            average: [d], as `out` of `precondition`: becomes β·average + (1 - β)·F⁻¹g, which then is v. Weights that
                the newest row of a sparse window carries move along F⁻¹g itself, and start anew with an average of 0.
            momentum: β.

        Raises:
            RuntimeError: If there is no newest gradient, or the columns of `descent` are none of the window's.
            TypeError: If `average` is of another dtype.
            ValueError: If `average` is of another shape, not contiguous, requires a gradient, or is part of the window;
                if there is `momentum` but no `average`, or it is not in [0, 1).
            torch.linalg.LinAlgError: If λ is too small for float64; nothing has moved.
        """
        check_number("momentum", momentum, least=0, below=1)
        if average is not None:
            apart = self._rows.tensors().values()
            check_out("average", average, self.dim, self.vector_dtype, self.device, apart_from=apart)
        elif momentum:
            raise ValueError(f"Parameter `average` should hold what `momentum` keeps of it. Found None and {momentum}.")
        newest = self._solve_newest()
        if isinstance(newest, Coefficients) and descent.suits(self.vector_dtype):
            torch.autograd.graph.increment_version(descent.parameters)  # the compiled pass does not
            if average is not None:
                torch.autograd.graph.increment_version(average)
            self._rows.descend_(descent, average, newest.c, self.num_terms, momentum, self.newest or 0)
            return
        move = self._take_into(torch.empty(self.dim, dtype=self.vector_dtype, device=self.device), newest, 0.0)
        if average is not None:
            carried = self.carried_columns()  # which raises where the push was refused: before anything changes
            average.lerp_(move, 1 - momentum)
            follow_average_(move, average, carried)
        descent.apply_(move)

    def carried_columns(self) -> Tensor | None:
        """Which entries the newest row of a sparse window carries.

        Returns:
            Their columns, [k] int64, ascending; None where rows are dense, or there is no newest row. O(k).
        """
        if not isinstance(self._rows, TopKRows):
            return None
        self._settle()
        if self.newest is None:
            return None
        return self._rows.columns_of(self.newest)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Everything that a window made with the same arguments needs to go on bit by bit as this one would.

        Args:
            copy: Whether tensors are copied, which takes the window's memory once more, or given by reference.

        Returns:
            Tensors and numbers, as `load_state_dict` takes them.
        """
        self._settle()
        self._capacitance.look_back()
        state = self._state()
        return {name: value.clone() if copy and isinstance(value, Tensor) else value for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of another window.

        Args:
            state: What `state_dict` returned. Copied.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is of another type.
            ValueError: If a tensor is of another shape or dtype. After any of these the window is as it was.
        """
        self.check_state(state)
        self._unsettled = None
        self._rows.load_(state)
        self._capacitance.load(state)
        self._ring.load(state)

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuses what `load_state_dict` would not take; changes nothing.

        Args:
            state: What `state_dict` returned.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is of another type.
            ValueError: If a tensor is of another shape or dtype, or the newest row is none of the rows.
        """
        check_state("state", state, self._state(), optional={"newest"})
        self._rows.check_tensors(state)
        newest = state["newest"]
        if newest is not None and not (0 <= newest < self.rank and state["ages"][newest] >= 0):
            raise ValueError(f"Parameter `state` should have a filled row as 'newest'. Found {newest!r}.")
