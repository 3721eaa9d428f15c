"""Which inputs of layers are one and the same: told when a layer is called, not afterwards."""

from __future__ import annotations

import torch
from torch import Tensor


class Identities:
    """Numbers for tensors, the same number where place and content are the same.

    Tensors that have a number are kept, so that no other one takes their memory meanwhile.
    """

    def __init__(self) -> None:
        self._numbers: dict[object, tuple[int, Tensor]] = {}
        self._copies: dict[object, list[tuple[int, Tensor]]] = {}
        self._count = 0

    def number(self, x: Tensor) -> int:
        """The number of a tensor as it is now; in-place changes give it another one.

        Args:
            x: The tensor, or a detached one of the same storage.

        Returns:
            At least 0.
        """
        place = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype)
        if not x.is_inference():
            if (place, x._version) not in self._numbers:
                self._numbers[place, x._version] = (self._next(), x)
            return self._numbers[place, x._version][0]
        copies = self._copies.setdefault(place, [])  # inference mode counts no versions
        for number, copy in copies:
            if torch.equal(copy, x):
                return number
        copies.append((self._next(), x.clone()))
        return copies[-1][0]

    def _next(self) -> int:
        self._count += 1
        return self._count - 1
