"""The interface of every measured method: a training step, an IHVP, and the matrix behind it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

DAMPING = 1e-3
MOMENTUM = 0.9
FIRST_ORDER_LR = 0.05  # of SGD, and of what a method does not precondition


class NotOfferedError(RuntimeError):
    """The method has no such product or matrix; the text says why."""


class Method(ABC):
    """One optimizer on one network.

    Attributes:
        updates: Whether steps with and without a curvature update differ.
        after_backward: Whether all that it adds to a step runs after the ordinary forward and
            backward pass.
        model: The network that it trains.
        tail_seconds: Time that the last step took after its backward pass.
    """

    updates = False
    after_backward = True

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tail_seconds = 0.0

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """A training step, with new curvature and inverse if `update`; returns the loss before."""

    @property
    @abstractmethod
    def preconditioned(self) -> int:
        """How many parameters the method multiplies by more than a learning rate."""

    @property
    def ihvp_dim(self) -> int:
        """Length of the vectors that `ihvp` takes."""
        return self.preconditioned

    def fill(self) -> None:
        """Bring the method into the state of a long run; most are in it after a few steps."""
        return

    def ihvp(self, v: Tensor) -> Tensor:
        """The method's inverse matrix times v, [ihvp_dim].

        Raises:
            NotOfferedError: If the method has no such product.
        """
        raise NotOfferedError("no product with an inverse Fisher")

    def dense(self) -> Tensor:
        """The damped matrix of which `ihvp` applies the inverse, float64, [ihvp_dim, ihvp_dim].

        Raises:
            NotOfferedError: If the method has no such matrix.
        """
        raise NotOfferedError("no product with an inverse Fisher")

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Fresh gradients of the mean cross entropy; returns the loss and starts `tail_seconds`."""
        self.model.zero_grad(set_to_none=True)
        loss = cross_entropy(self.model(images), labels)
        loss.backward()
        self.start_tail()
        return loss.detach()

    def start_tail(self) -> None:
        """To be called when the backward pass is done."""
        self._tail_start = time.perf_counter()

    def end_tail(self) -> None:
        """To be called when the step is done."""
        self.tail_seconds = time.perf_counter() - self._tail_start


class PreconditionedSGD(Method):
    """A library that preconditions gradients; SGD with momentum takes the step.

    The layers that the library knows have a learning rate of their own; everything else is plain
    SGD.
    """

    updates = True
    lr = 1e-3  # with damping 1e-3, a step of plain gradient where there is no curvature

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layers = self.supported_layers()
        self.supported = [parameter for layer in self.layers for parameter in layer.parameters(recurse=False)]
        others = excluding(model.parameters(), self.supported)
        groups = [{"params": self.supported, "lr": self.lr}, {"params": others, "lr": FIRST_ORDER_LR}]
        self.sgd = SGD([group for group in groups if group["params"]], momentum=MOMENTUM)

    def supported_layers(self) -> list[nn.Module]:
        """The layers that the library preconditions: Linear and Conv2d for most."""
        return [module for module in self.model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]

    @property
    def preconditioned(self) -> int:
        """Parameters of the layers that the library knows."""
        return sum(parameter.numel() for parameter in self.supported)

    def step(self, images: Tensor, labels: Tensor, update: bool) -> Tensor:
        """One training step."""
        loss = self.backward(images, labels)
        gradients = [parameter.grad for parameter in self.supported]
        if update:
            self.update(images, labels)
        for parameter, gradient in zip(self.supported, self.precondition(gradients), strict=True):
            parameter.grad = gradient
        self.sgd.step()
        self.end_tail()
        return loss

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Compute curvature and inverse from this batch."""
        raise NotImplementedError

    def precondition(self, gradients: list[Tensor]) -> list[Tensor]:
        """The inverse times a vector given as one tensor for each of `supported`."""
        raise NotImplementedError

    @torch.no_grad()
    def ihvp(self, v: Tensor) -> Tensor:
        """The inverse times v."""
        return flatten(self.precondition(unflatten(v, self.supported)))


def excluding(parameters: Iterable[Tensor], excluded: Iterable[Tensor]) -> list[Tensor]:
    known = {id(parameter) for parameter in excluded}
    return [parameter for parameter in parameters if id(parameter) not in known]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(v: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = v.split([tensor.numel() for tensor in like])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, like, strict=True)]


def joint_block(outer: Tensor, inner: Tensor) -> Tensor:
    """Return outer ⊗ inner for a layer whose bias is the last column of [W, b], in flat order."""
    outputs, inputs = len(outer), len(inner) - 1
    positions = torch.arange(outputs * (inputs + 1)).view(outputs, inputs + 1)
    order = torch.cat([positions[:, :-1].reshape(-1), positions[:, -1]])
    return torch.kron(outer, inner)[order][:, order]


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Float64 matrix + damping · identity."""
    return matrix.double() + damping * torch.eye(len(matrix), dtype=torch.float64)
