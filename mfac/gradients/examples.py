"""Examples of a model's inputs, and the outputs that the model has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.modes import model_mode
from mfac.gradients.nested import tensors_in


def call_with(model: nn.Module, example: Any) -> Any:
    """Calls a model with an example.

    Args:
        model: The model.
        example: A tensor, a tuple or list of arguments, or a mapping of named arguments.

    Returns:
        What the model returns.
    """
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


@torch.no_grad()
def outputs_with(model: nn.Module, example: Any) -> list[Tensor]:
    """The tensors that a model returns for an example, in evaluation mode.

    Args:
        model: The model; its modes are put back.
        example: As for `call_with`.

    Returns:
        The tensors of its output, depth first.
    """
    with model_mode(model, "eval"):
        return list(tensors_in(call_with(model, example), alone=False))


def largest_gap(wanted: list[Tensor], found: list[Tensor]) -> float:
    """How far outputs are apart, relative to the largest number of each and at least 1.

    Args:
        wanted: Outputs.
        found: Others of the same number and shapes.

    Returns:
        The largest difference; infinite where numbers or shapes differ, or one is not finite.
    """
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    worst = 0.0
    for one, other in zip(wanted, found, strict=True):
        if one.numel():
            one, other = one.detach().cpu().double(), other.detach().cpu().double()
            gap = float((other - one).abs().max() / one.abs().max().clamp_min(1.0))
            worst = max(worst, gap) if gap == gap else float("inf")
    return worst


class Comparison:
    """A model beside what it was, on an example.

    Args:
        model: Before any change; it is run at once where there is an example.
        example: As for `call_with`; None for no comparison.

    Attributes:
        before: The outputs of then; None without an example.
    """

    _TOLERANCE = 1e-3  # relative; what is changed are zeros and constants

    def __init__(self, model: nn.Module, example: Any) -> None:
        self._model, self._example = model, example
        self.before = None if example is None else outputs_with(model, example)

    def difference(self, units: str, lead: str = "") -> str | None:
        """How the model, with fewer units, is another now.

        Args:
            units: What there are fewer of, as "heads".
            lead: What the answer begins with.

        Returns:
            "it ...", or None where the model is the same.
        """
        assert self.before is not None
        try:
            gap = largest_gap(self.before, outputs_with(self._model, self._example))
        except Exception as error:  # of the model's own code: whatever it runs into
            return f"{lead}does not run with fewer {units}. {type(error).__name__}: {error}"
        if gap <= self._TOLERANCE:
            return None
        return f"{lead}returns something else with fewer {units}: a difference of {gap:.2g}"
