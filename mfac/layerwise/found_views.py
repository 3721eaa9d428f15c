"""Views of weights found in a model's layers, and why other weights have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from mfac.gradients.naming import named_layers, named_parameters
from mfac.gradients.prunable import is_transformers_conv1d, parameter_behind, weight_names
from mfac.gradients.vector import memory_of
from mfac.layerwise.recurrent_view import CellView, RecurrentView
from mfac.layerwise.views import (
    AttentionInputView,
    AttentionOutputView,
    ConvolutionView,
    LayerView,
    LinearView,
    TransposedView,
)


@dataclass(frozen=True)
class Unseen:
    """A weight whose inputs cannot be seen from outside of its layer, and why."""

    name: str
    why: str


def views_of(model: nn.Module, names: list[str]) -> tuple[list[LayerView], list[Unseen]]:
    """A view of each named weight; layers that share a weight have one together.

    Args:
        model: Where the layers are.
        names: Of parameters.

    Returns:
        Views in the order of the layers, and the weights that have none.
    """
    named = named_parameters(model)
    ids = {memory_of(named[name]): name for name in names}
    views: dict[str, LayerView] = {}
    unlike: set[str] = set()
    projections: set[nn.Module] = set()  # of attention, which torch computes without calling them

    def add(kind: Callable[[str, Any, nn.Parameter], LayerView], layer: nn.Module, parameter: nn.Parameter) -> None:
        if (name := ids.get(memory_of(parameter))) is None:
            return
        view = kind(name, layer, parameter)
        if name not in views:
            views[name] = view
        elif _alike(views[name], view):
            views[name].others.append(view)
        else:
            unlike.add(name)

    unseen: list[Unseen] = []
    for _, layer in named_layers(model):
        parameter = parameter_behind(layer, "weight") if weight_names(layer) == ["weight"] else None
        if parameter is not None and memory_of(parameter) in ids and (why := why_unseen(layer)) is not None:
            unseen.append(Unseen(ids[memory_of(parameter)], why))
            unlike.add(ids[memory_of(parameter)])
        elif isinstance(layer, nn.MultiheadAttention):
            own = [*weight_names(layer), "out_proj.weight"]
            projections.add(layer.out_proj)
            for key in own:
                holder = layer.out_proj if key == "out_proj.weight" else layer
                parameter = parameter_behind(holder, key.rsplit(".", 1)[-1])
                if parameter is not None:
                    add(AttentionOutputView if key == "out_proj.weight" else AttentionInputView, layer, parameter)
        elif (of_steps := _recurrent_kind(layer)) is not None:
            for key in weight_names(layer):
                parameter = parameter_behind(layer, key)
                if parameter is not None and not key.startswith("weight_hr"):
                    add(partial(of_steps, key=key), layer, parameter)
        elif parameter is not None and layer not in projections:
            add(_view_of, layer, parameter)
    told = {one.name for one in unseen}
    unseen += [
        Unseen(name, "has inputs that no call of a layer shows")
        for name in ids.values()
        if name not in views and name not in told
    ]
    unseen += [
        Unseen(name, "is shared by layers that use it in different ways") for name in sorted(unlike) if name not in told
    ]
    return [view for name, view in views.items() if name not in unlike], unseen


_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def why_unseen(layer: nn.Module) -> str | None:
    """Why the inputs of a layer's weight are not those that it is called with; None if they are."""
    kind = next((plain for plain in _PLAIN if isinstance(layer, plain)), None)
    if kind is not None and type(layer).forward is not kind.forward:
        return f"is of a {type(layer).__name__}, whose `forward` is not that of {kind.__name__}"
    if "weight_orig" in layer._parameters and "weight_mask" in layer._buffers:
        return "has a mask of torch.nn.utils.prune, which `prune.remove` makes part of the weight"
    return None


def _recurrent_kind(layer: nn.Module) -> Callable[..., LayerView] | None:
    """The view of a recurrent layer's weights; None where it has a `forward` of its own."""
    for kinds, view in (((nn.RNN, nn.LSTM, nn.GRU), RecurrentView), ((nn.RNNCell, nn.LSTMCell, nn.GRUCell), CellView)):
        if any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in kinds):
            return view
    return None


def _alike(view: LayerView, other: LayerView) -> bool:
    """Whether two layers have the same matrices in the same weight."""
    turned = is_transformers_conv1d(view.module) == is_transformers_conv1d(other.module)
    return turned and type(view) is type(other) and view.shapes == other.shapes and view.positions == other.positions


def _view_of(name: str, layer: nn.Module, parameter: nn.Parameter) -> LayerView:
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return TransposedView(name, layer, parameter)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvolutionView(name, layer, parameter)
    return LinearView(name, layer, parameter)
