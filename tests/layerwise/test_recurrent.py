"""Recurrent layers, beside steps that are written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mfac
from mfac.layerwise.found_views import views_of


def steps_of(layer: Any, x: Tensor, first: list[Tensor], backwards: bool, keys: list[str]) -> tuple[Tensor, Tensor]:
    """States before each step of one sequence, and after, by a cell; x [steps, in]."""
    cells = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell, "RNN_RELU": nn.RNNCell}
    kwargs = {"nonlinearity": layer.mode[4:].lower()} if layer.mode.startswith("RNN") else {}
    cell = cells[layer.mode](x.shape[1], layer.hidden_size, layer.bias, **kwargs)
    for key, name in zip(keys, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), strict=False):
        getattr(cell, name).data.copy_(getattr(layer, key))
    before, after = [], []
    state: Any = tuple(first) if len(first) > 1 else first[0]
    for row in reversed(x) if backwards else x:
        before.append(state[0] if len(first) > 1 else state)
        state = cell(row, state)
        after.append(state[0] if len(first) > 1 else state)
    if backwards:
        before, after = before[::-1], after[::-1]
    return torch.stack(before), torch.stack(after)


@torch.no_grad()
def written_out(layer: Any, sequences: list[Tensor], states: list[Tensor]) -> dict[str, Tensor]:
    """XᵀX of each weight's inputs, sequence by sequence, step by step."""
    grams: dict[str, Tensor] = {}
    directions = 2 if layer.bidirectional else 1
    for number, x in enumerate(sequences):
        for depth in range(layer.num_layers):
            made = []
            for direction in range(directions):
                place = depth * directions + direction
                keys = layer._all_weights[place]
                first = [state[place, number] for state in states]
                before, after = steps_of(layer, x, first, bool(direction), keys)
                for key, inputs in zip(keys, (x, before), strict=False):
                    grams[key] = grams.get(key, 0) + inputs.T.double() @ inputs.double()
                made.append(after)
            x = torch.cat(made, 1)
    return grams


