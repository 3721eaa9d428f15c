"""Batches one after the other from whatever the caller has: a list, a DataLoader, a generator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from itertools import islice
from typing import Any

from torch import Tensor

from mfac.gradients.randomness import Randomness

_RECENT = 8  # batches that are remembered


class DataEndedError(ValueError):
    """There are fewer batches than a purpose needs.

    Attributes:
        taken: How many there were.
    """

    def __init__(self, purpose: str, taken: int, *, can_restart: bool = True) -> None:
        if not taken:
            remedy = "An iterator that was used up gives none."
        elif not can_restart:
            remedy = "An iterator ends for good: a list or a DataLoader begins again."
        else:
            remedy = "Smaller batches give more of them."
        super().__init__(f"Parameter `data` should yield enough batches for {purpose}. Found only {taken}. {remedy}")
        self.taken = taken


class BatchStream:
    """Goes through `data` batch by batch, and from the start again when it ends.

    What is taken for one purpose never holds a batch twice: more batches than one pass has are
    refused. A one-shot iterator cannot start again.

    Args:
        data: An iterable of batches.

    Raises:
        TypeError: If `data` is not iterable, or is a tensor.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        if isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise TypeError(f"Parameter `data` should be an iterable of batches. Found {type(data).__name__}.")
        self._data = data
        self._passes = 0  # that have ended
        self._at_start = Randomness.of(data)  # as the current pass began
        self._iterator: Iterator[Any] = iter(data)
        self._can_restart = self._iterator is not data
        self._position = 0  # in the current pass
        self._peeked: list[Any] = []  # the next batch, if it has been looked at
        self._recent: deque[Any] = deque(maxlen=_RECENT)
        self._length: int | None = None  # of a pass, once one has ended

    @property
    def can_restart(self) -> bool:
        """Whether another pass over the data can follow the first."""
        return self._can_restart

    @property
    def length(self) -> int | None:
        """Batches of a pass, as the data says; None where it does not."""
        if self._length is None and self._can_restart and isinstance(self._data, Sized):
            with suppress(TypeError):  # of a DataLoader over data without a length
                return len(self._data)
        return self._length

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
            DataEndedError: If the data runs out.
        """
        taken = 0
        for batch in self.rest():
            taken += 1
            yield self._position - 1, batch
        raise DataEndedError(purpose, taken, can_restart=self._can_restart)

    def rest(self) -> Iterator[Any]:
        """Batches until one would come twice: at most one pass, or the rest of a one-shot iterator.

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
                self._restart()
                continue
            if self._can_restart and taken == self._length:
                self._peeked = [batch]
                return
            self._position += 1
            taken += 1
            self._recent.append(batch)
            yield batch

    def _restart(self) -> None:
        self._passes += 1
        self._at_start = Randomness.of(self._data)
        self._iterator, self._position = iter(self._data), 0

    def others(self, count: int) -> list[tuple[int, Any]]:
        """The batches that come next, taken from the stream; or a one-shot iterator's last ones.

        Args:
            count: How many, at most 8.

        Returns:
            As many as there are, each with its number in its pass over the data, from 0.
        """
        if self._can_restart:
            return [(self._position - 1, batch) for batch in islice(self.rest(), count)]
        recent = list(self._recent)[-count:]
        return [(self._position - len(recent) + i, batch) for i, batch in enumerate(recent)]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: pass, batch, and the random numbers with which the pass began."""
        return {
            "passes": self._passes,
            "position": self._position,
            "length": self._length,
            "at_start": self._at_start.state_dict(),
            "now": Randomness.of(self._data).state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where another stream over the same data was.

        Batches of before are taken from `data` again and dropped, so that its iterator comes to the
        same point.

        Args:
            state: Of `state_dict`.

        Raises:
            ValueError: If the data ends before.
        """
        at_start = Randomness.from_state(state["at_start"])
        at_start.restore(self._data)
        self._at_start, self._passes, self._length = at_start, state["passes"], state["length"]
        self._peeked = []
        if self._can_restart:
            self._iterator = iter(self._data)
        self._position = 0
        for batch in islice(self._iterator, state["position"]):
            self._position += 1
            self._recent.append(batch)
        if self._position < state["position"]:
            raise ValueError(
                f"Parameter `data` should yield the batches that it gave before the run stopped, {state['position']} "
                f"in this pass. Found only {self._position}."
            )
        Randomness.from_state(state["now"]).restore(self._data)
