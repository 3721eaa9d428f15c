"""The random numbers behind data: torch's, Python's, numpy's, and the data's own generators."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_HOLDERS = ("sampler", "batch_sampler", "dataset")  # of a DataLoader, and of one another


@dataclass(frozen=True)
class Randomness:
    """States of all generators at one moment.

    Attributes:
        torch_state: Of torch's own generator on the CPU.
        python_state: Of `random`.
        numpy_state: Of `numpy.random`.
        of_data: Of each torch generator that the data holds, in order.
    """

    torch_state: torch.Tensor
    python_state: tuple[Any, ...]
    numpy_state: tuple[Any, ...]
    of_data: list[torch.Tensor]

    @classmethod
    def of(cls, data: object) -> Randomness:
        """As it is now.

        Args:
            data: What batches come from; generators are looked for in the attribute `generator` of
                a DataLoader, of its samplers and of its data set.

        Returns:
            All states.
        """
        name, keys, *rest = np.random.get_state()
        return cls(
            torch.default_generator.get_state(),
            random.getstate(),
            (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            [generator.get_state() for generator in _generators(data)],
        )

    def restore(self, data: object) -> None:
        """Puts every generator back into the state of that moment.

        Args:
            data: As for `of`.

        Raises:
            ValueError: If the data holds another number of generators.
        """
        found = list(_generators(data))
        if len(found) != len(self.of_data):
            raise ValueError(
                f"Parameter `data` should hold {len(self.of_data)} generators, as when the run began. "
                f"Found {len(found)}."
            )
        torch.default_generator.set_state(self.torch_state)
        version, numbers, gauss = self.python_state
        random.setstate((version, tuple(numbers), gauss))
        name, keys, *rest = self.numpy_state
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        for generator, state in zip(found, self.of_data, strict=True):
            generator.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """As tensors, numbers and strings."""
        return {
            "torch": self.torch_state,
            "python": list(self.python_state),
            "numpy": list(self.numpy_state),
            "of_data": self.of_data,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Randomness:
        """What `state_dict` gave."""
        return cls(state["torch"], tuple(state["python"]), tuple(state["numpy"]), state["of_data"])


@contextmanager
def generators_kept(data: object) -> Generator[None]:
    """The torch generators that the data holds, afterwards as they were before.

    Args:
        data: As for `Randomness.of`.

    Yields:
        Nothing.
    """
    before = [(generator, generator.get_state()) for generator in _generators(data)]
    try:
        yield
    finally:
        for generator, state in before:
            generator.set_state(state)


def _generators(data: object) -> Iterator[torch.Generator]:
    """Every torch generator that the data holds, once."""
    seen: set[int] = set()
    open_: list[object] = [data]
    while open_:
        holder = open_.pop(0)
        if id(holder) in seen or isinstance(holder, (list, tuple, dict)):
            continue
        seen.add(id(holder))
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and id(generator) not in seen:
            seen.add(id(generator))
            yield generator
        open_ += [inner for name in _HOLDERS if (inner := getattr(holder, name, None)) is not None]
