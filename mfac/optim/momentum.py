"""Momentum of preconditioned gradients, as one flat vector for all parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfac.window.descent import follow_average_


class Momentum:
    """The average v <- βv + (1 - β)u of preconditioned gradients u = F⁻¹g, the paper's momentum.

    Where the window's rows are sparse, what a row carries has been held back by error feedback for many steps already.
    Averaging would hold it back once more while its gradient still points the same way, so that the same weights are
    sent again and overshoot. Therefore the weights that the newest row carries move by all of u at once and start with
    no momentum; the others move by v.

    Source: M-FAC (Frantar, Kurtic, Alistarh, NeurIPS 2021), Algorithm 2; for sparse rows the momentum factor masking of
    Deep Gradient Compression (Lin et al., 1712.01887), section 3.2.

    Args:
        dim: d.
        dtype: Of u.
        device: Of u.

    Attributes:
        average: v, [d].
    """

    def __init__(self, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.average = torch.zeros(dim, dtype=dtype, device=device)

    def step_(self, update: Tensor, factors: Sequence[tuple[slice, float]], carried: Tensor | None) -> None:
        """Takes a new u into the average. O(d).

        Args:
            update: u, [d]; becomes what the weights move along: v, or where it is carried u.
            factors: Pieces of [0, d) and the β of each; where it is 0, v is u.
            carried: Columns of the entries of the newest row if rows are sparse, [k].
        """
        for columns, factor in factors:
            self.average[columns].lerp_(update[columns], 1 - factor)
        follow_average_(update, self.average, carried)
