"""The inverse capacitance C⁻¹ = (shift·I + K)⁻¹ of a sliding window, in O(m²) a replaced row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mfac.core import ops
from mfac.curvature.dual import factor_capacitance
from mfac.window.deferred import Reading

_GUARD = 1e-12  # backward error above which the inverse is computed anew


class InverseCapacitance:
    """K = GGᵀ and A = (shift·I + K)⁻¹ in float64, both as lower triangles in ring order.

    A replaced row costs O(m²) (docs/derivation.md, "Replacing a row"). Three things keep A exact
    over any number of replacements: every solve is refined with C itself until its residual is at
    rounding; a residual that does not get there has A computed anew by Cholesky; and so do every m
    replacements, O(m²) each when shared among them.

    Args:
        rank: m.
        shift: nλ while the window is empty.
        device: Where.
        defers: Whether what a step has to say of A is read at the next.

    Attributes:
        gram: K, [m, m], of which the lower triangle counts.
        inverse: A, [m, m], likewise.
        shift: The shift that `inverse` is for.
        replaced: Rows replaced since A was last computed anew; negative where A is out of date.
        refactorisations: How often A was computed anew.
    """

    def __init__(self, rank: int, shift: float, device: torch.device, defers: bool = False) -> None:
        self.device = device
        self.rank = rank
        self.shift = shift
        self.replaced = 0
        self.refactorisations = 0
        self.defers = defers
        self._pivot: Reading | None = None
        self._error: Reading | None = None

    @cached_property
    def gram(self) -> Tensor:
        """K; allocated on first use."""
        return torch.zeros((self.rank, self.rank), dtype=torch.float64, device=self.device)

    @cached_property
    def inverse(self) -> Tensor:
        """A; allocated on first use."""
        return torch.eye(self.rank, dtype=torch.float64, device=self.device).div_(self.shift)

    @property
    def trace(self) -> float:
        """Tr K, the sum of the rows' squared norms."""
        return float(self.gram.diagonal().sum())

    def replace(self, row: int, products: Tensor, shift: float) -> None:
        """Makes `products` the row and column `row` of K.

        Args:
            row: Which.
            products: G g, [m] float64, the new row's products with every row, its own squared norm
                included.
            shift: nλ from now on. Where it differs from before, A is left to be computed anew by
                the next solve.
        """
        self.look_back()
        if self.replaced < 0 or shift != self.shift:
            self.gram[row, : row + 1] = products[: row + 1]
            self.gram[row:, row] = products[row:]
            self.replaced = -1
            return
        self._pivot = Reading(ops.capacitance_replace_(self.inverse, self.gram, row, products, shift))
        self.replaced += 1
        if self.replaced >= self.rank:
            self.replaced = -1
        elif not self.defers:
            self.look_back()

    def solve(self, b: Tensor, shift: float) -> Tensor:
        """(shift·I + K)⁻¹ b, backward stable.

        Args:
            b: [k, m] float64.
            shift: nλ.

        Returns:
            [k, m] float64. O(km²), and O(m³) where A has to be computed anew.

        Raises:
            torch.linalg.LinAlgError: If C is not numerically positive definite.
        """
        self.look_back()
        solutions, error = self._solve(b, shift)
        if error is not None and not float(error) <= _GUARD:
            self.replaced = -1
            solutions, _ = self._solve(b, shift)
        return solutions

    def inverse_diagonal(self, shift: float) -> Tensor:
        """diag(A), brought up to date.

        Args:
            shift: nλ.

        Returns:
            [m] float64, by reference. O(m), or O(m³) where A has to be computed anew.

        Raises:
            torch.linalg.LinAlgError: If C is not numerically positive definite.
        """
        self.look_back()
        if self.replaced < 0 or shift != self.shift:
            self._refactor(shift)
        return self.inverse.diagonal()

    def solve_unread(self, b: Tensor, shift: float) -> Tensor:
        """`solve` without waiting: zeros where A has drifted, which the next step mends."""
        if not self.defers:
            return self.solve(b, shift)
        solutions, error = self._solve(b, shift)
        if error is None:
            return solutions
        self._error = Reading(error)
        good = error <= _GUARD
        if self._pivot is not None:
            good = good.logical_and(self._pivot.on_device >= 0.5 * shift)
        return solutions.where(good, 0.0)

    def _solve(self, b: Tensor, shift: float) -> tuple[Tensor, Tensor | None]:
        """A product with A, refined, and its backward error; None if A was computed anew."""
        anew = self.replaced < 0 or shift != self.shift
        if anew:
            self._refactor(shift)
        solutions, error = ops.capacitance_solve(self.inverse, self.gram, b, shift)
        return solutions, None if anew else error

    def forget(self) -> None:
        """Drops what has not been read of the last step."""
        self._pivot = self._error = None

    def look_back(self) -> None:
        """Has A computed anew where the last step says that it has drifted."""
        # In exact arithmetic the pivot is at least the shift. One far below it says that A has
        # drifted.
        if self._pivot is not None and not self._pivot.value() >= 0.5 * self.shift:
            self.replaced = -1
        if self._error is not None and not self._error.value() <= _GUARD:
            self.replaced = -1
        self.forget()

    def state(self) -> dict[str, Any]:
        """What `load_` takes; matrices by reference."""
        return {"gram": self.gram, "inverse": self.inverse, "shift": self.shift, "replaced": self.replaced}

    def load_(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of another of the same rank; matrices are copied."""
        self.forget()
        self.gram.copy_(state["gram"])
        self.inverse.copy_(state["inverse"])
        self.shift = float(state["shift"])
        self.replaced = int(state["replaced"])

    def _refactor(self, shift: float) -> None:
        """A from K by Cholesky, over the rows up to the last that is not empty."""
        used = int(self.gram.diagonal().nonzero().max()) + 1 if self.trace > 0 else 0
        found = torch.cholesky_inverse(factor_capacitance(self.gram[:used, :used], shift)) if used else None
        self.inverse.zero_().diagonal().fill_(1 / shift)
        if found is not None:
            self.inverse[:used, :used] = found
        self.shift = shift
        self.replaced = 0
        self.refactorisations += 1
