"""N:M, at most N of M successive weights along the input channels, as sparse tensor cores take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfac import _C
from mfac.core import ops
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.axes import as_matrix
from mfac.masks.kinds.base import Broken, Candidates, Pattern, Promise, Units

MOST_IN_GROUP = _C.limits()["nm_group"]


class NM(Pattern):
    """N:M, at most `keep` of `group` successive weights along the input channels of each layer.

    A step may drop the weights that lie, by the saliencies of that step, below the `keep` highest
    of their group. A last group of r < `group` weights keeps min(`keep`, r).

    Args:
        keep: N >= 1.
        group: M, N < M <= 64.

    Raises:
        ValueError: If N and M are not in these ranges.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 4)
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> _ = mfac.prune(model, loss_fn, data, pattern=mfac.NM(2, 4), num_gradients=16, stages=1)
        >>> int((model.weight != 0).view(4, 2, 4).sum(2).max())
        2
    """

    def __init__(self, keep: int, group: int) -> None:
        if not 1 <= keep < group <= MOST_IN_GROUP:
            raise ValueError(
                f"Parameter `pattern` should be N:M with 1 <= N < M <= {MOST_IN_GROUP}. Found {keep}:{group}."
            )
        self.keep, self.group = keep, group
        self.sparsity = 1 - keep / group

    def __repr__(self) -> str:
        return f"{self.keep}:{self.group}"

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights without input channels.

        Args:
            weights: What is known of each weight.

        Raises:
            ValueError: If a weight has no input channels.
        """
        for weight in weights:
            if weight.layout is None:
                raise ValueError(
                    f"Parameter `params` should select weights of layers whose input channels are known with "
                    f"pattern={str(self)!r}. Found {weight.name!r}, which has no input channels to group."
                )

    def mask(self, weights: Sequence[PrunableWeight], scores: Tensor) -> Tensor:
        """Which weights the pattern keeps by these scores, [d] -> [d] bool."""
        masks = []
        for weight, piece in zip(weights, scores.split([weight.size for weight in weights]), strict=True):
            assert weight.layout is not None
            masks.append(ops.nm_mask(piece.view(weight.layout), self.keep, self.group).view(-1))
        return torch.cat(masks)

    def least_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """N of every group, or all live weights of a group that has fewer."""
        kept = self.mask(weights, live.float()) & live
        return [int(piece.sum()) for piece in kept.split([weight.size for weight in weights])]

    def most_kept(self, weights: Sequence[PrunableWeight], live: Tensor) -> list[int]:
        """The same as `least_kept`: N:M leaves no choice."""
        return self.least_kept(weights, live)

    def promises(self, weights: Sequence[PrunableWeight], kept: Tensor) -> list[Promise]:
        """That no group keeps more than N."""
        broken = []
        for weight, piece in zip(weights, kept.split([weight.size for weight in weights]), strict=True):
            matrix = piece.cpu()[as_matrix(weight)]  # [out, inputs, positions]
            counts = torch.stack([part.sum(1) for part in matrix.split(self.group, dim=1)], 1)  # [out, groups, ...]
            over = (counts > self.keep).nonzero()
            if len(over):
                out, number, position = over[0].tolist()
                begin = number * self.group
                last = min(begin + self.group, matrix.shape[1]) - 1
                where = f" at position {position}" if matrix.shape[2] > 1 else ""
                first = f"{int(counts[out, number, position])} kept of inputs {begin} to {last} of output {out}{where}"
                broken.append(Broken(weight.name, len(over), first))
        text = f"at most {self.keep} of {self.group} successive weights are kept along input channels"
        return [Promise(str(self), text, broken)]

    def units(self, candidates: Candidates) -> Units:
        """The weights below the highest of their group, each a unit; dead weights go first."""
        live, scores = candidates.live, candidates.scores
        of_all = scores.new_full(live.shape, -1.0).masked_scatter_(live, scores)
        open_ = ~self.mask(candidates.weights, of_all) & live  # [d]
        counts = [int(piece.sum()) for piece in open_.split([weight.size for weight in candidates.weights])]
        chosen = open_[live]  # [n]
        unit_of = torch.where(chosen, chosen.cumsum(0) - 1, -1)
        return Units(scores[chosen], counts, unit_of)
