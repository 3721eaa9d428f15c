"""The dynamic empirical Fisher: a sliding window of gradients, O(dm + m²) a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfac.capacitance import InverseCapacitance
from mfac.checks import (
    check_choice,
    check_count,
    check_like,
    check_number,
    check_out,
    check_storage,
    check_window_vectors,
    vector_dtype,
)
from mfac.damping import Damping, check_damping, resolve_damping
from mfac.deferred import Reading
from mfac.devices import usable_device
from mfac.fisher import EmpiricalFisher
from mfac.ring import Ring, Written
from mfac.rows import DenseRows, TopKRows, make_rows


@dataclass
class _Push:
    """A push that the device may have refused, and what to go back to if it has."""

    written: Written
    replaced: int  # the capacitance's count
    squared_norm: Reading  # of the gradient as stored; NaN where it was refused

    def accepted(self) -> Tensor:
        """1, or 0 where it was refused; on the device."""
        return self.squared_norm.on_device.isnan().logical_not()


class GradientWindow:
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
        self.rank = check_count("rank", rank, least=1)
        self.dim = check_count("dim", dim, least=1)
        self._damping = check_damping(damping)
        self.device = usable_device("device", device)
        self.density = check_storage("dtype", dtype, density)
        self.dtype = dtype
        self.vector_dtype = vector_dtype(dtype)
        self.normalize = check_choice("normalize", normalize, ("rank", "filled"))
        self._rows = make_rows(self.rank, self.dim, dtype, self.density, self.device)
        self._ring = Ring(self.rank)
        self._defers = self.device.type != "cpu"  # what the device decides is read at the next step
        self._unsettled: _Push | None = None  # the last push, while the device may yet refuse it
        # A relative damping has no value yet; the first solve factors with the one it has then.
        shift = self.rank * self._damping if isinstance(self._damping, float) else 1.0
        self._capacitance = InverseCapacitance(self.rank, shift, self.device)

    def __repr__(self) -> str:
        sparse = f", density={self.density:g}" if self.density < 1 else ""
        shape = f"rank={self.rank}, dim={self.dim}, num_filled={self.num_filled}"
        return f"GradientWindow({shape}, dtype={self.dtype}{sparse})"

    @property
    def rows(self) -> Tensor:
        """The rows, [m, d]: the window itself, or a dense float copy of an int8 or sparse one."""
        return self._rows.stored if isinstance(self._rows, DenseRows) else self._rows.dense(slice(None))

    @property
    def num_filled(self) -> int:
        """How many rows hold a gradient, 0 to m."""
        return self._ring.num_filled

    @property
    def newest(self) -> int | None:
        """The row of the newest gradient, or None."""
        return self._ring.newest

    @property
    def num_terms(self) -> int:
        """n, what the sum over gradients is divided by."""
        return self.rank if self.normalize == "rank" else max(1, self.num_filled)

    @property
    def damping(self) -> float:
        """λ as it stands now."""
        if isinstance(self._damping, float):
            return self._damping
        return resolve_damping(self._damping, self._capacitance.trace, self.num_terms, self.dim)

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
            self._unsettled = _Push(written, self._capacitance.replaced, Reading(squared_norm))
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
        if self.newest is None:
            raise RuntimeError("The window has no newest gradient to precondition. Call push() first.")
        check_number("momentum", momentum, least=0, below=1)
        if out is None:
            if momentum:
                raise ValueError(f"Parameter `out` should hold what `momentum` keeps of it. Found None and {momentum}.")
            out = torch.empty(self.dim, dtype=self.vector_dtype, device=self.device)
        else:
            check_out("out", out, self.dim, self.vector_dtype, self.device, apart_from=self._rows.tensors().values())
            torch.autograd.graph.increment_version(out)  # the compiled pass does not
        if not isinstance(self._damping, float):
            self._settle()  # a relative λ is read from the device in any case
        if self._unsettled is None and not float(self._capacitance.gram[self.newest, self.newest]) > 0:
            return out.mul_(momentum) if momentum else out.zero_()  # F⁻¹0 = 0, whatever λ is
        if self.num_filled >= self.dim:
            update = self._as_static(self._rows.dense(slice(self.newest, self.newest + 1))[0], refine=0)
            if self._unsettled is not None:
                update *= self._unsettled.accepted()
            return out.lerp_(update, 1 - momentum) if momentum else out.copy_(update)
        unit = torch.zeros((1, self.rank), dtype=torch.float64, device=self.device)
        entry = unit.narrow(1, self.newest, 1)
        entry.add_(1 if self._unsettled is None else self._unsettled.accepted())
        solve = self._capacitance.solve_unread if self._defers else self._capacitance.solve
        c = solve(unit, self._shift())  # [1, m]
        self._rows.combine_(out.unsqueeze(0), c, momentum, (1 - momentum) * self.num_terms)
        return out

    def carried_columns(self) -> Tensor | None:
        """Which entries the newest row of a sparse window carries.

        Returns:
            Their columns, [k] int64, ascending; None where rows are dense, or there is no newest row. O(k).
        """
        self._settle()
        if not isinstance(self._rows, TopKRows) or self.newest is None:
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

    def _state(self) -> dict[str, Any]:
        """The state by reference."""
        tensors = {
            **self._rows.tensors(),
            "gram": self._capacitance.gram,
            "inverse": self._capacitance.inverse,
            "ages": torch.tensor(self._ring.written_by, dtype=torch.int64, device="cpu"),
        }
        return {
            **tensors,
            "shift": self._capacitance.shift,
            "replaced": self._capacitance.replaced,
            "pushes": self._ring.pushes,
            "newest": self.newest,
        }

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
        self._capacitance.forget()
        self._rows.load_(state)
        self._ring.written_by = state["ages"].tolist()
        self._capacitance.gram.copy_(state["gram"])
        self._capacitance.inverse.copy_(state["inverse"])
        self._capacitance.shift = float(state["shift"])
        self._capacitance.replaced = int(state["replaced"])
        self._ring.pushes = int(state["pushes"])
        self._ring.newest = None if state["newest"] is None else int(state["newest"])

    def check_state(self, state: dict[str, Any]) -> None:
        """Refuses what `load_state_dict` would not take; changes nothing.

        Args:
            state: What `state_dict` returned.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If an entry is of another type.
            ValueError: If a tensor is of another shape or dtype, or the newest row is none of the rows.
        """
        for name, mine in self._state().items():
            if name not in state:
                raise KeyError(f"Parameter `state` should have an entry {name!r}. Found {sorted(state)}.")
            if isinstance(mine, Tensor):
                check_like("state", name, state[name], mine)
            elif isinstance(mine, float):
                check_number(f"state[{name!r}]", state[name])
            elif not (name == "newest" and state[name] is None):
                check_count(f"state[{name!r}]", state[name], least=-1)
        self._rows.check_tensors(state)
        newest = state["newest"]
        if newest is not None and not (0 <= newest < self.rank and state["ages"][newest] >= 0):
            raise ValueError(f"Parameter `state` should have a filled row as 'newest'. Found {newest!r}.")

    def _shift(self) -> float:
        return self.num_terms * self.damping

    def _replace(self, row: int, products: Tensor) -> None:
        fixed = isinstance(self._damping, float)
        # A relative λ depends on the new row itself, so the inverse is left to the next solve.
        self._capacitance.replace(row, products, self._shift() if fixed else float("nan"))

    def _why_refused(self, g: Tensor) -> str:
        if not bool(torch.isfinite(g).all()):
            return "a NaN or infinity"
        if self.dtype == self.vector_dtype and self.density == 1:
            return "a squared norm that overflows float64"
        entered = g + self._rows.error if isinstance(self._rows, TopKRows) else g
        return f"an entry of {float(entered.abs().max()):.3g}, which a window of {self.dtype} cannot hold"

    def _settle(self) -> None:
        """Takes the last push back, and raises, if the device has refused it."""
        push, self._unsettled = self._unsettled, None
        if push is None or not math.isnan(push.squared_norm.value()):
            return
        self._ring.take_back(push.written)
        self._capacitance.take_back(push.replaced)
        raise ValueError(
            "Parameter `gradient` should be finite and in the range of the window's dtype. That of the last push was "
            "not: it has been taken back, and the window is as before it. What this call was given has not been used."
        )

    def _check_filled(self) -> None:
        self._settle()
        if self.num_filled == 0:
            raise RuntimeError("The window is empty. Call push() first.")

    def _solve_any(self, v: Tensor) -> Tensor:
        """F⁻¹v in the subtractive form, float64 [k, d]."""
        c = self._capacitance.solve(self._rows.dot(v), self._shift())
        return self._rows.combine_(v.clone(), c, 1 / self.damping, -1 / self.damping)

    def _multiply(self, v: Tensor) -> Tensor:
        return self._rows.combine_(v.clone(), self._rows.dot(v), self.damping, 1 / self.num_terms)

    def _as_static(self, v: Tensor, refine: int) -> Tensor:
        """F⁻¹v where d or more rows are filled: from the d x d primal matrix, smaller and more accurate."""
        rows = self._rows.dense(torch.tensor(self._ring.filled, device=self.device))
        # EmpiricalFisher divides by its own number of rows: scaling the rows makes that n.
        scale = (rows.shape[0] / self.num_terms) ** 0.5
        return EmpiricalFisher(rows.double() * scale, self.damping).ihvp(v.double(), refine).to(v.dtype)
