"""Physical removal: channels and heads that masks have emptied are cut out of layers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac.gradients.naming import inner_module, named_parameters
from mfac.gradients.prunable import describe_weights
from mfac.masks.cutting import channels_of, keep_inputs, keep_outputs
from mfac.masks.kinds.axes import as_matrix
from mfac.masks.shrink_heads import HeadRemoval
from mfac.masks.through import Step, follow

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
    function, up to rounding. `shrink` works on models that `torch.fx` can trace, and on the
    traceable parts of other models: linear layers and convolutions of one group, one after the
    other, with batch norm, pooling, flattening, dropout and elementwise functions between. Where
    all channels would go, the first one stays. Where weights are masked and no channel or head is
    empty, a warning says so.

    A head goes if its columns of the output projection are zero, as `mfac.Heads` leaves them.
    `torch.nn.MultiheadAttention` is replaced by a module that is called in the same way, whose
    projections of queries, keys and values are separate. Other attentions that `mfac.Heads` finds
    are cut themselves, and their numbers of heads set, where the model returns the same for
    `example` afterwards.

    Args:
        model: The pruned model, which is not changed; in evaluation mode the smaller model computes
            the same.
        masks: A report, or name to mask; the model's zeros are held to them.
        example: Inputs for attentions other than torch's: a tensor, a tuple of arguments or a
            mapping of named ones.

    Returns:
        The smaller copy, what was removed and what was left and why.

    Raises:
        ValueError: If a weight is not zero where its mask is, or if channels or heads are empty and
            none can be removed.

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
    _check_zeros(model, masks)
    shrunk, followed = Shrunk(copy.deepcopy(inner_module(model))), set[str]()
    for _ in range(1 + sum(isinstance(layer, _LAYERS) for layer in shrunk.model.modules())):  # one feeds the next
        shrunk.left.clear()
        before = sum(shrunk.removed.values())
        for name, root, graph in _graphs(shrunk.model):
            followed |= _shrink_graph(shrunk, name, root, graph)
        if sum(shrunk.removed.values()) == before:
            break
    heads = HeadRemoval(shrunk.model, example)  # last: what is traced above are torch's own modules
    shrunk.heads = heads.removed
    shrunk.left |= heads.left
    _name_the_rest(shrunk, followed, {name for name, mask in masks.items() if not bool(mask.all())})
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


def _name_the_rest(shrunk: Shrunk, followed: set[str], masked: set[str]) -> None:
    """Names channels of zeros that nothing above has looked at, whatever layer they belong to."""
    parameters = {name: p for name, p in named_parameters(shrunk.model).items() if name in masked and p.dim() > 1}
    for weight in describe_weights(shrunk.model, parameters):
        layer = weight.name.rpartition(".")[0]
        # An attention that stays has projections that stay with it.
        if weight.layout is None or any(f"{layer}.".startswith(f"{name}." if name else "") for name in shrunk.left):
            continue
        full = parameters[weight.name].detach().cpu().reshape(-1).bool()[as_matrix(weight)]  # [out, in, positions]
        outs, ins = full.any(2).any(1), full.any(2).any(0)
        if not bool(outs.all()):
            if isinstance(shrunk.model.get_submodule(layer), _LAYERS):
                if layer not in followed:  # otherwise it is the one channel that a layer has to keep
                    shrunk.left[layer] = "is called in no part of the model that torch.fx can trace"
            else:
                shrunk.left[layer] = f"is a {weight.layer}, whose output channels are not cut"
        elif not bool(ins.all()):
            shrunk.inputs_left[layer] = int((~ins).sum())


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


def _times_held(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter."""
    times: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                times[id(parameter)] = times.get(id(parameter), 0) + 1
    return times


