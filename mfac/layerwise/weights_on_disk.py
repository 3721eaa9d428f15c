"""Models larger than memory: a block's weights come out of files, are solved, and go to others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfac.gradients.naming import inner_module, named_layers, named_parameters, other_names
from mfac.layerwise.chain import InMemory, NamedBlock
from mfac.layerwise.processes import Processes
from mfac.layerwise.weight_files import Shards, Source, WeightFiles

OUTSIDE = "lies outside of the blocks, which alone are solved with `weights`"
"""Why a weight is left dense."""


@dataclass
class _State:
    """A parameter or buffer, and its name in the files.

    Attributes:
        name: Its first name in the model.
        names: Those under which files have it.
        place: Of a buffer its module and name there; None for a parameter.
        block: The block that it is of; None outside of all blocks.
    """

    name: str
    names: list[str]
    tensor: Tensor
    place: tuple[nn.Module, str] | None
    block: int | None


class WeightsOnDisk(InMemory):
    """Weights that are in files, but for one block at a time and what lies outside of all blocks.

    Nothing is read but names and shapes until the object is entered; in the end the model is on the
    meta device again.

    Args:
        model: With all parameters on the meta device.
        chains: Of its blocks.
        weights: Files of safetensors.
        output: The folder that the pruned model is written to.
        device: Where weights are put.
        processes: The first one writes.

    Raises:
        ValueError: If the model has no single chain, is not on the meta device, or is not what the
            files hold.
        ImportError: If safetensors is not installed.

    Attributes:
        kept_zeros: How many kept weights of each tensor are zero.
        zeros: How many zeros each other tensor has.
        notes: What a user should know.
    """

    on_disk = True

    def __init__(
        self,
        model: nn.Module,
        chains: Sequence[Sequence[NamedBlock]],
        weights: Source,
        output: str | os.PathLike[str],
        device: torch.device,
        processes: Processes,
    ) -> None:
        if len(chains) != 1:
            raise ValueError(
                f"Parameter `model` should have one list of like blocks with `weights`, as only blocks are read one "
                f"after the other; `blocks` names them where they are not found. Found {len(chains)} lists."
            )
        self._model, self._chain, self._device, self._processes = model, list(chains[0]), device, processes
        for name, parameter in named_parameters(model).items():
            if parameter.device.type != "meta":
                raise ValueError(
                    f"Parameter `model` should have all its parameters on the meta device with `weights`. Found "
                    f"{name!r} on {parameter.device}: make the model within mfac.parameters_on_meta()."
                )
        self._source = WeightFiles(weights)
        self._states = self._of_model()
        self._check_shapes()
        self._first = int(any(state.block is None and state.names for state in self._states))
        self._shards = Shards(output, self._first + len(self._chain), self._source.paths)
        self._empty: dict[int, list[tuple[_State, Tensor]]] = {}
        self._moved: list[tuple[nn.Module, str, Tensor]] = []
        self._at: int | None = None
        self.kept_zeros: dict[str, int] = {}
        self.zeros: dict[str, int] = {}
        unknown = self._source.names - {name for state in self._states for name in state.names}
        self.notes = [
            f"Of `weights` {len(unknown)} tensors were left out, as the model has no {name!r} and the like."
            for name in sorted(unknown)[:1]
        ]

    def __enter__(self) -> WeightsOnDisk:
        """Loads what lies outside of the blocks."""
        self._shards.begin()
        for _, layer in named_layers(self._model):  # tables that are made by the model and in no file
            for key, buffer in layer._buffers.items():
                if buffer is not None and buffer.device.type != "meta" and buffer.device != self._device:
                    self._moved.append((layer, key, buffer))
                    layer._buffers[key] = buffer.to(self._device)
        self._load(None)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the model back on the meta device."""
        for place in list(self._empty):
            self._drop(None if place < 0 else place)
        for layer, key, buffer in self._moved:
            layer._buffers[key] = buffer
        self._source.close()

    def finish(self, masks: Mapping[str, Tensor]) -> None:
        """Writes what lies outside of the blocks, and the index.

        Args:
            masks: Of the weights that were solved.
        """
        with self._processes.together():
            self._write(None, masks)
            if self._processes.rank == 0:
                self._shards.end()
                for path in self._source.beside():  # so that the folder loads as that of the dense model does
                    shutil.copyfile(path, self._shards.folder / path.name)

    @contextmanager
    def calls(self) -> Generator[None]:
        """Within, each block is read when it is called, and the one before it is dropped.

        Yields:
            Nothing.
        """
        handles = [
            block.module.register_forward_pre_hook(lambda *_, place=place: self._use(place))
            for place, block in enumerate(self._chain)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def held(self, block: NamedBlock, masks: dict[str, Tensor]) -> Generator[None]:
        """Within, a block is in memory; afterwards it is in a file.

        Args:
            block: The block.
            masks: By weight; those of the block are then read from a file when they are used.

        Yields:
            Nothing.
        """
        place = self._chain.index(block)
        with self._processes.together():
            self._use(place)
        try:
            yield
        except BaseException:
            self._drop(place)
            self._at = None
            raise
        with self._processes.together():
            self._write(place, masks)
            names = [state.name for state in self._states if state.block == place and state.name in masks]
            if names and self._processes.rank == 0:
                self._shards.spilled(place, {name: masks[name] for name in names})
        with self._processes.together():
            masks.update(self._shards.read_spilled(place) if names else {})
            self._drop(place)
            self._at = None

    def _use(self, place: int) -> None:
        """Has a block in memory, and no other."""
        if self._at == place:
            return
        if self._at is not None:
            self._drop(self._at)
        self._at = place
        self._load(place)

    @torch.no_grad()
    def _load(self, place: int | None) -> None:
        kept = self._empty.setdefault(-1 if place is None else place, [])
        for state in self._states:
            if state.block != place or not state.names:
                continue
            value = self._source.read(state.names[0]).to(self._device, state.tensor.dtype, copy=True)
            if state.place is not None:
                layer, key = state.place
                kept.append((state, state.tensor))
                layer._buffers[key] = value
                continue
            loaded = nn.Parameter(value, requires_grad=state.tensor.requires_grad)
            # The parameter stays the same object, so that ties and all that know it hold.
            torch.utils.swap_tensors(state.tensor, loaded)
            kept.append((state, loaded))

    def _drop(self, place: int | None) -> None:
        for state, empty in self._empty.pop(-1 if place is None else place, []):
            if state.place is not None:
                layer, key = state.place
                layer._buffers[key] = empty
            else:
                torch.utils.swap_tensors(state.tensor, empty)

    @torch.no_grad()
    def _write(self, place: int | None, masks: Mapping[str, Tensor]) -> None:
        """Counts zeros, and writes a block: what was not solved as the files have it."""
        tensors: dict[str, Tensor] = {}
        for state in (state for state in self._states if state.block == place and state.names):
            solved = state.name in masks
            if state.place is None:
                zeros = state.tensor == 0
                counts = self.kept_zeros if solved else self.zeros
                counts[state.name] = int((zeros & masks[state.name].to(zeros.device)).sum() if solved else zeros.sum())
            if self._processes.rank:
                continue
            for name in state.names:
                value = self._source.read(name)
                tensors[name] = state.tensor.detach().to("cpu", value.dtype, copy=True) if solved else value
        if tensors:
            number = 0 if place is None else self._first + place
            self._shards.write(number, {name: tensor.contiguous() for name, tensor in tensors.items()})

    def _of_model(self) -> list[_State]:
        """Every parameter and buffer that files have, or should have."""
        blocks: dict[int, set[int | None]] = {}
        inside = [{id(inner_module(layer)) for layer in block.module.modules()} for block in self._chain]
        names = {name: [name] for name in named_parameters(self._model)}
        for other, first in other_names(self._model).items():
            names[first].append(other)
        held = self._source.names
        states, missing, unmade = [], [], []
        for layer_name, layer in named_layers(self._model):
            where: set[int | None] = {place for place, ids in enumerate(inside) if id(layer) in ids}
            for parameter in layer._parameters.values():
                if parameter is not None:
                    blocks.setdefault(id(parameter), set()).update(where or {None})
            for key, buffer in layer._buffers.items():
                name = f"{layer_name}.{key}" if layer_name else key
                if buffer is None:
                    continue
                if name in held and key not in layer._non_persistent_buffers_set:
                    block = next(iter(where)) if len(where) == 1 else None
                    states.append(_State(name, [name], buffer, (layer, key), block))
                elif buffer.device.type == "meta":
                    unmade.append(name)
        if unmade:
            raise ValueError(
                f"Parameter `model` should have buffers on the CPU that are in no file of `weights`. Found {unmade} on "
                f"the meta device: make the model within mfac.parameters_on_meta(), in place of torch.device('meta')."
            )
        for name, parameter in named_parameters(self._model).items():
            found = [one for one in names[name] if one in held]
            of = blocks[id(parameter)]
            if not found:
                missing.append(name)
            if len(of - {None}) > 1:
                raise ValueError(
                    f"Parameter `model` should have blocks with parameters of their own, with `weights`. Found "
                    f"{name!r} in several."
                )
            states.append(_State(name, found, parameter, None, None if None in of else next(iter(of))))
        if missing:
            raise ValueError(
                f"Parameter `weights` should hold every parameter of the model, by its name in the state dict. Found "
                f"no {missing[0]!r}, one of {len(missing)} that are missing. Where it is tied to another parameter, "
                f"tie them in the model first. Where `save_pretrained` gives experts names of another kind, write "
                f"the state dict by safetensors.torch.save_file."
            )
        return states

    def _check_shapes(self) -> None:
        for state in self._states:
            for name in state.names:
                if self._source.shape(name) != tuple(state.tensor.shape):
                    raise ValueError(
                        f"Parameter `weights` should hold tensors of the model's shapes. Found {name!r} of shape "
                        f"{list(self._source.shape(name))}, not {list(state.tensor.shape)}."
                    )
                if state.tensor.is_floating_point() and not self._source.is_floating(name):
                    raise ValueError(
                        f"Parameter `weights` should hold floating-point weights of 16 bits or more. Found {name!r}, "
                        f"which is of another dtype."
                    )
