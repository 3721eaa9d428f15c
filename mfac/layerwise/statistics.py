"""What the layers of a stage see: XᵀX of their inputs, summed in float64 over the batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from mfac.layerwise.gram import Gram, GramOfRows, NotFiniteError
from mfac.layerwise.heeding import Positions, weighted_rows
from mfac.layerwise.identity import Identities
from mfac.layerwise.product_view import HeardConvolutionView, OtherUseError, ProductView
from mfac.layerwise.products import Product, Products
from mfac.layerwise.views import LayerView

_BYTES = 1 << 30  # of the matrices that one pass over the data sums up

T = TypeVar("T")

Key = tuple[int, object, int]
"""Of inputs: the number of their tensors, how each is unfolded, and the group of channels."""


class EnoughError(Exception):
    """Raised within a forward pass when nothing after it is needed."""


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

    def parted(self, names: Collection[str]) -> tuple[Stage, Stage]:
        """The stage without some weights, and a stage of these.

        Those with several matrices share no statistics there, not even among these matrices.

        Args:
            names: Of weights whose inputs are not those that they were thought to share.

        Returns:
            Both; the second one goes to the end of each pass.
        """
        rest = [view for view in self.views if view.name not in names]
        others = [view for view in self.views if view.name in names]
        keys = {view.name: self.keys[view.name] for view in others}
        for name, of_view in keys.items():
            if len(of_view) > 1:
                keys[name] = [
                    (number, (unfolding, name), place) for place, (number, unfolding, _) in enumerate(of_view)
                ]
        last = self.last if self.last in rest else None
        return Stage(rest, {view.name: self.keys[view.name] for view in rest}, last), Stage(others, keys)


@dataclass
class Sums:
    """What a pass over the data has found of a stage.

    Attributes:
        grams: By key; what no batch reaches is missing.
        parted: Weights that had other inputs in some batch than those whose key they share. Their
            sums are of no use: `Stage.parted` makes a stage for them.
    """

    grams: dict[Key, Gram] = field(default_factory=dict)
    parted: set[str] = field(default_factory=set)


_Function = Callable[[LayerView, LayerView, Mapping[int, Tensor]], None]


class _Watch(ExitStack):
    """Calls a function with a weight, the layer of it that is called, and the sources there.

    Sources are by the number of the matrix; a product has those of the matrices in it.

    Args:
        views: The weights.
        function: The function.
    """

    def __init__(self, views: Sequence[LayerView], function: _Function) -> None:
        super().__init__()
        self._views, self._function = views, function

    def __enter__(self) -> _Watch:
        super().__enter__()
        multiplied = {view.name: view for view in self._views if isinstance(view, ProductView | HeardConvolutionView)}
        for view in self._views:
            for layer in view.layers if view.name not in multiplied else ():
                hook = self._hook_of(view, layer)
                self.callback(layer.module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        if multiplied:
            weights = {name: view.parameter for name, view in multiplied.items()}
            convolutions = [name for name, view in multiplied.items() if isinstance(view, HeardConvolutionView)]
            self.enter_context(
                Products(
                    weights, lambda product: self._tell_of(multiplied[product.name], product), _refuse, convolutions
                )
            )
        return self

    def _hook_of(self, view: LayerView, layer: LayerView) -> Callable[..., None]:
        def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._tell(view, layer, dict(enumerate(layer.sources((positional, named)))))

        return hook

    def _tell_of(self, view: ProductView | HeardConvolutionView, product: Product) -> None:
        self._tell(view, view, view.heard(product))

    def _tell(self, view: LayerView, layer: LayerView, sources: Mapping[int, Tensor]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # sums go on where a model's own mode ends
            if sources:
                self._function(view, layer, sources)


def _refuse(name: str, function: str) -> None:
    raise OtherUseError(name, f"it is given to torch's {function!r}")


def stages_of(
    run: Callable[[int], Any],
    views: Sequence[LayerView],
    like: Callable[[str], str | None],
    batches: Sequence[int] = (0,),
) -> list[Stage]:
    """Stages of some weights in the order in which batches reach them.

    Weights whose inputs are the same tensors are one stage, and so are weights that `like` gives
    the same name, as those of experts. What no batch reaches is the last stage.

    Args:
        run: Runs a batch, by its number.
        views: The weights.
        like: A name that a parameter has in common with others of its kind; None for none.
        batches: Those after the first run where earlier ones do not reach every weight.

    Returns:
        The stages.
    """
    identities = Identities()
    calls: dict[str, list[tuple[tuple[int, int], ...]]] = {}  # for each call batch and number of its sources
    of_batch: dict[str, list[tuple[tuple[int, int], ...]]] = {}  # the same of the batch that runs
    order: list[str] = []
    reached: list[str] = []

    def record(view: LayerView, _: LayerView, sources: Mapping[int, Tensor]) -> None:
        order.append(view.name)
        given = list(sources.values())
        if view.partial:  # its matrices share inputs with nothing, and not all need to be there
            if view.name not in of_batch and any(x.numel() for x in given):
                of_batch[view.name] = [((now, identities.number(given[0])),) * len(view.shapes)]
        elif all(x.numel() for x in given):  # nothing is known of inputs without samples
            of_batch.setdefault(view.name, []).append(tuple((now, identities.number(x)) for x in given))

    with _Watch(views, record), torch.no_grad():
        for now in batches:
            order, of_batch, identities = [], {}, Identities()
            run(now)
            calls = {**of_batch, **calls}
            reached = merged(reached, order)
            if len(calls) == len(views):
                break
    at_once = now == batches[0]
    calls = {name: calls[name] for name in reached if name in calls}
    numbers: dict[tuple[int, int], int] = {}
    keys: dict[str, list[Key]] = {}
    of_name = {view.name: view for view in views}
    for name, of_calls in calls.items():
        view = of_name[name]
        unfolding = (view.unfolding, name) if view.others else view.unfolding
        grouped = unfolding is not None and all(len(set(sources)) == 1 for sources in of_calls)
        keys[name] = [  # shared by those that are called as often, each time with the same inputs
            (numbers.setdefault(sources, len(numbers)), unfolding, index if grouped else 0)
            for index, sources in enumerate(zip(*of_calls, strict=True))
        ]
    groups: dict[object, list[LayerView]] = {}
    for name, of_view in keys.items():
        common = like(name)
        groups.setdefault(common if common is not None else tuple(of_view), []).append(of_name[name])
    unseen = [view for view in views if view.name not in keys]
    for number, view in enumerate(unseen):
        keys[view.name] = [(-1 - number, view.name, index) for index in range(len(view.shapes))]
        common = like(view.name)
        groups.setdefault(common if common is not None else "unseen", []).append(view)
    regular = at_once and not unseen and len(order) == len(views) and not any(view.partial for view in views)
    places = {name: place for place, name in enumerate(order)}
    stages = []
    for group in groups.values():
        last = max(group, key=lambda view: places[view.name]) if regular else None
        stages.append(Stage(group, {view.name: keys[view.name] for view in group}, last))
    return stages


def like_experts(name: str) -> str | None:
    """A name without the number of an expert; None for what is no expert's."""
    parts = name.split(".")
    for place, (part, after) in enumerate(pairwise(parts)):
        if "expert" in part.lower() and after.isdecimal():
            return ".".join([*parts[: place + 1], "*", *parts[place + 2 :]])
    return None


