"""How many threads train a network: all of torch's, or one where other work keeps their cores.

The backward pass of a small batch is hundreds of short parallel regions. At the end of each region
every thread waits for the slowest, and the waiting threads spin. If another process has a core, the
slowest thread is one that is not running at all, and a pass takes ten times as long with two
threads as with one. One thread waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import torch

Batch = TypeVar("Batch")

_MEASURED = 2  # batches that begin with one thread: the first warms up, the second is timed
_SLOWER = 2.0  # times as slow as one thread: a gap that a quiet machine does not show
_SLOW_IN_A_ROW = 2  # batches, as a single one may be slow by chance; once it was so, one is enough
_PAUSE = 128  # batches with one thread, before all are tried again


@contextmanager
def threads_restored() -> Generator[None]:
    """Torch's number of threads back as it was, however the block ends."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


class ThreadChoice:
    """The number of threads that pays, found while gradients are computed.

    The first two batches take one thread, and all others take all of torch's threads. If two
    batches in a row take twice as long as with one thread, the next 128 batches take one, and so
    does what follows the last of them. On a quiet machine the choice is the same in every run, and
    so are the gradients, to the last bit.
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._one_thread = float("inf")  # seconds of the last batch that took one
        self._to_measure, self._pause = _MEASURED, 0  # batches
        self._slow, self._slow_allowed = 0, _SLOW_IN_A_ROW  # batches in a row

    def over(self, batches: Iterable[Batch]) -> Generator[Batch]:
        """Batches, each handed out with torch's number of threads set for it.

        `threads_restored` should enclose the loop: afterwards the number is still the one that
        pays.

        Args:
            batches: The batches. What is timed is what the caller does until it asks for the next.

        Yields:
            Each batch.
        """
        try:
            for batch in batches:
                self._set(1 if self._to_measure or self._pause else self._all)
                start = time.perf_counter()
                yield batch
                self._note(time.perf_counter() - start)
        finally:
            self._set(1 if self._pause else self._all)

    def _set(self, count: int) -> None:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)

    def _note(self, seconds: float) -> None:
        if self._to_measure or self._pause:
            self._one_thread = seconds
            self._to_measure, self._pause = max(0, self._to_measure - 1), max(0, self._pause - 1)
        elif seconds <= _SLOWER * self._one_thread:
            self._slow, self._slow_allowed = 0, _SLOW_IN_A_ROW
        else:
            self._slow += 1
            if self._slow >= self._slow_allowed:
                self._slow, self._slow_allowed, self._pause = 0, 1, _PAUSE
