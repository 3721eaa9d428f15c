"""Masks by parameter name: made, saved, applied, and kept through training."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mfac.gradients.naming import named_layers, named_parameters
from mfac.gradients.parameters import Selection, match_parameters
from mfac.gradients.prunable import parameter_behind, weight_names
from mfac.masks.attachment import MaskHandle
from mfac.masks.located import locate
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.masks.storage import read_tensors, write_tensors

KIND = "mfac.masks"


class Count(NamedTuple):
    """How many weights of a tensor are kept, of how many."""

    kept: int
    total: int


class Masks(Mapping[str, Tensor]):
    """Which weights of a model are kept: parameter name to bool tensor of its shape, True = kept.

    Names are those of the model without the prefixes of wrappers (`DataParallel`,
    `DistributedDataParallel`, `torch.compile`), so that masks of a wrapped model fit the model
    itself and the reverse.

    Args:
        masks: A mapping of names to bool tensors, as `report.masks`. Tensors are taken by
            reference.

    Raises:
        TypeError: If `masks` is no mapping of names to bool tensors.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> masks = mfac.Masks({"weight": torch.tensor([[True, False, True, False]])})
        >>> masks
        Masks(1 tensor, 2 of 4 weights kept, sparsity 0.5000)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> handle = masks.attach(model, optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> int((model.weight == 0).sum())
        2
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if not isinstance(masks, Mapping):
            raise TypeError(
                f"Parameter `masks` should be a mapping of names to bool tensors. Found {type(masks).__name__}."
            )
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise TypeError(f"Parameter `masks` should hold bool tensors, True = kept. Found {found} for {name!r}.")
        self._masks = {str(name): mask.detach() for name, mask in masks.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    @classmethod
    def from_zeros(cls, model: nn.Module, params: Selection = None) -> Masks:
        """Takes the zeros that a model has for dropped weights.

        Args:
            model: The model, wrapped or not.
            params: Names, shell-style patterns, parameters or a predicate. None for the weights of
                all layers that `mfac.prune` knows, without tensors of zeros alone: a branch that
                starts at zero is not pruned.

        Returns:
            The masks.

        Raises:
            ValueError: If nothing is selected.
        """
        named = named_parameters(model)
        if params is None:
            behind = {
                id(parameter_behind(layer, name)) for _, layer in named_layers(model) for name in weight_names(layer)
            }
            chosen = {name for name, p in named.items() if id(p) in behind and bool(p.any())}
        else:
            chosen = match_parameters(named, params)
        if not chosen:
            raise ValueError(
                f"Parameter `params` should select at least one parameter of the model. Found none among {list(named)}."
            )
        return cls({name: p.detach() != 0 for name, p in named.items() if name in chosen})

    @classmethod
    def from_torch_prune(cls, model: nn.Module) -> Masks:
        """Takes the masks of `torch.nn.utils.prune`, which keeps them in buffers `<name>_mask`.

        Args:
            model: A model under torch's pruning.

        Returns:
            Masks under the name `<name>`, which finds the parameter `<name>_orig` now, and `<name>`
            once `torch.nn.utils.prune.remove` has been called.

        Raises:
            ValueError: If no parameter has such a mask.
        """
        found = {}
        for layer_name, layer in named_layers(model):
            for parameter in layer._parameters:
                name = parameter.removesuffix("_orig")
                mask = layer._buffers.get(f"{name}_mask")
                if name != parameter and mask is not None:
                    found[f"{layer_name}.{name}" if layer_name else name] = mask != 0
        if not found:
            raise ValueError(
                "Parameter `model` should have parameters under torch.nn.utils.prune. Found no buffer `<name>_mask` "
                "beside a parameter `<name>_orig`."
            )
        return cls(found)

    def save(self, path: str | os.PathLike[str]) -> int:
        """Writes the masks to a file, one bit a weight; the file appears whole or not at all.

        Args:
            path: Ends in ".safetensors", which needs safetensors, or in ".pt" or ".pth" for torch's
                own form, which `torch.load` reads with `weights_only=True`.

        Returns:
            The size of the file in bytes.

        Raises:
            ValueError: If the path ends otherwise.
            ImportError: If safetensors is asked for and not installed.
        """
        bits = {name: pack_bits(mask) for name, mask in self.items()}
        return write_tensors(path, KIND, bits, {"shapes": {name: list(mask.shape) for name, mask in self.items()}})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Masks:
        """Reads a file of `save`.

        Args:
            path: The file.

        Returns:
            The masks, on the CPU.

        Raises:
            ValueError: If the file holds no masks.
            ImportError: If the file is in safetensors' form, and safetensors is not installed.
            FileNotFoundError: If there is no such file.
        """
        bits, about = read_tensors(path, KIND)
        return cls({name: unpack_bits(bits[name], shape) for name, shape in about["shapes"].items()})

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> None:
        """Sets the dropped weights of a model to zero, even a NaN or an infinity.

        Args:
            model: A model with parameters of the masks' names and shapes, wrapped or not.

        Raises:
            ValueError: If a name or shape is not the model's; the model is then as it was.
        """
        for name, parameter in locate(model, self).items():
            parameter.masked_fill_(~self[name].to(parameter.device), 0)  # a product would leave a NaN as it is

    def attach(self, model: nn.Module, optimizer: Optimizer, keep_state: Collection[str] = ()) -> MaskHandle:
        """Keeps dropped weights and their momentum at zero through every step of an optimizer.

        Works with any optimizer of torch's base class, with closures, parameter groups and
        `GradScaler`; masks follow the model to another device. Parameters that the optimizer does
        not have only stay zero. A copy of the optimizer has no hooks: attach again. With several
        optimizers attach to each.

        State tensors of a parameter's shape are taken for one value a weight, as in every optimizer
        of torch. Name other tensors in `keep_state`, such as a preconditioner that is as large as a
        square weight. The window of `mfac.MFAC` has columns for kept weights alone from the next
        step on, also of the gradients that it holds from before.

        Args:
            model: The masked model. Its dropped weights are set to zero at once.
            optimizer: The optimizer of the model's parameters.
            keep_state: Keys of optimizer state to leave as they are.

        Returns:
            A handle: `handle.remove()` takes the hooks away.

        Raises:
            TypeError: If `optimizer` is no `torch.optim.Optimizer`.
            ValueError: If a name or shape is not the model's, or the optimizer has none of the
                parameters.

        Cost: a step reads and writes weights twice, gradients and state once; memory as much as the
        masked weights.
        """
        return MaskHandle(model, optimizer, self, keep_state)

    def counts(self) -> dict[str, Count]:
        """How many weights of each parameter are kept, of how many."""
        return {name: Count(int(mask.sum()), mask.numel()) for name, mask in self.items()}

    @property
    def sparsity(self) -> float:
        """Share of dropped weights among all weights that have a mask."""
        counts = self.counts().values()
        total = sum(count.total for count in counts)
        return (total - sum(count.kept for count in counts)) / total if total else 0.0

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on a device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def __and__(self, other: object) -> Masks:
        """Kept by both masks; a parameter that one mask alone names is kept as that mask says."""
        if not isinstance(other, Mapping):
            return NotImplemented
        both = {**self, **Masks(other)}
        for name in self.keys() & other.keys():
            if self[name].shape != other[name].shape:
                raise ValueError(
                    f"Parameter `other` should have {name!r} of shape {list(self[name].shape)}. "
                    f"Found {list(other[name].shape)}."
                )
            both[name] = self[name] & other[name].to(self[name].device)
        return Masks(both)

    __rand__ = __and__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(
            isinstance(other[name], Tensor) and torch.equal(mask, other[name].to(mask.device))
            for name, mask in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = self.counts().values()
        kept, total = sum(count.kept for count in counts), sum(count.total for count in counts)
        tensors = f"{len(self)} tensor{'' if len(self) == 1 else 's'}"
        return f"Masks({tensors}, {kept} of {total} weights kept, sparsity {self.sparsity:.4f})"
