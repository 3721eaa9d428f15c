"""What each block of a chain is given in each batch, and what of it the block before returned."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mfac.layerwise import tree
from mfac.layerwise.decisions import Decisions
from mfac.layerwise.statistics import EnoughError
from mfac.layerwise.tree import Path

_COMPARED = 4
"""With how many earlier tensors at the same place of a call one is compared, to be kept once."""


@dataclass(frozen=True)
class Carried:
    """An argument that is part of what the block before returned.

    Attributes:
        path: Where in it.
    """

    path: Path


@dataclass
class Recorded:
    """A batch's way through the blocks.

    Attributes:
        arguments: For each block positional and named ones, with `Carried` in place of what the
            block before returned, and copies of other tensors; None for a block that is skipped.
        outputs: What each block returned, where that is asked for.
    """

    arguments: list[Any]
    outputs: list[Any] = field(default_factory=list)


class BrokenChainError(Exception):
    """Raised where blocks do not take what the ones before return; its message says why."""


class Recorder:
    """Runs a model, and notes the calls of its blocks.

    Args:
        names: Of the blocks.
        modules: The blocks.
        run: Runs the model on a batch, by its number.
    """

    def __init__(self, names: Sequence[str], modules: Sequence[nn.Module], run: Callable[[int], Any]) -> None:
        self._names, self._modules, self._run = names, modules, run
        self._copies: dict[Path, deque[Tensor]] = defaultdict(lambda: deque(maxlen=_COMPARED))

    def record(self, number: int, first: bool, decisions: Decisions | None = None) -> Recorded:
        """The calls of the blocks in a batch.

        Args:
            number: Of the batch.
            first: Whether it is the first batch. It has to call every block, its outputs are kept,
                and it is run to its end, as blocks may be called again there.
            decisions: Listens between one block and the next.

        Returns:
            The calls.

        Raises:
            BrokenChainError: If blocks are not called in order, or take something else than what
                the block before returned and what comes from outside of the blocks.
        """
        run = _Run(self._names, self._copies, Recorded([None] * len(self._names)))

        def listen(between: bool) -> None:
            if decisions is not None:
                decisions.listening = between

        def before(place: int) -> Callable[..., None]:
            def hook(_: nn.Module, positional: Any, named: Any) -> None:
                listen(False)
                run.begin(place, (positional, dict(named)))

            return hook

        def after(place: int) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: Any, output: Any) -> None:
                run.end(output)
                last = place + 1 == len(self._modules)
                if last and not first:
                    raise EnoughError
                listen(not last)

            return hook

        handles = []
        for place, module in enumerate(self._modules):
            handles.append(module.register_forward_pre_hook(before(place), with_kwargs=True))
            handles.append(module.register_forward_hook(after(place)))
        try:
            with suppress(EnoughError):
                self._run(number)
        finally:
            for handle in handles:
                handle.remove()
        if first and run.places != list(range(len(self._names))):
            raise BrokenChainError("its blocks are not called once each, in order")
        run.found.outputs = run.outputs if first else []
        return run.found


class _Run:
    """One batch on its way through the blocks."""

    def __init__(self, names: Sequence[str], copies: dict[Path, deque[Tensor]], found: Recorded) -> None:
        self._names, self._copies, self.found = names, copies, found
        self.places: list[int] = []
        self.outputs: list[Any] = []  # kept, so that no other tensor takes their identity
        self._before: dict[int, tuple[Path, object]] = {}  # tensors that the last block returned
        self._earlier: set[int] = set()
        self._given: dict[tuple[int, object], tuple[Tensor, Tensor]] = {}  # with what is kept of each

    def begin(self, place: int, arguments: Any) -> None:
        if self.places and place <= self.places[-1]:
            raise BrokenChainError("its blocks are not called once each, in order")
        name = self._names[place]

        def kept(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or isinstance(leaf, nn.Parameter):
                return leaf
            if id(leaf) in self._before:
                where, version = self._before[id(leaf)]
                if version != _version(leaf):
                    raise BrokenChainError(f"block {name!r} takes what changed since the block before returned it")
                return Carried(where)
            if id(leaf) in self._earlier:
                raise BrokenChainError(f"block {name!r} takes what an earlier block returns")
            return self._kept(path, leaf)

        found = tree.replaced(arguments, kept)
        if self.places and not any(isinstance(leaf, Carried) for _, leaf in tree.leaves(found)):
            raise BrokenChainError(f"block {name!r} does not take what the block before returns")
        self.places.append(place)
        self.found.arguments[place] = found

    def end(self, output: Any) -> None:
        self.outputs.append(output)
        self._earlier |= set(self._before)
        self._before = {id(leaf): (path, _version(leaf)) for path, leaf in tree.tensors(output).items()}

    def _kept(self, path: Path, x: Tensor) -> Tensor:
        """A copy, as the model may change the tensor; one for all that are the same."""
        version = _version(x)
        if version is not None and (id(x), version) in self._given:
            return self._given[id(x), version][1]
        copy = next((copy for copy in self._copies[path] if tree.same(copy, x)), None)
        if copy is None:
            copy = x.detach().clone()
            self._copies[path].append(copy)
        self._given[id(x), version] = (x, copy)
        return copy


def _version(x: Tensor) -> int | None:
    """How often a tensor was changed in place; None in inference mode, which does not count."""
    return None if x.is_inference() else x._version


class StandIns:
    """What blocks return where only their arguments are of interest: one of these, as it came.

    Args:
        modules: The blocks.
        recorded: Of the first batch, with outputs.

    Attributes:
        invented: Whether a block returns a tensor of another kind than its arguments, in whose
            place zeros stand: these say whether later blocks depend on it, for this batch alone.
    """

    def __init__(self, modules: Sequence[nn.Module], recorded: Recorded) -> None:
        self._modules, self._outputs, self.invented = modules, recorded.outputs, False
        self._paths: list[dict[Path, Path]] = []  # of an output, which argument stands in
        for place, (arguments, output) in enumerate(zip(recorded.arguments, recorded.outputs, strict=True)):
            last = tree.tensors(recorded.outputs[place - 1]) if place else {}
            leaves = {path: last[x.path] if isinstance(x, Carried) else x for path, x in tree.leaves(arguments)}
            paths = {}
            for path, wanted in tree.tensors(output).items():
                alike = [where for where, x in leaves.items() if isinstance(x, Tensor) and _alike(x, wanted)]
                if alike:
                    paths[path] = alike[0]
                else:
                    self.invented = True
            self._paths.append(paths)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Within, blocks compute nothing, and need no weights.

        Yields:
            Nothing.
        """
        were = [module.__dict__.get("forward") for module in self._modules]
        try:
            for place, module in enumerate(self._modules):
                module.__dict__["forward"] = self._stand_in(place)
            yield
        finally:
            for module, forward in zip(self._modules, were, strict=True):
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward

    def _stand_in(self, place: int) -> Callable[..., Any]:
        def forward(*positional: Any, **named: Any) -> Any:
            given = dict(tree.leaves((positional, named)))
            paths = self._paths[place]

            def leaf(path: Path, x: Any) -> Any:
                if path in paths:
                    return given[paths[path]].clone()
                return torch.zeros_like(x) if isinstance(x, Tensor) else x

            return tree.replaced(self._outputs[place], leaf)

        return forward


def first_difference(one: Recorded, other: Recorded) -> int | None:
    """The first block that is given something else, beside what the blocks before returned.

    Args:
        one: A batch.
        other: The same, run in another way.

    Returns:
        Its number, or None. Of objects that are no tensors, numbers or strings the types count.
    """
    for place, pair in enumerate(zip(one.arguments, other.arguments, strict=True)):
        given, again = (dict(tree.leaves(arguments)) for arguments in pair)
        if list(given) != list(again) or not all(_equal(leaf, again[path]) for path, leaf in given.items()):
            return place
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor | bool | int | float | str):
        return tree.same(a, b)
    return a == b if isinstance(a, Carried) else type(a) is type(b)


def _alike(x: Tensor, wanted: Tensor) -> bool:
    return x.shape == wanted.shape and x.dtype == wanted.dtype and x.device == wanted.device
