"""Gradients of a model as rows of a window: one a mini-batch, or one a sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfac.core.checks.choices import check_choice
from mfac.core.checks.numbers import check_count
from mfac.gradients.backward import GradientSource, LossFunction
from mfac.gradients.batches import BatchStream, DataEndedError
from mfac.gradients.modes import Mode, model_mode
from mfac.gradients.naming import named_parameters
from mfac.gradients.nested import num_samples
from mfac.gradients.parameters import Selection, check_tensors, select_parameters
from mfac.gradients.ranks import Ranks
from mfac.gradients.vector import ParameterVector


def collect_gradients(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    num_gradients: int = 512,
    params: Selection = None,
    per_sample: bool = False,
    *,
    mode: Mode = "auto",
) -> Tensor:
    """Gradients of the loss at the model's weights, one a row.

    The model is put back in its own mode afterwards; no `.grad` is changed.

    Args:
        model: The model. Nothing about it is changed.
        loss_fn: `loss_fn(model, batch)` returns a scalar, the mean over the batch.
        data: An iterable of batches. With `per_sample`, every tensor in a batch (itself a tensor,
            or nested tuples, lists, dicts and objects of tensors) has the samples along its first
            dimension.
        num_gradients: m.
        params: Which parameters: None for all that require a gradient; names or shell-style
            patterns, the parameters themselves, or a predicate of name and parameter. Names are
            those of the model inside `DataParallel`, `DistributedDataParallel` or `torch.compile`.
        per_sample: One gradient a sample in place of one a batch: by `torch.func.vmap` (no
            `.item()`, no branch on values), or sample by sample where the model does not allow
            vmap, as with recurrent layers.
        mode: The model's mode meanwhile. "eval" is evaluation mode. "train" is training mode
            without random or changing layers (batch normalisation, dropout), for losses that exist
            in training mode only. "auto" is "eval", or "train" with a warning where the first batch
            has no loss in evaluation mode.

    Returns:
        G, [m, d]: the parameters in `named_parameters()` order, each flattened row-major; float64
        where any parameter is, otherwise float32. Of two parameters that share their memory the
        first stands for both.

    Raises:
        TypeError: If the loss is not a tensor, or a parameter is not real.
        ValueError: If the loss is no scalar or not finite, the data runs out early, or a parameter
            gets no gradient.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = [(torch.ones(4, 3) * k, torch.zeros(4, 1)) for k in range(2)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> mfac.collect_gradients(model, loss_fn, data, num_gradients=2).shape
        torch.Size([2, 3])
    """
    check_model_and_loss(model, loss_fn)
    check_choice("mode", mode, ("auto", "eval", "train"))
    selected = select_parameters(model, params)
    check_count("num_gradients", num_gradients, least=1)
    vector = ParameterVector(selected, list(named_parameters(model).values()))
    source = GradientSource(model, loss_fn, vector, per_sample)
    stream = BatchStream(data)
    rows = gather_rows(source, stream, num_gradients, resolve_mode(model, loss_fn, stream, mode))
    if source.never_used:
        raise ValueError(
            f"Parameter `params` should select parameters that the loss depends on. "
            f"Found {min(source.never_used, key=vector.names.index)!r}, which got no gradient."
        )
    return rows


def check_model_and_loss(model: nn.Module, loss_fn: LossFunction) -> None:
    """Accepts a module and something that can be called.

    Args:
        model: What was given for the model.
        loss_fn: What was given for the loss.

    Raises:
        TypeError: If either is of another type.
        ValueError: If a tensor of the model holds no numbers, or none that autograd can use.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Parameter `model` should be a torch.nn.Module. Found {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"Parameter `model` should be the module from before torch.jit.script or torch.jit.trace. "
            f"Found {type(model).__name__}."
        )
    if not callable(loss_fn):
        raise TypeError(f"Parameter `loss_fn` should be a function of model and batch. Found {type(loss_fn).__name__}.")
    check_tensors(model)


def resolve_mode(model: nn.Module, loss_fn: LossFunction, stream: BatchStream, mode: Mode) -> Literal["eval", "train"]:
    """The mode that the loss exists in, found with the first batch, which the stream keeps.

    Args:
        model: The model; its own mode is put back.
        loss_fn: The loss.
        stream: Of batches.
        mode: What was asked for.

    Returns:
        "eval" or "train".

    Raises:
        RuntimeError: In `torch.inference_mode()`, where nothing has a gradient.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("Gradients should be taken outside torch.inference_mode(). Found it enabled.")
    if mode != "auto":
        return mode
    batch = stream.peek()
    why = None if batch is None else _has_loss(model, loss_fn, batch, "eval")
    if why is None:
        return "eval"
    if _has_loss(model, loss_fn, batch, "train") is not None:
        return "eval"  # whose error the caller is to see
    warnings.warn(
        f"`loss_fn` returns no loss in evaluation mode ({type(why).__name__}: {why}). Gradients are taken in training "
        f'mode instead, with batch normalisation and dropout as in evaluation; mode="train" says so without a warning.',
        stacklevel=3,
    )
    return "train"


def _has_loss(model: nn.Module, loss_fn: LossFunction, batch: Any, mode: Literal["eval", "train"]) -> Exception | None:
    """None where the batch has a loss in a mode; otherwise why not."""
    try:
        with model_mode(model, mode), torch.enable_grad():
            loss = loss_fn(model, batch)
    except Exception as error:  # of the caller's own function: anything; it is raised again where nothing helps
        return error
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return TypeError(f"it returned {type(loss).__name__}")
    return None


def gather_rows(
    source: GradientSource,
    stream: BatchStream,
    num_gradients: int,
    mode: Literal["eval", "train"],
    columns: Tensor | None = None,
) -> Tensor:
    """The next gradients of a stream as a window.

    Args:
        source: Of gradients.
        stream: Where the batches come from.
        num_gradients: m.
        mode: Of the model meanwhile.
        columns: Which of the d columns to keep, [d'] indices; None for all. The others are never
            stored.

    Returns:
        [m, d'].

    Raises:
        ValueError: As `collect_gradients` does.
    """
    vector = source.vector
    width = vector.dim if columns is None else columns.numel()
    rows = torch.empty((num_gradients, width), dtype=vector.dtype, device=vector.device)

    def write_(first: int, block: Tensor) -> None:
        rows[first : first + block.shape[0]] = block

    fill_rows_(write_, source, stream, num_gradients, mode, columns)
    return rows


def fill_rows_(
    write_: Callable[[int, Tensor], None],
    source: GradientSource,
    stream: BatchStream,
    num_gradients: int,
    mode: Literal["eval", "train"],
    columns: Tensor | None = None,
    *,
    or_fewer: bool = False,
    ranks: Ranks | None = None,
) -> int:
    """Hands the next gradients of a stream to a function that stores them.

    Args:
        write_: Called with the number of a row and rows [k, d'], those from there on.
        source: Of gradients.
        stream: Where the batches come from.
        num_gradients: m.
        mode: Of the model meanwhile.
        columns: Which of the d columns to keep, [d'] indices; None for all.
        or_fewer: Whether fewer than m, and more than none, will do where the data ends.
        ranks: The processes that share the work.

    Returns:
        How many gradients there were.

    Raises:
        ValueError: As `collect_gradients` does.
    """
    ranks = Ranks() if ranks is None else ranks
    filled = 0

    def rows_of(batch: Any, number: int) -> Iterator[Tensor]:
        for rows in source.rows(batch, number):  # each [k, d]
            kept = rows[: num_gradients - filled]
            yield kept if columns is None else kept[:, columns]
            if filled >= num_gradients:
                return

    rounds = _rounds(stream, num_gradients, source.per_sample, ranks.size, or_fewer)
    with model_mode(source.model, mode):
        for number, rows in ranks.rows(rounds, rows_of):
            kept = rows[: num_gradients - filled]
            if not bool(torch.isfinite(kept.sum())):
                _check_finite(kept, filled, number)
            write_(filled, kept)
            filled += kept.shape[0]
            if filled == num_gradients:
                break
    source.unused, source.never_used = ranks.common(source.unused), ranks.common(source.never_used)
    return filled


def _rounds(
    stream: BatchStream, num_gradients: int, per_sample: bool, size: int, or_fewer: bool
) -> Iterator[list[tuple[int, Any]]]:
    """Numbered batches, `size` at a time, and no more of them than give `num_gradients` rows."""
    open_: list[tuple[int, Any]] = []
    wanted = num_gradients
    try:
        for number, batch in stream.take(f"num_gradients={num_gradients}"):
            open_.append((number, batch))
            wanted -= (num_samples(batch) or 1) if per_sample else 1
            if len(open_) == size or wanted <= 0:
                yield open_
                open_ = []
            if wanted <= 0:
                return
    except DataEndedError as error:
        if not or_fewer or not error.taken:
            raise
    if open_:
        yield open_


def _check_finite(rows: Tensor, first: int, number: int) -> None:
    bad = ~torch.isfinite(rows).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"Parameter `loss_fn` should have finite gradients. Found a NaN or infinity in gradient "
            f"{first + int(bad.nonzero()[0])}, of batch {number} of the data (counted from 0)."
        )