class _Tracer(fx.Tracer):
    """Takes attentions with fewer heads for one module, as it takes torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.MultiheadAttention) or super().is_leaf_module(m, module_qualified_name)


def _graphs(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """The largest parts of a model that can be traced."""
    try:
        yield name, module, _Tracer().trace(module)
    except Exception:  # of the model's own code: whatever tracing runs into
        for child_name, child in module.named_children():
            yield from _graphs(child, f"{name}.{child_name}" if name else child_name)


def _shrink_graph(shrunk: Shrunk, prefix: str, root: nn.Module, graph: fx.Graph) -> set[str]:
    """Cuts what can be cut of one traced part, and says which layers it has come by."""
    came_by: set[str] = set()
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    for node in graph.nodes:
        layer = root.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(layer, _LAYERS):
            continue
        name = f"{prefix}.{node.target}" if prefix else node.target
        came_by.add(name)
        empty = ~layer.weight.detach().flatten(1).any(1)
        way = follow(node, root, uses)
        if isinstance(way, str) or getattr(layer, "groups", 1) != 1 or uses[node.target] != 1:
            why = way if isinstance(way, str) else "is used more than once, or has groups"
            if bool(empty.any()):
                shrunk.left[name] = why
            continue
        steps, consumer = way
        holders = _times_held(shrunk.model)
        if any(holders[id(p)] > 1 for part in (layer, consumer) for p in part._parameters.values() if p is not None):
            if bool(empty.any()):
                shrunk.left[name] = "shares its weights with another layer"
            continue
        _cut(shrunk, name, layer, steps, consumer, empty)
    return came_by


def _cut(shrunk: Shrunk, name: str, layer: Any, steps: list[Step], consumer: Any, empty: Tensor) -> None:
    """Removes what can be removed of one layer's output channels."""
    outs = layer.weight.shape[0]
    columns = consumer.weight.detach().transpose(0, 1).reshape(outs, -1)  # of each channel, positions together
    unused = ~columns.any(1)
    constant = _constants(layer, steps)
    foldable = empty & ((constant == 0) | _takes_constants(consumer))
    gone = unused | foldable
    if bool((empty & ~gone).any()):
        shrunk.left[name] = "feeds a padded convolution, which sees its constant only inside"
    if bool(gone.all()):
        gone[0] = False
    if not bool(gone.any()):
        return
    with torch.no_grad():
        lost = gone & ~unused & (constant != 0)
        if bool(lost.any()):
            weight = consumer.weight.flatten(2).sum(2) if consumer.weight.dim() > 2 else consumer.weight
            per_channel = weight.view(weight.shape[0], outs, -1).sum(2)
            addition = per_channel[:, lost] @ constant[lost]
            if consumer.bias is None:
                consumer.bias = nn.Parameter(addition)
            else:
                consumer.bias += addition
        keep = (~gone).nonzero()[:, 0]
        keep_outputs(layer, keep)
        for step in steps:
            if isinstance(step, _BatchNorm):
                _keep_normalised(step, keep)
        keep_inputs(consumer, channels_of(keep, consumer.weight.shape[1] // outs))
    shrunk.removed[name] = shrunk.removed.get(name, 0) + int(gone.sum())


@torch.no_grad()
def _constants(layer: Any, steps: list[Step]) -> Tensor:
    """What each channel is after the steps between, if it is its bias alone: [outs]."""
    value = torch.zeros_like(layer.weight.flatten(1)[:, 0]) if layer.bias is None else layer.bias.detach()
    spatial = layer.weight.dim() - 2
    value = value.view(1, -1, *[1] * spatial)
    for step in steps:
        if isinstance(step, _BatchNorm):  # by its running statistics, whatever its mode
            value = nn.functional.batch_norm(
                value, step.running_mean, step.running_var, step.weight, step.bias, False, 0.0, step.eps
            )
        else:
            value = step(value.clone())
    return value.reshape(-1)


def _takes_constants(consumer: Any) -> bool:
    """Whether a constant input makes a constant output: not at a convolution's padded border."""
    return isinstance(consumer, nn.Linear) or consumer.padding == "valid" or not any(consumer.padding)


def _keep_normalised(layer: _BatchNorm, keep: Tensor) -> None:
    for name, value in [*layer._parameters.items()]:
        if value is not None:
            setattr(layer, name, nn.Parameter(value[keep].clone(), value.requires_grad))
    for name in ("running_mean", "running_var"):
        if (buffer := getattr(layer, name)) is not None:
            setattr(layer, name, buffer[keep].clone())
    layer.num_features = len(keep)
