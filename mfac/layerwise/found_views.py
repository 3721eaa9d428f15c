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
from mfac.masks.fewer_heads import FewerHeads


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
        whys = {key: why_unseen(layer, key) for key in weight_names(layer)}
        for key, why in whys.items():
            parameter = parameter_behind(layer, key)
            if why is not None and parameter is not None and (name := ids.get(memory_of(parameter))) is not None:
                unseen.append(Unseen(name, why))
                unlike.add(name)
        keys = [key for key, why in whys.items() if why is None]
        if isinstance(layer, nn.MultiheadAttention) and keys:
            projections.add(layer.out_proj)
            for key in [*keys, "out_proj.weight"]:
                holder = layer.out_proj if key == "out_proj.weight" else layer
                parameter = parameter_behind(holder, key.rsplit(".", 1)[-1])
                if parameter is not None:
                    add(AttentionOutputView if key == "out_proj.weight" else AttentionInputView, layer, parameter)
            continue
        for key in keys if layer not in projections else ():
            if (parameter := parameter_behind(layer, key)) is not None:
                add(_kind_of(layer, key), layer, parameter)
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


_PLAIN: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(FewerHeads, nn.MultiheadAttention, nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell),
)


def why_unseen(layer: nn.Module, key: str = "weight") -> str | None:
    """Why the inputs of a layer's weight cannot be told by its calls; None if they can.

    Args:
        layer: The layer.
        key: The weight's name within it.

    Returns:
        "it ...", or None.
    """
    kind = next((plain for plain in _PLAIN if isinstance(layer, plain)), None)
    if kind is not None and type(layer).forward is not kind.forward:
        return f"is of a {type(layer).__name__}, whose `forward` is not that of {kind.__name__}"
    if f"{key}_orig" in layer._parameters and f"{key}_mask" in layer._buffers:
        return "has a mask of torch.nn.utils.prune, which `prune.remove` makes part of the weight"
    if key.startswith("weight_hr"):
        return "projects states that torch does not show"
    return None


def _alike(view: LayerView, other: LayerView) -> bool:
    """Whether two layers have the same matrices in the same weight."""
    turned = is_transformers_conv1d(view.module) == is_transformers_conv1d(other.module)
    return turned and type(view) is type(other) and view.shapes == other.shapes and view.positions == other.positions


def _kind_of(layer: nn.Module, key: str) -> Callable[..., LayerView]:
    """The view of a layer's weight."""
    if isinstance(layer, nn.RNNBase):
        return partial(RecurrentView, key=key)
    if isinstance(layer, nn.RNNCellBase):
        return partial(CellView, key=key)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return TransposedView
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvolutionView
    return LinearView
