"""The gradients of a stage, wherever they are kept, and the Fisher over them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mfac.curvature.damping import Damping
from mfac.curvature.fisher import EmpiricalFisher
from mfac.curvature.streamed import fisher_of
from mfac.gradients.backward import GradientSource
from mfac.gradients.batches import BatchStream
from mfac.gradients.collecting import fill_rows_
from mfac.gradients.ranks import Ranks
from mfac.gradients.store import FileStore, GradientStore, HalfStore, TensorStore
from mfac.pruning.settings import Settings


class StageGradients:
    """m gradients of the n live weights.

    Args:
        store: Where they are.
        block_size: Of a block-diagonal Fisher over them.
        live: Which of the store's columns are meant, [n'] bool; None for all.
    """

    def __init__(self, store: GradientStore, block_size: int | None, live: Tensor | None = None) -> None:
        self.store, self.block_size, self.live = store, block_size, live

    @classmethod
    def collect(
        cls,
        source: GradientSource,
        stream: BatchStream,
        settings: Settings,
        mode: Literal["eval", "train"],
        live: Tensor | None,
        *,
        or_fewer: bool,
        ranks: Ranks,
    ) -> StageGradients:
        """Fresh gradients.

        Args:
            source: Of gradients.
            stream: Of batches.
            settings: How many, and where they are kept.
            mode: Of the model meanwhile.
            live: Which of the d weights, [d] bool; None for all.
            or_fewer: Whether fewer will do where the data ends.
            ranks: The processes that share the work.

        Returns:
            The gradients.
        """
        vector = source.vector
        columns = None if live is None else live.nonzero()[:, 0]
        width = vector.dim if columns is None else columns.numel()
        store = _store(settings.gradients, settings.rank, width, vector.dtype, vector.device)
        found = fill_rows_(store.write_, source, stream, settings.rank, mode, columns, or_fewer=or_fewer, ranks=ranks)
        store.cut_(found)
        return cls(store, settings.block_size)

    def restricted(self, kept: Tensor) -> StageGradients:
        """Those of some of the weights.

        Args:
            kept: Which, [n] bool.

        Returns:
            Gradients; those of a tensor are copied.
        """
        if isinstance(self.store, TensorStore):
            return StageGradients(TensorStore(self.store.rows[:, kept]), self.block_size)
        return StageGradients(self.store, None, kept)

    def fisher(self, damping: Damping) -> EmpiricalFisher:
        """The Fisher over them.

        Args:
            damping: λ.

        Returns:
            In memory where the gradients are, or where they are few; otherwise streamed.
        """
        if isinstance(self.store, TensorStore):
            return EmpiricalFisher(self.store.rows, damping, self.block_size)
        return fisher_of(self.store, damping, self.live)


def _store(
    where: Path | Literal["ram", "bf16"], rank: int, dim: int, dtype: torch.dtype, device: torch.device
) -> GradientStore:
    if where == "ram":
        return TensorStore(torch.empty((rank, dim), dtype=dtype, device=device))
    if device.type != "cpu":
        raise ValueError(f"Parameter `gradients` should be 'ram' for a model on {device}. Found {str(where)!r}.")
    return HalfStore(rank, dim, dtype) if where == "bf16" else FileStore(rank, dim, dtype, Path(where))
