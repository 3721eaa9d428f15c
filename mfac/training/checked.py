"""Small questions that a masked training asks of a recipe, an optimizer and a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mfac.training.recipe import Recipe


def seed_apart(seed: int) -> int:
    """A seed that nobody else takes: weights made with the same one would go with their masks.

    Args:
        seed: As given.

    Returns:
        A function of it alone.
    """
    return int.from_bytes(hashlib.sha256(f"mfac.MaskedTraining {seed}".encode()).digest()[:7], "big")


def checked_optimizers(optimizer: Any) -> list[Optimizer]:
    """Accepts an optimizer, or several.

    Args:
        optimizer: What was given.

    Returns:
        A list.

    Raises:
        TypeError: If it is something else.
    """
    found = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for each in found:
        if not isinstance(each, Optimizer):
            raise TypeError(
                f"Parameter `optimizer` should be a torch.optim.Optimizer or several. Found {type(each).__name__}."
            )
    if not found:
        raise TypeError("Parameter `optimizer` should be a torch.optim.Optimizer or several. Found none.")
    return found


def checked_keys(keep_state: Any) -> list[str]:
    """Accepts names of entries of optimizer state.

    Args:
        keep_state: What was given.

    Returns:
        A list.

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(keep_state, str) or not isinstance(keep_state, Collection):
        raise TypeError(f"Parameter `keep_state` should be a list of names. Found {keep_state!r}.")
    return list(keep_state)


def needs_fisher(recipe: Recipe) -> bool:
    """Whether any part of a recipe asks for the Fisher.

    Args:
        recipe: The recipe.

    Returns:
        Whether a saliency of it does.
    """
    parts = [recipe, *vars(recipe).values()]
    parts += [part.rules for part in parts if hasattr(part, "rules")]
    return any(getattr(getattr(part, "saliency", None), "needs_fisher", False) for part in parts)


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether a `GradScaler` has an optimizer that scales itself skip this step.

    Args:
        optimizer: In its step.

    Returns:
        Whether the weights stay.
    """
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether the step just taken was none, by a `GradScaler` or by `mfac.MFAC(nonfinite="skip")`.

    Args:
        optimizer: After its step.

    Returns:
        Whether the weights are those of before.
    """
    return is_skipped(optimizer) or getattr(optimizer, "skipped", False) is True


def will_skip(optimizer: Optimizer) -> bool:
    """Whether an optimizer will skip the step that comes, whose gradients no recipe should see.

    Args:
        optimizer: Before its step, with gradients.

    Returns:
        Whether a gradient is not finite that makes the optimizer skip. One pass over the gradients
        of `mfac.MFAC(nonfinite="skip")`, none of other optimizers'.
    """
    if is_skipped(optimizer):
        return True
    if getattr(optimizer, "nonfinite", None) != "skip":
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not all(bool(gradient.isfinite().all()) for gradient in gradients)


def checked_masks(masks: Any, before: Tensor) -> Tensor:
    """Accepts the masks that a recipe returns.

    Args:
        masks: What it returned.
        before: The masks of before.

    Returns:
        The masks.

    Raises:
        TypeError: If they are of another type or shape.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.shape != before.shape:
        found = f"{masks.dtype}, {list(masks.shape)}" if isinstance(masks, Tensor) else type(masks).__name__
        raise TypeError(
            f"Parameter `recipe` should return masks as a tensor of bool, {list(before.shape)}. Found {found}."
        )
    return masks
