"""Rows in 8 bits, with a scale for every tile of columns."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mfac import _C
from mfac.window.formats.dense import DenseRows

_SCALE_COLUMNS = _C.limits()["scale_columns"]


class Int8Rows(DenseRows):
    """Rows in int8, with a float32 scale for every 1024 columns: the largest entry is ±127 scales.

    The operators of dense rows take the scales beside the integers.
    """

    def __init__(self, rank: int, dim: int, device: torch.device) -> None:
        super().__init__(rank, dim, torch.int8, device)
        self.num_scales = -(-dim // _SCALE_COLUMNS)  # of a row

    @property
    def nbytes(self) -> int:
        return super().nbytes + 4 * self.rank * self.num_scales

    @cached_property
    def scales(self) -> Tensor:  # type: ignore[override]
        """[m, ceil(d / 1024)]."""
        return torch.zeros((self.rank, self.num_scales), dtype=torch.float32, device=self.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"rows": self.stored, "scales": self.scales}

    def as_dense(self, index: Tensor | slice = slice(None)) -> Tensor:
        scales = self.scales[index].repeat_interleave(_SCALE_COLUMNS, dim=-1)[..., : self.dim]
        return self.stored[index].float() * scales  # exact: the scales have 16 significant bits

    def clear_(self, row: int, where: Tensor) -> None:
        super().clear_(row, where)
        self.scales.select(0, row).masked_fill_(where, 0)
