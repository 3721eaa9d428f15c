"""Patterns of whole units hold in every kind of layer, with odd shapes, and mix by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import batches, cross_entropy
from torch import Tensor, nn

import mfac
from mfac.gradients.prunable import describe_weights
from mfac.masks.kinds.axes import as_matrix
from mfac.masks.patterns import Candidates, resolve_pattern

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2}


class Conv1D(nn.Module):
    """As Hugging Face's: weight [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


LAYERS = {
    "linear": (nn.Linear(7, 5), (5, 7)),
    "conv": (nn.Conv2d(6, 5, (3, 2)), (5, 6)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (9, 6)),
    "depthwise": (nn.Conv1d(5, 5, 3, groups=5), (5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 5, 3), (5, 6)),
    "grouped transposed": (nn.ConvTranspose2d(6, 9, 3, groups=3), (9, 6)),
    "transformers": (Conv1D(7, 5), (5, 7)),
}


def input_for(layer: nn.Module, channels: int) -> Tensor:
    spatial = layer.weight.dim() - 2
    shape = (2, channels, *[5] * spatial) if spatial else (2, channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_and_channels_are_what_the_layer_computes(kind: str):
    """Without its row an output channel is constant; without its entries an input has no effect."""
    layer, (outs, ins) = LAYERS[kind]
    layer = layer.double()
    axis = 1 if layer.weight.dim() > 2 else -1
    x = input_for(layer, ins)
    weights = describe_weights(layer, {"weight": layer.weight})
    for name, count in (("rows", outs), ("channels", ins)):
        labels = resolve_pattern(name).labels(weights[0]).view(layer.weight.shape)
        assert sorted(labels.unique().tolist()) == list(range(count))
        for number in range(count):
            with torch.no_grad():
                kept = layer.weight.clone()
                layer.weight.mul_(labels != number)
                if name == "rows":
                    out = layer(x).select(axis, number)
                    assert float(out.max() - out.min()) == 0
                else:
                    changed = x.clone()
                    changed.select(axis, number).add_(1)
                    torch.testing.assert_close(layer(changed), layer(x))
                layer.weight.copy_(kept)


@given(
    kind=st.sampled_from(sorted(LAYERS)),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 6),
    drop=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_blocks_go_as_a_whole(kind: str, outputs: int, inputs: int, drop: float, seed: int):
    layer, _ = LAYERS[kind]
    weights = describe_weights(layer, {"weight": layer.weight})
    size = layer.weight.numel()
    scores = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    pattern = resolve_pattern(f"{outputs}x{inputs}")
    units = pattern.units(Candidates(weights, torch.ones(size, dtype=torch.bool), scores))
    wanted = int(drop * size)
    dropped = units.lowest([wanted])
    matrix = dropped[as_matrix(weights[0])]  # [out, in, positions]
    largest = 0
    for rows in matrix.split(outputs, dim=0):
        for block in rows.split(inputs, dim=1):
            for position in range(matrix.shape[2]):
                piece = block[:, :, position]
                assert bool(piece.all()) or not bool(piece.any())
                largest = max(largest, piece.numel())
    assert wanted - largest < int(dropped.sum()) <= wanted
    torch.testing.assert_close(float(units.scores.sum()), float(scores.sum()), rtol=1e-4, atol=1e-4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("pattern", ["4x1", "1x4", "16x16", "5x3"])
def test_a_run_keeps_blocks_whole_and_reaches_its_sparsity(pattern: str):
    model = net()
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, pattern=pattern, **SMALL)
    rows, columns = map(int, pattern.split("x"))
    for mask in report.masks.values():
        for piece in (part for lines in mask.split(rows) for part in lines.split(columns, dim=1)):
            assert bool(piece.all()) or not bool(piece.any())
    assert 0.5 - 3 * rows * columns / 944 < report.sparsity <= 0.5


def test_patterns_by_name_end_exactly_where_each_says():
    model = net()
    pattern = {"0.*": "2:4", "2.*": "4x1", "*": "unstructured"}
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.6, pattern=pattern, **SMALL)
    first, second = report.masks["0.weight"], report.masks["2.weight"]
    assert bool((first.view(32, 3, 4).sum(2) == 2).all())
    blocks = second.view(4, 4, 32).sum(1)
    assert bool(((blocks == 0) | (blocks == 4)).all())
    assert 0.59 < report.sparsity <= 0.6
    with pytest.raises(ValueError, match=r"`sparsity` should be at least 0.2034, which the fixed parts"):
        mfac.prune(net(), cross_entropy, batches(30), sparsity=0.1, pattern=pattern, **SMALL)
    with pytest.raises(ValueError, match=r"`pattern` should give every weight .* Found none for '2.weight'"):
        mfac.prune(net(), cross_entropy, batches(30), sparsity=0.5, pattern={"0.*": "2:4"}, **SMALL)
    with pytest.raises(ValueError, match=r"`pattern` should name weights .* Found '9.\*'"):
        mfac.prune(net(), cross_entropy, batches(30), sparsity=0.5, pattern={"9.*": "2:4", "*": "rows"}, **SMALL)


