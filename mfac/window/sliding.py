"""The algebra of the Fisher over rows that come and go, without the checks of `GradientWindow`."""

from __future__ import annotations

import torch
from torch import Tensor

from mfac.curvature.damping import Damping, RowRelativeDamping, resolve_damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.window.capacitance import InverseCapacitance
from mfac.window.formats.base import Rows
from mfac.window.ring import Ring


class SlidingFisher:
    """F = λI + (1/n) Σ gᵢgᵢᵀ over the rows of a ring, by C⁻¹.

    Args:
        rows: G.
        ring: Which rows hold a gradient.
        capacitance: C⁻¹, kept up to date by `replace`.
        damping: λ, or relative to the rows.
        normalize: n: "rank" for m, "filled" for the rows that hold a gradient.
    """

    def __init__(
        self, rows: Rows, ring: Ring, capacitance: InverseCapacitance, damping: Damping, normalize: str
    ) -> None:
        self.rows, self.ring, self.capacitance = rows, ring, capacitance
        self.given_damping = damping
        self.normalize = normalize

    @property
    def num_terms(self) -> int:
        """n, the divisor of the sum over gradients."""
        return self.rows.rank if self.normalize == "rank" else max(1, self.ring.num_filled)

    @property
    def damping(self) -> float:
        """λ as it stands now."""
        if isinstance(self.given_damping, float):
            return self.given_damping
        if isinstance(self.given_damping, RowRelativeDamping):
            return self.shift / self.num_terms
        return resolve_damping(self.given_damping, self.capacitance.trace, self.num_terms, self.rows.total_dim)

    @property
    def shift(self) -> float:
        """nλ; relative to the rows' norms it is held until they have changed by a factor of two."""
        if isinstance(self.given_damping, RowRelativeDamping):
            return self._held(self.capacitance.trace)
        return self.num_terms * self.damping

    def _held(self, trace: float) -> float:
        """nλ = ρ·(trace/filled rows), or the shift of C⁻¹ where that is within a factor of two."""
        terms = self.num_terms
        wanted = terms * resolve_damping(
            self.given_damping, trace, terms, self.rows.total_dim, max(1, self.ring.num_filled)
        )
        held = self.capacitance.shift
        return held if 0.5 * held <= wanted <= 2 * held else wanted

    def replace(self, row: int, products: Tensor) -> None:
        """Makes `products` [m] float64 the row and column `row` of K."""
        # A relative λ depends on the new row itself: the inverse is left to the next solve, unless
        # λ is held.
        shift = float("nan")
        if isinstance(self.given_damping, float):
            shift = self.shift
        elif isinstance(self.given_damping, RowRelativeDamping):
            gram = self.capacitance.gram
            trace = self.capacitance.trace + float(products[row] - gram[row, row])
            if trace > 0:
                shift = self._held(trace)
        self.capacitance.replace(row, products, shift)

    def newest_coefficients(self, newest: int) -> Tensor | None:
        """The c [1, m] of F⁻¹g = n Gᵀc for the newest g; None where the primal form is better."""
        unit = torch.zeros((1, self.rows.rank), dtype=torch.float64, device=self.rows.device)
        waits = not (self.capacitance.defers and isinstance(self.given_damping, float))
        if waits and not float(self.capacitance.gram[newest, newest]) > 0:
            return unit  # F⁻¹0 = 0, whatever λ is
        if self.rows.is_whole and self.ring.num_filled >= self.rows.dim:
            return None
        unit.narrow(1, newest, 1).fill_(1)
        return self.capacitance.solve_unread(unit, self.shift)

    def gram_form(self, a: Tensor) -> float:
        """aᵀKa, for a [m] float64: the squared norm of Gᵀa."""
        lower = self.capacitance.gram.tril()
        return float(2 * (a @ lower @ a) - a.square() @ lower.diagonal())

    def newest_into(self, out: Tensor, newest: int) -> Tensor:
        """Writes F⁻¹g for the newest gradient g into out [d]; autograd is told."""
        torch.autograd.graph.increment_version(out)  # the compiled pass does not
        c = self.newest_coefficients(newest)
        if c is None:
            return out.copy_(self.by_primal(self.rows.as_dense(slice(newest, newest + 1))[0]))
        self.rows.combine_(out.unsqueeze(0), c, 0.0, self.num_terms)
        return out

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹v in the subtractive form, float64 [k, d]."""
        c = self.capacitance.solve(self.rows.dot(v), self.shift)
        return self.rows.combine_(v.clone(), c, 1 / self.damping, -1 / self.damping)

    def multiply(self, v: Tensor) -> Tensor:
        """Fv, float64 [k, d]."""
        return self.rows.combine_(v.clone(), self.rows.dot(v), self.damping, 1 / self.num_terms)

    def by_primal(self, v: Tensor, refine: int = 0) -> Tensor:
        """F⁻¹v where d or more rows are filled: the primal matrix, d x d, is more accurate."""
        rows = self.rows.as_dense(torch.tensor(self.ring.filled, device=self.rows.device))
        # EmpiricalFisher divides by its own number of rows: scaling the rows makes that n.
        scale = (rows.shape[0] / self.num_terms) ** 0.5
        return EmpiricalFisher(rows.double() * scale, self.damping).ihvp(v.double(), refine)
