"""Floating-point operations of a forward pass, by weight: counted where each layer is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mfac.gradients.naming import named_layers, named_parameters
from mfac.gradients.prunable import parameter_behind, weight_names

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def counted_flops(model: nn.Module) -> Generator[dict[str, int]]:
    """Counts operations in the block: a product and a sum for each use of a weight.

    Counted are the layers that `mfac.prune` knows: linear, convolutions, recurrent layers and
    cells, attention's projections. Products without weights, as of queries with keys, are not. A
    layer that is called twice counts twice, and one that is never called as a module has no entry.

    Args:
        model: Forward hooks stand on its layers within the block.

    Yields:
        Parameter name to operations so far, dense.
    """
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    counts: dict[str, int] = {}

    def counting(layer: nn.Module) -> Callable[..., None]:
        def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            for name, products in _products(layer, args, kwargs, output).items():
                parameter = parameter_behind(layer, name)
                if parameter is not None:
                    full = names[id(parameter)]
                    counts[full] = counts.get(full, 0) + 2 * products
                elif name == "out_proj.weight":  # held by attention's inner layer, which is never called
                    full = names[id(layer.get_parameter(name))]
                    counts[full] = counts.get(full, 0) + 2 * products

        return count

    handles = [
        layer.register_forward_hook(counting(layer), with_kwargs=True)
        for _, layer in named_layers(model)
        if weight_names(layer)
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def _products(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> dict[str, int]:
    """How many products each weight of a layer takes in one call."""
    if isinstance(layer, nn.MultiheadAttention):
        return _of_attention(layer, args, kwargs)
    first = args[0] if args else next(iter(kwargs.values()))
    if isinstance(layer, nn.RNNBase):
        data = first.data if isinstance(first, PackedSequence) else first
        steps = data.numel() // layer.input_size
        return {name: steps * _size(layer, name) for name in weight_names(layer)}
    if isinstance(layer, nn.RNNCellBase):
        return {name: first.numel() // layer.input_size * _size(layer, name) for name in weight_names(layer)}
    if isinstance(layer, _CONVOLUTIONS):
        return {"weight": output.numel() // layer.out_channels * _size(layer, "weight")}
    if isinstance(layer, _TRANSPOSED):
        return {"weight": first.numel() // layer.in_channels * _size(layer, "weight")}
    return {"weight": first.numel() // first.shape[-1] * _size(layer, "weight")}  # linear: once for each row of inputs


def _of_attention(layer: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Of the projections of queries, keys, values and of the output."""
    given: list[Tensor] = [*args[:3], *(kwargs[name] for name in ("query", "key", "value")[len(args) :])]
    query, key, value = (tensor.numel() // tensor.shape[-1] for tensor in given)
    found = {"out_proj.weight": query * _size(layer.out_proj, "weight")}
    if layer._qkv_same_embed_dim:
        return {**found, "in_proj_weight": (query + key + value) * layer.embed_dim**2}
    tokens = {"q_proj_weight": query, "k_proj_weight": key, "v_proj_weight": value}
    return {**found, **{name: count * _size(layer, name) for name, count in tokens.items()}}


def _size(layer: nn.Module, name: str) -> int:
    parameter = parameter_behind(layer, name)
    return 0 if parameter is None else math.prod(parameter.shape)
