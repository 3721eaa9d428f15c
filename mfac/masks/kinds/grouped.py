"""Patterns whose units are fixed groups of weights: blocks, output rows, input channels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from mfac.core.checks.numbers import check_count
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.axes import as_matrix, check_channels
from mfac.masks.kinds.base import Broken, Candidates, Pattern, Promise, Units


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

    def name_of(self, weight: PrunableWeight, label: int) -> str:
        """A group in words, for messages."""
        return f"group {label}"

    def promises(self, weights: Sequence[PrunableWeight], kept: Tensor) -> list[Promise]:
        """That every group is kept whole or dropped whole."""
        broken = []
        for weight, piece in zip(weights, kept.split([weight.size for weight in weights]), strict=True):
            partial = partly_kept(self.labels(weight), piece.cpu())
            if partial is not None:
                count, label, share = partial
                broken.append(Broken(weight.name, count, f"{share} weights kept of {self.name_of(weight, label)}"))
        return [Promise(str(self), "what belongs together is kept whole or dropped whole", broken)]

    def units(self, candidates: Candidates) -> Units:
        """What is alive of each group."""
        live = candidates.live
        labels, begin = [], 0
        for weight in candidates.weights:
            labels.append(self.labels(weight) + begin)
            begin = int(labels[-1].max()) + 1
        ends = [int(piece.max()) + 1 for piece in labels]
        return units_of_labels(torch.cat(labels).to(live.device)[live], ends, candidates.scores)


def partly_kept(labels: Tensor, kept: Tensor) -> tuple[int, int, str] | None:
    """The groups of which some weights are kept and some are not.

    Args:
        labels: Of each weight, [size] int64.
        kept: [size] bool.

    Returns:
        How many, the label of the first, and its kept share as "2 of 8"; None if there is none.
    """
    sizes = torch.bincount(labels)
    counts = torch.bincount(labels[kept], minlength=len(sizes))
    partial = ((counts > 0) & (counts < sizes)).nonzero()[:, 0]
    if not len(partial):
        return None
    label = int(partial[0])
    return len(partial), label, f"{int(counts[label])} of {int(sizes[label])}"


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

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights whose channels are not known, and blocks that no weight has two of.

        Args:
            weights: What is known of each.

        Raises:
            ValueError: If there is such a weight, or each weight is a single block.
        """
        super().check(weights)
        shapes = {weight.name: list(as_matrix(weight).shape) for weight in weights}
        if all(outs <= self.outputs and ins <= self.inputs and n == 1 for outs, ins, n in shapes.values()):
            raise ValueError(
                f"Parameter `pattern` should have blocks smaller than some weight that is pruned. Found "
                f"{str(self)!r}, where outputs by inputs are at most "
                f"{max(outs for outs, _, _ in shapes.values())}x{max(ins for _, ins, _ in shapes.values())}."
            )

    def labels(self, weight: PrunableWeight) -> Tensor:
        """Blocks row by row, positions of a block's kernel after one another."""
        entries = as_matrix(weight)
        outs, ins, positions = entries.shape
        across = -(-ins // self.inputs)
        rows = torch.arange(outs)[:, None, None] // self.outputs
        columns = torch.arange(ins)[None, :, None] // self.inputs
        numbers = (rows * across + columns) * positions + torch.arange(positions)
        return _placed(entries, numbers)

    def name_of(self, weight: PrunableWeight, label: int) -> str:
        """The first and last of its channels."""
        outs, ins, positions = as_matrix(weight).shape
        place, position = divmod(label, positions)
        row, column = divmod(place, -(-ins // self.inputs))
        outputs = f"{row * self.outputs} to {min((row + 1) * self.outputs, outs) - 1}"
        inputs = f"{column * self.inputs} to {min((column + 1) * self.inputs, ins) - 1}"
        where = f" at position {position}" if positions > 1 else ""
        return f"the block of outputs {outputs} by inputs {inputs}{where}"


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

    def name_of(self, weight: PrunableWeight, label: int) -> str:
        """Its number."""
        return f"output channel {label}"


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

    def name_of(self, weight: PrunableWeight, label: int) -> str:
        """Its number."""
        return f"input channel {label}"


def _placed(entries: Tensor, numbers: Tensor) -> Tensor:
    """Numbers [out, inputs, positions] at the row-major places of their entries."""
    labels = torch.empty(entries.numel(), dtype=torch.int64)
    labels[entries.reshape(-1)] = numbers.reshape(-1)
    return labels
