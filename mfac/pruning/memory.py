"""How much memory a pruning run takes, found out before it begins."""

from __future__ import annotations

from mfac.core.memory import GIB, available_bytes
from mfac.gradients.vector import ParameterVector

_WEIGHT_BYTES = 8 + 1 + 8 + 8 + 8  # float64 results, masks, scores, their order and δ, each [d]


def run_bytes(vector: ParameterVector, num_gradients: int, steps_a_stage: int, *, needs_fisher: bool) -> int:
    """Bytes that a run takes beyond the model and its activations.

    Args:
        vector: What is pruned.
        num_gradients: m.
        steps_a_stage: Steps on the same gradients; from one to the next the kept columns are copied.
        needs_fisher: Whether gradients are collected at all.

    Returns:
        At most, while all weights are alive.
    """
    size = vector.dtype.itemsize
    windows = 2 if needs_fisher else 0
    matrices = 3 * 8 * num_gradients**2 if needs_fisher else 0
    return windows * num_gradients * vector.dim * size + matrices + vector.dim * (2 * size + _WEIGHT_BYTES)


def check_memory(vector: ParameterVector, num_gradients: int, steps_a_stage: int, *, needs_fisher: bool) -> int:
    """Refuses a run that does not fit, before anything is computed.

    Args:
        vector: As for `run_bytes`.
        num_gradients: As for `run_bytes`.
        steps_a_stage: As for `run_bytes`.
        needs_fisher: As for `run_bytes`.

    Returns:
        The bytes.

    Raises:
        MemoryError: If they are more than the process can have.
    """
    wanted = run_bytes(vector, num_gradients, steps_a_stage, needs_fisher=needs_fisher)
    there = available_bytes(vector.device)
    if there is not None and wanted > there:
        a_row = 2 * vector.dim * vector.dtype.itemsize
        most = max(0, (there - wanted + a_row * num_gradients) // a_row)
        raise MemoryError(
            f"Parameter `num_gradients` should be at most about {most} here: {num_gradients} gradients of "
            f"{vector.dim} weights take {wanted / GIB:.1f} GiB, and {there / GIB:.1f} GiB are free. Fewer gradients, "
            f"or fewer weights in `params`, take less."
        )
    return wanted
