"""What a pruning report holds: masks, steps, dense tensors, and the numbers that follow."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mfac.gradients.prunable import Layout
from mfac.pruning.measurement import Measurement


@dataclass(frozen=True)
class PruningStep:
    """One pruning step: one recomputation within one stage.

    Attributes:
        step: Its number, from 1.
        total_steps: How many there will be.
        stage: The stage of the step, from 1; each stage has gradients of its own.
        sparsity: Share of zeros among the prunable weights after the step.
        damping: λ, or None where no Fisher was needed.
        predicted_increase: ½ δᵀFδ of its update in units of the loss, or None where no Fisher was
            needed.
        seconds: Wall time, the stage's gradients included in its first step.
        scale: What the change of the kept weights was scaled by, as the step-size check chose; None
            where it was not checked.
    """

    step: int
    total_steps: int
    stage: int
    sparsity: float
    damping: float | None
    predicted_increase: float | None
    seconds: float
    scale: float | None = None


@dataclass
class ReportData:
    """The fields of `PruningReport`, whose docstring says what each is."""

    masks: dict[str, Tensor]
    steps: list[PruningStep] = field(default_factory=list)
    refits: list[float] = field(default_factory=list)
    left_dense: dict[str, str] = field(default_factory=dict)
    pattern: str | None = None
    dense_zeros: dict[str, int] | None = None
    kept_zeros: dict[str, int] = field(default_factory=dict)
    broken_units: dict[str, int] = field(default_factory=dict)
    measured: Measurement | None = None
    layouts: dict[str, Layout] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of zeros among the pruned weights, exact; tensors left dense do not count."""
        total = self._total()
        return (total - sum(self._kept().values())) / total if total else 0.0

    def _kept(self) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.masks.items() if name not in self.left_dense}

    def _total(self) -> int:
        return sum(mask.numel() for name, mask in self.masks.items() if name not in self.left_dense)

    @property
    def sparsity_by_parameter(self) -> dict[str, float]:
        """Share of zeros in each parameter."""
        return {name: 1 - float(mask.double().mean()) for name, mask in self.masks.items()}

    @property
    def predicted_increase(self) -> float | None:
        """½ δᵀFδ over all steps: the predicted cost of the updates, in units of the loss.

        None where no Fisher was needed: magnitude saliency without compensation.
        """
        increases = [step.predicted_increase for step in self.steps if step.predicted_increase is not None]
        return sum(increases) if increases or not self.steps else None

    @property
    def seconds(self) -> float:
        """Wall time of all steps."""
        return sum(step.seconds for step in self.steps)
