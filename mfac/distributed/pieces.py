"""Which piece of each parameter is this process's, and what processes say to one another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor


class Whole:
    """One process holds every parameter whole, and says nothing to others.

    Attributes:
        number: Of this process among those that have different columns.
        among: Which processes those are; a key.
    """

    number = 0
    among: Hashable = None

    def of(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """This process's piece of a tensor laid out as the parameter; a view, of >= 1 dimension."""
        return tensor.view(1) if tensor.dim() == 0 else tensor

    def published(self, parameter: Tensor, piece: Tensor) -> Tensor:
        """A piece [..., *shape] of this process as what `state` holds: whole, or a DTensor."""
        return piece

    def taken(self, parameter: Tensor, value: object, like: Tensor) -> object:
        """What a state holds, whole or a DTensor, as the piece of this process.

        Args:
            parameter: Whose.
            value: What the state holds.
            like: What `state` would hold now.

        Returns:
            A tensor like this process's piece, if the state fits.
        """
        return value.full_tensor() if hasattr(value, "full_tensor") else value

    def of_whole(
        self, parameters: Sequence[Tensor], pieces: Sequence[Tensor], function: Callable[[list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """This process's pieces of a function of whole tensors, laid out as parameters are.

        Args:
            parameters: As which the tensors are laid out.
            pieces: Of the function's arguments, this process's.
            function: Of all tensors at once.

        Returns:
            Like `pieces`.
        """
        return function(list(pieces))

    def key(self, name: str) -> str:
        """The name in `state` of what is one process's alone; it tells of which columns it is."""
        return name

    def sum_(self, products: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return products

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def exchange_(self, parameters: Sequence[Tensor]) -> None:
        """Has every process see the weights that the others have moved."""
