"""Adam's metric: the scaling D^(-1/2) with D = √v̂ + ε that gradients enter a window by."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class AdamMetric:
    """Averages squared gradients and divides by the root of D.

    A gradient is first seen, and taken into v only once the window holds it.

    Source: "Adam: A Method for Stochastic Optimization" (1412.6980), Algorithm 1, for v̂. The
    window in this metric is derived in docs/derivation.md, "Rules of a step".

    Args:
        columns: The columns of each parameter.
        dim: d.
        dtype: Of v.
        device: Of v.

    Attributes:
        square_average: v, [d].
        counts: t for each parameter, how many of its gradients v averages, [parameters], on the
            CPU; the same memory throughout, so that what shows it shows it as it stands.
        scale: D^(-1/2) of the gradient last seen, [d]; of a step alone.
    """

    def __init__(self, columns: list[slice], dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.columns = columns
        self.square_average = torch.zeros(dim, dtype=dtype, device=device)
        self.scale = torch.ones_like(self.square_average)
        self.counts = torch.zeros(len(columns), dtype=torch.float32, device="cpu")
        self._seen = torch.zeros_like(self.square_average)
        self._has = [False] * len(columns)

    @property
    def steps(self) -> list[int]:
        """`counts` as numbers."""
        return [int(count) for count in self.counts.tolist()]

    def see_(self, gradient: Tensor, beta2: float, eps: float, has: list[bool]) -> None:
        """Scales a gradient [d] in place: g becomes D^(-1/2) g with g already in D.

        Args:
            gradient: g. An entry whose square overflows becomes infinite.
            beta2: Of the average, in [0, 1).
            eps: ε > 0.
            has: Of each parameter, whether it has a gradient; where not, its v and t stay.
        """
        self._has = has
        torch.mul(self.square_average, beta2, out=self._seen).addcmul_(gradient, gradient, value=1 - beta2)
        steps = [t + 1 if used else t for t, used in zip(self.steps, has, strict=True)]
        if all(has) and len(set(steps)) == 1:
            torch.div(self._seen, 1 - beta2 ** steps[0], out=self.scale)
        else:
            for columns, t, used in zip(self.columns, steps, has, strict=True):
                if not used:
                    self._seen[columns] = self.square_average[columns]
                torch.div(self._seen[columns], 1 - beta2 ** max(1, t), out=self.scale[columns])
        self.scale.sqrt_().add_(eps).rsqrt_()
        gradient.mul_(self.scale)
        if gradient.device.type != "cpu" or not math.isfinite(float(self._seen.amax())):  # a GPU is not waited for
            gradient.masked_fill_(self._seen.isinf(), math.inf)  # whose square is, as nothing else would tell

    def scale_of(self, columns: int, beta2: float, eps: float) -> Tensor:
        """D^(-1/2) of what v holds, for one parameter.

        Args:
            columns: The parameter's number.
            beta2: Of the average.
            eps: ε.

        Returns:
            [size].
        """
        t = max(1, self.steps[columns])
        return (self.square_average[self.columns[columns]] / (1 - beta2**t)).sqrt_().add_(eps).rsqrt_()

    def take(self) -> None:
        """Takes the gradient last seen into v."""
        self.square_average.copy_(self._seen)
        self.counts += torch.tensor(self._has, device="cpu")
