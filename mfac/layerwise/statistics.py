"""What the layers of a stage see: XᵀX of their inputs, summed in float64 over the batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mfac.core import ops
from mfac.layerwise.heeding import Positions, weighted_rows
from mfac.layerwise.views import LayerView

_BYTES = 1 << 30  # of the matrices that one pass over the data sums up

Key = tuple[int, object, int]
"""Of inputs: the number of their tensor, how it is unfolded, and the group of channels."""


class EnoughError(Exception):
    """Raised within a forward pass when nothing after it is needed."""


@dataclass
class Gram:
    """XᵀX of some inputs.

    Attributes:
        total: The sum, [columns, columns] float64.
        count: Rows of X.
    """

    total: Tensor
    count: int = 0
    _divided: bool = False

    @property
    def mean(self) -> Tensor:
        """XᵀX/n, which takes the memory of the sum: nothing may be added after."""
        if not self._divided:
            self.total.div_(self.count)
            self._divided = True
        return self.total


@dataclass
class Stage:
    """Weights that are solved together: no input of theirs depends on another's solution.

    Attributes:
        views: The weights.
        keys: For each view the inputs of its matrices; views that share inputs share keys.
        last: What is called last of them, where every layer is called once; None where a pass has
            to go to its end.
    """

    views: list[LayerView]
    keys: dict[str, list[Key]]
    last: LayerView | None = None

    def apart(self, names: Collection[str]) -> Stage:
        """The same, where weights of some names share no statistics with others."""
        keys: dict[str, list[Key]] = dict(self.keys)
        for name in [name for name in self.keys if name in names]:
            keys[name] = [(number, (unfolding, name), group) for number, unfolding, group in self.keys[name]]
        return Stage(self.views, keys, self.last)


@dataclass
class _Call:
    view: LayerView
    sources: list[Tensor]


@dataclass
class _Watch:
    handles: list[Any] = field(default_factory=list)

    def add(self, view: LayerView, function: Callable[[LayerView, list[Tensor]], None]) -> None:
        def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            if sources := view.sources((positional, named)):
                function(view, sources)

        self.handles.append(view.module.register_forward_pre_hook(hook, with_kwargs=True))

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def stages_of(run: Callable[[int], Any], views: Sequence[LayerView], like: Callable[[str], str | None]) -> list[Stage]:
    """Stages of some weights in the order in which the first batch reaches them.

    Weights whose inputs are the same tensors are one stage, and so are weights that `like` gives
    the same name, as those of experts. What the first batch does not reach is the last stage.

    Args:
        run: Runs a batch, by its number.
        views: The weights.
        like: A name that a parameter has in common with others of its kind; None for none.

    Returns:
        The stages.
    """
    calls: list[_Call] = []
    with _Watch() as watch, torch.no_grad():
        for view in views:
            watch.add(view, lambda view, sources: calls.append(_Call(view, sources)))
        run(0)
    tensors: dict[object, int] = {}
    keys: dict[str, list[Key]] = {}
    for call in calls:
        if call.view.name not in keys:
            numbers = [tensors.setdefault(_identity(x), len(tensors)) for x in call.sources]
            grouped = len({_identity(x) for x in call.sources}) == 1 and call.view.unfolding is not None
            keys[call.view.name] = [
                (number, call.view.unfolding, index if grouped else 0) for index, number in enumerate(numbers)
            ]
    by_name = {view.name: view for view in views}
    groups: dict[object, list[LayerView]] = {}
    for name, of_view in keys.items():
        common = like(name)
        groups.setdefault(common if common is not None else tuple(of_view), []).append(by_name[name])
    unseen = [view for view in views if view.name not in keys]
    for number, view in enumerate(unseen):
        keys[view.name] = [(-1 - number, view.name, index) for index in range(len(view.shapes))]
        common = like(view.name)
        groups.setdefault(common if common is not None else "unseen", []).append(view)
    regular = not unseen and len(calls) == len(views)
    order = {call.view.name: number for number, call in enumerate(calls)}
    stages = []
    for group in groups.values():
        last = max(group, key=lambda view: order[view.name]) if regular else None
        stages.append(Stage(group, {view.name: keys[view.name] for view in group}, last))
    return stages


def merged_stages(run: Callable[[int], Any], views: Sequence[LayerView]) -> Iterator[Stage]:
    """Stages of a model that does not change, as many in one as memory allows.

    Args:
        run: Runs a batch, by its number.
        views: The weights.

    Yields:
        A stage for each pass over the data.
    """
    together: list[Stage] = []
    total = 0
    for stage in stages_of(run, views, lambda _: None) if views else ():
        widths = {
            key: columns
            for view in stage.views
            for key, (_, columns) in zip(stage.keys[view.name], view.shapes, strict=True)
        }
        needed = sum(8 * width * width for width in widths.values())
        if together and total + needed > _BYTES:
            yield _merged(together)
            together, total = [], 0
        together.append(stage)
        total += needed
    if together:
        yield _merged(together)


def _merged(stages: Sequence[Stage]) -> Stage:
    if len(stages) == 1:
        return stages[0]
    keys = {name: of_view for stage in stages for name, of_view in stage.keys.items()}
    return Stage([view for stage in stages for view in stage.views], keys)


def _identity(x: Tensor) -> object:
    """The same for detached tensors of one tensor, until it is changed in place."""
    return x.data_ptr(), tuple(x.shape), x.stride(), x._version


@torch.no_grad()
def grams_of(
    run: Callable[[int], Any],
    stage: Stage,
    batches: Sequence[int],
    heeded: Mapping[str, Positions] | None = None,
) -> dict[Key, Gram]:
    """XᵀX of every input of a stage, or XᵀWX where positions have weights.

    Args:
        run: Runs a batch, by its number.
        stage: The stage.
        batches: Which batches.
        heeded: The weights of positions by weight, of stages that `apart` has made. A call with
            another number of positions than then, as of experts, counts each for 1.

    Returns:
        By key; what no batch reaches is missing.

    Raises:
        ValueError: If an input is not finite, naming layer and batch.
    """
    found: dict[Key, Gram] = {}
    leaders: dict[Key, str] = {}
    for view in stage.views:
        for key in stage.keys[view.name]:
            leaders.setdefault(key, view.name)
    now = 0
    calls: Counter[str] = Counter()  # in this batch

    def add(view: LayerView, sources: list[Tensor]) -> None:
        done = set()
        weights = _weights_of(heeded, view, now, calls[view.name])
        calls[view.name] += 1
        for number, (key, source) in enumerate(zip(stage.keys[view.name], sources, strict=True)):
            if leaders[key] != view.name or key in done:
                continue
            done.add(key)
            begin, known = 0, weights is not None and len(weights) == source.numel() // source.shape[-1]
            for rows in view.rows(number, source):
                window = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
                if known and weights is not None:
                    window = weighted_rows(window, weights[begin : begin + len(rows)])
                    begin += len(rows)
                gram = ops.gram(window.T.contiguous())
                if not bool(torch.isfinite(gram.diagonal()).all()):
                    raise ValueError(
                        f"Parameter `data` should give every layer finite inputs. Found some that are not at "
                        f"{view.name!r} in batch {now}, counted from 0."
                    )
                if key in found:
                    found[key].total += gram
                else:
                    found[key] = Gram(gram)
                found[key].count += len(rows)
        if view is stage.last:
            raise EnoughError

    with _Watch() as watch:
        for view in stage.views:
            if view.name in leaders.values() or view is stage.last:
                watch.add(view, add)
        for number in batches:
            now = number
            calls.clear()
            with suppress(EnoughError):
                run(number)
    return found


def _weights_of(heeded: Mapping[str, Positions] | None, view: LayerView, batch: int, call: int) -> Tensor | None:
    """The weights of the positions of a call, or None where nothing is known of it."""
    of_batch = heeded[view.name][batch] if heeded is not None and view.name in heeded else []
    return of_batch[call] if call < len(of_batch) else None
