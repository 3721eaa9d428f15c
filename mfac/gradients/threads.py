"""How many threads compute a gradient: all of torch's, or one if the batch is too small for more.

The backward pass of a small batch is hundreds of short parallel regions. At the end of each region
every thread waits for the slowest, and the waiting threads spin. Several threads then gain little
on a quiet machine. If another process has a core, the slowest thread is one that is not running at
all, and a pass takes ten times as long with two threads as with one. One thread waits for nobody.

The choice hangs on the number of operations of a batch, never on a clock. So the gradients of two
runs are the same to the last bit, whatever else the machine does.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.prunable import is_transformers_conv1d

_OPERATIONS_FOR_ALL = 2e9  # of a batch: from here on several threads pay

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class OperationCount:
    """Counts the operations of the layers that most work is in, while a batch goes forward.

    Attributes:
        total: Floating-point operations, forward and backward: 6 for each weight and place that it
            is used in.
    """

    def __init__(self) -> None:
        self.total = 0

    @contextmanager
    def over(self, model: nn.Module) -> Generator[None]:
        """Counts what the model does inside.

        Args:
            model: Whose linear, convolutional and recurrent layers are looked at.

        Yields:
            Nothing.
        """
        hooks = [layer.register_forward_hook(self._add) for layer in model.modules() if _is_counted(layer)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or not first.numel():
            return
        if isinstance(layer, nn.RNNBase):
            size = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
            self.total += 6 * size * (first.numel() // first.shape[-1])  # also of a packed sequence's data
        else:
            assert isinstance(layer.weight, Tensor)
            # an output takes as many inputs as a row of the weight has; of a transposed weight, the
            # other way round
            turned = isinstance(layer, _TRANSPOSED) or is_transformers_conv1d(layer)
            uses = inputs[0].numel() if turned else first.numel()
            self.total += 6 * layer.weight[0].numel() * uses


def _is_counted(layer: nn.Module) -> bool:
    return isinstance(layer, (*_LAYERS, nn.RNNBase)) or is_transformers_conv1d(layer)


@contextmanager
def one_thread() -> Generator[None]:
    """One thread inside, for work that is hundreds of short parallel regions; then as before.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(operations: int) -> AbstractContextManager[None]:
    """One thread where a batch is small; torch's own number otherwise.

    Args:
        operations: Of a batch.

    Returns:
        What to enter; torch's number of threads is as before at the end.
    """
    return nullcontext() if operations >= _OPERATIONS_FOR_ALL else one_thread()
