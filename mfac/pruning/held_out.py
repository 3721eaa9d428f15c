"""The loss of a model on a few batches that gradients were not asked for, at weights that are only tried."""

from __future__ import annotations

from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.gradients.backward import LossFunction
from mfac.gradients.batches import BatchStream
from mfac.gradients.modes import model_mode
from mfac.gradients.vector import ParameterVector

CHECK_BATCHES = 16


class HeldOut:
    """Evaluates changes of the live weights on the same batches each time.

    The batches are the next of the stream, taken once. Data that can be gone through only once is left to the
    gradients: without batches there is nothing to evaluate.

    Args:
        model: The model; its weights are what they were after every call.
        loss_fn: The loss.
        stream: Where the batches come from.
        mode: Of the model meanwhile.
        count: How many batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        stream: BatchStream,
        mode: Literal["eval", "train"],
        count: int = CHECK_BATCHES,
    ) -> None:
        self.model, self.loss_fn, self.mode = model, loss_fn, mode
        self.batches: list[Any] = list(islice(stream.rest(), count)) if stream.can_restart else []

    def __bool__(self) -> bool:
        return bool(self.batches)

    def loss(self, vector: ParameterVector, weights: Tensor, live: Tensor, delta: Tensor) -> float:
        """The mean loss with changed weights.

        Args:
            vector: The parameters.
            weights: All of them as they are, [d].
            live: Which are alive, [d] bool.
            delta: The change of these, [n].

        Returns:
            The mean over the batches.
        """
        tried = weights.clone()
        tried[live] += delta.to(weights.dtype)
        vector.write_(tried)
        try:
            with model_mode(self.model, self.mode), torch.enable_grad():  # some losses differentiate within
                losses = [float(self.loss_fn(self.model, batch).detach()) for batch in self.batches]
        finally:
            vector.write_(weights)
        return sum(losses) / len(losses)
