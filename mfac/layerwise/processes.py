"""Layer-wise runs by several processes: who runs which batch, and what all have in the end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mfac.gradients.ranks import Ranks
from mfac.layerwise.fingerprint import of_data, of_weights
from mfac.layerwise.gram import Gram
from mfac.layerwise.heeding import Positions
from mfac.layerwise.statistics import Key, Stage, grams_of
from mfac.layerwise.views import LayerView


class Processes(Ranks):
    """The processes of a group that prune one model together; without one, this process alone.

    All have the same model and the same batches. What is sent is raw bytes, so that every process
    ends with the same bits.

    Args:
        group: Of `torch.distributed`; None for this process alone.

    Raises:
        RuntimeError: If `torch.distributed` is not initialised.
        ValueError: If this process is not of the group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(group)
        if self.rank < 0:
            raise ValueError("Parameter `process_group` should be a group that this process is of. Found one without.")

    @contextmanager
    def together(self) -> Generator[None]:
        """What is done within, all processes have done, or all of them raise.

        Nothing may be sent within: a process that failed would not be there to receive it.

        Yields:
            Nothing.

        Raises:
            RuntimeError: If another process failed. Of this one its own error is raised.
        """
        if self.group is None:
            yield
            return
        failed = None
        try:
            yield
        except Exception as error:  # the others wait: they hear of it first
            failed = error
        said = self.gathered(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            try:
                raise failed
            finally:
                del failed  # else this frame and its error hold each other, and both the group
        for rank, what in enumerate(said):
            if what is not None:
                raise RuntimeError(f"Rank {rank} of `process_group` failed, and so all stop. {what}")

    def gathered(self, value: Any) -> list[Any]:
        """What each process has for a value, by rank."""
        found: list[Any] = [None] * self.size
        if self.group is None:
            return [value]
        dist.all_gather_object(found, value, group=self.group)
        return found

    def check_same(self, batches: Sequence[Any], views: Sequence[LayerView]) -> None:
        """Refuses data that does not give every process a batch, and what is not the same on all.

        Args:
            batches: Of this process, who runs a share of them.
            views: Weights of this process's model.

        Raises:
            ValueError: If there are fewer batches than processes, or if batches or weights are not
                the same on every process.
        """
        if self.group is None:
            return
        if len(set(counts := self.gathered(len(batches)))) > 1:
            raise ValueError(
                f"Parameter `data` should be the same on every rank of `process_group`. Found {counts} batches."
            )
        if len(batches) < self.size:
            raise ValueError(
                f"Parameter `data` should hold at least one batch for each of the {self.size} ranks of "
                f"`process_group`. Found {len(batches)}."
            )
        if len(set(self.gathered(of_data(batches)))) > 1:
            raise ValueError(
                "Parameter `data` should be the same on every rank of `process_group`, each of which runs a share of "
                "it. Found other batches: give all of them to all ranks, without a sampler that splits them."
            )
        if len(set(self.gathered(of_weights([view for view in views if not view.parameter.is_meta])))) > 1:
            raise ValueError(
                "Parameter `model` should be the same on every rank of `process_group`. Found other weights."
            )

    def own(self, batches: Sequence[int]) -> list[int]:
        """The batches whose inputs this process sums up."""
        return list(batches[self.rank :: self.size])

    def held(self, batches: Sequence[int]) -> list[int]:
        """The batches whose activations this process keeps: its own, and the first.

        In the first batch every process finds the same order of layers and the same shared inputs.

        Args:
            batches: All.

        Returns:
            Each once.
        """
        return list(dict.fromkeys([batches[0], *self.own(batches)]))

    def grams(
        self,
        run: Callable[[int], Any],
        stages: Iterable[Stage],
        batches: Sequence[int],
        heeded: Mapping[str, Positions] | None = None,
    ) -> Iterator[tuple[Stage, dict[Key, Gram]]]:
        """XᵀX of the inputs of stages, one after the other, over the batches of all processes.

        Args:
            run: Runs a batch, by its number.
            stages: The same on every process.
            batches: All.
            heeded: As for `grams_of`.

        Yields:
            Each stage, and its sums by key. Weights that have other inputs in a later batch than
            those which they shared inputs with in the first one are a stage after that.
        """
        for whole in stages:
            waiting: list[Stage] = [whole]
            while waiting:
                stage = waiting.pop()
                with self.together():
                    sums = grams_of(run, stage, self.own(batches), heeded)
                if parted := {name for names in self.gathered(sums.parted) for name in names}:
                    stage, others = stage.parted(parted)
                    waiting.append(others)
                if stage.views:
                    yield stage, self.summed(stage, sums.grams)

    def summed(self, stage: Stage, grams: dict[Key, Gram]) -> dict[Key, Gram]:
        """XᵀX of every input of a stage, over the batches of all processes.

        Args:
            stage: The same on every process.
            grams: Of this process's batches; a key that none of them reaches is missing.

        Returns:
            By key, bitwise the same on every process; what no batch of any process reaches is
            missing. columns² numbers a key are sent.
        """
        if self.group is None:
            return grams
        device = stage.views[0].parameter.device
        widths = {
            key: columns
            for view in stage.views
            for key, (_, columns) in zip(stage.keys[view.name], view.shapes, strict=True)
        }
        counts = torch.tensor([grams[key].count if key in grams else 0 for key in widths], device=device)
        dist.all_reduce(counts, group=self.group)
        found = {}
        for (key, columns), count in zip(widths.items(), counts.tolist(), strict=True):
            if not count:
                continue
            own = grams.pop(key, None)
            total = own.total if own is not None else torch.zeros(columns, columns, dtype=torch.float64, device=device)
            dist.all_reduce(total, group=self.group)
            found[key] = Gram(total, count)
        return found

    def broadcast(self, tensors: Sequence[Tensor] | None, owner: int, device: torch.device) -> list[Tensor]:
        """Tensors of one process on all of them.

        Args:
            tensors: On the owner; of any dtype and of one dimension or more. Elsewhere None.
            owner: The rank that has them.
            device: Where they are.

        Returns:
            The same bits on every process.
        """
        if self.group is None:
            assert tensors is not None
            return list(tensors)
        mine = [tensor.contiguous() for tensor in tensors] if owner == self.rank and tensors is not None else []
        described: list[Any] = [[(tuple(tensor.shape), tensor.dtype) for tensor in mine]]
        dist.broadcast_object_list(described, self._global(owner), group=self.group)
        found = mine if owner == self.rank else [torch.empty(s, dtype=d, device=device) for s, d in described[0]]
        for tensor in found:
            if tensor.numel():
                dist.broadcast(tensor.view(torch.uint8), self._global(owner), group=self.group)
        return found

    def by_rows(self, function: Callable[..., Sequence[Tensor]], *whole: Tensor) -> list[Tensor]:
        """A function of rows, each of which is on its own; every process computes some of the rows.

        Args:
            function: Parts of `whole` -> tensors with as many rows.
            whole: Tensors with as many rows each, the same on every process.

        Returns:
            What the function makes of all rows, bitwise the same on every process.
        """
        mine: list[Tensor] = []
        with self.together():
            part = [tensor.tensor_split(self.size)[self.rank].contiguous() for tensor in whole]
            if len(part[0]):
                mine = list(function(*part))
        rows = [len(part) for part in whole[0].tensor_split(self.size)]
        parts = [self.broadcast(mine, rank, whole[0].device) for rank in range(self.size) if rows[rank]]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
