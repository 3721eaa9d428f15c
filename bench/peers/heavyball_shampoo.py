"""Shampoo and SOAP of heavyball: `KLShampoo`, its only Shampoo, and `SOAP`."""

from __future__ import annotations

import heavyball
import torch
from torch import Tensor, nn

from bench.peers.first_order import OptimizerMethod
from bench.peers.method import NotOfferedError

heavyball.utils.compile_mode = None  # eager: see the rules in `bench.peers`


class HeavyballMethod(OptimizerMethod):
    """KL-Shampoo or SOAP: a step with update computes new eigenbases, others only add to factors.

    Args:
        model: The network.
        name: "KLShampoo" or "SOAP".
    """

    updates = True

    def __init__(self, model: nn.Module, name: str) -> None:
        optimizer = getattr(heavyball, name)(model.parameters(), lr=1e-3, weight_decay=0, precondition_frequency=1)
        super().__init__(model, optimizer)

    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """One training step."""
        self.optimizer.precond_schedule = 1.0 if update else 0.0  # what precondition_frequency is turned into
        return super().step(images, labels, update)

    @property
    def preconditioned(self) -> int:
        """Parameters with two dimensions or more; vectors have Adam's diagonal here by default."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.dim() > 1)

    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        raise NotOfferedError("applies inverse roots, and to its own running averages: no inverse Fisher")

    def dense(self) -> Tensor:
        """Not offered."""
        return self.ihvp(torch.empty(0))
