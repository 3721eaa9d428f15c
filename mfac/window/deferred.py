"""What a step learns on a GPU, read at the next step, long after it was computed."""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """A number on its way from a device to the host.

    Args:
        value: One element that nothing writes to any more, on any device. Of a CUDA tensor a copy
            to page-locked memory is queued on the current stream; nothing waits.

    Attributes:
        on_device: The number where it was computed, for what goes on there.
    """

    def __init__(self, value: Tensor) -> None:
        self.on_device = value
        self._copied: torch.cuda.Event | None = None
        if value.is_cuda:
            self._host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._copied = torch.cuda.current_stream(value.device).record_event()
        else:
            self._host = value

    def __getstate__(self) -> dict[str, object]:
        """What copies and pickles hold: the number, arrived."""
        host = torch.tensor(self.value(), dtype=self._host.dtype, device="cpu")
        return {"on_device": self.on_device, "_host": host, "_copied": None}

    def value(self) -> float:
        """The number; waits until it has arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return float(self._host)
