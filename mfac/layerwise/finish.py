"""The last step of a layer-wise run: kept weights of all layers move together along the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfac.core.checks.numbers import check_count, check_number
from mfac.gradients.backward import LossFunction
from mfac.gradients.modes import gradients_of
from mfac.gradients.naming import named_parameters
from mfac.layerwise.items import by_name
from mfac.layerwise.perplexity import logits_of, tokens_of
from mfac.masks.masks import Masks
from mfac.optim.mfac import MFAC

_HELD_OUT = 8  # every so many batches are kept aside to check on
_WARM_UP = 4  # steps at most
_BYTES_A_WEIGHT = 2  # its mask, in `Masks` and where they are attached
_BYTES_A_KEPT_WEIGHT = 60
"""Beside its window: gradient 4, metric 12, place 8, update 4, and what a step makes, measured."""


@dataclass(frozen=True)
class FisherFinish:
    """What `finish` may be: steps of `mfac.MFAC` on the kept weights of all layers at once.

    Layer errors know nothing of the loss. The window of M-FAC is the empirical Fisher of the loss
    over all pruned layers, and its steps move what layers could not. Every eighth batch is held
    out; if the loss on these is not lower at the end, the weights go back. Weights that are to be
    rounded are rounded afterwards.

    Attributes:
        lr: Of the rule "adam"; it rises over four steps and then falls to 0.
        epochs: Passes over the batches that are not held out.
        rank: Gradients in the window, of the kept weights alone, in bfloat16.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> data = [torch.randn(64, 8) for _ in range(8)]
        >>> loss_fn = lambda model, batch: model(batch).square().mean()
        >>> finish = mfac.FisherFinish(lr=1e-3, epochs=2)
        >>> report = mfac.prune_layerwise(model, data, finish=finish, loss_fn=loss_fn)
        >>> report.finish.steps
        14
    """

    lr: float = 3e-4
    epochs: int = 1
    rank: int = 32

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_count("epochs", self.epochs, least=1)
        check_count("rank", self.rank, least=1)

    @property
    def bytes_a_kept_weight(self) -> int:
        """What `mfac.MFAC` holds of one."""
        return 2 * self.rank + _BYTES_A_KEPT_WEIGHT


@dataclass(frozen=True)
class FinishResult:
    """What a finish did.

    Attributes:
        steps: How many.
        loss_before: On the batches held out.
        loss_after: On these, at the end; the weights are as before if it is not lower.
        seconds: Wall time.
    """

    steps: int
    loss_before: float
    loss_after: float
    seconds: float

    @property
    def helped(self) -> bool:
        """Whether the weights are those of the end."""
        return self.loss_after < self.loss_before


def language_loss(model: nn.Module, batch: Any, run: Callable[[nn.Module, Any], Any]) -> Tensor:
    """The mean negative log likelihood of the tokens that a batch predicts.

    Args:
        model: Returns logits, as for `evaluate_perplexity`; or a loss, in an object with `loss`.
        batch: As for `evaluate_perplexity`.
        run: Calls the model.

    Returns:
        A scalar.

    Raises:
        TypeError: If batch or output are no language model's.
        ValueError: If a shape is another.
    """
    output = run(model, batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor):
        return loss
    ids, counted = tokens_of(by_name(model, batch), 0)
    logits = logits_of(output, ids, 0)
    return functional.cross_entropy(logits[:, :-1][counted].float(), ids[:, 1:][counted])


def check_loss(loss_fn: LossFunction, model: nn.Module, batch: Any, assumed: bool) -> None:
    """Refuses a loss that cannot be used, before any weight is solved.

    Args:
        loss_fn: The loss.
        model: The model.
        batch: The first batch.
        assumed: Whether the loss is `language_loss`, as none was given.

    Raises:
        ValueError: If the loss was assumed and does not take the batch.
    """
    try:
        loss_fn(model, batch)
    except Exception as error:
        if not assumed:
            raise
        raise ValueError(
            "Parameter `loss_fn` should be given with `finish`, `weigh_inputs` or `weigh_outputs`, where the model is "
            f"no language model or batches are no tokens. Found None, and {type(error).__name__}: {error}"
        ) from error


def checked_finish(finish: Any, on_disk: bool = False) -> FisherFinish | None:
    """What an argument `finish` stands for.

    Args:
        finish: "fisher", a `FisherFinish` or None.
        on_disk: Whether weights are on disk.

    Returns:
        The settings, or None.

    Raises:
        ValueError: If the argument is something else, or weights are on disk.
    """
    if finish is None or isinstance(finish, FisherFinish):
        chosen = finish
    elif finish == "fisher":
        chosen = FisherFinish()
    else:
        raise ValueError(f'Parameter `finish` should be "fisher", a FisherFinish or None. Found {finish!r}.')
    if chosen is not None and on_disk:
        raise ValueError(
            f"Parameter `finish` should be None with `weights`: it moves weights of the whole model in memory. "
            f"Found {finish!r}."
        )
    return chosen


def bytes_of_finish(
    model: nn.Module,
    names: Sequence[str],
    kept_share: float,
    batch: Any,
    loss_fn: LossFunction,
    settings: FisherFinish,
) -> int:
    """The memory that `finish_with_fisher` takes beside the model and the data.

    Args:
        model: The model.
        names: Of the weights that move.
        kept_share: How many of their entries are kept, in [0, 1].
        batch: One batch. What its forward pass keeps for the backward pass is counted.
        loss_fn: As for `finish_with_fisher`.
        settings: How far.

    Returns:
        Bytes. One forward pass.
    """
    named = named_parameters(model)
    own = {p.untyped_storage().data_ptr() for p in named.values()}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    counted = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with gradients_of(model, names), torch.enable_grad(), counted:
        loss_fn(model, batch)
    moved = sum(named[name].numel() for name in names)
    twice = sum(2 * named[name].numel() * named[name].element_size() for name in names)  # gradients; weights to go back
    return sum(held.values()) + twice + moved * _BYTES_A_WEIGHT + int(kept_share * moved) * settings.bytes_a_kept_weight


def finish_with_fisher(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    batches: Sequence[Any],
    loss_fn: LossFunction,
    settings: FisherFinish,
) -> FinishResult:
    """Moves the kept weights of all masked layers along the loss; zeros stay.

    Args:
        model: In the mode in which it is; changed in place.
        masks: Name to mask, True = kept.
        batches: What the loss takes.
        loss_fn: loss_fn(model, batch) -> scalar.
        settings: How far.

    Returns:
        Losses before and after.

    Raises:
        ValueError: If a loss is not finite.

    Cost: forward and backward passes of all batches; memory of `rank` · kept weights · 2 bytes, and
    of the gradients.
    """
    began = time.perf_counter()
    numbered = list(enumerate(batches))
    held = numbered[::_HELD_OUT]
    trained = [one for one in numbered if one[0] % _HELD_OUT] or numbered
    named = named_parameters(model)
    start = {name: named[name].detach().clone() for name in masks}
    gradients = {name: parameter.grad for name, parameter in named.items()}
    before = _mean_loss(model, held, loss_fn)
    helped = False
    steps = len(trained) * settings.epochs
    warm = max(1, min(_WARM_UP, steps // 4))
    optimizer = MFAC(
        [named[name] for name in masks],
        lr=settings.lr,
        rank=settings.rank,
        rule="adam",
        window_dtype=torch.bfloat16,
        rounding="compensated",
    )
    try:
        with gradients_of(model, masks), Masks(dict(masks)).attach(model, optimizer), torch.enable_grad():
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (step + 1) / warm) * (1 - step / steps)
                optimizer.zero_grad()
                number, batch = trained[step % len(trained)]
                loss = loss_fn(model, batch)
                if step and not _is_finite(loss):
                    _put_back(named, start)
                    _checked(loss_fn(model, batch), number)  # raises if it is the data's, not the steps'
                    break
                _checked(loss, number).backward()
                optimizer.step()
        after = _mean_loss(model, held, loss_fn, after_steps=True)
        helped = after < before
    finally:
        for name, parameter in named.items():
            parameter.grad = gradients[name]
        if not helped:  # also where it was stopped
            _put_back(named, start)
    return FinishResult(steps, before, after, time.perf_counter() - began)


@torch.no_grad()
def _put_back(named: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
    for name, weight in start.items():
        named[name].copy_(weight)


@torch.no_grad()
def _mean_loss(
    model: nn.Module, batches: Sequence[tuple[int, Any]], loss_fn: LossFunction, after_steps: bool = False
) -> float:
    """Over batches with their numbers; infinite where steps, not data, led beyond all numbers."""
    total = 0.0
    for number, batch in batches:
        loss = loss_fn(model, batch)
        if after_steps and not _is_finite(loss):
            return math.inf
        total += float(_checked(loss, number))
    return total / len(batches)


def _is_finite(loss: Any) -> bool:
    return isinstance(loss, Tensor) and bool(torch.isfinite(loss).all())


def _checked(loss: Any, number: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"Parameter `loss_fn` should return a scalar tensor. Found {loss!r} at batch {number}.")
    if not _is_finite(loss):
        found = float(loss.detach())
        raise ValueError(f"Parameter `loss_fn` should return a finite loss. Found {found} at batch {number}.")
    return loss
