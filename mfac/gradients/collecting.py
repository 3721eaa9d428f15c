"""Gradients of a model as rows of a window: one a mini-batch, or one a sample."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from mfac.core.checks.numbers import check_count
from mfac.gradients.batches import BatchStream
from mfac.gradients.parameters import Selection, device_of, flatten, select_parameters, total_size
from mfac.gradients.threads import threads_restored

LossFunction = Callable[[nn.Module, Any], Tensor]

_SAMPLE_ENTRIES = 1 << 24  # of the per-sample gradients that are held at once


def collect_gradients(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Iterable[Any],
    num_gradients: int = 512,
    params: Selection = None,
    per_sample: bool = False,
) -> Tensor:
    """Gradients of the loss at the model's weights, one a row.

    The model is in evaluation mode meanwhile and put back as it was; no `.grad` is read or written.

    Args:
        model: The model. Nothing about it is changed.
        loss_fn: `loss_fn(model, batch)` returns a scalar, the mean over the batch.
        data: An iterable of batches. With `per_sample`, every tensor in a batch (itself a tensor, or nested tuples,
            lists and dicts of tensors) has the samples along its first dimension, and `loss_fn` is run under
            `torch.func.vmap`: no `.item()`, no branch on values.
        num_gradients: m.
        params: Which parameters: None for all that require a gradient; names or shell-style patterns, the parameters
            themselves, or a predicate of name and parameter.
        per_sample: One gradient a sample, by `torch.func`, in place of one a batch.

    Returns:
        G, [m, d]: the parameters in `named_parameters()` order, each flattened row-major; float64 where any is,
        otherwise float32.

    Raises:
        TypeError: If the loss is not a tensor, or a parameter is not real.
        ValueError: If the loss is no scalar or not finite, the data runs out early, or a parameter gets no gradient.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = [(torch.ones(4, 3) * k, torch.zeros(4, 1)) for k in range(2)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> mfac.collect_gradients(model, loss_fn, data, num_gradients=2).shape
        torch.Size([2, 3])
    """
    check_model_and_loss(model, loss_fn)
    selected = select_parameters(model, params)
    check_count("num_gradients", num_gradients, least=1)
    with threads_restored():
        return gather_rows(model, loss_fn, BatchStream(data), selected, num_gradients, per_sample)


def check_model_and_loss(model: nn.Module, loss_fn: LossFunction) -> None:
    """Accepts a module and something that can be called.

    Args:
        model: What was given for the model.
        loss_fn: What was given for the loss.

    Raises:
        TypeError: If either is of another type.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Parameter `model` should be a torch.nn.Module. Found {type(model).__name__}.")
    if not callable(loss_fn):
        raise TypeError(f"Parameter `loss_fn` should be a function of model and batch. Found {type(loss_fn).__name__}.")


def gather_rows(
    model: nn.Module,
    loss_fn: LossFunction,
    stream: BatchStream,
    selected: Mapping[str, nn.Parameter],
    num_gradients: int,
    per_sample: bool,
    columns: Tensor | None = None,
) -> Tensor:
    """The next gradients of a stream as a window.

    Args:
        model: The model.
        loss_fn: The loss.
        stream: Where the batches come from.
        selected: Name to parameter.
        num_gradients: m.
        per_sample: One gradient a sample.
        columns: Which of the d columns to keep, [d'] indices; None for all. The others are never stored.

    On a CPU it may leave torch with one thread, where more do not pay: see `mfac.gradients.threads`.

    Returns:
        [m, d'].

    Raises:
        ValueError: As `collect_gradients` does.
    """
    width = total_size(selected) if columns is None else columns.numel()
    rows = torch.empty((num_gradients, width), dtype=window_dtype(selected), device=device_of(selected))
    filled = 0
    produce = _sample_gradients if per_sample else _batch_gradients
    batches = stream.take(f"num_gradients={num_gradients}")
    with evaluation_mode(model):
        for batch in stream.threads.over(batches) if rows.is_cpu else batches:
            for gradients in produce(model, loss_fn, batch, selected):  # each [k, d]
                kept = gradients[: num_gradients - filled]
                rows[filled : filled + kept.shape[0]] = kept if columns is None else kept[:, columns]
                if not bool(torch.isfinite(rows[filled : filled + kept.shape[0]].sum())):
                    _check_finite(rows[filled : filled + kept.shape[0]], filled)
                filled += kept.shape[0]
            if filled == num_gradients:
                break
    return rows


def window_dtype(selected: Mapping[str, Tensor]) -> torch.dtype:
    """float64 where any parameter is, otherwise float32."""
    return torch.float64 if any(parameter.dtype == torch.float64 for parameter in selected.values()) else torch.float32


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """The model in evaluation mode, and each of its modules back in its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_loss(loss: Tensor) -> Tensor:
    """Accepts a scalar loss that depends on the model.

    Args:
        loss: What `loss_fn` returned.

    Returns:
        The loss, with no dimension.

    Raises:
        TypeError: If it is not a real floating-point tensor.
        ValueError: If it is no scalar, or has no gradient.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"Parameter `loss_fn` should return a scalar tensor. Found {type(loss).__name__}.")
    if not loss.is_floating_point():
        raise TypeError(f"Parameter `loss_fn` should return a real floating-point scalar. Found {loss.dtype}.")
    if loss.numel() != 1:
        raise ValueError(f"Parameter `loss_fn` should return a scalar. Found shape {list(loss.shape)}.")
    if not loss.requires_grad:
        raise ValueError(
            "Parameter `loss_fn` should return a loss that depends on the model. Found one that requires no gradient."
        )
    return loss.reshape(())


