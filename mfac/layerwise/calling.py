"""How a model is called with batches of any make, and what is checked before it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.naming import inner_module
from mfac.gradients.prunable import PrunableWeight
from mfac.layerwise import tree
from mfac.layerwise.chain import NamedBlock
from mfac.layerwise.items import AmbiguousItemError, taken
from mfac.layerwise.statistics import EnoughError
from mfac.masks.patterns import NM, ByName, Pattern

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch: model, batch -> anything."""


def up_to(block: NamedBlock, call: Forward) -> Forward:
    """A call that ends where a block begins.

    Args:
        block: The block.
        call: Runs the model.

    Returns:
        The call.
    """

    def stop(*_: Any) -> None:
        raise EnoughError

    def stopped(model: nn.Module, batch: Any) -> None:
        handle = block.module.register_forward_pre_hook(stop)
        try:
            with suppress(EnoughError):
                call(model, batch)
        finally:
            handle.remove()

    return stopped


def call_model(model: nn.Module, batch: Any) -> Any:
    """model(**batch) for a dict, model(*batch) for a tuple or list, otherwise model(batch).

    Of a tuple or list the model gets inputs and no labels, as `taken` tells them apart.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        What the model returns.

    Raises:
        AmbiguousItemError: If an item may be labels or an argument.
    """
    if isinstance(batch, Mapping) or (hasattr(batch, "keys") and hasattr(batch, "__getitem__")):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*taken(model, batch))
    return model(batch)


def patterns_by_weight(pattern: Pattern, weights: Sequence[PrunableWeight]) -> dict[str, Pattern]:
    """The pattern of each weight alone.

    Args:
        pattern: For all weights.
        weights: What is known of each.

    Returns:
        {weight: pattern}.

    Raises:
        ValueError: If the pattern has units of several weights, or does not fit a weight: groups of
            M should divide input channels, where there are M at least.
    """
    pattern.check(weights)
    if any(len(group) > 1 for group in pattern.together(weights)):
        raise ValueError(
            f"Parameter `pattern` should have units within single weights, as layers are solved one at a time. "
            f"Found {str(pattern)!r}."
        )
    by_name = isinstance(pattern, ByName)
    found = {w.name: pattern.pattern_of(w.name) if isinstance(pattern, ByName) else pattern for w in weights}
    for weight in weights:
        own, channels = found[weight.name], 0 if weight.layout is None else weight.layout[1]
        if isinstance(own, NM) and channels > own.group and channels % own.group:
            raise ValueError(
                f"Parameter `pattern` should divide the input channels of every weight. Found {own} for "
                f"{weight.name!r} with {channels}: give it a pattern of its own{'' if by_name else ' in a mapping'}, "
                f"or leave it out of `params`."
            )
    return found


def listed_batches(data: Iterable[Any]) -> list[Any]:
    """All batches.

    Args:
        data: An iterable that ends.

    Returns:
        The batches, at least one.

    Raises:
        TypeError: If it is a tensor, or no iterable.
        ValueError: If it is empty, or all of its tensors are.
    """
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(f"Parameter `data` should be an iterable of batches. Found {type(data).__name__}.")
    batches = list(data)
    if not batches:
        raise ValueError(
            "Parameter `data` should hold at least one batch. Found none; an iterator that was used up gives none."
        )
    found = [x for batch in batches for x in tree.tensors(batch).values()]
    if found and not any(x.numel() for x in found):
        raise ValueError(
            f"Parameter `data` should hold samples. Found that every tensor of its batches is empty, as one of shape "
            f"{list(found[0].shape)}."
        )
    return batches


def check_batches(model: nn.Module, batches: Sequence[Any], call: Forward) -> None:
    """Refuses batches that are longer than the model takes, and a first one that it does not take.

    Args:
        model: The model.
        batches: All; the first is run.
        call: Runs the model on a batch.

    Raises:
        ValueError: If it does not take a batch; the message has the batch's number. If it changes a
            batch in place.
        AmbiguousItemError: If an item may be labels or an argument.
    """
    most = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for number, batch in enumerate(batches):
        tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        tokens = tokens[0] if isinstance(tokens, tuple | list) and tokens else tokens
        length = tokens.shape[1] if isinstance(tokens, Tensor) and tokens.dim() == 2 else 0
        if isinstance(most, int) and length > most > 0:  # -1 where any length is taken
            raise ValueError(
                f"Parameter `data` should yield sequences of at most {most} tokens, which the model's positions allow. "
                f"Found {length} in batch {number}."
            )
    given = tree.tensors(batches[0])
    versions = {path: x._version for path, x in given.items() if not x.is_inference()}
    try:
        call(inner_module(model), batches[0])
    except AmbiguousItemError:
        raise
    except Exception as error:
        raise ValueError(_not_taken(0, error)) from error
    if any(given[path]._version != version for path, version in versions.items()):
        raise ValueError(
            "Parameter `model` should leave its batches as they are, as it runs on each again and again. Found that it "
            "changes tensors of batch 0 in place: give a `forward` that passes copies."
        )


def by_number(model: nn.Module, batches: Sequence[Any], call: Forward) -> Callable[[int], Any]:
    """Runs the model on a batch by its number, which an error of the model then has.

    Args:
        model: The model.
        batches: All.
        call: Runs the model on a batch.

    Returns:
        A function of the number.
    """

    def run(number: int) -> Any:
        try:
            return call(model, batches[number])
        except torch.cuda.OutOfMemoryError:  # of no batch in particular
            raise
        except (IndexError, KeyError, TypeError, RuntimeError) as error:  # as torch and models raise them
            raise ValueError(_not_taken(number, error)) from error

    return run


def _not_taken(number: int, error: Exception) -> str:
    return (
        f"Parameter `data` should yield batches that the model takes. Found that batch {number} raises "
        f"{type(error).__name__}: {error}"
    )


@contextmanager
def plainly_called(model: nn.Module) -> Generator[None]:
    """Models keep no keys and values of earlier calls, and call each of their layers.

    Models of transformers have caches unless told otherwise, and multiply experts in groups, where
    "eager" goes through them one by one. torch's encoders pass layers by in evaluation, and pack
    padded inputs into nested tensors, where their fast path is allowed.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    configs = {
        id(config): config for module in model.modules() if (config := getattr(module, "config", None)) is not None
    }
    plain = {"use_cache": False, "_experts_implementation": "eager"}
    had = {  # decoders have a copy of their own
        (key, name): value
        for key, config in configs.items()
        for name in plain
        if (value := getattr(config, name, None)) is not None
    }
    for key, name in had:
        setattr(configs[key], name, plain[name])
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for (key, name), value in had.items():
            setattr(configs[key], name, value)
