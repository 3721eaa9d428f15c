"""Which weights of a model a layer-wise run solves, and through which views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mfac.gradients.modes import model_mode
from mfac.gradients.naming import named_layers, named_parameters
from mfac.gradients.parameters import Selection
from mfac.gradients.prunable import Layout, PrunableWeight, describe_weights
from mfac.layerwise.calling import Forward, check_batches, plainly_called
from mfac.layerwise.product_view import HeardConvolutionView, Multiplied, ProductView, candidates, is_expert, multiplied
from mfac.layerwise.views import LayerView, Unseen, views_of
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
    """Finds the weights; where modules multiply with weights themselves, on the first batch.

    Args:
        model: The model.
        params: As for `prune`.
        batches: All; the first is run if there may be such modules, as stacks of experts.
        call: Runs the model on a batch.
        on_disk: Whether weights are in files; then `is_transposed`, as modules of transformers have
            it, says how a stack of experts lies.

    Returns:
        Views, and what is left out.

    Raises:
        TypeError: If a parameter is not real floating-point.
        ValueError: If nothing is left to solve, or the model does not take the first batch.
    """
    named = named_parameters(model)
    if on_disk:
        known = _said_to_be(model, named)
    else:
        known = {}
        weights = candidates(model, named, params is not None)
        if weights:
            with model_mode(model, "eval"), plainly_called(model), torch.no_grad():
                known = multiplied(model, weights, lambda: check_batches(model, batches[:1], call))
    by_default = {name for name, one in known.items() if one.by_default}
    targets = choose_targets(model, params, "ignore", frozen=True, on_disk=on_disk, known=by_default)
    views, unseen = all_views(model, list(targets.vector.names), known)
    left_dense = {**targets.left_dense, **{one.name: one.why for one in unseen}}
    layouts = {
        view.name: known[view.name].layout(view.parameter.shape) for view in views if isinstance(view, ProductView)
    }
    if not views:
        raise ValueError(
            f"Parameter `params` should select a weight whose inputs can be seen. Found {sorted(left_dense)}."
        )
    return Chosen(views, left_dense, layouts)


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
        layers = [
            layer for _, layer in named_layers(model) if any(p is named[name] for p in layer._parameters.values())
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
        turned: Callable[..., Any] | bool | None = getattr(layer, "is_transposed", None)
        for key, parameter in layer._parameters.items() if isinstance(turned, bool) else ():
            if parameter is not None and is_expert(f"{layer_name}.{key}", layer, parameter):
                found[names[id(parameter)]] = Multiplied(turned is True, True)
    return found
