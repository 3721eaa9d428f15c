"""How much memory a pruning run takes, found out before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mfac.core.memory import GIB, available_bytes
from mfac.gradients.vector import ParameterVector
from mfac.pruning.settings import Settings

_VECTORS_OF_A_STEP = 8 + 8 + 8 + 8 + 8 + 1 + 1  # float64 results, scores, their order, δ and masks, each [n]
_STREAMED = 5 << 25  # entries of a tile and of what is small enough to be held, with their copies; bytes / 4


def run_bytes(
    model: nn.Module, vector: ParameterVector, settings: Settings, kept_after: Sequence[int], live: int
) -> tuple[int, int]:
    """Bytes that a run takes beside the model and its activations.

    Args:
        model: A copy is held to be put back if the run fails.
        vector: What is pruned.
        settings: With all numbers.
        kept_after: Weights left after each step.
        live: Weights that are alive before the first.

    Returns:
        In memory at most, and on disk.
    """
    size = vector.dtype.itemsize
    copied = sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
    whole = copied + vector.dim * (size + 1)
    if not settings.rules.needs_fisher or not kept_after:
        return whole + live * _VECTORS_OF_A_STEP, 0
    rank = settings.rank
    matrices = 4 * 8 * rank**2
    gradient = sum(p.numel() * p.element_size() for p in vector.leaves()) + vector.dim * size
    kept = kept_after[0] if settings.recomputations > 1 or settings.rules.compensation.needs_fisher else 0
    step = live * (_VECTORS_OF_A_STEP + size)
    if settings.gradients == "ram":
        return whole + matrices + rank * live * size + max(gradient, step + rank * kept * size), 0
    stored = 2 * rank * live
    held = min(4 * _STREAMED, 3 * size * rank * live) + max(gradient, step)
    if settings.gradients == "bf16":
        return whole + matrices + stored + held, 0
    return whole + matrices + held, stored


def check_memory(wanted: int, settings: Settings, vector: ParameterVector) -> None:
    """Refuses a run that does not fit, before anything is computed.

    Args:
        wanted: Bytes that it takes.
        settings: With all numbers.
        vector: What is pruned.

    Raises:
        MemoryError: If they are more than the process can have.
    """
    there = available_bytes(vector.device)
    if there is None or wanted <= there:
        return
    a_row = (4 if settings.gradients == "bf16" else 2 * vector.dtype.itemsize) * vector.dim
    most = max(0, (there - wanted + a_row * settings.rank) // a_row)
    less = "" if settings.gradients != "ram" else ', gradients="bf16" takes half of that, and a folder for them little'
    raise MemoryError(
        f"Parameter `num_gradients` should be at most about {most} here: {settings.rank} gradients of "
        f"{vector.dim} weights take {wanted / GIB:.1f} GiB, and {there / GIB:.1f} GiB are free. Fewer gradients, "
        f"or fewer weights in `params`, take less{less}."
    )
