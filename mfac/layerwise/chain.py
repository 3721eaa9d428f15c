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
from mfac.layerwise.decisions import Decisions
from mfac.layerwise.recording import BrokenChainError, Carried, Recorded, Recorder, StandIns, first_difference
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
        """Whether a weight is of a layer of this block."""
        inside = set(self.module.modules())
        return any(layer.module in inside for layer in view.layers)

    def holds_alone(self, view: LayerView) -> bool:
        """Whether every layer of a weight is of this block."""
        inside = set(self.module.modules())
        return all(layer.module in inside for layer in view.layers)


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


class Chain:
    """Blocks that each take what the one before returns; activations of all batches are kept.

    What else a block is given, as masks and numbers, is what the model gives it in each batch. In
    the first batch every block is called; others may skip some.

    Args:
        blocks: In order.
        run: Runs the whole model on a batch, by its number.
        batches: Which batches.
        store: Where the weights of the blocks are.
    """

    def __init__(
        self, blocks: Sequence[NamedBlock], run: Callable[[int], Any], batches: Sequence[int], store: InMemory
    ) -> None:
        self.blocks, self._run, self._batches, self._store = blocks, run, batches, store
        self._modules = [block.module for block in blocks]
        self._calls: dict[int, list[Any]] = {}  # for each batch the arguments of each block; None once it ran
        self._state: dict[int, dict[Path, Tensor]] = {}  # what the block before returned
        self._at = 0

    @torch.no_grad()
    def begin(self) -> str | None:
        """Runs the model through the blocks, and notes what each is given.

        Returns:
            None; or why the blocks cannot be run by themselves.
        """
        first = self._batches[0]
        recorder = Recorder([block.name for block in self.blocks], self._modules, self._run)
        try:
            with self._store.calls():
                recorded = recorder.record(first, first=True)
                self._calls[first] = recorded.arguments
                if (why := self._compared(recorded.outputs)) is not None:
                    return why
            stand_ins = self._stand_ins(recorder, recorded)
            with self._store.calls() if stand_ins is None else stand_ins.in_place():
                for number in self._batches[1:]:
                    self._calls[number] = recorder.record(number, first=False).arguments
        except BrokenChainError as error:
            return str(error)
        return None

    def _stand_ins(self, recorder: Recorder, recorded: Recorded) -> StandIns | None:
        """Blocks that compute nothing, which spare a pass over the data, and reading it from disk.

        Args:
            recorder: Of calls.
            recorded: The first batch.

        Returns:
            They; None where nothing can stand in, or where numbers that blocks compute reach Python
            before the next block: in another batch, the model may then call other blocks.

        Raises:
            BrokenChainError: If blocks are given something else with them.
            ValueError: If the model does not take the first batch.
        """
        stand_ins = StandIns(self._modules, recorded)
        try:
            with stand_ins.in_place(), Decisions() as decisions:
                without = recorder.record(self._batches[0], first=True, decisions=decisions)
        except BrokenChainError:
            return None
        except ValueError as error:  # of the model, on numbers that no block computes
            if not stand_ins.invented or self._store.on_disk:
                raise
            raise BrokenChainError("the model takes numbers that blocks compute between them") from error
        if (differs := first_difference(recorded, without)) is not None:
            if self._store.on_disk:
                return None
            raise BrokenChainError(f"what block {self.blocks[differs].name!r} is given depends on what blocks compute")
        return None if decisions.found or stand_ins.invented else stand_ins

    def run(self, number: int) -> Any:
        """Runs the present block on a batch; None where the batch skips it."""
        call = self._calls[number][self._at]
        if call is None:
            return None
        state = self._state.get(number, {})
        copies: dict[int, Tensor] = {}  # what is one tensor stays one

        def leaf(_: Path, x: Any) -> Any:
            found = state[x.path] if isinstance(x, Carried) else x
            if not isinstance(found, Tensor) or isinstance(found, nn.Parameter):
                return found
            return copies.setdefault(id(found), found.clone())

        positional, named = tree.replaced(call, leaf)
        return self.blocks[self._at].module(*positional, **named)

    @torch.no_grad()
    def advance(self) -> None:
        """Runs the present block, as it is now, on all batches, and goes on to the next."""
        for number in self._batches:
            calls = self._calls[number]
            if calls[self._at] is None:
                continue
            if any(call is not None for call in calls[self._at + 1 :]):
                self._keep(number, self.run(number))
            else:
                self._state.pop(number, None)
            calls[self._at] = None
        self._at += 1

    def _keep(self, number: int, output: Any) -> None:
        """Keeps what the next block that a batch calls takes of an output."""
        output = tree.tensors(output)
        following = next(call for call in self._calls[number][self._at + 1 :] if call is not None)
        paths = {leaf.path for _, leaf in tree.leaves(following) if isinstance(leaf, Carried)}
        self._state[number] = {path: output[path] for path in paths}

    def _compared(self, outputs: Sequence[Any]) -> str | None:
        """Whether blocks run by themselves return what they return within the model."""
        number = self._batches[0]
        try:
            for place in range(len(self.blocks)):
                self._at = place
                try:
                    result = self.run(number)
                except Exception as error:  # which only a call of one's own can tell from the model's
                    return f"block {self.blocks[place].name!r} raises {type(error).__name__} by itself"
                output = tree.tensors(result)
                for path, wanted in tree.tensors(outputs[place]).items():
                    got = output.get(path)
                    if got is None or got.shape != wanted.shape:
                        return f"block {self.blocks[place].name!r} returns something else by itself"
                    scale = float(wanted.abs().max()) if wanted.numel() and wanted.is_floating_point() else 0.0
                    if scale and float((got - wanted).abs().max()) > _CLOSE * scale:
                        return f"block {self.blocks[place].name!r} computes something else by itself"
                if place + 1 < len(self.blocks):
                    self._keep(number, result)
        finally:
            self._at = 0
            self._state.clear()
        return None
