"""Physical removal: channels and heads that masks have emptied are cut out of layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module, named_layers, named_parameters
from mfac.gradients.prunable import describe_weights
from mfac.masks.kinds.axes import as_matrix
from mfac.masks.shrink_channels import LAYERS, ChannelRemoval
from mfac.masks.shrink_heads import HeadRemoval


@dataclass
class Shrunk:
    """What `shrink` returns.

    Attributes:
        model: The smaller model, a copy.
        removed: Layer to how many of its output channels are gone.
        heads: Attention to how many of its heads are gone.
        left: Layer with emptied channels, or attention with emptied heads, that stay, and why.
        inputs_left: Layer to how many of its input channels are zero and stay, as no layer that can
            be followed makes them.
    """

    model: nn.Module
    removed: dict[str, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    inputs_left: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: {count} output channels removed" for name, count in self.removed.items()]
        lines += [f"{name}: {count} heads removed" for name, count in self.heads.items()]
        lines += [f"{name}: left as it is: {why}" for name, why in self.left.items()]
        lines += [f"{name}: {count} input channels of zeros stay" for name, count in self.inputs_left.items()]
        return "\n".join(lines)


def shrink(model: nn.Module, masks: Any, *, example: Any = None) -> Shrunk:
    """Cuts emptied channels out of layers and the next layers, and emptied heads out of attentions.

    A channel goes if its row of weights is zero, or if all weights of the next layer for the
    channel are zero. A channel with a row of zeros is constant. The constant is taken through the
    layers between and into the next layer's bias, so that the smaller model computes the same
    function, up to rounding. `shrink` works on models that `torch.fx` can trace in evaluation mode:
    linear layers and convolutions of one group, one after the other, with batch norm, pooling,
    flattening, dropout and elementwise functions between. Of other models it takes the traceable
    parts, where the model returns the same for `example` afterwards. Layers with hooks, with
    computed weights, or in several places stay. Where all channels would go, the first one stays.
    Where weights are masked and no channel or head is empty, a warning says so.

    A head goes if its columns of the output projection are zero, as `mfac.Heads` leaves them.
    `torch.nn.MultiheadAttention` is replaced by a module that is called in the same way, whose
    projections of queries, keys and values are separate. Other attentions that `mfac.Heads` finds
    are cut themselves, and their numbers of heads set, where the model returns the same for
    `example` afterwards.

    Args:
        model: The pruned model, which is not changed; in evaluation mode the smaller model computes
            the same.
        masks: A report, or name to mask; the model's zeros are held to them.
        example: Inputs that the model is run on before and after each change, so that what changes
            its outputs is put back: a tensor, a tuple of arguments or a mapping of named ones.
            Attentions other than torch's, and models that cannot be traced as a whole, need it.

    Returns:
        The smaller copy, what was removed and what was left and why.

    Raises:
        TypeError: If `masks` are none.
        ValueError: If the model cannot be copied, if a weight is not zero where its mask is, or if
            channels or heads are empty and none can be removed.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> data = [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(16)]
        >>> loss_fn = lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> pattern = {"0.*": "rows", "*": "unstructured"}
        >>> allocation = {"0.*": 0.5, "*": 0.0}
        >>> rules = {"pattern": pattern, "allocation": allocation}
        >>> report = mfac.prune(model, loss_fn, data, num_gradients=16, stages=1, **rules)
        >>> mfac.shrink(model, report).model[0].out_features
        3
    """
    masks = getattr(masks, "masks", masks)
    if not isinstance(masks, Mapping):
        raise TypeError(f"Parameter `masks` should be a report or a mapping of masks. Found {type(masks).__name__}.")
    _check_zeros(model, masks)
    shrunk = Shrunk(_copied(inner_module(model)))
    with model_mode(shrunk.model, "eval"):  # what a model does in training alone is not promised
        channels = ChannelRemoval(shrunk.model, example)
    shrunk.removed, shrunk.left, followed = channels.removed, channels.left, channels.followed
    heads = HeadRemoval(shrunk.model, example)  # last: what is traced above are torch's own modules
    shrunk.heads = heads.removed
    _name_the_rest(shrunk, heads, followed, {name for name, mask in masks.items() if not bool(mask.all())})
    gone = bool(shrunk.removed or shrunk.heads)
    if shrunk.left and not gone:
        why = "; ".join(f"{name!r} {reason}" for name, reason in shrunk.left.items())
        raise ValueError(f"Parameter `model` should have emptied channels or heads that can be cut out. Found {why}.")
    if not gone and not all(bool(mask.all()) for mask in masks.values()):
        warnings.warn(
            "The model has no empty channel in a layer that can be followed, nor an empty head, and is as large as "
            'before. Zeros here and there make no layer smaller: prune with pattern="rows", "channels" or mfac.Heads.'
            + "".join(f" {name!r} has {count} input channels of zeros." for name, count in shrunk.inputs_left.items()),
            stacklevel=2,
        )
    return shrunk


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"Parameter `model` should be one that can be copied. Found that it cannot: {error}. Weight norm and "
            f"spectral norm of the older kind are removed first."
        ) from error


def _name_the_rest(shrunk: Shrunk, heads: HeadRemoval, followed: set[str], masked: set[str]) -> None:
    """Names channels of zeros that stay, whatever layer they belong to."""
    layers = dict(named_layers(shrunk.model))
    for name in [name for name in shrunk.left if not _empty_rows(layers[name])]:
        del shrunk.left[name]  # heads have taken them along
    shrunk.left |= heads.left
    parameters = {name: p for name, p in named_parameters(shrunk.model).items() if name in masked and p.dim() > 1}
    for weight in describe_weights(shrunk.model, parameters):
        layer = weight.name.rpartition(".")[0]
        # An attention that stays has projections that stay with it.
        if weight.layout is None or any(f"{layer}.".startswith(f"{name}." if name else "") for name in heads.left):
            continue
        full = parameters[weight.name].detach().cpu().reshape(-1).bool()[as_matrix(weight)]  # [out, in, positions]
        outs, ins = full.any(2).any(1), full.any(2).any(0)
        if not bool(outs.all()) and layer not in shrunk.left:
            if not isinstance(layers[layer], LAYERS):
                shrunk.left[layer] = f"is a {weight.layer}, whose output channels are not cut"
            elif layer not in followed:  # otherwise it is the one channel that a layer has to keep
                shrunk.left[layer] = "is called in no part of the model that torch.fx can trace"
        if not bool(ins.all()) and bool(ins.any()):
            shrunk.inputs_left[layer] = int((~ins).sum())


def _empty_rows(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and not bool(weight.detach().flatten(1).any(1).all())


def _check_zeros(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = named_parameters(model)
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape:
            raise ValueError(f"Parameter `masks` should have the model's names and shapes. Found {name!r}.")
        if bool(parameters[name].detach()[~mask].any()):
            raise ValueError(
                f"Parameter `model` should be zero where its masks are. Found other weights in {name!r}: apply "
                f"the masks."
            )
