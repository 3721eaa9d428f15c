"""Batches one after the other from whatever the caller has: a list, a DataLoader, a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from mfac.gradients.threads import ThreadChoice


class BatchStream:
    """Goes through `data` batch by batch, and from the start again when it ends.

    What is taken for one purpose never holds a batch twice: more batches than one pass has are refused. A one-shot
    iterator cannot start again.

    Args:
        data: An iterable of batches.

    Raises:
        TypeError: If `data` is not iterable, or is a tensor.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise TypeError(f"Parameter `data` should be an iterable of batches. Found {type(data).__name__}.")
        self.threads = ThreadChoice()  # what one gathering of gradients learns, the next one knows
        self._data = data
        self._iterator: Iterator[Any] = iter(data)
        self._can_restart = self._iterator is not data
        self._position = 0  # in the current pass
        self._peeked: list[Any] = []  # the next batch, if it has been looked at
        self._length: int | None = None  # of a pass, once one has ended

    @property
    def can_restart(self) -> bool:
        """Whether another pass over the data can follow the first."""
        return self._can_restart

    def peek(self) -> Any | None:
        """The next batch, which the stream still yields; None where there is none."""
        if not self._peeked:
            self._peeked = list(islice(self._iterator, 1))
        return self._peeked[0] if self._peeked else None

    def take(self, purpose: str) -> Iterator[tuple[int, Any]]:
        """Batches for one purpose, as many as one pass holds.

        Args:
            purpose: For the message when they run out, such as "num_gradients=512".

        Yields:
            Its number in its pass over the data, from 0, and the next batch.

        Raises:
            ValueError: If the data runs out.
        """
        taken = 0
        for batch in self.rest():
            taken += 1
            yield self._position - 1, batch
        raise ValueError(
            f"Parameter `data` should yield enough batches for {purpose}. Found only {taken}. "
            "Smaller batches give more of them."
        )

    def rest(self) -> Iterator[Any]:
        """Batches as long as none comes twice: one pass at most, and what is left of a one-shot iterator.

        Yields:
            The next batch.
        """
        taken = 0
        while True:
            try:
                batch = self._peeked.pop() if self._peeked else next(self._iterator)
            except StopIteration:
                self._length = self._position
                if not self._can_restart or taken >= self._length:
                    return
                self._iterator, self._position = iter(self._data), 0
                continue
            if taken == self._length:
                return
            self._position += 1
            taken += 1
            yield batch