KINDS = [
    lambda: nn.LSTM(5, 4),
    lambda: nn.LSTM(5, 4, 2, bidirectional=True),
    lambda: nn.GRU(5, 4, 2, batch_first=True),
    lambda: nn.GRU(5, 4, bidirectional=True, bias=False),
    lambda: nn.RNN(5, 4, 2, bidirectional=True, batch_first=True),
    lambda: nn.RNN(5, 4, nonlinearity="relu"),
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("shape", ["batch", "packed", "one"])
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_inputs_of_steps_are_those_written_out(kind: int, shape: str, given: bool) -> None:
    torch.manual_seed(kind)
    layer: Any = KINDS[kind]().eval()
    count = 1 if shape == "one" else 3
    lengths = [6, 2, 4][:count] if shape == "packed" else [6] * count
    sequences = [torch.randn(length, 5) for length in lengths]
    places = layer.num_layers * (2 if layer.bidirectional else 1)
    parts = 2 if layer.mode == "LSTM" else 1
    states = [torch.randn(places, count, 4) if given else torch.zeros(places, count, 4) for _ in range(parts)]
    x: Any = nn.utils.rnn.pad_sequence(sequences, batch_first=layer.batch_first)
    if shape == "packed":
        x = pack_padded_sequence(x, torch.tensor(lengths), layer.batch_first, enforce_sorted=False)
    handed = states
    if shape == "one":
        x, handed = sequences[0], [state[:, 0] for state in states]
    hx: Any = (tuple(handed) if parts > 1 else handed[0]) if given else None
    wanted = written_out(layer, sequences, states)
    views, unseen = views_of(layer, [key for key, _ in layer.named_parameters() if key.startswith("weight")])
    assert not unseen and {view.name for view in views} == set(wanted)
    for view in views:
        rows = torch.cat(list(view.rows(0, view.sources(((x,), {"hx": hx}))[0]))).double()
        assert len(rows) == sum(lengths)
        torch.testing.assert_close(rows.T @ rows, wanted[view.name], rtol=1e-4, atol=1e-5)


class Tagger(nn.Module):
    """A recurrent network over padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1)
        packed = pack_padded_sequence(self.embed(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("arguments", [{}, {"pattern": "2:4"}, {"quantize": mfac.Grid(4, 8)}, {"finish": "fisher"}])
def test_a_recurrent_network_is_pruned(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Tagger().eval()
    batches = []
    for _ in range(8):
        ids = torch.randint(1, 20, (12, 9))
        for number, row in enumerate(ids):
            row[9 - number % 5 :] = 0
        batches.append(ids)
    dense = copy.deepcopy(model)
    report = mfac.prune_layerwise(
        model, batches, method="sparsegpt", allocation="uniform",
        loss_fn=lambda m, ids: m(ids).square().mean(), **arguments,
    )  # fmt: skip
    assert len(report.layers) == 9 and set(report.left_dense) == {"embed.weight"}
    assert report.sparsity == 0.5 and mfac.verify(model, report)
    assert all(layer.error < 0.3 for layer in report.layers.values())
    assert report.layers["lstm.weight_hh_l0"].samples == sum(int((ids != 0).sum()) for ids in batches)
    plain = copy.deepcopy(dense)
    mfac.prune_layerwise(plain, batches, method="magnitude", allocation="uniform")
    with torch.no_grad():
        wanted = [dense(ids) for ids in batches]
        changes = [
            float(sum((made(ids) - one).square().sum() for ids, one in zip(batches, wanted, strict=True)))
            for made in (model, plain)
        ]
    if not arguments:
        assert changes[0] < changes[1]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_cells_and_projected_states() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.gru, self.last = nn.LSTMCell(6, 8), nn.GRUCell(8, 8), nn.LSTM(8, 8, 2, proj_size=4)

        def forward(self, x: Tensor) -> Tensor:
            state, other = None, torch.zeros(x.shape[1], 8)
            made = []
            for row in x:
                state = self.cell(row, state)
                other = self.gru(state[0], other)
                made.append(other)
            out: Tensor = self.last(torch.stack(made))[0]
            return out

    torch.manual_seed(0)
    batches = [torch.randn(5, 7, 6) for _ in range(4)]
    report = mfac.prune_layerwise(Net(), batches, method="sparsegpt", allocation="uniform")
    assert set(report.left_dense) == {"last.weight_hr_l0", "last.weight_hr_l1"}
    assert len(report.layers) == 8 and all(0 < layer.error < 0.3 for layer in report.layers.values())
    assert report.layers["gru.weight_hh"].samples == 4 * 5 * 7


def test_recurrent_layers_with_a_forward_of_their_own_stay_dense() -> None:
    class Residual(nn.GRU):
        def forward(self, x: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return x + super().forward(x, hx)[0]

    report = mfac.prune_layerwise(nn.Sequential(Residual(8, 8), nn.Linear(8, 4)), [torch.randn(5, 6, 8)])
    assert list(report.layers) == ["1.weight"] and len(report.left_dense) == 2


def test_states_that_are_always_zero_leave_their_weight_dense() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.lstm, self.head = nn.GRUCell(6, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(self.cell(x)[None])[0][0])

    report = mfac.prune_layerwise(Net(), [torch.randn(50, 6) for _ in range(2)])
    assert set(report.layers) == {"cell.weight_ih", "lstm.weight_ih_l0", "head.weight"}
    assert report.left_dense["cell.weight_hh"] == "is multiplied with states that are always zero"


def test_a_batch_without_sequences_counts_nothing() -> None:
    layer = nn.LSTM(6, 8, 2, batch_first=True)
    report = mfac.prune_layerwise(layer, [torch.randn(5, 7, 6), torch.randn(0, 7, 6)])
    assert len(report.layers) == 4 and report.layers["weight_hh_l0"].samples == 35


class Louder(nn.MultiheadAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(torch.tanh(query) * 5, key * 2, value, **kwargs)


class Attending(nn.Module):
    def __init__(self, kind: type[nn.MultiheadAttention]) -> None:
        super().__init__()
        self.attention, self.head = kind(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_attention_with_a_forward_of_its_own_stays_dense() -> None:
    report = mfac.prune_layerwise(Attending(Louder), [torch.randn(4, 6, 16) for _ in range(3)])
    assert list(report.layers) == ["head.weight"]
    assert "not that of MultiheadAttention" in report.left_dense["attention.in_proj_weight"]


@pytest.mark.parametrize("case", ["lstm", "cell", "attention"])
def test_masks_of_torch_prune_leave_weights_dense(case: str) -> None:
    model: Any
    if case == "attention":
        model, key, x = Attending(nn.MultiheadAttention), "in_proj_weight", torch.randn(4, 6, 16)
        torch_prune.l1_unstructured(model.attention, key, 0.5)
        name = "attention.in_proj_weight_orig"
    else:
        layer = nn.LSTM(6, 8) if case == "lstm" else nn.RNNCell(6, 8)
        key, x = ("weight_ih_l0", torch.randn(5, 7, 6)) if case == "lstm" else ("weight_ih", torch.randn(7, 6))
        model, name = nn.Sequential(layer), f"0.{key}_orig"
        torch_prune.l1_unstructured(layer, key, 0.5)
    before = model.get_parameter(name).detach().clone()
    params = None if case == "attention" else ["0.weight_hh*", name] if case == "lstm" else None
    if case == "cell":
        with pytest.raises(ValueError, match=r"can be seen|always zero"):
            mfac.prune_layerwise(model, [x], params=[name])
        return
    report = mfac.prune_layerwise(model, [x], params=params)
    assert "prune.remove" in report.left_dense[name] and report.layers
    assert torch.equal(model.get_parameter(name), before)
