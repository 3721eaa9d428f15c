"""The inverse-free K-FAC of singd: `SINGD` with dense factors."""

from __future__ import annotations

import torch
from singd.optim.optimizer import SINGD
from torch import Tensor, nn
from torch.optim import SGD

from bench.peers.method import (
    DAMPING,
    FIRST_ORDER_LR,
    MOMENTUM,
    Method,
    excluding,
    flatten,
    joint_block,
    unflatten,
)

_NEVER = 10**9  # steps


class SingdKFAC(Method):
    """Empirical Fisher from the gradient's own backward pass; factors of the inverse follow it.

    With dense structures and `kfac_like` this is the library's nearest to K-FAC. It trains Linear
    and Conv2d; SGD trains the rest. `normalize_lr_cov` is what it recommends while the factors warm
    up.

    Args:
        model: The network.
        approximation: "expand", or "reduce", which sums over pixels or tokens first and so is
            cheaper there.
    """

    updates = True
    after_backward = False  # hooks

    def __init__(self, model: nn.Module, approximation: str) -> None:
        super().__init__(model)
        self.optimizer = SINGD(
            model,
            lr=FIRST_ORDER_LR,
            momentum=MOMENTUM,
            damping=DAMPING,
            alpha1=0.0,  # no momentum of the factors, as kfac_like demands
            T=1,
            structures=("dense", "dense"),
            kfac_approx=approximation,
            kfac_like=True,
            normalize_lr_cov=True,
            warn_unsupported=False,
        )
        self.layers = list(self.optimizer.module_names)
        self.supported = [parameter for layer in self.layers for parameter in layer.parameters(recurse=False)]
        others = excluding(model.parameters(), self.supported)
        self.sgd = SGD(others, lr=FIRST_ORDER_LR, momentum=MOMENTUM) if others else None

    @property
    def preconditioned(self) -> int:
        """Parameters of its Linear and Conv2d layers."""
        return sum(parameter.numel() for parameter in self.supported)

    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """One training step."""
        for group in self.optimizer.param_groups:
            group["T"] = 1 if update else _NEVER
        loss = self.backward(images, labels)
        self.optimizer.step()
        if self.sgd is not None:
            self.sgd.step()
        self.end_tail()
        return loss

    @torch.no_grad()
    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        self.optimizer.set_current_grad_scale(1.0)  # else set by the step
        for parameter, piece in zip(self.supported, unflatten(v, self.supported), strict=True):
            parameter.grad = piece
        return flatten(piece for layer in self.layers for piece in self.optimizer._compute_natural_gradient(layer))

    def dense(self) -> Tensor:
        """(CCᵀ)⁻¹ ⊗ (KKᵀ)⁻¹ of each layer: the damped matrix that the factors K and C invert."""
        blocks = []
        for layer, name in self.optimizer.module_names.items():
            k, c = (factors[name].to_dense().double() for factors in (self.optimizer.Ks, self.optimizer.Cs))
            outer, inner = torch.linalg.inv(c @ c.T), torch.linalg.inv(k @ k.T)
            blocks.append(torch.kron(outer, inner) if layer.bias is None else joint_block(outer, inner))
        return torch.block_diag(*blocks)
