"""A direction in the span of a window, known by its m coefficients, and its norms in O(m)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Combination:
    """u = factor · Gᵀc.

    Attributes:
        coefficients: c, [m] float64.
        images: Kc with K = GGᵀ, [m] float64; at hand where c = (nλI + K)⁻¹b, as b - nλ·c.
        factor: A number.
        target: Gᵀ of this, [m] float64, is the gradient that u answers: a unit vector for the
            newest gradient, or the weights of an average of gradients.
        newest: The row of the newest gradient.
    """

    coefficients: Tensor
    images: Tensor
    factor: float
    target: Tensor
    newest: int

    def scaled(self, by: float) -> Combination:
        """By · u."""
        return self if by == 1 else replace(self, factor=self.factor * by)

    @property
    def squared_norm(self) -> float:
        """‖u‖²."""
        return self.factor**2 * max(0.0, float(self.coefficients @ self.images))

    def curvature(self, damping: float, num_terms: float) -> float:
        """uᵀFu with F = λI + (1/n) GᵀG."""
        return damping * self.squared_norm + self.factor**2 * float(self.images @ self.images) / num_terms

    @property
    def gain(self) -> float:
        """U per unit of the newest gradient: u = gain · g where g is orthogonal to the others."""
        weight = float(self.target[self.newest])
        return self.factor * float(self.coefficients[self.newest]) / weight if weight else 0.0

    @property
    def slope(self) -> float:
        """gᵀu for the gradient g that u answers."""
        return self.factor * float(self.target @ self.images)
