"""How weights move along the direction of a window; the one place that knows of momentum."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor


@dataclass
class Descent:
    """w <- decay·w - rate·v for several parameters, where v <- βv + (1 - β)u averages u = F⁻¹g.

    Where the window's rows are sparse, what a row carries has been held back by error feedback for
    many steps already. Averaging would hold it back once more while its gradient still points the
    same way, so that the same weights are sent again and overshoot. Therefore the weights that the
    newest row carries move by all of u at once and start with no momentum; the other weights move
    by v.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), Algorithm 2; for sparse rows the
    momentum factor masking of Deep Gradient Compression (Lin et al., 1712.01887), section 3.2.

    Attributes:
        average: v, [d]; None where there is no momentum, and v is u.
        parameters: Each w, in the order of their columns.
        columns: The first column of u, [d], for each; the others follow, row-major.
        rates: For each.
        decays: For each.
        momenta: β for each, in [0, 1).
    """

    average: Tensor | None = None
    parameters: list[Tensor] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    decays: list[float] = field(default_factory=list)
    momenta: list[float] = field(default_factory=list)

    def add(self, parameter: Tensor, column: int, rate: float, decay: float = 1.0, momentum: float = 0.0) -> None:
        """Moves one more parameter, with columns after the columns of the parameters before."""
        self.parameters.append(parameter)
        self.columns.append(column)
        self.rates.append(rate)
        self.decays.append(decay)
        self.momenta.append(momentum)

    def fuses(self, dim: int, dtype: torch.dtype) -> bool:
        """Whether the pass for u, [d] in `dtype`, may move them: pieces of vectors, one β."""
        of_all = len(set(self.momenta)) == 1 and sum(p.numel() for p in self.parameters) == dim
        return (self.average is None or of_all) and all(p.dtype == dtype and p.is_contiguous() for p in self.parameters)

    @property
    def moved(self) -> tuple[list[Tensor], Tensor | None]:
        """What an operator's pass writes; autograd is told of it here, as the operator does not."""
        written = self.parameters if self.average is None else [*self.parameters, self.average]
        torch.autograd.graph.increment_version(written)
        return self.parameters, self.average

    @property
    def momentum(self) -> float:
        """The β of such a pass."""
        return 0.0 if self.average is None else self.momenta[0]

    def apply_(self, move: Tensor, carried: Tensor | None = None) -> None:
        """Moves them by torch; columns of no parameter keep their average.

        Args:
            move: u, [d]; may be overwritten.
            carried: Columns of the entries of the newest row if rows are sparse, [k].
        """
        pieces = [slice(c, c + p.numel()) for c, p in zip(self.columns, self.parameters, strict=True)]
        if self.average is not None:
            move = self._averaged(self.average, move, pieces, carried)
        moves = [move[piece].view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]
        factors = list(zip(self.rates, self.decays, strict=True))
        for (rate, decay), places in groupby(range(len(factors)), key=factors.__getitem__):
            chosen = list(places)
            parameters = [self.parameters[i] for i in chosen]
            if decay != 1:
                torch._foreach_mul_(parameters, decay)
            torch._foreach_add_(parameters, [moves[i] for i in chosen], alpha=-rate)

    def _averaged(self, average: Tensor, move: Tensor, pieces: list[slice], carried: Tensor | None) -> Tensor:
        """What weights move along, [d], once u has been taken into the average."""
        for piece, momentum in zip(pieces, self.momenta, strict=True):
            average[piece].lerp_(move[piece], 1 - momentum)
        if carried is None:
            return average
        moves = torch.zeros(len(move), dtype=torch.bool, device=move.device)
        for piece in pieces:
            moves[piece] = True
        carried = carried[moves[carried]]
        along = average.clone()
        along[carried] = move[carried]
        average[carried] = 0
        return along
