"""Parameter groups by layer or by kind, so that each gets a window of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from mfac.core.checks.choices import check_choice


def group_parameters(model: nn.Module, by: Literal["layer", "tensor", "kind"] = "layer") -> list[dict[str, Any]]:
    """Groups of a model's trainable parameters, for `mfac.MFAC` or any torch optimizer.

    A window for each group is a Fisher that is block-diagonal over the groups. By layer it leaves
    out the curvature between layers, and what it costs is m² for every group more.

    Args:
        model: Whose parameters. What two modules share is taken once, for the first.
        by: "layer": a group for the parameters that one module holds itself. "tensor": a group for
            each parameter. "kind": one group for "matrices", of two or more dimensions, one for
            "embeddings", and one for "vectors", biases and norms, which usually take no weight
            decay.

    Returns:
        Groups with "params" and a "name", in the order of the model; options may be added to each.

    Raises:
        ValueError: If `by` is something else.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> groups = mfac.group_parameters(model, by="kind")
        >>> matrices, vectors = groups
        >>> vectors["name"], len(vectors["params"])
        ('vectors', 3)
        >>> vectors.update(weight_decay=0.0)
        >>> opt = mfac.MFAC(groups, lr=1e-3, weight_decay=0.01)
    """
    check_choice("by", by, ("layer", "tensor", "kind"))
    name_of: dict[str, Callable[[str, nn.Module, nn.Parameter], str]] = {
        "layer": lambda name, module, parameter: name.rpartition(".")[0],
        "tensor": lambda name, module, parameter: name,
        "kind": lambda name, module, parameter: _kind(module, parameter),
    }
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault(name_of[by](name, module, parameter), []).append(parameter)
    return [{"name": name, "params": parameters} for name, parameters in groups.items()]


def _kind(module: nn.Module, parameter: nn.Parameter) -> str:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embeddings"
    return "matrices" if parameter.dim() >= 2 else "vectors"
