"""Parameters as one flat vector: their order, their gradients, and how to write the vector back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


class ParameterVector:
    """Named parameters, each flattened row-major, one after the other.

    Two parameters that share the same memory are one weight: the first stands for both, and its
    gradient is the sum of theirs, without that of a frozen one.

    Args:
        parameters: Name to parameter, in order.
        others: Further parameters of the model, of which some may share memory with those.

    Attributes:
        parameters: Name to parameter.
        aliases: For each, the other parameters of the same memory.
        dim: d, how many weights there are in all.
        dtype: float64 where any parameter is, otherwise float32: of gradients and of the
            arithmetic.
        device: Where they are.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], others: Sequence[nn.Parameter] = ()) -> None:
        self.parameters = dict(parameters)
        chosen = {id(parameter) for parameter in self.parameters.values()}
        by_memory: dict[object, list[nn.Parameter]] = {}
        for other in others:
            if id(other) not in chosen and other.requires_grad:
                by_memory.setdefault(memory_of(other), []).append(other)
        self.aliases = [by_memory.get(memory_of(parameter), []) for parameter in self.parameters.values()]
        self.dim = sum(parameter.numel() for parameter in self.parameters.values())
        wide = any(parameter.dtype == torch.float64 for parameter in self.parameters.values())
        self.dtype = torch.float64 if wide else torch.float32
        self.device = next(iter(self.parameters.values())).device

    @property
    def names(self) -> list[str]:
        """In order."""
        return list(self.parameters)

    @property
    def sizes(self) -> list[int]:
        """Of each."""
        return [parameter.numel() for parameter in self.parameters.values()]

    def leaves(self) -> list[nn.Parameter]:
        """All parameters and their aliases, which gradients are asked of."""
        pairs = zip(self.parameters.values(), self.aliases, strict=True)
        return [leaf for parameter, aliases in pairs for leaf in (parameter, *aliases)]

    def restricted(self, names: Sequence[str]) -> ParameterVector:
        """The vector of some of the parameters."""
        others = list(chain(self.parameters.values(), *self.aliases))
        return ParameterVector({name: self.parameters[name] for name in names}, others)

    def flat(self) -> Tensor:
        """The weights, [d]. A copy."""
        return torch.cat([p.detach().reshape(-1).to(self.dtype) for p in self.parameters.values()])

    def flat_gradient(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Gradients of the `leaves`, in order, as one vector [d]; zero where there is none."""
        pieces, left = [], iter(gradients)
        for parameter, aliases in zip(self.parameters.values(), self.aliases, strict=True):
            found = [g for g in (next(left) for _ in range(1 + len(aliases))) if g is not None]
            piece = torch.zeros(parameter.numel(), dtype=self.dtype, device=self.device)
            for gradient in found:
                dense = gradient.to_dense() if gradient.is_sparse else gradient  # of embeddings with sparse=True
                piece += dense.detach().reshape(-1)
            pieces.append(piece)
        return torch.cat(pieces)

    def pieces(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A vector [d] as one piece in the shape of each parameter, with its name; views."""
        for (name, parameter), piece in zip(self.parameters.items(), flat.split(self.sizes), strict=True):
            yield name, piece.view(parameter.shape)

    @torch.no_grad()
    def zero_(self, where: Tensor) -> None:
        """Sets weights to exactly zero, whatever they were; `where` is [d] bool."""
        for (_, piece), parameter in zip(self.pieces(where), self.parameters.values(), strict=True):
            parameter.masked_fill_(piece, 0)

    @torch.no_grad()
    def write_(self, flat: Tensor) -> None:
        """Writes a vector [d] into parameters of any memory format; rounds once to their dtype.

        A weight that is not zero stays so: one too small for the dtype becomes the smallest number
        that it has.
        """
        for (_, piece), parameter in zip(self.pieces(flat), self.parameters.values(), strict=True):
            parameter.copy_(piece)
            if parameter.dtype.itemsize < piece.dtype.itemsize:
                lost = (parameter == 0) & (piece != 0)
                if bool(lost.any()):
                    smallest = torch.nextafter(torch.zeros_like(parameter), piece.sign().to(parameter.dtype))
                    parameter.copy_(torch.where(lost, smallest, parameter))


def memory_of(tensor: Tensor) -> object:
    """A key that two tensors share if and only if they are the same numbers in the same memory."""
    nowhere = isinstance(tensor, UninitializedParameter) or tensor.numel() == 0 or tensor.device.type == "meta"
    if nowhere or hasattr(tensor, "to_local"):  # of a DTensor this process may have no number
        return id(tensor)
    place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
    return (tensor.device, *place)