def merged(order: Sequence[T], more: Sequence[T]) -> list[T]:
    """An order of what batches have called so far, and of what another one calls.

    Args:
        order: Each once.
        more: The calls of a batch, some again and again.

    Returns:
        Each once. What is new comes after what the batch has called before it.
    """
    if set(order).issuperset(more):
        return list(order)
    found = list(order)
    after = 0
    for one in dict.fromkeys(more):
        if one in found:
            after = max(after, found.index(one) + 1)
        else:
            found.insert(after, one)
            after += 1
    return found


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


@torch.no_grad()
def grams_of(
    run: Callable[[int], Any],
    stage: Stage,
    batches: Sequence[int],
    heeded: Mapping[str, Positions] | None = None,
) -> Sums:
    """XᵀX of every input of a stage, or XᵀWX where positions have weights.

    Args:
        run: Runs a batch, by its number.
        stage: The stage.
        batches: Which batches.
        heeded: The weights of positions by weight, of stages that `apart` has made. A call with
            another number of positions than then, as of experts, counts each for 1.

    Returns:
        The sums, and which weights were wrongly thought to have the same inputs as others.

    Raises:
        ValueError: If an input is not finite, naming layer and batch.
    """
    sums = Sums()
    adding: dict[Key, GramOfRows] = {}
    leaders: dict[Key, tuple[str, int]] = {}
    matrices: Counter[Key] = Counter()
    for view in stage.views:
        for place, key in enumerate(stage.keys[view.name]):
            leaders.setdefault(key, (view.name, place))
            matrices[key] += 1
    now = 0
    calls: Counter[str] = Counter()  # in this batch
    identities = Identities()
    given: dict[tuple[str, int], list[int]] = {}  # in this batch, by matrix: its inputs in each call

    def add(view: LayerView, layer: LayerView, sources: Mapping[int, Tensor]) -> None:
        weights = _weights_of(heeded, view, now, calls[view.name])
        calls[view.name] += 1
        for place, source in sources.items():
            key = stage.keys[view.name][place]
            if not source.numel():
                continue
            if matrices[key] > 1:
                given.setdefault((view.name, place), []).append(identities.number(source))
            if leaders[key] != (view.name, place):
                continue
            begin, known = 0, weights is not None and len(weights) == source.numel() // source.shape[-1]
            for rows in layer.rows(place, source):
                window = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
                if known and weights is not None:
                    window = weighted_rows(window, weights[begin : begin + len(rows)])
                    begin += len(rows)
                if key not in adding:
                    adding[key] = GramOfRows(window.shape[1], window.device)
                with _named(view.name):
                    adding[key].add(window, now)
        if stage.last is not None and all(calls[one.name] for one in stage.views):
            raise EnoughError

    with _Watch(stage.views, add):
        for number in batches:
            now = number
            calls.clear()
            identities, given = Identities(), {}
            with suppress(EnoughError):
                run(number)
            for view in stage.views:
                for place, key in enumerate(stage.keys[view.name]):
                    if given.get((view.name, place)) != given.get(leaders[key]):
                        sums.parted.add(view.name)
    for key, rows in adding.items():
        with _named(leaders[key][0]):
            sums.grams[key] = rows.finished()
    return sums


@contextmanager
def _named(name: str) -> Generator[None]:
    """Within, inputs that are not finite are told with the weight that they are of."""
    try:
        yield
    except NotFiniteError as error:
        raise ValueError(
            f"Parameter `data` should give every layer finite inputs. Found some that are not at {name!r} in batch "
            f"{error.batch}, counted from 0."
        ) from None


def _weights_of(heeded: Mapping[str, Positions] | None, view: LayerView, batch: int, call: int) -> Tensor | None:
    """The weights of the positions of a call, or None where nothing is known of it."""
    of_batch = heeded[view.name][batch] if heeded is not None and view.name in heeded else []
    return of_batch[call] if call < len(of_batch) else None
