"""Errors that a report gives are those of the layers' own inputs, whatever a model does."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.calling import call_model
from tests.layerwise.networks import made


def true_errors(dense: nn.Module, pruned: nn.Module, batches: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    """‖(W - W')X‖²/‖WX‖² of linear layers, with the inputs X that they have in the pruned model."""
    changed: dict[str, float] = dict.fromkeys(names, 0.0)
    whole: dict[str, float] = dict.fromkeys(names, 0.0)
    handles = []
    before, after = dict(dense.named_modules()), dict(pruned.named_modules())
    tied = {id(after[name.removesuffix(".weight")].weight): name for name in names}
    for module_name, module in after.items():
        if not isinstance(module, nn.Linear) or (name := tied.get(id(module.weight))) is None:
            continue
        old, new = before[module_name].weight.detach().double(), module.weight.detach().double()

        def hook(_: nn.Module, inputs: Any, name: str = name, old: Tensor = old, new: Tensor = new) -> None:
            x = inputs[0].detach().double().flatten(0, -2)
            changed[name] += float((x @ (new - old).T).square().sum())
            whole[name] += float((x @ old.T).square().sum())

        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for batch in batches:
            call_model(pruned, batch)
    for handle in handles:
        handle.remove()
    return {name: changed[name] / whole[name] for name in names}


def check_errors(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> mfac.LayerwiseReport:
    """Prunes a model and holds its report against the true errors."""
    dense = copy.deepcopy(model.eval())
    report = mfac.prune_layerwise(model, batches, **{"sparsity": 0.6, "method": "sparsegpt", **arguments})
    true = true_errors(dense, model, batches, list(report.layers))
    # Sums of float32 products in another order: about 1e-6 of ‖WX‖², and an error is 1e-2 of that.
    assert {name: layer.error for name, layer in report.layers.items()} == pytest.approx(true, rel=2e-3, abs=1e-6)
    return report


class InPlace(nn.Module):
    """Layers that read one tensor, which changes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for layer in self.layers:
            x += torch.relu(layer(x))
        return x


class PreActivation(nn.Module):
    """A shortcut that reads its input before an activation changes it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shortcut = nn.Linear(16, 16), nn.Linear(16, 16)
        self.relu, self.second = nn.ReLU(inplace=True), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        kept = self.shortcut(x)
        return self.second(self.relu(x)) + kept


@pytest.mark.parametrize("make", [InPlace, PreActivation])
@pytest.mark.parametrize("mode", ["plain", "inference", "within"])
def test_tensors_that_change_in_place_between_layers(make: type[nn.Module], mode: str) -> None:
    torch.manual_seed(0)
    model = make()
    batches = [torch.randn(200, 16) @ torch.randn(16, 16) for _ in range(2)]
    if mode == "within":  # a model whose own forward pass is in inference mode
        forward = model.forward
        model.forward = torch.inference_mode()(forward)  # type: ignore[method-assign]
    with torch.inference_mode(mode == "inference"):
        check_errors(model, batches, allocation="uniform")


def test_layers_with_the_same_inputs_share_them_in_inference_mode() -> None:
    runs = []
    for inference in (False, True):
        model, batches = made("language")
        calls: list[int] = []
        model.layers[0].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        with torch.inference_mode(inference):
            mfac.prune_layerwise(model, batches)
        runs.append(len(calls))
    assert runs[0] == runs[1]


class OneOrTwo(nn.Module):
    """Queries and keys of one tensor, or of two; `within` feeds the keys what the queries give."""

    def __init__(self, within: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.within = within

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        q = self.q(x)
        if c is None:
            c = x
        elif self.within:
            c = c + torch.relu(q)
        return q + self.k(c) * self.v(c)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_inputs_that_are_shared_in_the_first_batch_alone(within: bool, allocation: str) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(500, 16) @ torch.randn(16, 16) for _ in range(2))
    report = check_errors(OneOrTwo(within), [(x,), (x, y)], allocation=allocation)
    assert {layer.samples for layer in report.layers.values()} == {1000}


class Cross(nn.Module):
    """Attention on itself in the first batch, and on something else in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        c = x if c is None else c
        return self.attention(x, c, c)[0]


def test_packed_projections_that_share_inputs_in_the_first_batch_alone() -> None:
    torch.manual_seed(0)
    dense, mixing = Cross(), torch.randn(8, 8)
    x, c = torch.randn(20, 9, 8), torch.randn(20, 9, 8) @ mixing
    model = copy.deepcopy(dense)
    report = mfac.prune_layerwise(model, [(x,), (x, c)], method="sparsegpt", allocation="uniform")
    weight = dense.attention.in_proj_weight.detach()
    change = model.attention.in_proj_weight.detach() - weight
    inputs = [torch.cat([x, x]), torch.cat([x, c]), torch.cat([x, c])]
    pairs = list(zip(change.chunk(3), weight.chunk(3), inputs, strict=True))
    lost = sum(float((i @ d.T).square().sum()) for d, _, i in pairs)
    whole = sum(float((i @ w.T).square().sum()) for _, w, i in pairs)
    assert report.layers["attention.in_proj_weight"].error == pytest.approx(lost / whole, rel=1e-3)


class Twice(nn.Module):
    """Layers that share the inputs of their first call, but one is called once more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + self.b(x.square())


def test_layers_that_are_not_called_as_often() -> None:
    torch.manual_seed(0)
    report = check_errors(Twice(), [torch.randn(300, 16) @ torch.randn(16, 16)], allocation="uniform")
    assert report.layers["b.weight"].samples == 600


class EveryExpert(nn.Module):
    """Experts that are all called, some without a token; the last one never gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        chosen = x[:, :3].argmax(-1)
        out = x.clone()
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            out[mine] += expert(x[mine])
        return out


class Mixtures(nn.Module):
    """Blocks of such experts."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EveryExpert() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_experts_that_are_called_without_a_token(blocks: int, allocation: str) -> None:
    torch.manual_seed(0)
    one = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])
    first = torch.randn(200, 8) + 9 * one  # all for the first expert
    report = check_errors(Mixtures(blocks), [first, torch.randn(300, 8), torch.randn(300, 8)], allocation=allocation)
    assert report.left_dense == {
        f"blocks.{block}.experts.3.weight": "saw no sample of the calibration data" for block in range(blocks)
    }


