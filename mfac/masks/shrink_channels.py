"""Channels that masks have emptied are cut out of a layer, and of the layer that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfac.gradients.examples import Comparison
from mfac.gradients.naming import named_layers
from mfac.masks.cutting import channels_of, keep_inputs, keep_outputs
from mfac.masks.through import Step, Way, follow

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ChannelRemoval:
    """Removes empty channels, in place.

    A model that `torch.fx` traces as a whole says itself what feeds what. Parts of another model
    may be called in pieces by what holds them: they are cut where the model returns the same for
    `example` afterwards, and left without one.

    Args:
        model: In evaluation mode.
        example: Inputs that the model is run on before and after; None for none.

    Attributes:
        removed: Layer to how many of its output channels are gone.
        left: Layer with empty channels that stay, and why.
        followed: Layers whose way to the next was looked for.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        self._model, self._example = model, example
        self._names = {id(layer): name for name, layer in named_layers(model)}
        self._compared: Comparison | None = None
        self._refused: dict[int, str] = {}  # traced parts that are not cut, and why
        self.removed: dict[str, int] = {}
        self.left: dict[str, str] = {}
        self.followed: set[str] = set()
        for _ in range(1 + sum(isinstance(layer, LAYERS) for layer in model.modules())):  # one feeds the next
            self.left.clear()
            before = dict(self.removed)
            for root, graph in _graphs(model):
                self._part(root, graph)
            if self.removed == before:
                break

    def _part(self, root: nn.Module, graph: fx.Graph) -> None:
        """Cuts one traced part, and puts the part back where the model is another then."""
        if id(root) not in self._refused and root is not self._model and self._example is None:
            self._refused[id(root)] = (
                "is in a model that torch.fx cannot trace as a whole, which is run on `example` before and after; none "
                "was given"
            )
        if (why := self._refused.get(id(root))) is not None:
            self._leave_all(root, graph, why)
            return
        if self._example is not None and self._compared is None:
            self._compared = Comparison(self._model, self._example)
        removed, left = dict(self.removed), dict(self.left)
        put_back = _kept_state(root)
        self._cut_graph(root, graph)
        if self._compared is None or self.removed == removed:
            return
        if (why := self._compared.difference("channels", "is in a part that then ")) is not None:
            put_back()
            self.removed, self.left = removed, left
            self._refused[id(root)] = why
            self._leave_all(root, graph, why)

    def _leave_all(self, root: nn.Module, graph: fx.Graph, why: str) -> None:
        for node in graph.nodes:
            layer = root.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(layer, LAYERS):
                self.followed.add(self._names[id(layer)])
                if bool((~layer.weight.detach().flatten(1).any(1)).any()):
                    self.left[self._names[id(layer)]] = why

    def _cut_graph(self, root: nn.Module, graph: fx.Graph) -> None:
        uses: dict[str, int] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                uses[node.target] = uses.get(node.target, 0) + 1
        read = {id(_attribute(root, node.target)) for node in graph.nodes if node.op == "get_attr"}
        for node in graph.nodes:
            layer = root.get_submodule(node.target) if node.op == "call_module" else None
            if not isinstance(layer, LAYERS):
                continue
            name = self._names[id(layer)]
            self.followed.add(name)
            empty = ~layer.weight.detach().flatten(1).any(1)
            way = follow(node, root, uses, read)
            if isinstance(way, str):
                why = way
            elif getattr(layer, "groups", 1) != 1 or uses[node.target] != 1:
                why = "is used more than once, or has groups"
            elif self._shared(layer) or self._shared(way.consumer):
                why = "shares its weights with another layer"
            else:
                self._cut(name, layer, way, empty)
                continue
            if bool(empty.any()):
                self.left[name] = why

    def _shared(self, layer: nn.Module) -> bool:
        """Whether a layer, or one of its parameters, is in several places of the model."""
        places = [module for _, module in self._model.named_modules(remove_duplicate=False)]
        own = {id(parameter) for parameter in layer.parameters()}
        holding = [m for m in places if any(id(p) in own for p in m._parameters.values() if p is not None)]
        return len(holding) > 1

    def _cut(self, name: str, layer: Any, way: Way, empty: Tensor) -> None:
        """Removes what can be removed of one layer's output channels."""
        consumer: Any = way.consumer
        outs = layer.weight.shape[0]
        by_channel = _by_channel(consumer.weight.detach(), outs, way.channels_last)  # [outs, out, positions]
        unused = ~by_channel.flatten(1).any(1)
        constant = _constants(layer, way.steps)
        foldable = empty & ((constant == 0) | _takes_constants(consumer))
        gone = unused | foldable
        if bool((empty & ~gone).any()):
            self.left[name] = "feeds a padded convolution, which sees its constant only inside"
        if bool(gone.all()):
            gone[0] = False
        if not bool(gone.any()):
            return
        with torch.no_grad():
            lost = gone & ~unused & (constant != 0)
            if bool(lost.any()):
                addition = (by_channel[lost].sum(2) * constant[lost][:, None]).sum(0)
                bias = addition if consumer.bias is None else consumer.bias + addition
                consumer.bias = nn.Parameter(bias, consumer.weight.requires_grad)
            keep = (~gone).nonzero()[:, 0]
            keep_outputs(layer, keep)
            for step in way.steps:
                if isinstance(step, _BatchNorm):
                    _keep_normalised(step, keep)
            positions = consumer.weight.shape[1] // outs
            if way.channels_last:
                places = torch.arange(positions, device=keep.device)[:, None] * outs + keep
                keep_inputs(consumer, places.reshape(-1))
            else:
                keep_inputs(consumer, channels_of(keep, positions))
        self.removed[name] = self.removed.get(name, 0) + int(gone.sum())


class _Tracer(fx.Tracer):
    """Takes attentions with fewer heads for one module, as it takes torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.MultiheadAttention) or super().is_leaf_module(m, module_qualified_name)


def _graphs(module: nn.Module) -> Iterator[tuple[nn.Module, fx.Graph]]:
    """The largest parts of a model that can be traced."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # of the model's own code: whatever tracing runs into
        for child in module.children():
            yield from _graphs(child)
    else:
        yield module, graph


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _kept_state(root: nn.Module) -> Callable[[], None]:
    """A function that puts modules back as they are now; tensors are replaced, not written."""
    before = [(m, dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in root.modules()]

    def put_back() -> None:
        for module, attributes, parameters, buffers in before:
            module.__dict__.update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)

    return put_back


def _by_channel(weight: Tensor, channels: int, channels_last: bool) -> Tensor:
    """A consumer's weight by the channel that is read, [channels, out, positions]."""
    if weight.dim() > 2:
        return weight.transpose(0, 1).flatten(2)
    if channels_last:
        return weight.view(weight.shape[0], -1, channels).permute(2, 0, 1)
    return weight.view(weight.shape[0], channels, -1).transpose(0, 1)


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
