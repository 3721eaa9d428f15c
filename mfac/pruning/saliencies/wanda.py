"""Wanda's saliency: a weight's size times how strongly its input channel is driven."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.input_norms import input_norms
from mfac.pruning.context import StepContext
from mfac.pruning.saliencies.base import Saliency


class Wanda(Saliency):
    """|w_ij| · ‖X_j‖₂, with X_j input channel j of the layer over all samples and positions.

    Given by name, saliency="wanda", the saliency takes the norms that the run offers
    (`StepContext.input_norms`). A `Wanda` made of a model and batches takes its own norms, once.

    Source: Wanda (Sun et al. 2023, 2306.11695), equation 1. Numbered differences: (1) the lowest go
    by the pattern and allocation of the run; `allocation="uniform"` is nearest to the paper, which
    compares within rows.

    Args:
        model: The model that will be pruned; its forward pass is run on the batches, in evaluation
            mode.
        batches: Finite; what `forward` takes.
        forward: Calls the model with a batch; by default `model(batch)`, or `model(batch[0])` for a
            pair.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 2)
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(16)]
        >>> wanda = mfac.Wanda(model, data)
        >>> report = mfac.prune(model, lambda model, batch: 0, [], sparsity=0.5, saliency=wanda, compensation="none")
        >>> report.sparsity
        0.5
    """

    needs_fisher = False

    def __init__(
        self,
        model: nn.Module | None = None,
        batches: Iterable[Any] = (),
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self.norms = None if model is None else input_norms(model, batches, forward)
        self.needs_inputs = self.norms is None

    def scores(self, context: StepContext) -> Tensor:
        """|w| · ‖X‖.

        Args:
            context: The step.

        Returns:
            [n].

        Raises:
            ValueError: If there are no norms, or none for a weight.
        """
        norms = context.input_norms() if self.norms is None else self.norms
        pieces = []
        for weight in context.parameters:
            if weight.name not in norms:
                raise ValueError(
                    f"Parameter `saliency` should have the inputs of every layer that is pruned. Found none for "
                    f"{weight.name!r} of a {weight.layer or 'module'}: leave it out of `params`, or take another "
                    f"saliency."
                )
            pieces.append(norms[weight.name].reshape(-1).to(context.weights))
        return context.weights.abs() * torch.cat(pieces)[context.live]
