"""The methods that change nothing in the backward pass: SGD, Adam and `mfac.MFAC`."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

import mfac
from bench.peers.method import DAMPING, FIRST_ORDER_LR, MOMENTUM, Method


class OptimizerMethod(Method):
    """A `torch.optim.Optimizer` of all parameters."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        super().__init__(model)
        self.optimizer = optimizer

    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """One training step."""
        loss = self.backward(images, labels)
        self.optimizer.step()
        self.end_tail()
        return loss


class PlainSGD(OptimizerMethod):
    """SGD with momentum: what every overhead is measured against."""

    preconditioned = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, SGD(model.parameters(), lr=FIRST_ORDER_LR, momentum=MOMENTUM))


class PlainAdam(OptimizerMethod):
    """Adam, a diagonal preconditioner."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, Adam(model.parameters(), lr=1e-3))

    @property
    def preconditioned(self) -> int:
        """All of them, by the diagonal."""
        return sum(parameter.numel() for parameter in self.model.parameters())


class WindowedMFAC(OptimizerMethod):
    """`mfac.MFAC`: every step pushes a gradient, so its update interval is always 1."""

    def __init__(self, model: nn.Module, rank: int, dtype: torch.dtype) -> None:
        super().__init__(
            model,
            mfac.MFAC(model.parameters(), lr=1e-3, rank=rank, damping=DAMPING, momentum=MOMENTUM, window_dtype=dtype),
        )
        self.window = self.optimizer.window

    @property
    def preconditioned(self) -> int:
        """All of them."""
        return self.window.dim

    def fill(self) -> None:
        """Push noise of the size of the last gradient until every row of the window is written."""
        scale = float(torch.cat([p.grad.reshape(-1) for p in self.model.parameters()]).square().mean().sqrt())
        generator = torch.Generator().manual_seed(0)
        while self.window.num_filled < self.window.rank:
            noise = scale * torch.randn(self.window.dim, generator=generator)
            self.window.push(noise.to(self.vector_dtype))

    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        return self.window.ihvp(v.to(self.vector_dtype))

    @cached_property
    def vector_dtype(self) -> torch.dtype:
        """Of vectors that the window takes and gives, whatever its rows are stored in."""
        return self.window.precondition().dtype

    def dense(self) -> Tensor:
        """λI + GᵀG / m, from the rows as they are stored."""
        rows = self.window.rows.double()
        return rows.T @ rows / self.window.num_terms + self.window.damping * torch.eye(
            rows.shape[1], dtype=torch.float64
        )
