"""A copy of a model in the middle of its training, and of its optimizers, to go back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac.gradients.naming import named_buffers, named_parameters


class Snapshot:
    """Parameters and buffers by name, and the state of optimizers.

    Args:
        tensors: Name to tensor.
        optimizers: State dicts, in order.
        kept: The masks then, [d] bool.
    """

    def __init__(self, tensors: Mapping[str, Tensor], optimizers: Sequence[dict[str, Any]], kept: Tensor) -> None:
        self.tensors, self.optimizers, self.kept = dict(tensors), list(optimizers), kept

    @classmethod
    def of(cls, model: nn.Module, optimizers: Sequence[Optimizer], kept: Tensor) -> Snapshot:
        """A copy of a model and of optimizers as they are.

        Args:
            model: The model.
            optimizers: Whose state is copied; none of them for the model alone.
            kept: The masks, [d] bool.

        Returns:
            The copy.
        """
        tensors = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
        return cls(tensors, [deepcopy(optimizer.state_dict()) for optimizer in optimizers], kept.clone())

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Puts everything back. Options of the optimizers, as learning rates, stay what they are.

        The optimizers should have the masks of the copy, as `mfac.MFAC` holds columns of kept
        weights alone.

        Args:
            model: The model.
            optimizers: As of the copy.
        """
        for name, tensor in _tensors(model).items():
            tensor.detach().copy_(self.tensors[name])
        for optimizer, saved in zip(optimizers, self.optimizers, strict=True):
            # A copy, as torch takes tensors by reference and the next steps write into them.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({**deepcopy(saved), "param_groups": groups})

    def state_dict(self) -> dict[str, Any]:
        """Tensors and states, by reference."""
        return {"tensors": self.tensors, "optimizers": self.optimizers, "kept": self.kept}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**named_parameters(model), **named_buffers(model)}
