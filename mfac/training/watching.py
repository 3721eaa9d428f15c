"""The gradients of a step, dropped weights too, for recipes that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mfac.training.recipe import Recipe
from mfac.training.tensors import MaskedTensors


class Watcher:
    """Takes gradients before masks clear them. What is taken is a copy.

    Args:
        tensors: Parameters with masks.
        optimizers: Of the training.
        recipe: Says at which steps it wants gradients.
    """

    def __init__(self, tensors: MaskedTensors, optimizers: Sequence[Optimizer], recipe: Recipe) -> None:
        self._tensors, self._optimizers, self._recipe = tensors, optimizers, recipe
        self._gradients: dict[str, Tensor] = {}

    def see(self, number: int, counts: Sequence[int], memory: MutableMapping[str, Any]) -> bool:
        """Sees the gradients before a step of an optimizer.

        Args:
            number: Of the optimizer.
            counts: Steps of each so far.
            memory: Of the recipe.

        Returns:
            Whether masks change now, before the update.
        """
        step = min(counts) + 1  # of all optimizers; one that steps more often is seen each time
        early = self._recipe.is_before_update(step)
        wanted = early or self._recipe.needs_gradient(step) or self._recipe.needs_gradient(counts[number] + 1)
        if not wanted and not self._recipe.watches:
            return False
        own = self._scaled(self._optimizers[number])
        if self._recipe.watches:
            self._watch(own, memory)
        if early:  # the others' too, as their weights may have moved when it is their turn
            for other, optimizer in enumerate(self._optimizers):
                self._check_there(other)
                own = {**self._scaled(optimizer), **own}
        if wanted:
            self._gradients.update({name: gradient.clone() for name, gradient in own.items()})
        return early

    def _check_there(self, number: int) -> None:
        """Refuses an optimizer without any gradient where weights are chosen by gradients."""
        held = self._tensors.held_by(self._optimizers[number])
        if held and not any(leaf.grad is not None for leaves in held.values() for leaf in leaves):
            raise ValueError(
                f"The first step should have gradients of all masked weights, by which they are chosen: take those of "
                f"all optimizers before one steps. Found none of {list(held)[:3]}, of optimizer {number}."
            )

    def dense(self) -> Tensor:
        """The gradients last taken.

        Returns:
            [d], of all weights with masks.

        Raises:
            RuntimeError: If the recipe has asked for none.
        """
        names = self._tensors.names
        if missing := [name for name in names if name not in self._gradients]:
            raise RuntimeError(
                f"There are no gradients of {missing[:3]} at this change. Either the recipe's `needs_gradient` is "
                "False for it, or no optimizer has these parameters any more, as after another was put in their place."
            )
        return torch.cat([self._gradients[name] for name in names])

    def state_dict(self) -> dict[str, Tensor]:
        """Gradients taken for a change to come, where one of several optimizers is ahead."""
        return {name: gradient.clone() for name, gradient in self._gradients.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up those of another.

        Args:
            state: Of `state_dict`.
        """
        devices = {name: parameter.device for name, parameter in self._tensors.parameters.items()}
        self._gradients = {name: gradient.to(devices[name], copy=True) for name, gradient in state.items()}

    def forget(self) -> None:
        """Frees the gradients."""
        self._gradients = {}

    def _scaled(self, optimizer: Optimizer) -> dict[str, Tensor]:
        found = self._tensors.gradients(optimizer)
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):  # of a fused optimizer, which divides by it itself
            found = {name: gradient / scale.to(gradient.device) for name, gradient in found.items()}
        return found

    def _watch(self, own: dict[str, Tensor], memory: MutableMapping[str, Any]) -> None:
        """Shows gradients to the recipe once those of all optimizers are there."""
        names = self._tensors.names
        if len(own) < len(names):
            waiting = memory.setdefault("waiting", {})
            waiting.update({name: gradient.clone() for name, gradient in own.items()})
            if len(waiting) < len(names):
                return
            own = memory.pop("waiting")
        gradients = [own[name] for name in names]
        # A step that an optimizer skips for a NaN would stay in an average for good.
        if bool(torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]).isfinite().all()):
            self._recipe.watch(gradients, memory)
