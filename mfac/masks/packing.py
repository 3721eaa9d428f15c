"""Masks as bits, eight to a byte."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """A mask, row-major, as bits.

    Args:
        mask: Of any shape, bool.

    Returns:
        Bytes on the CPU, [ceil(size / 8)] uint8. The first entry is the highest bit of the first
        byte.
    """
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy()))


def unpack_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask that `pack_bits` made bits of.

    Args:
        bits: [ceil(size / 8)] uint8.
        shape: Of the mask.

    Returns:
        The mask, on the CPU.

    Raises:
        ValueError: If there are not as many bytes as the shape asks for.
    """
    size = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.dim() != 1 or len(bits) != (size + 7) // 8:
        raise ValueError(
            f"A mask of shape {list(shape)} should have {(size + 7) // 8} bytes. "
            f"Found {list(bits.shape)} of {bits.dtype}."
        )
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size).astype(bool)).view(tuple(shape))
