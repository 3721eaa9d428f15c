"""What a pruning run says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.backward import LossFunction
from mfac.gradients.naming import named_parameters, parameter_named
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Pattern
from mfac.pruning.measurement import Measurement, measure
from mfac.pruning.report_data import PruningStep, ReportData
from mfac.pruning.report_json import report_fields, report_to_json
from mfac.pruning.report_plot import plot_report
from mfac.pruning.report_text import report_text

__all__ = ["PruningReport", "PruningStep"]


@dataclass
class PruningReport(ReportData):
    """The result of `mfac.prune`.

    Attributes:
        masks: Parameter name to mask of its shape, True = kept.
        steps: Every pruning step in order.
        refits: Of each solve after the last stage what it was scaled by; 0 changed nothing.
        left_dense: Name of every other weight tensor, of two dimensions or more, and why it was not
            pruned.
        pattern: The pattern's name, as "unstructured" or "2:4"; None where it is not known.
        dense_zeros: How many zeros each tensor left dense had when pruning ended; None where it is
            not known.
        kept_zeros: How many kept weights of each tensor were zero when pruning ended, where there
            were any: with existing_zeros="ignore" zeros count like any other weight.
        broken_units: How many units of the pattern were not as it has them when pruning ended,
            where there were any: weights that were zero before break up units, and matrices of a
            stack that stay dense have others.
        measured: The last result of `measure`.
        layouts: How patterns see weights that no known layer tells of, as stacks of experts, by
            name: (outer, inputs, inner).
    """

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Sets the dropped weights of a model to zero again, as after a step of fine-tuning.

        Args:
            model: A model with parameters of the masks' names and shapes.
        """
        for name, mask in self.masks.items():
            parameter_named(model, name).mul_(mask)

    @torch.no_grad()
    def record_(self, model: nn.Module, pattern: Pattern, weights: Sequence[PrunableWeight]) -> None:
        """Notes the numbers that `mfac.verify` compares a model with later.

        Args:
            model: As pruning left it.
            pattern: The pattern.
            weights: What is known of each parameter that was pruned.
        """
        named = named_parameters(model)
        zeros = {w.name: int(((named[w.name] == 0) & self.masks[w.name]).sum()) for w in weights}
        self.record_zeros_(
            pattern, zeros, {name: int((named[name] == 0).sum()) for name in self.left_dense if name in named}
        )
        kept = torch.cat([self.masks[weight.name].reshape(-1) for weight in weights])
        broken = [one for promise in pattern.promises(weights, kept) for one in promise.broken]
        self.broken_units = {one.name: one.count for one in broken}

    def record_zeros_(self, pattern: Pattern, kept: Mapping[str, int], dense: Mapping[str, int]) -> None:
        """Notes zeros that were counted before, as where the model's weights are not in memory.

        Args:
            pattern: The pattern.
            kept: How many kept weights of each tensor are zero.
            dense: How many zeros each tensor left dense has.
        """
        self.pattern = str(pattern)
        self.kept_zeros = {name: count for name, count in kept.items() if count}
        self.dense_zeros = dict(dense)

    def measure(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None = None,
        data: Iterable[Any] | None = None,
        *,
        dense: nn.Module | None = None,
        example: Any = None,
    ) -> Measurement:
        """Measures on the model itself what pruning cost and saved.

        The report keeps the numbers as `measured`, and prints them.

        Args:
            model: The pruned model; nothing of it changes.
            loss_fn: As for `mfac.prune`.
            data: A finite iterable of batches, of which the loss and its time are taken.
            dense: The model as it was before, for its loss and time.
            example: An input, or a tuple or dict of several, whose operations are counted;
                otherwise the first batch's.

        Returns:
            Bytes of each tensor dense and compact; operations where there is an example or data;
            loss and time where there is data.

        Raises:
            ValueError: If a mask's name or shape is not the model's, or the data is empty.
        """
        self.measured = measure(self.masks, model, loss_fn, data, dense=dense, example=example)
        return self.measured

    def to_json(self, path: str | os.PathLike[str] | None = None, *, masks: bool = True) -> str:
        """The report as JSON.

        Args:
            path: A file to write it to; None for none.
            masks: Whether masks are in it, compressed bits. Without them `from_json` asks for them.

        Returns:
            The text.
        """
        text = report_to_json(self, masks)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str], masks: Mapping[str, Tensor] | None = None) -> PruningReport:
        """Reads a report of `to_json`.

        Args:
            source: The text, or the path of a file.
            masks: Where the text has none.

        Returns:
            The report; its masks are on the CPU.

        Raises:
            ValueError: If the source is no such report, or has no masks and none are given.
        """
        text = source if isinstance(source, str) and source.lstrip().startswith("{") else Path(source).read_text()
        return cls(**report_fields(text, masks))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws density by layer, and sparsity by step; needs matplotlib.

        Args:
            path: Of the picture; its suffix chooses the form, as ".png" or ".svg".

        Raises:
            ImportError: If matplotlib is not installed.
        """
        plot_report(self, path)

    def __str__(self) -> str:
        return report_text(self)