def _batch_gradients(
    model: nn.Module, loss_fn: LossFunction, batch: Any, selected: Mapping[str, nn.Parameter]
) -> Iterator[Tensor]:
    with torch.enable_grad():
        loss = check_loss(loss_fn(model, batch))
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"Parameter `loss_fn` should return a finite loss. Found {float(loss.detach())}.")
        gradients = torch.autograd.grad(loss, list(selected.values()), allow_unused=True)
    for name, gradient in zip(selected, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"Parameter `params` should select parameters that the loss depends on. "
                f"Found {name!r}, which got no gradient."
            )
    yield flatten(gradients, window_dtype(selected))[None]


class _Loss(nn.Module):
    """The loss as a module, so that `torch.func.functional_call` can exchange the model's parameters under it."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return check_loss(self.loss_fn(self.model, batch))


def _sample_gradients(
    model: nn.Module, loss_fn: LossFunction, batch: Any, selected: Mapping[str, nn.Parameter]
) -> Iterator[Tensor]:
    tensors = list(_leaves(batch))
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"Parameter `data` should yield batches whose tensors share a first dimension, the samples. "
            f"Found shapes {[list(tensor.shape) for tensor in tensors]}."
        )
    # torch.func gives zeros for an unused parameter and says less of a bad loss: one sample goes the other way first.
    next(_batch_gradients(model, loss_fn, _map(batch, itemgetter(slice(0, 1))), selected))
    loss = _Loss(model, loss_fn)
    weights = {f"model.{name}": parameter.detach() for name, parameter in selected.items()}

    def of_one_sample(weights: dict[str, Tensor], sample: Any) -> Tensor:
        result: Tensor = torch.func.functional_call(loss, weights, (_map(sample, lambda tensor: tensor.unsqueeze(0)),))
        return result

    gradient_of = torch.func.vmap(torch.func.grad(of_one_sample), in_dims=(None, 0), randomness="different")
    count = sizes.pop()
    chunk = max(1, _SAMPLE_ENTRIES // max(1, total_size(selected)))
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        gradients = gradient_of(weights, _map(batch, itemgetter(slice(start, stop))))
        yield torch.cat([g.reshape(stop - start, -1).to(window_dtype(selected)) for g in gradients.values()], dim=1)


def num_samples(batch: Any) -> int | None:
    """The first dimension of the first tensor in a batch, or None where there is no tensor to be found."""
    try:
        tensor = next(_leaves(batch), None)
    except TypeError:  # a batch of some type of the caller's own
        return None
    return None if tensor is None or tensor.dim() == 0 else tensor.shape[0]


def _leaves(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _leaves(value)
    else:
        raise TypeError(
            f"Parameter `data` should yield tensors, or tuples, lists and dicts of them, for per-sample gradients. "
            f"Found {type(batch).__name__}."
        )


def _map(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, function) for key, value in batch.items()}
    mapped = [_map(value, function) for value in batch]
    if hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*mapped)
    return mapped if isinstance(batch, list) else tuple(mapped)


def _check_finite(rows: Tensor, first: int) -> None:
    bad = ~torch.isfinite(rows).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"Parameter `loss_fn` should have finite gradients. "
            f"Found a NaN or infinity in gradient {first + int(bad.nonzero()[0])}."
        )
