"""What masks set to zero at the start, until the first step: a state that is loaded may keep it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mfac.distributed.sharding import local_like


class Undo:
    """Copies of tensors as they are before masks are applied to them.

    Args:
        masked: Tensors, each with the mask that is about to be applied, of its shape.
    """

    def __init__(self, masked: Iterable[tuple[Tensor, Tensor]]) -> None:
        self._parts = []
        for tensor, mask in masked:
            if not bool(mask.all()):
                local = _local(tensor)
                here = mask.to(tensor.device) if local is tensor else local_like(mask, tensor)
                self._parts.append((tensor, here, local.detach().clone()))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back what was set to zero, where nothing else has been written since."""
        for tensor, mask, before in self._parts:
            local = _local(tensor).detach()
            untouched = torch.equal(local, before.masked_fill(~mask, 0))
            if untouched:
                local.copy_(before)


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found
