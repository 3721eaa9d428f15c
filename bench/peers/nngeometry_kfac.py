"""K-FAC of nngeometry: `PMatKFAC`, its inverse and products."""

from __future__ import annotations

import torch
from nngeometry.backend import TorchHooksJacobianBackend
from nngeometry.layercollection import LayerCollection
from nngeometry.object import PMatKFAC, PVector
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.peers.method import DAMPING, PreconditionedSGD, damped, joint_block


class NNGeometryKFAC(PreconditionedSGD):
    """Empirical Fisher: the Jacobian backend applied to the log-likelihood of the true label.

    Its ready-made Fishers are the exact one, with a backward pass for each class, and a sampled
    one; this costs as much as the sampled one. Weight and bias share a factor. Linear layers on
    [n, tokens, features] are unknown to it, so the transformer flattens tokens into the batch for
    it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        if hasattr(model, "flat_tokens"):
            model.flat_tokens = True
        self.collection = LayerCollection()
        for layer in self.layers:
            self.collection.add_layer_from_model(model, layer)

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Factors and inverse from this batch."""
        backend = TorchHooksJacobianBackend(
            model=self.model, function=self._log_likelihood, layer_collection=self.collection
        )
        self.matrix = PMatKFAC(generator=backend, examples=(images, labels))
        self.inverse = self.matrix.inverse(regul=DAMPING, use_pi=True)

    def _log_likelihood(self, images: Tensor, labels: Tensor) -> Tensor:
        return -cross_entropy(self.model(images), labels, reduction="none").unsqueeze(1)  # [n, 1]

    def precondition(self, gradients: list[Tensor]) -> list[Tensor]:
        """The inverse times a vector in pieces."""
        pieces = iter(gradients)
        by_layer = {
            name: tuple(next(pieces) for _ in layer.parameters(recurse=False))
            for name, layer in zip(self.collection.layers, self.layers, strict=True)
        }
        product = self.inverse.mv(PVector(self.collection, dict_repr=by_layer)).to_dict()
        return [piece for name in self.collection.layers for piece in product[name]]

    def dense(self) -> Tensor:
        """The product of each layer's two damped factors, by the rule of Martens and Grosse."""
        blocks = []
        for name, layer in zip(self.collection.layers, self.layers, strict=True):
            inputs, outputs = self.matrix.data[name]
            ratio = float((inputs.trace() / outputs.trace() * len(outputs) / len(inputs)).sqrt())
            inner, outer = damped(inputs, DAMPING**0.5 * ratio), damped(outputs, DAMPING**0.5 / ratio)
            blocks.append(torch.kron(outer, inner) if layer.bias is None else joint_block(outer, inner))
        return torch.block_diag(*blocks)
