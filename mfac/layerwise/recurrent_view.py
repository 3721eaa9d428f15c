"""The weights of recurrent layers, and what their steps multiply with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from mfac.layerwise.views import Arguments, LayerView

_FUNCTIONS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class _StepView(LayerView):
    """A weight [gates · hidden, inputs], of the inputs of steps or of the state before each step.

    Args:
        name: The parameter's name.
        module: The recurrent layer, or cell.
        parameter: The weight.
        key: The weight's name within the layer.
    """

    def __init__(self, name: str, module: nn.Module, parameter: nn.Parameter, key: str) -> None:
        super().__init__(name, module, parameter)
        self.key, self._of_state = key, key.startswith("weight_hh")
        if self._of_state:  # sequences of one step have no states but the first
            self.partial, self.when_unseen = True, "is multiplied with states that are always zero"
        self.shapes = [(parameter.shape[0], parameter.shape[1])]

    @property
    def index(self) -> list[Tensor]:
        """Of the one matrix."""
        return [torch.arange(self.parameter.numel()).view(self.parameter.shape)]


class CellView(_StepView):
    """A weight of `RNNCell`, `LSTMCell` or `GRUCell`."""

    def sources(self, arguments: Arguments) -> list[Tensor]:
        """The input, or the state; nothing where the state is left out, which is zero then."""
        x, state = _input_and_state(arguments)
        if not self._of_state:
            return [x.detach()]
        if state is None:
            return [x.new_zeros(*x.shape[:-1], self.parameter.shape[1])]
        return [(state[0] if isinstance(state, tuple | list) else state).detach()]


class RecurrentView(_StepView):
    """A weight of `RNN`, `LSTM` or `GRU`, of any of its layers and directions.

    Torch shows the states of the last layer alone. So the layers up to the weight's are run once
    more, one after the other.
    """

    @torch.no_grad()
    def sources(self, arguments: Arguments) -> list[Tensor]:
        """The inputs of the weight's layer, or its states before each step; [steps, columns]."""
        x, state = _input_and_state(arguments)
        module: Any = self.module
        directions = 2 if module.bidirectional else 1
        data, sizes, order = _packed(x, module.batch_first)
        place = next(place for place, keys in enumerate(module._all_weights) if self.key in keys)
        layer, backwards = divmod(place, directions)
        states = _states_of(module, state, int(sizes[0]), order, data)
        for number in range(layer):
            data = _run(module, number, data, sizes, states)
        if not self._of_state:
            return [data.detach()]
        made = _run(module, layer, data, sizes, states).chunk(directions, 1)[backwards]
        return [_before(made, sizes, states[0][place], bool(backwards))]


def _input_and_state(arguments: Arguments) -> tuple[Any, Any]:
    positional, named = arguments
    values: dict[str, Any] = {**dict(zip(("input", "hx"), positional, strict=False)), **named}
    return values["input"], values.get("hx")


def _packed(x: Tensor | PackedSequence, batch_first: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Steps of all sequences one by one, how many sequences each has, and the order of these."""
    if isinstance(x, PackedSequence):
        return x.data, x.batch_sizes, x.sorted_indices
    if x.dim() == 2:
        x = x[:, None]
    elif batch_first:
        x = x.transpose(0, 1)
    steps, batch = x.shape[:2]
    return x.reshape(steps * batch, x.shape[-1]), torch.full((steps,), batch), None


def _states_of(module: Any, state: Any, batch: int, order: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
    """States before the first step, [layers · directions, batch, size] each; of an LSTM two."""
    directions = 2 if module.bidirectional else 1
    if state is None:
        sizes = [module.proj_size or module.hidden_size, module.hidden_size]
        shapes = [(module.num_layers * directions, batch, size) for size in sizes]
        return tuple(like.new_zeros(shape) for shape in shapes[: 2 if module.mode == "LSTM" else 1])
    given = state if isinstance(state, tuple | list) else (state,)
    whole = [one if one.dim() == 3 else one[:, None] for one in given]
    return tuple(one if order is None else one.index_select(1, order) for one in whole)


def _run(module: Any, number: int, data: Tensor, sizes: Tensor, states: Sequence[Tensor]) -> Tensor:
    """What a layer makes of its inputs, [steps, directions · size]."""
    directions = 2 if module.bidirectional else 1
    places = slice(number * directions, (number + 1) * directions)
    weights = [getattr(module, key) for keys in module._all_weights[places] for key in keys]
    begin = [state[places].contiguous() for state in states]
    given = begin if module.mode == "LSTM" else begin[0]
    function = getattr(torch._VF, _FUNCTIONS[module.mode])
    made: Tensor = function(data, sizes, given, weights, module.bias, 1, 0.0, False, module.bidirectional)[0]
    return made


def _before(made: Tensor, sizes: Tensor, first: Tensor, backwards: bool) -> Tensor:
    """The state before each step, from those after each; where a sequence begins, the first one."""
    steps = list(made.split(sizes.tolist()))
    found, last = [], first[:0]
    for step in reversed(steps) if backwards else steps:
        found.append(torch.cat([last, first[len(last) :]])[: len(step)])
        last = step
    return torch.cat(found[::-1] if backwards else found)
