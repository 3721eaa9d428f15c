"""The parameters of a training that have masks: as flat vectors, whole on every process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from mfac.gradients.parameters import Selection
from mfac.gradients.prunable import describe_weights
from mfac.masks.located import locate, masked_parameter, same_memory
from mfac.masks.packing import pack_bits, unpack_bits
from mfac.pruning.targets import choose_targets

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MaskedTensors:
    """Parameters with masks, looked up by name each time, and so followed wherever they go.

    Args:
        model: The model, wrapped or not.
        params: Which parameters; None for the weights of linear layers, convolutions, recurrent
            layers and attentions. Biases, norms and embeddings are left out unless named.

    Raises:
        TypeError: If a parameter is not real floating-point.
        ValueError: If nothing is selected, or a weight is computed from other parameters.

    Attributes:
        weights: What is known of each.
        names: Of each.
        left_dense: Name of every other weight tensor, and why it has no mask.
    """

    def __init__(self, model: nn.Module, params: Selection = None) -> None:
        targets = choose_targets(model, params, "ignore")
        self.model = model
        self.left_dense = targets.left_dense
        self.weights = describe_weights(model, targets.vector.parameters)
        self.names = [weight.name for weight in self.weights]
        self.sizes = {weight.name: weight.size for weight in self.weights}
        self._like = {weight.name: torch.empty(weight.shape, device="meta") for weight in self.weights}
        self._aliases = {name: same_memory(model, parameter)[1:] for name, parameter in self.parameters.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Name to parameter, as the model has them now."""
        return locate(self.model, self._like)

    @property
    def device(self) -> torch.device:
        """Where the first of them is."""
        return masked_parameter(self.model, self.names[0]).device

    def leaves(self, name: str) -> list[nn.Parameter]:
        """A parameter and every other one that is the same numbers in the same memory."""
        return [masked_parameter(self.model, name), *self._aliases[name]]

    def held_by(self, *optimizers: Optimizer) -> dict[str, list[nn.Parameter]]:
        """Name to those `leaves` that some optimizers have; none of a name without any."""
        known = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        held = {name: [leaf for leaf in self.leaves(name) if id(leaf) in known] for name in self.names}
        return {name: leaves for name, leaves in held.items() if leaves}

    def check_held(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuses a masked parameter that no optimizer has.

        Args:
            optimizers: Of the training.

        Raises:
            ValueError: If there is one, with its name.
        """
        held = self.held_by(*optimizers)
        lost = [name for name in self.names if name not in held]
        if lost:
            count = sum(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)
            raise ValueError(
                f"Parameter `optimizer` should have every parameter that gets a mask. Found none of {lost} among its "
                f"{count}: leave them out of `params`, or give all optimizers as a list."
            )

    def flat(self) -> Tensor:
        """The weights, [d] float32, or float64 where any is; a copy, whole on every process."""
        return _joined([parameter.detach() for parameter in self.parameters.values()])

    def gradients(self, of: Optimizer) -> dict[str, Tensor]:
        """Gradients of those parameters that an optimizer has, [size] each; by reference if whole.

        Args:
            of: The optimizer.

        Returns:
            Name to gradient; zeros where there is none.
        """
        found = {}
        for name, leaves in self.held_by(of).items():
            gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
            if gradients:
                pieces = [whole(g.detach().to_dense() if g.is_sparse else g.detach()).reshape(-1) for g in gradients]
                piece = pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)
                found[name] = piece.float() if piece.dtype.itemsize < 4 else piece
            else:
                found[name] = torch.zeros(self.sizes[name], device=leaves[0].device)
        return found

    def masks(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector [d] bool as a mask of each parameter's shape, by name; views."""
        pieces = flat.split(list(self.sizes.values()))
        return {weight.name: piece.view(weight.shape) for weight, piece in zip(self.weights, pieces, strict=True)}

    def _own_name(self, name: str) -> str:
        """A parameter's name, also after `torch.nn.utils.prune` has renamed it."""
        renamed = f"{name}_orig"
        return renamed if renamed in self._like and name not in self._like else name

    def joined_masks(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Masks of some parameters, and True for all others, as one vector [d] bool.

        Args:
            masks: Parameter name to mask of its shape.

        Returns:
            The vector.

        Raises:
            ValueError: If a name has no mask in this training, or a shape is another.
        """
        masks = {self._own_name(name): mask for name, mask in masks.items()}
        for name, mask in masks.items():
            if name not in self._like:
                raise ValueError(
                    f"Parameter `masks` should name parameters that get a mask. Found {name!r}, none of {self.names}."
                )
            if mask.shape != self._like[name].shape:
                raise ValueError(
                    f"Parameter `masks` should have {name!r} of shape {list(self._like[name].shape)}. "
                    f"Found {list(mask.shape)}."
                )
        device = self.device
        pieces = [
            masks[name].reshape(-1).to(device) if name in masks else torch.ones(size, dtype=torch.bool, device=device)
            for name, size in self.sizes.items()
        ]
        return torch.cat(pieces)


def whole(tensor: Any) -> Tensor:
    """A tensor, or all of a DTensor that each process has a part of."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def local(tensor: Any) -> Tensor:
    """A tensor, or what this process has of a DTensor."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.cat([whole(t).reshape(-1).to(torch.float64 if wide else torch.float32) for t in tensors])


def agreed(masks: Tensor, group: ProcessGroup | None) -> Tensor:
    """The masks of a group's first process, on all of its processes.

    Args:
        masks: [d] bool.
        group: The processes; None for this one alone.

    Returns:
        [d] bool, after one broadcast of d bits.
    """
    if group is None or distributed.get_world_size(group) == 1:
        return masks
    bits = pack_bits(masks).to(masks.device)
    distributed.broadcast(bits, group_src=0, group=group)
    return unpack_bits(bits, masks.shape).to(masks.device)
