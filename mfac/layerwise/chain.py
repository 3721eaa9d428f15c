"""Chains of blocks: found in a model, cut out of it, and run block by block on what came before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_layers
from mfac.layerwise import tree
from mfac.layerwise.statistics import EnoughError
from mfac.layerwise.tree import Path
from mfac.layerwise.views import LayerView

_CLOSE = 1e-3
"""How far a block run by itself may be from the same block within the model, relative to it."""


@dataclass(frozen=True)
class NamedBlock:
    """A block and its name in the model."""

    name: str
    module: nn.Module

    def holds(self, view: LayerView) -> bool:
        """Whether a weight is of this block."""
        return any(view.module is module for module in self.module.modules())


class InMemory:
    """Weights of blocks that are where they are; `WeightsOnDisk` has the same methods."""

    on_disk = False

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def calls(self) -> Generator[None]:
        """Within, blocks may be called in any order.

        Yields:
            Nothing.
        """
        yield

    @contextmanager
    def held(self, block: NamedBlock, masks: dict[str, Tensor]) -> Generator[None]:
        """Within, a block is solved, and called as it then is.

        Args:
            block: The block.
            masks: By weight; those of the block are there in the end.

        Yields:
            Nothing.
        """
        yield


def find_chains(model: nn.Module, views: Sequence[LayerView], blocks: Sequence[str] | None) -> list[list[NamedBlock]]:
    """The lists of like blocks in a model, outermost first.

    Args:
        model: The model.
        views: The weights; a block has at least one.
        blocks: Names of the blocks of the one chain; None to look for chains.

    Returns:
        Chains of two blocks or more.

    Raises:
        ValueError: If a name is of no module.
    """
    layers = dict(named_layers(model))
    if blocks is not None:
        if missing := [name for name in blocks if name not in layers]:
            raise ValueError(f"Parameter `blocks` should name modules of the model. Found {missing[0]!r}.")
        return [[NamedBlock(name, layers[name]) for name in blocks]]
    chains: list[list[NamedBlock]] = []
    taken: list[nn.Module] = []
    for name, layer in layers.items():
        if not isinstance(layer, nn.ModuleList | nn.Sequential) or any(layer is inner for inner in taken):
            continue
        inside = [(key, child) for key, child in layer._modules.items() if child is not None]
        members = [NamedBlock(f"{name}.{key}" if name else key, child) for key, child in inside]
        if len(members) < 2 or len({type(member.module) for member in members}) > 1:
            continue
        if not all(any(member.holds(view) for view in views) for member in members):
            continue
        if any(not list(member.module.children()) for member in members):
            continue  # single layers
        chains.append(members)
        taken += layer.modules()
    return chains


@dataclass
class _Recorded:
    """A call of a block: what went in, and what came out."""

    arguments: Any
    output: Any = None


class Chain:
    """Blocks that each take what the one before returns; activations of all batches are kept.

    Args:
        blocks: In order.
        run: Runs the whole model on a batch, by its number.
        batches: Which batches.
    """

    def __init__(self, blocks: Sequence[NamedBlock], run: Callable[[int], Any], batches: Sequence[int]) -> None:
        self.blocks, self._run, self._batches = blocks, run, batches
        self._templates: list[Any] = []
        self._carried: list[dict[Path, Path]] = []
        self._own: list[set[Path]] = []
        self._shared: list[set[Path]] = []  # what a block is given as the first one is
        self._first: dict[int, Any] = {}  # arguments of the first block, by batch
        self._others: dict[int, list[dict[Path, Any]]] = {}
        self._state: dict[int, dict[Path, Tensor]] = {}  # what the block before returned
        self._at = 0

    @torch.no_grad()
    def begin(self) -> str | None:
        """Runs the model up to the first block.

        Returns:
            None; or why the blocks cannot be run by themselves.
        """
        recorded = self._recorded(self._batches[0], full=True)
        if isinstance(recorded, str):
            return recorded
        if (why := self._learn(recorded)) is not None:
            return why
        full = any(self._own)
        for number in self._batches:
            calls = self._recorded(number, full)
            if isinstance(calls, str):
                return calls
            self._first[number] = calls[0].arguments
            if full:
                self._others[number] = [
                    {path: leaf for path, leaf in tree.tensors(call.arguments).items() if path in own}
                    for call, own in zip(calls, self._own, strict=True)
                ]
        return self._compared(recorded)

    def run(self, number: int) -> Any:
        """Runs the present block on a batch."""
        positional, named = self._arguments(number)
        return self.blocks[self._at].module(*positional, **named)

    @torch.no_grad()
    def advance(self) -> None:
        """Runs the present block, as it is now, on all batches, and goes on to the next."""
        last = self._at + 1 == len(self.blocks)
        for number in self._batches:
            if last:
                self._state.pop(number, None)
                continue
            output = tree.tensors(self.run(number))
            self._state[number] = {path: output[path] for path in set(self._carried[self._at + 1].values())}
        self._at += 1

    def _arguments(self, number: int) -> Any:
        carried, own = self._carried[self._at], self._own[self._at]
        first = dict(tree.leaves(self._first[number]))

        def leaf(path: Path, template: Any) -> Any:
            if path in carried:
                return self._state[number][carried[path]].clone()
            if path in own:
                return self._others[number][self._at][path]
            if path not in self._shared[self._at]:
                return template
            found = first.get(path, template)
            return found.clone() if isinstance(found, Tensor) and self._at == 0 else found

        return tree.replaced(self._templates[self._at], leaf)

    def _recorded(self, number: int, full: bool) -> list[_Recorded] | str:
        """The calls of the blocks in a run of the model; of the first alone if not `full`."""
        calls: list[_Recorded] = []
        handles = []

        def before(place: int) -> Callable[..., None]:
            def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
                order.append(place)
                calls.append(_Recorded((positional, dict(named))))
                if place == 0:  # kept: what blocks do to it in place is not to be seen
                    calls[-1].arguments = tree.replaced(
                        calls[-1].arguments, lambda _, x: x.clone() if isinstance(x, Tensor) else x
                    )
                if not full:
                    raise EnoughError

            return hook

        def after(place: int) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: Any, output: Any) -> None:
                calls[-1].output = output
                if place == len(self.blocks) - 1:
                    raise EnoughError

            return hook

        order: list[int] = []
        for place, block in enumerate(self.blocks):
            handles.append(block.module.register_forward_pre_hook(before(place), with_kwargs=True))
            handles.append(block.module.register_forward_hook(after(place)))
        try:
            self._run(number)
        except EnoughError:
            pass
        finally:
            for handle in handles:
                handle.remove()
        if order != (list(range(len(self.blocks))) if full else [0]):
            return "its blocks are not called once each, in order"
        return calls

    def _learn(self, calls: list[_Recorded]) -> str | None:
        first = dict(tree.leaves(calls[0].arguments))
        earlier: set[int] = set()  # what blocks before the last one returned
        for place, call in enumerate(calls):
            self._templates.append(tree.replaced(call.arguments, lambda _, x: None if isinstance(x, Tensor) else x))
            carried: dict[Path, Path] = {}
            own: set[Path] = set()
            before = {id(leaf): path for path, leaf in tree.tensors(calls[place - 1].output).items()} if place else {}
            for path, leaf in tree.tensors(call.arguments).items():
                if place and id(leaf) in before:
                    carried[path] = before[id(leaf)]
                elif id(leaf) in earlier:
                    return f"block {self.blocks[place].name!r} takes what an earlier block returns"
                elif place and not (path in first and _same(first[path], leaf)):
                    own.add(path)
            if place and not carried:
                return f"block {self.blocks[place].name!r} does not take what the block before returns"
            earlier |= set(before)
            self._carried.append(carried)
            self._own.append(own)
            given = dict(tree.leaves(call.arguments))
            self._shared.append({path for path, leaf in given.items() if path in first and _same(first[path], leaf)})
        return None

    def _compared(self, calls: list[_Recorded]) -> str | None:
        """Whether blocks run by themselves return what they return within the model."""
        number = self._batches[0]
        try:
            for place in range(len(self.blocks)):
                self._at = place
                try:
                    output = tree.tensors(self.run(number))
                except Exception as error:  # which only a call of one's own can tell from the model's
                    return f"block {self.blocks[place].name!r} raises {type(error).__name__} by itself"
                for path, wanted in tree.tensors(calls[place].output).items():
                    got = output.get(path)
                    if got is None or got.shape != wanted.shape:
                        return f"block {self.blocks[place].name!r} returns something else by itself"
                    scale = float(wanted.abs().max()) if wanted.numel() and wanted.is_floating_point() else 0.0
                    if scale and float((got - wanted).abs().max()) > _CLOSE * scale:
                        return f"block {self.blocks[place].name!r} computes something else by itself"
                if place + 1 < len(self.blocks):
                    self._state[number] = {path: output[path] for path in set(self._carried[place + 1].values())}
        finally:
            self._at = 0
            self._state.clear()
        return None


def _same(a: Any, b: Any) -> bool:
    """Whether two leaves are one and the same, or equal."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    return isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b
