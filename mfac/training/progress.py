"""What a masked training has done so far: all of it that is saved, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mfac.masks.packing import pack_bits, unpack_bits
from mfac.training.change import MaskChange
from mfac.training.snapshot import Snapshot

VERSION = 1


class Progress:
    """Where a training stands.

    Args:
        kept: The masks, [d] bool.
        optimizers: How many there are.
        generator: For random masks.

    Attributes:
        kept: The masks as they are.
        changed: Which entries of them have ever changed, [d] bool.
        counts: Steps of each optimizer.
        memory: What the recipe remembers.
        changes: The log.
        snapshot: A copy of the model, or None.
        generator: As given.
    """

    def __init__(self, kept: Tensor, optimizers: int, generator: torch.Generator) -> None:
        self.kept, self.changed = kept, torch.zeros_like(kept)
        self.counts, self.generator = [0] * optimizers, generator
        self.memory: dict[str, Any] = {}
        self.changes: list[MaskChange] = []
        self.snapshot: Snapshot | None = None

    @property
    def steps(self) -> int:
        """Steps that all optimizers have taken."""
        return min(self.counts)

    def move(self, device: torch.device) -> None:
        """Brings masks and memory to a device, if they are not there."""
        if self.kept.device != device:
            self.kept, self.changed = self.kept.to(device), self.changed.to(device)
            self.memory = copied(self.memory, device)

    def change(self, after: Tensor, step: int, sizes: Mapping[str, int]) -> None:
        """Takes up new masks, and logs them.

        Args:
            after: The masks, [d] bool.
            step: Of the change; 0 for the masks at the start.
            sizes: How many weights each parameter has.
        """
        before = self.kept if step else torch.ones_like(self.kept)
        if step:
            self.changed |= before != after
        pieces = zip(sizes, after.split(list(sizes.values())), strict=True)
        counts = {name: int(torch.count_nonzero(mask)) for name, mask in pieces}
        dropped, grown = int(torch.count_nonzero(before & ~after)), int(torch.count_nonzero(after & ~before))
        total = after.numel()
        unchanged = 1 - int(torch.count_nonzero(self.changed)) / total
        self.changes.append(MaskChange(step, dropped, grown, counts, total, unchanged))
        self.kept = after

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, and lists and dicts of these; masks take a bit a weight."""
        return {
            "counts": list(self.counts),
            "masks": pack_bits(self.kept),
            "changed": pack_bits(self.changed),
            "memory": copied(self.memory),
            "generator": self.generator.get_state(),
            "changes": [vars(change) | {"kept": dict(change.kept)} for change in self.changes],
            "snapshot": None if self.snapshot is None else self.snapshot.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up another's.

        Args:
            state: Of `state_dict`, of masks of the same shapes.

        Raises:
            KeyError: If an entry is missing; nothing is changed then.
            ValueError: If it is of another number of optimizers, likewise.
        """
        if len(state["counts"]) != len(self.counts):
            raise ValueError(
                f"Parameter `state` should be of {len(self.counts)} optimizers. Found {len(state['counts'])}."
            )
        kept, changed = (unpack_bits(state[key], self.kept.shape).to(self.kept.device) for key in ("masks", "changed"))
        changes = [MaskChange(**change) for change in state["changes"]]
        memory, counts = copied(state["memory"], self.kept.device), list(state["counts"])
        snapshot = None if state["snapshot"] is None else Snapshot(**copied(state["snapshot"]))
        self.generator.set_state(state["generator"].cpu())
        self.kept, self.changed, self.counts, self.changes = kept, changed, counts, changes
        self.memory, self.snapshot = memory, snapshot


def copied(value: Any, device: torch.device | None = None) -> Any:
    """Tensors cloned, in nested dicts and lists.

    Args:
        value: The tensors.
        device: Where they go; None for where they are.

    Returns:
        The copy.
    """
    if isinstance(value, Tensor):
        return value.detach().to(device if device is not None else value.device, copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item, device) for item in value]
    return value
