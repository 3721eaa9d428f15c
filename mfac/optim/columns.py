"""Which columns of a group's window belong to which parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from mfac.distributed.pieces import Whole


def trains(parameter: Tensor) -> bool:
    """Whether a parameter has columns; of a lazy module it has none before it has a shape."""
    return not is_lazy(parameter) and (parameter.requires_grad or parameter.grad is not None)


class Columns:
    """The parameters of a group that train, flattened row-major, one after the other.

    Args:
        parameters: Of the group, those that train.
        pieces: Which piece of each is this process's.
        kept: For each, the entries of its piece that a mask keeps, [k] int64, or None for all: the
            window has no columns for the others.

    Attributes:
        parameters: As given.
        pieces: As given.
        kept: As given.
        widths: How many columns each has over all processes.
        shapes: Of each parameter, whole.
        local_shapes: Of the piece of each; [k] where a mask keeps k entries.
        starts: The first column of each.
        dim: d, how many columns this process has in all.
        total_dim: How many all processes have.
    """

    def __init__(self, parameters: Sequence[Tensor], pieces: Whole, kept: Sequence[Tensor | None] = ()) -> None:
        self.parameters, self.pieces = list(parameters), pieces
        self.kept = list(kept) or [None] * len(self.parameters)
        self.shapes = [tuple(parameter.shape) for parameter in self.parameters]
        locals_ = [pieces.of(parameter, parameter) for parameter in self.parameters]
        self.local_shapes = [
            tuple(local.shape) if index is None else (len(index),)
            for local, index in zip(locals_, self.kept, strict=True)
        ]
        self.widths = [
            p.numel() if index is None else len(index) for p, index in zip(self.parameters, self.kept, strict=True)
        ]
        self.total_dim = sum(self.widths)
        sizes = [math.prod(shape) for shape in self.local_shapes]
        self.starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.dim = sum(sizes)

    def __len__(self) -> int:
        return len(self.parameters)

    def holds(self, parameters: Sequence[Tensor], kept: Sequence[Tensor | None]) -> bool:
        """Whether these are the parameters and masks, in order and of the shapes of before."""
        if len(parameters) != len(self.parameters):
            return False
        pairs = zip(self.parameters, parameters, self.shapes, self.kept, kept, strict=True)
        return all(mine is p and shape == p.shape and old is new for mine, p, shape, old, new in pairs)

    def shared(self, other: Columns) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """What two layouts have in common: the parameter's number in each, and columns in each."""
        numbers = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        for j, parameter in enumerate(other.parameters):
            i = numbers.get(id(parameter))
            # Of another number of entries the rows say nothing about which is which.
            if i is not None and math.prod(self.shapes[i]) == math.prod(other.shapes[j]):
                mine, theirs = _in_both(self._entries(i), other._entries(j))
                yield i, j, self.starts[i] + mine, other.starts[j] + theirs

    def _entries(self, i: int) -> Tensor:
        """The entries of a piece that have columns, [k] int64, ascending."""
        index = self.kept[i]
        return torch.arange(math.prod(self.local_shapes[i])) if index is None else index.cpu()

    @property
    def slices(self) -> list[slice]:
        """The columns of each parameter."""
        ends = [*self.starts[1:], self.dim]
        return [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]

    def views(self, flat: Tensor) -> list[Tensor]:
        """[..., d] as a piece [..., *shape] for each parameter, by reference."""
        return [
            flat.narrow(-1, start, math.prod(shape)).view(*flat.shape[:-1], *shape)
            for start, shape in zip(self.starts, self.local_shapes, strict=True)
        ]

    def local(self, of: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """This process's piece of one tensor for each parameter; a copy where a mask keeps part."""
        for parameter, tensor, index in zip(self.parameters, of, self.kept, strict=True):
            piece = None if tensor is None else self.pieces.of(parameter, tensor)
            if piece is not None and index is not None and not piece.is_sparse:
                piece = piece.reshape(-1)[index]
            yield piece

    def weights(self) -> list[Tensor]:
        """This process's piece of each parameter, as `local`."""
        return [piece for piece in self.local(self.parameters) if piece is not None]

    def put_back_(self, pieces: Sequence[Tensor]) -> None:
        """Writes pieces that `local` has copied into their parameters."""
        for parameter, piece, index in zip(self.parameters, pieces, self.kept, strict=True):
            if index is not None:
                whole = self.pieces.of(parameter, parameter)
                flat = whole.flatten()  # a view where one stride will do, as it may of channels last
                flat.index_copy_(0, index, piece)
                if flat.data_ptr() != whole.data_ptr():
                    whole.copy_(flat.view(whole.shape))

    def gather_(self, flat: Tensor, weight_decay: float, maximize: bool) -> list[bool]:
        """Writes the gradients into flat [d], zero where a parameter has none.

        Args:
            flat: Overwritten.
            weight_decay: What of the weights is added to their gradients.
            maximize: Whether gradients count with the other sign.

        Returns:
            For each parameter, whether it has a gradient.

        Raises:
            TypeError: If a gradient is sparse.
        """
        gradients = list(self.local([parameter.grad for parameter in self.parameters]))
        views = self.views(flat)
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        for i, (view, gradient) in enumerate(zip(views, gradients, strict=True)):
            if gradient is None:
                view.zero_()
            elif gradient.is_sparse:
                raise TypeError(
                    "Parameter `params` should have dense gradients: sparse=False of an embedding makes it dense. "
                    f"Found a sparse one, of parameter number {i} of those that train, shape {list(self.shapes[i])}."
                )
        if used:
            places = [views[i] for i in used]
            torch._foreach_copy_(places, [gradient for gradient in gradients if gradient is not None])
            if maximize:
                torch._foreach_neg_(places)
            if weight_decay:
                weights = self.weights()
                torch._foreach_add_(places, [weights[i] for i in used], alpha=weight_decay)
        return [gradient is not None for gradient in gradients]


def _in_both(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Where the entries that two ascending lists share stand in each."""
    return torch.isin(mine, theirs).nonzero()[:, 0], torch.isin(theirs, mine).nonzero()[:, 0]
