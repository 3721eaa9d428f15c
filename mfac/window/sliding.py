"""The algebra of the Fisher over rows that come and go: what `GradientWindow` computes, without its checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mfac.core.checks.tensors import vector_dtype
from mfac.curvature.damping import Damping, resolve_damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.window.capacitance import InverseCapacitance
from mfac.window.formats import TopKRows, make_rows
from mfac.window.push import Push
from mfac.window.ring import Ring


@dataclass
class Coefficients:
    """F⁻¹g in the push-through form n Gᵀc."""

    c: Tensor  # [1, m] float64


class SlidingFisher:
    """F = λI + (1/n) Σ gᵢgᵢᵀ over the rows of a ring, with C⁻¹ kept up to date.

    Args:
        rank: m.
        dim: d.
        damping: λ, or relative to the rows.
        dtype: Of the rows.
        density: Share of the entries that a row keeps.
        device: Where they are.
        normalize: n: "rank" for m, "filled" for the rows that hold a gradient.
    """

    def __init__(
        self,
        rank: int,
        dim: int,
        damping: Damping,
        dtype: torch.dtype,
        density: float,
        device: torch.device,
        normalize: str,
    ) -> None:
        self.rank, self.dim = rank, dim
        self._damping = damping
        self.dtype, self.density = dtype, density
        self.vector_dtype = vector_dtype(dtype)
        self.device = device
        self.normalize = normalize
        self._rows = make_rows(rank, dim, dtype, density, device)
        self._ring = Ring(rank)
        self._defers = device.type != "cpu"  # what the device decides is read at the next step
        self._unsettled: Push | None = None  # the last push, while the device may yet refuse it
        # A relative damping has no value yet; the first solve factors with the one it has then.
        self._capacitance = InverseCapacitance(rank, rank * damping if isinstance(damping, float) else 1.0, device)

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

    def _shift(self) -> float:
        return self.num_terms * self.damping

    def _replace(self, row: int, products: Tensor) -> None:
        fixed = isinstance(self._damping, float)
        # A relative λ depends on the new row itself, so the inverse is left to the next solve.
        self._capacitance.replace(row, products, self._shift() if fixed else float("nan"))

    def _state(self) -> dict[str, Any]:
        """The state by reference."""
        return {**self._rows.tensors(), **self._capacitance.state(), **self._ring.state()}

    def _why_refused(self, g: Tensor) -> str:
        if not bool(torch.isfinite(g).all()):
            return "a NaN or infinity"
        if self.dtype == self.vector_dtype:
            return "a squared norm that overflows float64"
        entered = g + self._rows.error if isinstance(self._rows, TopKRows) else g
        return f"an entry of {float(entered.abs().max()):.3g}, which a window of {self.dtype} cannot hold"

    def _settle(self) -> None:
        """Takes the last push back, and raises, if the device has refused it."""
        push, self._unsettled = self._unsettled, None
        if push is not None:
            push.settle(self._ring, self._capacitance)

    def _check_filled(self) -> None:
        self._settle()
        if self.num_filled == 0:
            raise RuntimeError("The window is empty. Call push() first.")

    def _solve_newest(self) -> Coefficients | Tensor:
        """C⁻¹eⱼ for the newest gradient; or F⁻¹g itself, [d], where there is a better way to it."""
        if self.newest is None:
            raise RuntimeError("The window has no newest gradient to precondition. Call push() first.")
        if not isinstance(self._damping, float):
            self._settle()  # a relative λ is read from the device in any case
        if self._unsettled is None and not float(self._capacitance.gram[self.newest, self.newest]) > 0:
            return torch.zeros(self.dim, dtype=self.vector_dtype, device=self.device)  # F⁻¹0 = 0, whatever λ is
        accepted = 1 if self._unsettled is None else self._unsettled.accepted()
        if self.num_filled >= self.dim:
            return accepted * self._as_static(self._rows.dense(slice(self.newest, self.newest + 1))[0], refine=0)
        unit = torch.zeros((1, self.rank), dtype=torch.float64, device=self.device)
        unit.narrow(1, self.newest, 1).add_(accepted)
        solve = self._capacitance.solve_unread if self._defers else self._capacitance.solve
        return Coefficients(solve(unit, self._shift()))

    def _take_into(self, out: Tensor, newest: Coefficients | Tensor, momentum: float) -> Tensor:
        """In place: out [d] <- momentum·out + (1 - momentum)·F⁻¹g."""
        torch.autograd.graph.increment_version(out)  # the compiled pass does not
        if isinstance(newest, Tensor):
            return out.lerp_(newest, 1 - momentum) if momentum else out.copy_(newest)
        self._rows.combine_(out.unsqueeze(0), newest.c, momentum, (1 - momentum) * self.num_terms)
        return out

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
