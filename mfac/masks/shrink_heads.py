"""Heads that masks have emptied are cut out of their attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mfac.gradients.examples import Comparison
from mfac.gradients.naming import named_layers
from mfac.gradients.prunable import is_transformers_conv1d
from mfac.masks.cutting import channels_of, keep_inputs, keep_outputs
from mfac.masks.fewer_heads import FewerHeads
from mfac.masks.kinds.heads import COUNTS, Attention, attentions_of

_WIDTHS = ("all_head_size", "split_size", "inner_dim")
"""Attributes of modules that are the width of all heads together."""
_MORE_WIDTHS = ("embed_dim", "hidden_size", "dim")
"""Likewise where a module takes the width of the model for the width of its heads."""


class HeadRemoval:
    """Removes heads from a model's attentions, in place.

    Args:
        model: The pruned model, of which attentions are replaced or changed.
        example: Inputs that the model is run on before and after; None for none. Attentions that
            are not torch's own are left as they are without it.

    Attributes:
        removed: Attention to how many heads are gone.
        left: Attention with empty heads that stay, and why.
    """

    def __init__(self, model: nn.Module, example: Any = None) -> None:
        self._model, self._example = model, example
        self._compared: Comparison | None = None
        self._modules = dict(named_layers(model))
        self.removed: dict[str, int] = {}
        self.left: dict[str, str] = {}
        for attention in attentions_of(model):
            kept = self._kept(attention)
            if len(kept) < attention.heads:
                self._remove(attention, kept)

    def _kept(self, attention: Attention) -> Tensor:
        """The heads of which an output column is not zero; the first one if none is."""
        full = torch.zeros(attention.heads, dtype=torch.bool)
        for name in attention.outputs:
            columns = _input_columns(self._holder(name)).detach().any(0)
            full |= columns.view(attention.heads, -1).any(1).cpu()
        full[0] |= not bool(full.any())
        return full.nonzero()[:, 0]

    def _holder(self, weight: str) -> nn.Module:
        return self._modules[weight.rpartition(".")[0]]

    def _remove(self, attention: Attention, kept: Tensor) -> None:
        assert attention.module is not None
        name, module = attention.module, self._modules[attention.module]
        if isinstance(module, nn.MultiheadAttention):
            why = self._replaced(name, module, kept)
        elif self._example is None:
            why = "is run on `example`, before and after, where it is not torch's own attention; none was given"
        else:
            why = self._cut(attention, module, kept)
        if why is None:
            self.removed[name] = attention.heads - len(kept)
        else:
            self.left[name] = why

    def _comparison(self) -> Comparison:
        """With the model as it was before the first attention changed."""
        if self._compared is None:
            self._compared = Comparison(self._model, self._example)
        return self._compared

    def _replaced(self, name: str, module: nn.MultiheadAttention, kept: Tensor) -> str | None:
        if name == "":
            return "is the model itself, which cannot be replaced within itself: put it into another module"
        if type(module) not in (nn.MultiheadAttention, FewerHeads):
            return f"is a {type(module).__name__}, which may do more than torch's attention does"
        if parametrize.is_parametrized(module) or parametrize.is_parametrized(module.out_proj):
            return "has a parametrized weight"
        try:
            fewer = FewerHeads(module, kept.to(module.out_proj.weight.device))
        except ValueError as error:
            return str(error)
        compared = self._comparison()
        holder, _, own = name.rpartition(".")
        setattr(self._modules[holder], own, fewer)
        if compared.before and (why := compared.difference("heads")) is not None:
            setattr(self._modules[holder], own, module)
            return why
        for encoder in self._model.modules():  # torch's fused path asks the first layer alone
            if isinstance(encoder, nn.TransformerEncoder) and any(part is fewer for part in encoder.modules()):
                encoder.use_nested_tensor = False
        return None

    def _cut(self, attention: Attention, module: nn.Module, kept: Tensor) -> str | None:
        compared = self._comparison()
        if not compared.before:
            return "is in a model that returns no tensor for `example`, so that nothing can be compared"
        projections = [self._holder(name) for name in attention.inputs]
        outputs = [self._holder(name) for name in attention.outputs]
        for part in (*projections, *outputs):
            if not (isinstance(part, nn.Linear) or is_transformers_conv1d(part)) or "weight" not in part._parameters:
                return f"has a projection that is a {type(part).__name__}"
        why = None
        for widths in (_WIDTHS, (*_WIDTHS, *_MORE_WIDTHS)):
            before = [(m, dict(m.__dict__), dict(m._parameters)) for m in (module, *projections, *outputs)]
            for part, packed in zip(projections, attention.inputs.values(), strict=True):
                _keep_heads(part, kept, attention.heads, packed)
            for part in outputs:
                keep_inputs(part, _channels(_input_columns(part).shape[1], kept, attention.heads, part))
            _set_counts(module, attention.heads, len(kept), widths, _input_columns(outputs[0]).shape[1])
            if (why := compared.difference("heads")) is None:
                break
            for part, attributes, parameters in before:
                part.__dict__.clear()
                part.__dict__.update(attributes)
                part._parameters.clear()
                part._parameters.update(parameters)
        return why


def _input_columns(layer: Any) -> Tensor:
    """An output projection's weight as [out, in]."""
    weight: Tensor = layer.weight
    return weight.T if is_transformers_conv1d(layer) else weight


def _channels(total: int, kept: Tensor, heads: int, layer: Any) -> Tensor:
    return channels_of(kept, total // heads).to(layer.weight.device)


def _keep_heads(layer: Any, kept: Tensor, heads: int, packed: int) -> None:
    """Of each of the packed projections, the output channels of the heads that stay."""
    each = layer.weight.shape[1 if is_transformers_conv1d(layer) else 0] // packed
    channels = _channels(each, kept, heads, layer)
    keep_outputs(layer, torch.cat([channels + each * part for part in range(packed)]))


def _set_counts(module: nn.Module, heads: int, kept: int, widths: tuple[str, ...], width: int) -> None:
    """Numbers of heads, and widths of all of them, by as much smaller."""
    before = width // kept * heads
    for name in COUNTS:
        if isinstance(count := getattr(module, name, None), int):
            setattr(module, name, count // heads * kept)
    for name in widths:
        if getattr(module, name, None) == before:
            setattr(module, name, width)
