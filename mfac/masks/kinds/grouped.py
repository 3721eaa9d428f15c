"""Patterns whose units are fixed groups of weights: blocks, output rows, input channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_count
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.axes import as_matrix, check_channels
from mfac.masks.kinds.base import Candidates, Pattern, Units


class Grouped(Pattern):
    """Every weight belongs to one group of its parameter; the live weights of a group go together.

    A step drops, in the order of scores a weight, as many whole groups as fit into its number of
    weights, and never more, so that sparsity may fall short of what was asked by less than one
    group a parameter. Ties go to the lower number.
    """

    @abstractmethod
    def labels(self, weight: PrunableWeight) -> Tensor:
        """The group of each entry of a weight.

        Args:
            weight: What is known of it.

        Returns:
            [size] int64, >= 0.
        """

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights whose channels are not known.

        Args:
            weights: What is known of each.
        """
        check_channels(list(weights), str(self))

    def units(self, candidates: Candidates) -> Units:
        """What is alive of each group."""
        live = candidates.live
        labels, begin = [], 0
        for weight in candidates.weights:
            labels.append(self.labels(weight) + begin)
            begin = int(labels[-1].max()) + 1
        ends = [int(piece.max()) + 1 for piece in labels]
        return units_of_labels(torch.cat(labels).to(live.device)[live], ends, candidates.scores)


def units_of_labels(labels: Tensor, ends: Sequence[int], scores: Tensor) -> Units:
    """Units by a label for each live weight.

    Args:
        labels: [n] int64, ascending from one parameter to the next.
        ends: For each parameter the number above its last label.
        scores: Of the weights, [n].

    Returns:
        Units in the order of the labels, with the sums of their scores.
    """
    present, unit_of, sizes = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(present), dtype=scores.dtype, device=scores.device).index_add_(0, unit_of, scores)
    bounds = torch.searchsorted(present, torch.tensor([0, *ends], device=present.device))
    return Units(sums, bounds.diff().tolist(), unit_of, sizes)


class Blocks(Grouped):
    """Blocks of a outputs by b inputs: successive channels, at one position of a kernel.

    Blocks begin at channel 0 of each; where a or b does not divide a weight's channels the last
    blocks are smaller. In a grouped layer input channels are counted within their group, and output
    channels through all groups: with a greater than 1 a block may hold outputs of two groups. A
    depthwise layer has one input channel.

    Args:
        outputs: a >= 1.
        inputs: b >= 1.

    Raises:
        ValueError: If a or b is below 1.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(8, 4)
        >>> data = [(torch.randn(4, 8), torch.randn(4, 4)) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> _ = mfac.prune(model, loss_fn, data, sparsity=0.5, pattern="4x1", num_gradients=16, stages=1)
        >>> int((model.weight != 0).all(0).sum())
        4
    """

    def __init__(self, outputs: int, inputs: int) -> None:
        self.outputs = check_count("outputs", outputs, least=1)
        self.inputs = check_count("inputs", inputs, least=1)

    def __repr__(self) -> str:
        return f"{self.outputs}x{self.inputs}"

    def labels(self, weight: PrunableWeight) -> Tensor:
        """Blocks row by row, positions of a block's kernel after one another."""
        entries = as_matrix(weight)
        outs, ins, positions = entries.shape
        across = -(-ins // self.inputs)
        rows = torch.arange(outs)[:, None, None] // self.outputs
        columns = torch.arange(ins)[None, :, None] // self.inputs
        numbers = (rows * across + columns) * positions + torch.arange(positions)
        return _placed(entries, numbers)


class Rows(Grouped):
    """Whole output channels: units of a linear layer, filters of a convolution.

    The bias of a unit whose weights are gone stays: the unit is constant then. `mfac.shrink`
    removes it.
    """

    def __repr__(self) -> str:
        return "rows"

    def labels(self, weight: PrunableWeight) -> Tensor:
        """The output channel."""
        entries = as_matrix(weight)
        return _placed(entries, torch.arange(entries.shape[0])[:, None, None].expand_as(entries))


class Channels(Grouped):
    """Whole input channels; in a grouped layer each channel of each group for itself.

    `mfac.shrink` removes what feeds a channel that is gone.
    """

    def __repr__(self) -> str:
        return "channels"

    def labels(self, weight: PrunableWeight) -> Tensor:
        """The input channel, counted through all groups."""
        entries = as_matrix(weight)
        outs, ins, _ = entries.shape
        group = torch.arange(outs)[:, None, None] // (outs // weight.groups)
        numbers = group * ins + torch.arange(ins)[None, :, None]
        return _placed(entries, numbers.expand_as(entries))


def _placed(entries: Tensor, numbers: Tensor) -> Tensor:
    """Numbers [out, inputs, positions] at the row-major places of their entries."""
    labels = torch.empty(entries.numel(), dtype=torch.int64)
    labels[entries.reshape(-1)] = numbers.reshape(-1)
    return labels