def test_batches_without_samples() -> None:
    model, (batch, *_) = made("mlp")
    report = check_errors(model, [batch, [batch[0][:0]]])
    assert {layer.samples for layer in report.layers.values()} == {40}
    with pytest.raises(ValueError, match=r"`data` should hold samples. Found that every tensor.*shape \[0, 8\]"):
        mfac.prune_layerwise(model, [[batch[0][:0]]])


class Tied(nn.Module):
    """Layers that share a weight and are called with inputs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.other, self.b = (nn.Linear(16, 16) for _ in range(3))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) * self.other(x) + self.b(y).mean(0)


class TiedBlock(nn.Module):
    """Two layers, the first of which has its weight from elsewhere."""

    def __init__(self, weight: nn.Parameter | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        if weight is not None:
            self.up.weight = weight

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.down(torch.relu(self.up(y))), y


class TiedBlocks(nn.Module):
    """Blocks with a weight in common, whose inputs do not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TiedBlock()])
        self.blocks.extend(TiedBlock(self.blocks[0].up.weight) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x, _ = block(x, y * (1 + number) + number * y.square())
        return x


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_weight_of_several_layers_is_fitted_to_the_inputs_of_all(allocation: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(200, 16) @ torch.randn(16, 16), torch.randn(300, 16)) for _ in range(2)]
    report = check_errors(Tied(), batches, allocation=allocation)
    assert {name: layer.samples for name, layer in report.layers.items()} == {"a.weight": 1000, "other.weight": 400}
    whole = check_errors(TiedBlocks(), [(x, x) for x, _ in batches], allocation=allocation)
    assert "'blocks.0.up.weight' is the weight of layers in several places" in whole.notes[0]
    assert whole.layers["blocks.0.up.weight"].samples == 3 * 400


def test_a_weight_that_is_used_in_different_ways_is_left_dense() -> None:
    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 4, 4, bias=False), nn.ConvTranspose1d(4, 4, 4, bias=False)
            self.b.weight = self.a.weight
            self.c = nn.Conv1d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))

    report = mfac.prune_layerwise(Ways(), [torch.randn(6, 4, 9)], method="sparsegpt")
    assert report.left_dense == {"a.weight": "is shared by layers that use it in different ways"}
    assert list(report.masks) == ["c.weight"]


def test_weights_of_several_layers_along_the_loss() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(20, 16), torch.randn(20, 16)) for _ in range(4)]
    report = mfac.prune_layerwise(
        Tied(),
        batches,
        method="sparsegpt",
        weigh_inputs=True,
        weigh_outputs=True,
        loss_fn=lambda model, batch: model(*batch).square().mean(),
    )
    assert report.layers["a.weight"].samples == 160


def test_encoders_with_padding() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)
    padding = torch.zeros(8, 7, dtype=torch.bool)
    padding[::2, 5:] = True
    batches = [{"src": torch.randn(8, 7, 16), "src_key_padding_mask": padding} for _ in range(3)]
    assert torch.backends.mha.get_fastpath_enabled()
    plan = mfac.plan_layerwise(model, batches)
    report = mfac.prune_layerwise(model, batches, method="sparsegpt")
    assert len(report.layers) == len(plan.weights) == 12 and not report.notes
    assert {layer.samples for name, layer in report.layers.items() if "linear" in name} == {3 * 56}
    assert torch.backends.mha.get_fastpath_enabled()
