"""How much memory a pruning run takes, found out before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import UninitializedParameter

from mfac.core.memory import GIB, available_bytes
from mfac.curvature.streamed import IN_MEMORY
from mfac.gradients.backward import SAMPLE_ENTRIES
from mfac.gradients.store import TILE_ENTRIES
from mfac.gradients.vector import ParameterVector
from mfac.pruning.blocks import COLUMNS_AT_ONCE, working_bytes
from mfac.pruning.compensation import GreedyInBlocks, Joint, LeastLoss, Shrunk
from mfac.pruning.saliencies.greedy import Greedy
from mfac.pruning.settings import Settings

_VECTORS_OF_A_STEP = 61  # float64 results, scores, rankings and their orders, δ and masks, each [n]: as measured
_COPIES_OF_SAMPLES = 3  # of per-sample gradients: the last batch's, this one's, and what they are computed from
_BACKWARD = 2  # of what the forward pass keeps, with the backward pass: 1.9 to 2.4 as measured
_EVALUATION = 1.3  # of the same, with a forward pass alone: the loss may differentiate within
_TILE_BYTES = 10  # of a column tile's entry: as read, as selected, in float32, and products with it; as measured
_HALF_TILE_BYTES = 8  # of one from memory, of which a view is read


@dataclass(frozen=True)
class BatchSize:
    """What a batch's gradients take.

    Attributes:
        rows: How many gradients it gives.
        activations: Bytes that its forward pass keeps for the backward pass; 0 where they are not
            known.
    """

    rows: int = 1
    activations: int = 0


class Activations:
    """Counts what a forward pass keeps for the backward pass.

    Args:
        model: Whose parameters and buffers do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known = {memory for tensor in (*model.parameters(), *model.buffers()) if (memory := _address(tensor))}
        self._found: dict[int, tuple[Tensor, dict[int, int]]] = {}  # by address: one, so that none is given again

    def counted(self) -> saved_tensors_hooks:
        """A context in which the forward pass is."""
        return saved_tensors_hooks(self._add, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(min(one.untyped_storage().nbytes(), sum(sizes.values())) for one, sizes in self._found.values())

    def _add(self, tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address and address not in self._known:  # of a view, what is seen: data may be a part of much more
            _, sizes = self._found.setdefault(address, (tensor.detach(), {}))
            offset, size = int(tensor.storage_offset()), tensor.numel() * tensor.itemsize
            sizes[offset] = max(size, sizes.get(offset, 0))
        return tensor


def _address(tensor: Tensor) -> int:
    """Of its memory; 0 where it has none."""
    if tensor.layout != torch.strided or isinstance(tensor, UninitializedParameter):
        return 0
    return tensor.untyped_storage().data_ptr()


def run_bytes(
    model: nn.Module,
    vector: ParameterVector,
    settings: Settings,
    kept_after: Sequence[int],
    live: int,
    batch: BatchSize,
) -> tuple[int, int]:
    """Bytes that a run takes beside the model.

    Args:
        model: A copy is held to be put back if the run fails.
        vector: What is pruned.
        settings: With all numbers.
        kept_after: Weights left after each step.
        live: Weights that are alive before the first.
        batch: What is known of one.

    Returns:
        In memory at most, and on disk.
    """
    size = vector.dtype.itemsize
    copied = sum(tensor.numel() * tensor.itemsize for tensor in (*model.parameters(), *model.buffers()))
    whole = copied + vector.dim * (size + 1)
    if not settings.rules.needs_fisher or not kept_after:
        return whole + live * _VECTORS_OF_A_STEP, 0
    rank = settings.rank
    at_once = min(batch.rows, max(1, SAMPLE_ENTRIES // vector.dim))
    gradient = at_once * (sum(p.numel() * p.element_size() for p in vector.leaves()) + vector.dim * size)
    if batch.rows > 1:
        gradient = gradient * _COPIES_OF_SAMPLES // 2
    gradient += _BACKWARD * batch.activations
    evaluation = 0
    if settings.rules.evaluations or settings.refits:
        evaluation = int(_EVALUATION * batch.activations)
    if settings.gradients == "ram":
        step = live * (_VECTORS_OF_A_STEP + size) + _fisher_bytes(settings, live, size)
        step += _next_fisher_bytes(settings, live, kept_after[0], size)
        step += max(_block_bytes(settings, live), evaluation)
        before = max(0, rank - at_once) * live * size  # rows that are there before the last ones are computed
        return whole + max(before + gradient, rank * live * size + step), 0
    in_memory = whole + _stored_bytes(settings, [live, *kept_after], size, gradient, evaluation)
    return in_memory, 0 if settings.gradients == "bf16" else 2 * rank * live


def _stored_bytes(settings: Settings, alive: Sequence[int], size: int, gradient: int, evaluation: int) -> int:
    """In memory at most where gradients are in bfloat16, or in a file: over all steps.

    Args:
        settings: With all numbers.
        alive: Weights before the first step, and after each.
        size: Of a number in the arithmetic.
        gradient: Bytes while a batch's gradients are computed.
        evaluation: Bytes while a batch's loss is computed in a step.

    Returns:
        Bytes. A Fisher of few enough weights is held as a tensor, with that of the next step; a
        larger one takes tiles.
    """
    rank, most, in_file = settings.rank, 0, settings.gradients != "bf16"
    for step, (before, after) in enumerate(pairwise(alive)):
        width = alive[step - step % settings.recomputations]  # of the stage's rows, dropped weights among them
        window, next_window = (size * rank * n if rank * n <= IN_MEMORY else 0 for n in (before, after))
        tiled = (_TILE_BYTES if in_file else _HALF_TILE_BYTES) * min(TILE_ENTRIES, rank * width)
        held = window + max(tiled, next_window) if window else tiled + next_window
        held += before * (_VECTORS_OF_A_STEP + size) + _fisher_bytes(settings, before, size)
        held += max(_block_bytes(settings, before), evaluation)
        most = max(most, max(held, gradient) + (0 if in_file else 2 * rank * width))
    return most


def _fisher_bytes(settings: Settings, count: int, size: int) -> int:
    """Of a Fisher over so many weights, and of computing it, beside its gradients."""
    rank, block = settings.rank, settings.block_size
    if block is not None and block < count:
        return 8 * -(-count // block) * min(rank, block) ** 2  # a factor of each block
    if rank >= count:
        return 3 * 8 * count**2 + rank * count * size  # the matrix, its factor and its inverse; the rows transposed
    return 4 * 8 * rank**2


def _block_bytes(settings: Settings, count: int) -> int:
    """Of the blocks that weights drop within, over so many weights; 0 where there are none."""
    saliency, compensation = settings.rules.saliency, settings.rules.compensation
    several = compensation.candidates if isinstance(compensation, LeastLoss) else (compensation,)
    sizes = [one.block_size for one in (saliency, *several) if isinstance(one, Greedy | GreedyInBlocks | Shrunk)]
    tiles = 0
    if any(isinstance(one, Shrunk) for one in several):  # gradients in float64 and what is computed from them
        tiles = 8 * settings.rank * (4 * min(count, COLUMNS_AT_ONCE) + 3 * settings.rank)
    return max((working_bytes(count, size) for size in sizes), default=0) + tiles


def _next_fisher_bytes(settings: Settings, live: int, kept: int, size: int) -> int:
    """Of the Fisher over the kept weights, there at the end of a step beside the step's own."""
    compensation = settings.rules.compensation
    if settings.recomputations == 1 and not compensation.needs_fisher:
        return 0
    if settings.block_size is not None and settings.block_size < live:
        # blocks stay where they are while a joint update moves the kept weights
        kept = live if isinstance(compensation, Joint | LeastLoss) else kept
    elif settings.rank < live:
        return settings.rank * kept * size  # the matrices are counted with the step's own
    return settings.rank * kept * size + _fisher_bytes(settings, kept, size)


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