class Projections(nn.Module):
    """An attention as transformers writes them, keys and values shared by pairs of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads = 4, 2
        self.q_proj, self.o_proj = nn.Linear(12, 8), nn.Linear(8, 3)
        self.k_proj, self.v_proj = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (proj(x).view(-1, 2, 1, 2).expand(-1, 2, 2, 2).reshape(-1, 8) for proj in (self.k_proj, self.v_proj))
        return self.o_proj(torch.sigmoid(self.q_proj(x) * k) * v)


def test_heads_go_through_all_projections_at_once():
    torch.manual_seed(0)
    model = Projections()
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, pattern=mfac.Heads(model), **SMALL)
    masks = report.masks
    kept = masks["k_proj.weight"].view(2, 2, 12).all(2).all(1)  # of the two groups of heads
    assert kept.sum() == 1 and report.sparsity == 0.5
    assert torch.equal(masks["q_proj.weight"], kept.repeat_interleave(4)[:, None].expand(8, 12))
    assert torch.equal(masks["v_proj.weight"], kept.repeat_interleave(2)[:, None].expand(4, 12))
    assert torch.equal(masks["o_proj.weight"], kept.repeat_interleave(4)[None].expand(3, 8))
    with pytest.raises(ValueError, match=r"`params` should select all projections of an attention or none"):
        mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, pattern=mfac.Heads(model), params="q_proj.weight")
    with pytest.raises(ValueError, match=r"`model` should have attentions"):
        mfac.Heads(net())


def test_heads_beside_another_pattern():
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = Projections(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.attention(x))

    model = Both()
    pattern = {"mlp.*": "unstructured", "*": mfac.Heads(model)}
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, pattern=pattern, **SMALL)
    kept = report.masks["attention.k_proj.weight"].view(2, -1)
    assert all(bool(row.all()) or not bool(row.any()) for row in kept)
    assert 0.3 < report.sparsity <= 0.5


def test_heads_alone_leave_other_weights_dense_and_say_so():
    torch.manual_seed(0)
    model = nn.Sequential(Projections(), nn.Linear(3, 8), nn.Linear(8, 3))
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.5, pattern=mfac.Heads(model), **SMALL)
    assert {name.split(".")[0] for name in report.masks} == {"0"}
    assert set(report.left_dense) == {"1.weight", "2.weight"}
    assert report.left_dense["1.weight"].startswith("is no projection of an attention")
    planned = mfac.plan(model, cross_entropy, batches(30), params="[01].*", pattern=mfac.Heads(model), **SMALL)
    assert set(planned.tensors) == set(report.masks)
    with pytest.raises(ValueError, match=r"Found '1.weight': it is no projection"):
        mfac.prune(model, cross_entropy, batches(30), params=["0.*", "1.weight"], pattern=mfac.Heads(model), **SMALL)


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_single_weights_make_up_for_heads_that_do_not_fit(allocation: Any):
    torch.manual_seed(0)
    model = nn.Sequential(Projections(), nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 3))
    pattern = {"0.*": mfac.Heads(model), "*": "unstructured"}
    arguments: dict[str, Any] = {"sparsity": 0.4, "pattern": pattern, "allocation": allocation, **SMALL}
    planned = mfac.plan(model, cross_entropy, batches(30), **arguments)
    report = mfac.prune(model, cross_entropy, batches(30), **arguments)
    assert sum(int(mask.sum()) for mask in report.masks.values()) == planned.kept
    assert all(bool(mask.any()) for mask in report.masks.values())


def test_a_sparsity_that_whole_units_cannot_reach_is_said():
    torch.manual_seed(0)
    model = Projections()
    with pytest.warns(UserWarning, match=r"at a sparsity of 0\.500, where 0\.602 was asked for"):
        mfac.prune(model, cross_entropy, batches(30), sparsity=0.6, pattern=mfac.Heads(model), **SMALL)


@pytest.mark.parametrize("seed", range(5))
def test_a_very_sparse_network_is_not_cut_in_two(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Linear(12, 256), nn.Tanh(), nn.Linear(256, 8), nn.Tanh(), nn.Linear(8, 256), nn.Tanh(), nn.Linear(256, 3))
    )
    report = mfac.prune(model, cross_entropy, batches(64), sparsity=0.98, num_gradients=64, stages=1, recomputations=1)
    reached = torch.ones(12)
    for index in (0, 2, 4, 6):
        reached = (report.masks[f"{index}.weight"].float() @ reached > 0).float()
    assert bool(reached.all())  # every output depends on some input
    assert math.isclose(report.sparsity, 0.98, abs_tol=1e-3)
