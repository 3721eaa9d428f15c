"""Which weights of a model a run prunes, and why every other weight tensor is left dense."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from mfac.gradients.naming import named_layers, named_parameters, other_names
from mfac.gradients.parameters import Selection, check_selected, match_parameters
from mfac.gradients.prunable import parameter_behind, weight_names
from mfac.gradients.vector import ParameterVector, memory_of

ExistingZeros = Literal["auto", "keep", "ignore"]
"""How weights that are already zero count.

"keep": as pruned. "ignore": like any other weight. "auto": as pruned, but a tensor of zeros alone
is a branch that starts at zero, and stays whole.
"""


class Reason(NamedTuple):
    """Why a weight tensor is not pruned: "it ..."; and whether naming it changes that."""

    why: str
    unless_named: bool = False


@dataclass(frozen=True)
class Targets:
    """What is pruned of a model.

    Attributes:
        vector: The weights.
        left_dense: Name of every other weight tensor, and why it is left as it is.
        whole: Tensors of zeros that stay whole, by name: their masks have no zero, and they count
            nowhere.
    """

    vector: ParameterVector
    left_dense: dict[str, str] = field(default_factory=dict)
    whole: dict[str, nn.Parameter] = field(default_factory=dict)

    def without(self, names: Collection[str], why: str) -> Targets:
        """The same without some weights.

        Args:
            names: Of the weights to leave out.
            why: For the report.

        Returns:
            The rest.

        Raises:
            ValueError: If nothing is left.
        """
        left = [name for name in self.vector.names if name not in names]
        if not left:
            raise ValueError(
                f"Parameter `params` should select weights that can be pruned. Found {sorted(names)}: each {why}."
            )
        out = {name: why for name in self.vector.names if name in names}
        return Targets(self.vector.restricted(left), {**self.left_dense, **out}, self.whole)


def choose_targets(
    model: nn.Module,
    params: Selection,
    existing_zeros: ExistingZeros,
    frozen: bool = False,
    on_disk: bool = False,
    passes_over: Callable[[str], str | None] = lambda name: None,
    known: Collection[str] = (),
) -> Targets:
    """Finds what there is to prune, before anything is computed.

    Args:
        model: The model.
        params: None for the weights of all layers that are known; otherwise as for
            `collect_gradients`.
        existing_zeros: What zeros are.
        frozen: Whether frozen weights are like any others, as where no gradient is asked for.
        on_disk: Whether weights on the meta device are, too, as where files have their numbers.
        passes_over: By name, why a pattern has no use for a weight: "it ..."; None where it has.
        known: Names of weights that are like those of known layers, though their modules are not.

    Returns:
        The targets.

    Raises:
        TypeError: If a parameter is not real floating-point.
        ValueError: If nothing is left to prune, if a weight is asked for by name that cannot be
            pruned, or if a layer's weight is computed from other parameters and `params` does not
            say that others are meant.
    """
    named = named_parameters(model)
    computed = _computed_weights(model)
    reasons = {name: Reason(why) for name in named if (why := passes_over(name)) is not None}
    reasons |= {name: why for name, why in _reasons(model, named, frozen, known).items() if name not in reasons}
    if params is None:
        if computed:
            name, remedy = next(iter(computed.items()))
            raise ValueError(
                f"Parameter `model` should have weights that are parameters of their layer. Found {name!r}, which is "
                f"computed from others{f', and {len(computed) - 1} more' if len(computed) > 1 else ''}. {remedy} "
                f"before pruning, or name other weights in `params`."
            )
        chosen = [name for name in named if name not in reasons]
    else:
        chosen = _asked_for(named, other_names(model), computed, reasons, params)
    return _targets(named, chosen, reasons, existing_zeros, on_disk)


def _asked_for(
    named: Mapping[str, nn.Parameter],
    others: Mapping[str, str],
    computed: Mapping[str, str],
    reasons: Mapping[str, Reason],
    params: Selection,
) -> list[str]:
    """Names that a selection means; unprunable names that only a pattern matches are left out."""
    by_name = {params} if isinstance(params, str) else set()
    if isinstance(params, nn.Module) or not (callable(params) or isinstance(params, Iterable)):
        raise TypeError(
            f"Parameter `params` should be None, names, patterns, parameters or a predicate. Found "
            f"{type(params).__name__}."
        )
    if not callable(params) and not isinstance(params, str):
        params = list(params)
        by_name = {item for item in params if isinstance(item, str)}
    for name in by_name & set(computed):
        raise ValueError(
            f"Parameter `params` should name parameters. Found {name!r}, which is computed from others. "
            f"{computed[name]} before pruning."
        )
    under_torch = {name.removesuffix("_orig"): name for name in named if name.endswith("_orig")}
    every = {**{short: named[name] for short, name in under_torch.items() if short not in named}, **named}
    matched = match_parameters(every, params, others)
    asked = {under_torch.get(name, name) if name not in named else name for name in matched}
    by_name |= {others[name] for name in by_name & set(others)}
    chosen = []
    for name in (name for name in named if name in asked):
        reason = reasons.get(name)
        if reason is None or reason.unless_named:
            chosen.append(name)
        elif name in by_name:
            raise ValueError(
                f"Parameter `params` should name weights that can be pruned. Found {name!r}: it {reason.why}."
            )
    return chosen


def _targets(
    named: Mapping[str, nn.Parameter],
    chosen: list[str],
    reasons: Mapping[str, Reason],
    existing_zeros: ExistingZeros,
    on_disk: bool,
) -> Targets:
    selected: dict[str, nn.Parameter] = {}
    whole: dict[str, nn.Parameter] = {}
    memories: set[object] = set()
    for name in chosen:
        parameter = named[name]
        if memory_of(parameter) in memories:
            continue  # the same weight under another name
        memories.add(memory_of(parameter))
        zero = existing_zeros == "auto" and not bool(parameter.any())
        (whole if zero else selected)[name] = parameter
    left = {
        name: reasons[name].why if name in reasons else "was not selected"
        for name, parameter in named.items()
        if parameter.dim() > 1 and memory_of(parameter) not in memories
    }
    for name in whole:
        left[name] = 'is zero throughout, as a branch that starts at zero; existing_zeros="keep" takes it for pruned'
    if not selected:
        found = "; ".join(f"{name!r} {why}" for name, why in left.items()) or "no weights of layers at all"
        raise ValueError(f"Parameter `params` should select at least one weight that can be pruned. Found {found}.")
    check_selected(selected, on_disk)
    _refuse_other_views(named, selected)
    return Targets(ParameterVector(selected, list(named.values())), left, whole)


def _refuse_other_views(named: Mapping[str, nn.Parameter], selected: Mapping[str, nn.Parameter]) -> None:
    """Refuses weights of which another parameter is a different view, as the transposed one."""
    nowhere = {name for name, p in named.items() if p.device.type == "meta" or hasattr(p, "to_local")}  # DTensors too
    placed = {name: parameter for name, parameter in named.items() if name not in nowhere}
    spans = sorted((*_span(parameter), name) for name, parameter in placed.items() if parameter.numel())
    end, last = 0, ""
    for begin, stop, name in spans:
        if begin < end and memory_of(named[name]) != memory_of(named[last]) and {name, last} & set(selected):
            raise ValueError(
                f"Parameter `params` should select weights with memory of their own. Found {last!r} and {name!r}, "
                f"different views of the same memory: make one of them a tensor of its own, or leave out both."
            )
        if stop > end:
            end, last = stop, name


def _span(parameter: nn.Parameter) -> tuple[int, int]:
    """Where a parameter's memory begins and ends, with its device as part of the address."""
    begin = parameter.data_ptr()
    reach = sum((size - 1) * abs(stride) for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return begin, begin + (reach + 1) * parameter.element_size()


def _computed_weights(model: nn.Module) -> dict[str, str]:
    """Weights of known layers that are computed from other parameters, and the remedy for each."""
    computed = {}
    for layer_name, layer in named_layers(model):
        for name in weight_names(layer):
            if parameter_behind(layer, name) is None:
                where = f"model.get_submodule({layer_name!r}), {name!r}" if layer_name else f"model, {name!r}"
                hooks = {type(hook).__name__ for hook in layer._forward_pre_hooks.values()}
                if parametrize.is_parametrized(layer, name):
                    call = f"torch.nn.utils.parametrize.remove_parametrizations({where})"
                elif "SpectralNorm" in hooks:
                    call = f"torch.nn.utils.remove_spectral_norm({where})"
                else:
                    call = f"torch.nn.utils.remove_weight_norm({where})"
                computed[f"{layer_name}.{name}" if layer_name else name] = f"Call {call}"
    return computed


def _parts_of_weights(model: nn.Module) -> dict[int, str]:
    """Parameters that weights of layers are computed from.

    Zeros in them are not zeros of the weight, or make it 0/0, as a row of zeros in a weight norm.

    Args:
        model: The model.

    Returns:
        By the parameter's identity the weight's name.
    """
    parts = {}
    for layer_name, layer in named_layers(model):
        for name in weight_names(layer):
            where = f"{layer_name}.{name}" if layer_name else name
            if parametrize.is_parametrized(layer, name):
                computed: Any = layer.parametrizations
                parts.update({id(parameter): where for parameter in computed[name].parameters()})
            elif parameter_behind(layer, name) is None:
                own = (layer._parameters.get(f"{name}_{part}") for part in ("g", "v"))
                parts.update({id(parameter): where for parameter in own if parameter is not None})
    return parts


def _reasons(
    model: nn.Module, named: Mapping[str, nn.Parameter], frozen_too: bool, like_known: Collection[str]
) -> dict[str, Reason]:
    """Why each parameter is not pruned by default; pruned parameters have no entry."""
    names = {id(parameter): name for name, parameter in named.items()}
    tables: dict[object, str] = {}
    kinds: dict[str, str] = {}
    known = set(like_known)
    for layer_name, layer in named_layers(model):
        for name in weight_names(layer):
            if (parameter := parameter_behind(layer, name)) is not None:
                known.add(names[id(parameter)])
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and isinstance(layer.weight, nn.Parameter):
            tables[memory_of(layer.weight)] = layer_name
        for own in layer._parameters.values():
            if own is not None:
                kinds.setdefault(names[id(own)], type(layer).__name__)
    still = {name: parameter for name, parameter in named.items() if not (parameter.requires_grad or frozen_too)}
    frozen = {memory_of(parameter): name for name, parameter in still.items()}
    parts = _parts_of_weights(model)
    reasons = {}
    for name, parameter in named.items():
        table = tables.get(memory_of(parameter))
        if id(parameter) in parts:
            reasons[name] = Reason(f"is what {parts[id(parameter)]!r} is computed from")
        elif name in still:
            reasons[name] = Reason("is frozen: requires_grad is False")
        elif memory_of(parameter) in frozen:
            reasons[name] = Reason(f"shares its memory with {frozen[memory_of(parameter)]!r}, which is frozen")
        elif table is not None:
            reasons[name] = Reason(f"is the table of the embedding {table!r}, pruned only when it is named", True)
        elif name not in known:
            reasons[name] = Reason(f"belongs to a {kinds[name]}, whose parameters are pruned only when named", True)
    return reasons
