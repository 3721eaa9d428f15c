"""The paper's own algorithms in plain torch, as the measure that ours are held against."""

from __future__ import annotations

import torch
from torch import Tensor


class StaticRecurrence:
    """M-FAC's static algorithm: m Woodbury steps, v_i = F_{i-1}⁻¹ g_i and q_i = m + g_iᵀ v_i.

    Each step is two matrix-vector products over the rows found so far, and the diagonal is updated
    as it goes.

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


class BatchedRecurrence:
    """The static recurrence on all diagonal blocks at once: m steps of batched products.

    Args:
        grads: G, [m, d], with d a multiple of B.
        block_size: B.
        damping: λ.
    """

    def __init__(self, grads: Tensor, block_size: int, damping: float) -> None:
        rank = grads.shape[0]
        self.damping = damping
        blocks = grads.view(rank, -1, block_size).transpose(0, 1).contiguous()  # [blocks, m, B]
        self.v = blocks / damping
        self.q = torch.empty(blocks.shape[:2], dtype=grads.dtype)  # [blocks, m]
        self.diagonal = torch.full((blocks.shape[0], block_size), 1 / damping, dtype=grads.dtype)
        for i in range(rank):
            g, before = blocks[:, i, :, None], self.v[:, :i]
            if i:
                coefficients = (before @ g) / self.q[:, :i, None]  # [blocks, i, 1]
                self.v[:, i] -= (before.mT @ coefficients)[..., 0]
            self.q[:, i] = rank + (blocks[:, i] * self.v[:, i]).sum(1)
            self.diagonal -= self.v[:, i].square() / self.q[:, i, None]

    def ihvp(self, x: Tensor) -> Tensor:
        """F⁻¹x for one vector [d]."""
        blocks = x.view(self.v.shape[0], -1, 1)
        coefficients = (self.v @ blocks) / self.q[..., None]
        return (blocks / self.damping - self.v.mT @ coefficients).view(-1)


class DynamicRecurrence:
    """M-FAC's dynamic algorithm: two passes over the window, and O(m³) for coefficients.

    With v_i = Σ_k B_ik g_k and D_ij = g_iᵀ F_{i-1}⁻¹ g_j, elimination of the scalar products gives
    D row by row, and B from D (paper, section 3.2).

    Args:
        grads: G, [m, d]; the window, written to.
        damping: λ.
    """

    def __init__(self, grads: Tensor, damping: float) -> None:
        self.window = grads
        self.damping = damping
        self.products = (grads @ grads.T).double()

    def rebuild(self) -> tuple[Tensor, Tensor]:
        """The coefficients B, [m, m], and q_i = m + D_ii, [m]."""
        rank = self.products.shape[0]
        D = self.products / self.damping
        B = torch.eye(rank, dtype=D.dtype) / self.damping
        q = torch.empty(rank, dtype=D.dtype)
        for i in range(rank):
            q[i] = rank + D[i, i]
            rest = D[i, i + 1 :]
            D[i + 1 :, i + 1 :].addr_(rest, rest, alpha=-1 / float(q[i]))
            if i:
                B[i, :i] = -(B[:i, :i].T @ (D[:i, i] / q[:i]))
        return B, q

    def step(self, row: int, g: Tensor) -> Tensor:
        """Writes g [d] over a row and returns F⁻¹g."""
        self.window[row] = g
        products = (self.window @ g).double()
        self.products[row] = products
        self.products[:, row] = products
        B, q = self.rebuild()
        coefficients = B.T @ ((B @ products) / q)
        return g / self.damping - self.window.T @ coefficients.to(g.dtype)
