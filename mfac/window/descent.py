"""How weights move along the direction of a window; the one place that knows of its momentum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from mfac.window.rounding import NARROW, add_compensated_, compensated, round_stochastically


@dataclass
class Descent:
    """w <- decay·w - rate·v for several parameters, where v <- βv + (1 - β)u averages u.

    Where the window's rows are sparse, what a row carries has been held back by error feedback for
    many steps already. Averaging would hold it back once more while its gradient still points the
    same way, so that the same weights are sent again and overshoot. Therefore the weights that the
    newest row carries move by all of u at once and start with no momentum; the other weights move
    by v.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), Algorithm 2; for sparse rows the
    momentum factor masking of Deep Gradient Compression (Lin et al., 1712.01887), section 3.2.

    Attributes:
        average: v, [d]; None where there is no momentum, and v is u.
        momentum: β, in [0, 1).
        nesterov: Whether weights move along βv + (1 - β)u.
        metric: What u is multiplied by first, [d]; None for one.
        finish: What replaces the updates of all parameters before weights move; None for nothing.
        generator: For stochastic rounding of weights narrower than u; None for rounding to nearest.
        parameters: Each w, in the order of their columns.
        columns: The first column of u, [d], for each; the others follow, row-major.
        rates: For each.
        decays: For each.
        compensations: For each, None or what its rounding has left out so far.
    """

    average: Tensor | None = None
    momentum: float = 0.0
    nesterov: bool = False
    metric: Tensor | None = None
    finish: Callable[[list[Tensor]], list[Tensor]] | None = None
    generator: torch.Generator | None = None
    parameters: list[Tensor] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)
    compensations: list[Tensor | None] = field(default_factory=list)

    def add(
        self, parameter: Tensor, column: int, rate: float, decay: float = 1.0, compensation: Tensor | None = None
    ) -> None:
        """Moves one more parameter, with columns after the columns of the parameters before."""
        self.parameters.append(parameter)
        self.columns.append(column)
        self.rates.append(rate)
        self.decays.append(decay)
        self.compensations.append(compensation)

    def fuses(self, dim: int, dtype: torch.dtype) -> bool:
        """Whether the pass for u, [d] in `dtype`, may move them: pieces of vectors, all or no v."""
        if self.nesterov or self.metric is not None or self.finish is not None:
            return False
        if any(compensation is not None for compensation in self.compensations):
            return False
        of_all = sum(p.numel() for p in self.parameters) == dim
        return (self.average is None or of_all) and all(p.dtype == dtype and p.is_contiguous() for p in self.parameters)

    @property
    def moved(self) -> tuple[list[Tensor], Tensor | None]:
        """What an operator's pass writes; autograd is told of it here, as the operator does not."""
        written = self.parameters if self.average is None else [*self.parameters, self.average]
        torch.autograd.graph.increment_version(written)
        return self.parameters, self.average

    def apply_(self, move: Tensor, carried: Tensor | None = None) -> None:
        """Moves them by torch; columns of no parameter keep their average.

        Args:
            move: u, [d]; may be overwritten.
            carried: Columns of the entries of the newest row if rows are sparse, [k].
        """
        if self.metric is not None:
            move = move.mul_(self.metric)
        pieces = [slice(c, c + p.numel()) for c, p in zip(self.columns, self.parameters, strict=True)]
        if self.average is not None:
            move = self._averaged(self.average, move, pieces, carried)
        moves = [move[piece].view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]
        if self.finish is not None:
            moves = self.finish(moves)
        wide = [i for i, p in enumerate(self.parameters) if p.dtype not in NARROW]
        for (rate, decay), places in groupby(wide, key=lambda i: (self.rates[i], self.decays[i])):
            chosen = list(places)
            parameters = [self.parameters[i] for i in chosen]
            if decay != 1:
                torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, [moves[i] for i in chosen], alpha=-rate)
        for i, parameter in enumerate(self.parameters):
            if parameter.dtype in NARROW:
                self._move_narrow(i, moves[i])

    def _move_narrow(self, i: int, move: Tensor) -> None:
        """Moves weights of 16 bits by updates that may be far below their last digit."""
        parameter, compensation = self.parameters[i], self.compensations[i]
        whole = parameter if compensation is None else compensated(parameter, compensation)
        weights = whole.to(move.dtype)
        weights.mul_(self.decays[i]).sub_(move, alpha=self.rates[i])
        if compensation is not None:
            add_compensated_(parameter, compensation, weights)
        elif self.generator is not None:
            parameter.copy_(round_stochastically(weights.float(), parameter.dtype, self.generator))
        else:
            parameter.copy_(weights)

    def _averaged(self, average: Tensor, move: Tensor, pieces: list[slice], carried: Tensor | None) -> Tensor:
        """What weights move along, [d], once u has been taken into the average."""
        for piece in pieces:
            average[piece].lerp_(move[piece], 1 - self.momentum)
        along = average.lerp(move, 1 - self.momentum) if self.nesterov else average
        if carried is None:
            return along
        moves = torch.zeros(len(move), dtype=torch.bool, device=move.device)
        for piece in pieces:
            moves[piece] = True
        carried = carried[moves[carried]]
        along = average.clone() if along is average else along
        along[carried] = move[carried]
        average[carried] = 0
        return along
