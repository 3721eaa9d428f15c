"""K-FAC of asdfghjkl, whose module is called asdl: `KfacGradientMaker`."""

from __future__ import annotations

import warnings

import torch
from asdl import (
    FISHER_EMP,
    SHAPE_KRON,
    SHAPE_SWIFT_KRON,
    FisherConfig,
    GradientMaker,
    KfacGradientMaker,
    ParamVector,
    PreconditioningConfig,
    get_fisher_maker,
)
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.peers.method import DAMPING, PreconditionedSGD, damped, unflatten

_NEVER = 10**9  # steps


class AsdlKFAC(PreconditionedSGD):
    """Empirical Fisher from the same backward pass as the gradient, no running average.

    It gives batch norm and layer norm blocks of 2 x 2 for each unit, so these count as
    preconditioned; bare parameters do not.

    Args:
        model: The network.
        swift: Whether factors wider than the batch are inverted by the formula of Woodbury (SKFAC),
            as it offers.
    """

    after_backward = False  # its own pass

    def __init__(self, model: nn.Module, swift: bool) -> None:
        super().__init__(model)
        self.swift = swift
        self.config = PreconditioningConfig(damping=DAMPING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This model contains")
            self.maker = KfacGradientMaker(model, self.config, fisher_type=FISHER_EMP, swift=swift)

    def supported_layers(self) -> list[nn.Module]:
        """The layers that it preconditions."""
        kinds = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm)
        return [module for module in self.model.modules() if isinstance(module, kinds)]

    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """One training step."""
        self.config.data_size = len(labels)
        self.config.preconditioner_upd_interval = 1 if update else _NEVER
        self.maker.state["step"] = max(1, self.maker.state["step"])  # step 0 would update in any case
        loss = self._call(self.maker, images, labels)
        self.start_tail()
        self.sgd.step()
        self.end_tail()
        self.last_batch = (images, labels)
        return loss.detach()

    @torch.no_grad()
    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        product = v.clone()
        self.maker.precondition(vectors=ParamVector(self.supported, unflatten(product, self.supported)))
        return product

    def dense(self) -> Tensor:
        """The product of the two damped factors for each weight, the damped B for its bias.

        Inverses are computed again, on the last batch and at the present weights, as the library
        drops the factors when it has inverted them: here they come from its own `FisherMaker`, and
        are damped by its rule.

        Raises:
            NotImplementedError: If the network has layers that are not Linear.
        """
        images, labels = self.last_batch
        self.maker.state["step"] = 1
        self.config.preconditioner_upd_interval = 1
        self._call(self.maker, images, labels)
        shape = SHAPE_SWIFT_KRON if self.swift else SHAPE_KRON
        config = FisherConfig(FISHER_EMP, [shape], data_size=len(labels), fisher_attr="factors")
        self._call(get_fisher_maker(self.model, config), images, labels)
        blocks = []
        for layer in self.layers:
            if not isinstance(layer, nn.Linear):
                raise NotImplementedError(f"Only Linear layers have a dense matrix here. Found {layer}.")
            inputs, outputs = layer.factors.kron.A, layer.factors.kron.B
            ratio = float((inputs.trace() / len(inputs) / (outputs.trace() / len(outputs))).sqrt())
            outer = damped(outputs, DAMPING**0.5 / ratio)
            blocks += [torch.kron(outer, damped(inputs, DAMPING**0.5 * ratio)), outer]
        return torch.block_diag(*blocks)

    def _call(self, maker: GradientMaker, images: Tensor, labels: Tensor) -> Tensor:
        """The library's forward and backward pass, with the maker's own work; returns the loss."""
        self.model.zero_grad(set_to_none=True)
        output = maker.setup_model_call(self.model, images)
        maker.setup_loss_call(cross_entropy, output, labels)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using a non-full backward hook")
            _, loss = maker.forward_and_backward()
        return loss
