"""Which weights of a model a layer-wise run solves, and through which views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from mfac.gradients.modes import model_mode
from mfac.gradients.naming import inner_module, named_layers, named_parameters
from mfac.gradients.parameters import Selection
from mfac.gradients.prunable import Layout, PrunableWeight, describe_weights, weight_names
from mfac.gradients.vector import memory_of
from mfac.layerwise.calling import Forward, by_number, check_batches, plainly_called
from mfac.layerwise.found_views import Unseen, views_of
from mfac.layerwise.product_view import (
    NOT_HEARD,
    Heard,
    HeardConvolutionView,
    Multiplied,
    ProductView,
    candidates,
    is_expert,
    listen,
)
from mfac.layerwise.views import LayerView
from mfac.pruning.targets import choose_targets


@dataclass(frozen=True)
class Chosen:
    """What is solved of a model.

    Attributes:
        views: Of the weights.
        left_dense: Name of every other weight tensor, and why.
        layouts: Of weights that are of no known layer, how patterns see them.
    """

    views: list[LayerView]
    left_dense: dict[str, str]
    layouts: dict[str, Layout]

    def described(self, model: nn.Module) -> list[PrunableWeight]:
        """What patterns need to know of each weight."""
        return describe_weights(model, {view.name: view.parameter for view in self.views}, self.layouts)


def choose_views(
    model: nn.Module, params: Selection, batches: Sequence[Any], call: Forward, on_disk: bool = False
) -> Chosen:
    """Finds the weights, and how the model multiplies inputs with them, on the first batch.

    Args:
        model: The model.
        params: As for `prune`.
        batches: All; the first is run, and others until what may be used without a call was used.
        call: Runs the model on a batch.
        on_disk: Whether weights are in files; then `is_transposed`, as modules of transformers have
            it, says how a stack of experts lies.

    Returns:
        Views, and what is left out.

    Raises:
        TypeError: If a parameter is not real floating-point.
        ValueError: If nothing is left to solve, or as `check_batches` says.
    """
    named = named_parameters(model)
    heard = Heard(_said_to_be(model, named)) if on_disk else _heard(model, named, params is not None, batches, call)
    known = heard.known
    by_default = {name for name, one in known.items() if one.by_default}
    targets = choose_targets(model, params, "ignore", frozen=True, on_disk=on_disk, known=by_default)
    views, unseen = all_views(model, [name for name in targets.vector.names if name not in heard.reasons], known)
    left_dense = {**targets.left_dense, **{one.name: one.why for one in unseen}}
    chosen = set(targets.vector.names)
    left_dense |= {
        name: why
        for name, why in heard.reasons.items()
        if name in chosen or (name in left_dense and name in heard.by_default)
    }
    layouts = {
        view.name: known[view.name].layout(view.parameter.shape) for view in views if isinstance(view, ProductView)
    }
    if not views:
        raise ValueError(
            f"Parameter `params` should select a weight whose inputs can be seen. Found {sorted(left_dense)}."
        )
    return Chosen(views, left_dense, layouts)


def _heard(
    model: nn.Module, named: Mapping[str, nn.Parameter], every: bool, batches: Sequence[Any], call: Forward
) -> Heard:
    """What batches tell of weights whose inputs calls of their layer do not show, or not all."""
    names = {id(parameter): name for name, parameter in named.items()}
    layers = {names[id(weight)]: (layer, weight) for layer, weight in _layers_by_weight(model, named)}
    waited_for = candidates(model, named, every)
    listened = {**{name: weight for name, (_, weight) in layers.items()}, **waited_for}
    calls: Counter[nn.Module] = Counter()
    run = by_number(inner_module(model), batches, call)
    later = (partial(run, number) for number in range(1, len(batches)))
    with ExitStack() as stack:
        for context in (model_mode(model, "eval"), plainly_called(model), torch.no_grad()):
            stack.enter_context(context)
        for layer, _ in layers.values():
            stack.callback(layer.register_forward_pre_hook(lambda module, _: calls.update([module])).remove)
        checked = partial(check_batches, model, batches, call)
        heard = listen(model, listened, chain([checked], later), waited_for)
    told = [name for name, (layer, _) in layers.items() if name not in waited_for and calls[layer]]
    heard.forget([name for name in told if heard.products[name] <= calls[layers[name][0]]])
    heard.forget([name for name in layers if name not in waited_for and heard.reasons.get(name) == NOT_HEARD])
    return heard


def _layers_by_weight(model: nn.Module, named: Mapping[str, nn.Parameter]) -> list[tuple[nn.Module, nn.Parameter]]:
    """Layers whose calls tell of their weights, without weights that several of them share."""
    inside = {layer.out_proj for _, layer in named_layers(model) if isinstance(layer, nn.MultiheadAttention)}
    own = {id(parameter) for parameter in named.values()}
    found = []
    for _, layer in named_layers(model):
        weight = layer._parameters.get("weight")
        if weight is not None and layer not in inside and weight_names(layer) == ["weight"] and id(weight) in own:
            found.append((layer, weight))
    count = Counter(id(weight) for _, weight in found)
    return [(layer, weight) for layer, weight in found if count[id(weight)] == 1]


def all_views(
    model: nn.Module, names: Sequence[str], known: Mapping[str, Multiplied]
) -> tuple[list[LayerView], list[Unseen]]:
    """Views of layers' weights, and of weights that modules multiply with themselves.

    Args:
        model: Where they are.
        names: Of the weights.
        known: What was seen of the products of some.

    Returns:
        Views, and the weights that have none.
    """
    views, unseen = views_of(model, [name for name in names if name not in known])
    named = named_parameters(model)
    for name in (name for name in known if name in names):
        place = memory_of(named[name])
        layers = [
            layer
            for _, layer in named_layers(model)
            if any(p is not None and memory_of(p) == place for p in layer._parameters.values())
        ]
        first, *others = (_by_product(name, layer, named[name], known[name]) for layer in layers)
        first.others += others
        views.append(first)
    return views, unseen


def _by_product(name: str, layer: nn.Module, parameter: nn.Parameter, known: Multiplied) -> LayerView:
    if known.convolution:
        return HeardConvolutionView(name, layer, parameter)
    return ProductView(name, layer, parameter, known.turned)


def _said_to_be(model: nn.Module, named: Mapping[str, nn.Parameter]) -> dict[str, Multiplied]:
    """Stacks of experts whose module says how they lie."""
    names = {id(parameter): name for name, parameter in named.items()}
    found = {}
    for layer_name, layer in named_layers(model):
        turned = getattr(layer, "is_transposed", None)
        if not isinstance(turned, bool):
            continue
        for key, parameter in layer._parameters.items():
            if parameter is not None and is_expert(f"{layer_name}.{key}", layer, parameter):
                found[names[id(parameter)]] = Multiplied(turned, True)
    return found
