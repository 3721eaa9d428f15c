"""Whole attention heads: rows of q, k and v projections and columns of the output go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mfac.gradients.naming import named_layers
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.kinds.axes import as_matrix
from mfac.masks.kinds.base import Broken, Candidates, Pattern, Promise, Units
from mfac.masks.kinds.grouped import partly_kept, units_of_labels

_QUERIES = ("q_proj", "query", "q_lin", "q")
_KEYS_AND_VALUES = ("k_proj", "key", "k_lin", "k", "v_proj", "value", "v_lin", "v")
_OUTPUTS = ("out_proj", "o_proj", "out_lin", "o", "dense")
COUNTS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads")
"""Attributes of modules that are numbers of heads."""


@dataclass(frozen=True)
class Attention:
    """The projections of one attention.

    Attributes:
        heads: How many heads go one by one; with shared keys and values, how many groups of heads.
        inputs: Names of weights whose output channels are the heads', to how many projections are
            packed in each.
        outputs: Names of weights whose input channels are the heads'.
        module: Name of the module that holds the number of heads; None where there is none.
    """

    heads: int
    inputs: Mapping[str, int]
    outputs: Sequence[str]
    module: str | None = None


class Heads(Pattern):
    """Attention heads: whole heads go, through all projections of their attention at once.

    Found are `torch.nn.MultiheadAttention` and modules that hold projections named as transformers
    name them, with the number of heads as `num_heads`, `num_attention_heads` or `n_heads`, or the
    width of a head as `head_dim`; `num_key_value_heads`, or narrower keys, make groups of heads
    that share keys and values go together. Other attentions are given as `Attention`. All other
    weights stay dense, unless a mapping of patterns has another pattern for them.

    A step drops as many whole heads as fit into its number of weights. Biases of a head stay:
    without the head's output columns the biases have no effect.

    Args:
        model: Where attentions are looked for; or a sequence of `Attention`.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no attention.

    Example:
        >>> import torch, mfac
        >>> model = torch.nn.MultiheadAttention(8, 4, batch_first=True)
        >>> data = [torch.randn(4, 3, 8) for _ in range(16)]
        >>> loss_fn = lambda model, batch: model(batch, batch, batch)[0].square().mean()
        >>> _ = mfac.prune(model, loss_fn, data, sparsity=0.5, pattern=mfac.Heads(model), num_gradients=16, stages=1)
        >>> int((model.out_proj.weight != 0).any(0).view(4, 2).any(1).sum())
        2
    """

    def __init__(self, model: nn.Module | Sequence[Attention]) -> None:
        if not isinstance(model, nn.Module | Sequence):
            raise TypeError(f"Parameter `model` should be a module or a list of Attention. Found {model!r}.")
        self._given = not isinstance(model, nn.Module)
        self.attentions = attentions_of(model) if isinstance(model, nn.Module) else list(model)
        if not self.attentions:
            raise ValueError(
                "Parameter `model` should have attentions whose projections are known. Found none; give a list of "
                "mfac.masks.kinds.heads.Attention."
            )

    def __repr__(self) -> str:
        return f"heads of {len(self.attentions)} {'given ' if self._given else ''}attentions"

    def passes_over(self, name: str) -> str | None:
        """Why all but the projections of attentions stay dense."""
        return None if name in self._attention_of() else "is no projection of an attention, of which heads are pruned"

    def check(self, weights: Sequence[PrunableWeight]) -> None:
        """Refuses weights of no known channels, and attentions of which only a part is pruned.

        Args:
            weights: What is known of each weight.

        Raises:
            ValueError: If there is such a weight or attention; the error names it.
        """
        there = {weight.name for weight in weights}
        for weight in weights:
            if self.passes_over(weight.name) or weight.layout is None:
                raise ValueError(
                    f"Parameter `params` should select projections of attentions with pattern 'heads'. Found "
                    f"{weight.name!r}; a mapping of patterns gives it another."
                )
        for attention in self.attentions:
            names = {*attention.inputs, *attention.outputs}
            if names & there and not names <= there:
                raise ValueError(
                    f"Parameter `params` should select all projections of an attention or none with pattern 'heads'. "
                    f"Found none of {sorted(names - there)} beside {sorted(names & there)}."
                )

    def together(self, weights: Sequence[PrunableWeight]) -> list[list[int]]:
        """The projections of each attention."""
        place = {weight.name: index for index, weight in enumerate(weights)}
        groups = []
        for attention in self.attentions:
            names = (*attention.inputs, *attention.outputs)
            if all(name in place for name in names):
                groups.append(sorted(place[name] for name in names))
        return sorted(groups, key=min)

    def promises(self, weights: Sequence[PrunableWeight], kept: Tensor) -> list[Promise]:
        """That a head is kept whole or dropped whole, in all projections of its attention."""
        broken, pieces = [], kept.split([weight.size for weight in weights])
        by_name = self._attention_of()
        for group in self.together(weights):
            attention = by_name[weights[group[0]].name]
            labels = torch.cat([_head_of(weights[i], attention) for i in group])
            partial = partly_kept(labels, torch.cat([pieces[i] for i in group]).cpu())
            if partial is not None:
                count, head, share = partial
                broken.append(Broken(weights[group[0]].name, count, f"{share} weights kept of head {head}"))
        return [Promise(str(self), "heads are kept whole or dropped whole", broken)]

    def _attention_of(self) -> dict[str, Attention]:
        """The attention of each projection, by its name."""
        return {name: a for a in self.attentions for name in (*a.inputs, *a.outputs)}

    def units(self, candidates: Candidates) -> Units:
        """The live weights of each head."""
        weights, live = candidates.weights, candidates.live
        groups = self.together(weights)
        labels, ends = [torch.empty(0)] * len(weights), []
        by_name = self._attention_of()
        begin = 0
        for group in groups:
            attention = by_name[weights[group[0]].name]
            for index in group:
                labels[index] = _head_of(weights[index], attention) + begin
            begin += attention.heads
            ends.append(begin)
        return units_of_labels(torch.cat(labels).to(live.device)[live], ends, candidates.scores)


def _head_of(weight: PrunableWeight, attention: Attention) -> Tensor:
    """The head of each entry of a projection, [size] int64."""
    entries = as_matrix(weight)
    outs, ins, _ = entries.shape
    if weight.name in attention.inputs:
        within = outs // attention.inputs[weight.name]  # of each packed projection
        head = (torch.arange(outs) % within * attention.heads // within)[:, None, None]
    else:
        head = (torch.arange(ins) * attention.heads // ins)[None, :, None]
    labels = torch.empty(entries.numel(), dtype=torch.int64)
    labels[entries.reshape(-1)] = head.expand_as(entries).reshape(-1)
    return labels


def attentions_of(model: nn.Module) -> list[Attention]:
    """The attentions of a model whose projections are known, in its order.

    Args:
        model: Where they are looked for.

    Returns:
        Torch's own, and modules that hold projections named as transformers name them.
    """
    layers = dict(named_layers(model))
    found = []
    for name, module in layers.items():
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            packed = module.in_proj_weight is not None
            inputs = {"in_proj_weight": 3} if packed else dict.fromkeys(
                ("q_proj_weight", "k_proj_weight", "v_proj_weight"), 1
            )  # fmt: skip
            inputs = {prefix + key: value for key, value in inputs.items()}
            found.append(Attention(module.num_heads, inputs, [f"{prefix}out_proj.weight"], name))
            continue
        children = dict(module.named_children())
        counts = [int(getattr(module, key)) for key in COUNTS if isinstance(getattr(module, key, None), int)]
        counts = counts or _counts_by_width(module, children)
        if not counts:
            continue
        projections = [child for child in (*_QUERIES, *_KEYS_AND_VALUES) if child in children]
        output = next((f"{prefix}{child}" for child in _OUTPUTS if child in children), None)
        beside = f"{name.rpartition('.')[0]}.output.dense".lstrip(".")  # as in BERT, beside the module itself
        output = output or (beside if beside in layers else None)
        if len(projections) == 3 and output is not None:
            inputs = {f"{prefix}{child}.weight": 1 for child in projections}
            found.append(Attention(min(counts), inputs, [f"{output}.weight"], name))
        elif {"c_attn", "c_proj"} <= set(children):
            found.append(Attention(min(counts), {f"{prefix}c_attn.weight": 3}, [f"{prefix}c_proj.weight"], name))
    return found


def _counts_by_width(module: nn.Module, children: Mapping[str, nn.Module]) -> list[int]:
    """Numbers of heads of a module that says only how wide a head is; empty without it."""
    width = getattr(module, "head_dim", None)
    outs = [getattr(children[key], "out_features", 0) for key in (*_QUERIES, *_KEYS_AND_VALUES) if key in children]
    if not isinstance(width, int) or not outs or any(out % width for out in outs):
        return []
    return [out // width for out in outs]
