"""The paper's own algorithms in plain torch, as the measure that ours are held against."""

from __future__ import annotations

import torch
from torch import Tensor


class StaticRecurrence:
    """M-FAC's static algorithm: m rank-one Woodbury steps, v_i = F_{i-1}⁻¹ g_i and q_i = m + g_iᵀ v_i.

    Each step is two matrix-vector products over the rows found so far, and the diagonal is updated as it goes.

    Args:
        grads: G, [m, d].
        damping: λ.
        with_diagonal: Whether to keep diag(F⁻¹) up to date, one more pass over a row a step.
    """

    def __init__(self, grads: Tensor, damping: float, with_diagonal: bool = False) -> None:
        rank, dim = grads.shape
        self.damping = damping
        self.v = torch.empty_like(grads)
        self.q = torch.empty(rank, dtype=grads.dtype)
        self.diagonal = torch.full((dim,), 1 / damping, dtype=grads.dtype) if with_diagonal else None
        for i, g in enumerate(grads):
            torch.div(g, damping, out=self.v[i])
            if i:
                coefficients = (self.v[:i] @ g) / self.q[:i]
                self.v[i] -= self.v[:i].T @ coefficients
            self.q[i] = rank + g @ self.v[i]
            if self.diagonal is not None:
                self.diagonal.addcmul_(self.v[i], self.v[i], value=-1 / float(self.q[i]))

    def ihvp(self, x: Tensor) -> Tensor:
        """F⁻¹x for one vector."""
        return x / self.damping - self.v.T @ ((self.v @ x) / self.q)
