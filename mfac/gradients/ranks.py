"""Gradients by several processes: each computes its share of the batches, and all hold all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of a group; without one, this process alone.

    All processes go through the same batches in the same order. Of every round of batches each
    process computes one.

    Args:
        group: Of `torch.distributed`; None for this process alone.

    Attributes:
        size: How many there are.
        rank: Which one this is.

    Raises:
        RuntimeError: If `torch.distributed` is not initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if group is not None and not dist.is_initialized():
            raise RuntimeError("Parameter `process_group` needs torch.distributed.init_process_group first.")
        self.group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.rank = 0 if group is None else dist.get_rank(group)

    def rows(
        self, rounds: Iterator[Sequence[tuple[int, Any]]], rows_of: Callable[[Any, int], Iterator[Tensor]]
    ) -> Iterator[tuple[int, Tensor]]:
        """The rows of all batches, in the order of the batches, whoever computes them.

        Args:
            rounds: Numbers and batches, at most one for each process.
            rows_of: The rows [k, n] of a batch.

        Yields:
            The number of the batch, and rows.

        Raises:
            RuntimeError: If another process failed. Of this one its own error is raised.

        Cost: n numbers a row are sent to every process.
        """
        for batches in rounds:
            if self.group is None:
                for number, batch in batches:
                    for rows in rows_of(batch, number):
                        yield number, rows
                continue
            own, failed = None, None
            if self.rank < len(batches):
                number, batch = batches[self.rank]
                try:
                    own = torch.cat([rows.clone() for rows in rows_of(batch, number)])
                except Exception as error:  # the others wait: they hear of it first
                    failed = error
            shapes: list[Any] = [None] * self.size
            what: Any = None if own is None else (*own.shape, own.dtype)
            if failed is not None:
                what = f"{type(failed).__name__}: {failed}"
            dist.all_gather_object(shapes, what, group=self.group)
            if failed is not None:
                try:
                    raise failed
                finally:
                    del failed  # else this frame and its error hold each other, and both the group
            for rank, shape in enumerate(shapes):  # before anything is sent: nobody is to wait for who has failed
                if isinstance(shape, str):
                    raise RuntimeError(f"Rank {rank} of `process_group` could not compute its gradients. {shape}")
            for number, (rank, shape) in zip((number for number, _ in batches), enumerate(shapes), strict=False):
                block = own if rank == self.rank else torch.empty(shape[:2], dtype=shape[2])
                assert block is not None
                dist.broadcast(block, self._global(rank), group=self.group)
                yield number, block

    def _global(self, rank: int) -> int:
        assert self.group is not None
        return dist.get_global_rank(self.group, rank)

    def common(self, names: set[str]) -> set[str]:
        """What all processes have in their sets."""
        if self.group is None:
            return names
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, sorted(names), group=self.group)
        return set.intersection(*map(set, found))

    def agree_(self, *tensors: Tensor) -> None:
        """In place: every process takes over the numbers of the first process."""
        for tensor in tensors if self.group is not None else ():
            whole = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor
            dist.broadcast(whole, self._global(0), group=self.group)
            tensor.copy_(whole)

    def same(self, value: object) -> Any:
        """What the first process has for a value."""
        if self.group is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, self._global(0), group=self.group)
        return values[0]
