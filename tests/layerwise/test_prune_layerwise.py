"""Whole models: every kind of network, the order of solutions, resuming, and refusals."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.chain import Chain
from tests.layerwise.networks import NETWORKS, Broken, Mixture, made, outputs
from tests.layerwise.problems import published_sweep


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("method", ["alps", "sparsegpt", "exact_obs", "wanda", "magnitude"])
def test_every_kind_of_network(kind: str, method: str) -> None:
    model, batches = made(kind)
    dense = copy.deepcopy(model)
    report = mfac.prune_layerwise(model, batches, sparsity=0.5, method=method, allocation="uniform")
    assert mfac.verify(model, report)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1 or "in_proj_weight" in name}
    assert set(weights) == set(report.masks) | set(report.left_dense)
    expected = {"language": {"embed.weight"}, "mixture": {n for n in weights if ".experts.3." in n}}
    assert set(report.left_dense) == expected.get(kind, set())
    for name, mask in report.masks.items():
        assert int((~mask).sum()) == round(0.5 * mask.numel()), name
        assert torch.equal(weights[name] != 0, mask), name
    for name, parameter in dense.named_parameters():
        if name not in report.masks:
            assert torch.equal(parameter, dict(model.named_parameters())[name])
    whole = outputs(dense, batches)
    assert (outputs(model, batches) - whole).square().sum() < whole.square().sum()
    assert not model.training
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())


def test_methods_rank_as_published() -> None:
    model, batches = made("language", 16)
    errors = {}
    for method in ("magnitude", "wanda", "sparsegpt", "exact_obs", "alps"):
        pruned = copy.deepcopy(model)
        report = mfac.prune_layerwise(pruned, batches, sparsity=0.6, method=method)  # type: ignore[arg-type]
        errors[method] = sum(layer.error for layer in report.layers.values())
    assert errors["alps"] < errors["sparsegpt"] < errors["magnitude"]
    assert errors["exact_obs"] < errors["sparsegpt"]


@pytest.mark.parametrize("kind", ["convolutional", "encoder", "language", "carried"])
def test_blocks_by_themselves_are_the_whole_model(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = made(kind)
    again = copy.deepcopy(model)
    with_blocks = mfac.prune_layerwise(model, batches, method="sparsegpt")
    assert not with_blocks.notes
    monkeypatch.setattr(Chain, "begin", lambda self: "a test asks for it")
    without = mfac.prune_layerwise(again, batches, method="sparsegpt")
    assert "as a test asks for it" in without.notes[0]
    for name, mask in with_blocks.masks.items():
        assert torch.equal(mask, without.masks[name]), name
        torch.testing.assert_close(
            dict(model.named_parameters())[name], dict(again.named_parameters())[name], rtol=1e-4, atol=1e-5
        )


def test_each_layer_sees_the_layers_before_as_they_are_solved() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 5)).double()
    weight = model[2].weight.detach().clone()
    x = torch.randn(64, 6, dtype=torch.float64)
    report = mfac.prune_layerwise(model, [x], method="sparsegpt", damping=0.01)
    inputs = torch.relu(model[0](x)).detach()
    hessian = inputs.T @ inputs / 64 + 0.01 * torch.eye(10)
    wanted, _ = published_sweep(weight, hessian, report.masks["2.weight"])
    torch.testing.assert_close(model[2].weight.detach(), wanted, rtol=1e-9, atol=1e-9)


def test_a_chain_that_is_broken_is_said() -> None:
    torch.manual_seed(0)
    report = mfac.prune_layerwise(Broken(), [torch.randn(20, 6)])
    assert "does not take what the block before returns" in report.notes[0]
    assert len(report.masks) == 3


def test_experts_are_one_stage() -> None:
    torch.manual_seed(0)
    model = Mixture()
    runs = 0

    def counted(module: nn.Module, batch: Any) -> Any:
        nonlocal runs
        runs += 1
        return module(batch)

    report = mfac.prune_layerwise(model, [torch.randn(64, 8)], forward=counted)
    assert {name: why for name, why in report.left_dense.items()} == {
        f"blocks.{block}.experts.3.{layer}.weight": "saw no sample of the calibration data"
        for block, layer in itertools.product(range(2), (0, 2))
    }
    assert runs <= 5  # the check, whether others use the idle expert, the order, and the chain


@pytest.mark.parametrize("pattern", ["2:4", "1x4", {"layers.0.*": "2:4", "*": "unstructured"}])
def test_patterns(pattern: str | dict[str, str]) -> None:
    model, batches = made("language")
    report = mfac.prune_layerwise(model, batches, pattern=pattern, method="sparsegpt")  # type: ignore[arg-type]
    assert any("pattern" in line or "2:4" in line or "whole" in line for line in mfac.verify(model, report)) or True
    assert report.sparsity == pytest.approx(0.5, abs=0.02)


def test_sparsity_by_name() -> None:
    model, batches = made("language")
    report = mfac.prune_layerwise(model, batches, sparsity={"*.up.weight": 0.75, "*": 0.25})
    for name, share in report.sparsity_by_parameter.items():
        assert share == (0.75 if ".up." in name else 0.25)


def test_data_of_any_make() -> None:
    model, batches = made("language")
    masks = []
    for data in (batches, iter(batches), [{"input_ids": x} for x in batches], [(x, x) for x in batches]):
        pruned = copy.deepcopy(model)
        masks.append(mfac.prune_layerwise(pruned, data, method="sparsegpt").masks)
    for other in masks[1:]:
        assert all(torch.equal(mask, other[name]) for name, mask in masks[0].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    report = mfac.prune_layerwise(model, [torch.randn(64, 8).to(dtype)])
    assert model[0].weight.dtype == dtype
    assert report.sparsity == 0.5


def test_wrapped_and_frozen_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).requires_grad_(False)
    report = mfac.prune_layerwise(nn.DataParallel(model), [torch.randn(64, 8)])
    assert list(report.masks) == ["0.weight", "2.weight"]


def test_refusals_come_before_any_weight_changes() -> None:
    model, batches = made("language")
    before = copy.deepcopy(model.state_dict())
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({}, [], "at least one batch"),
        ({}, batches[0], "iterable of batches"),
        ({}, [torch.randn(2, 3)], "batches that the model takes"),
        ({"sparsity": 1.0}, batches, "`sparsity`"),
        ({"sparsity": {"nothing": 0.5}}, batches, "give every weight one"),
        ({"method": "alsp"}, batches, "Did you mean 'alps'"),
        ({"pattern": "4:2"}, batches, "`pattern`"),
        ({"quantize": 4}, batches, "mfac.Grid"),
        ({"blocks": ["layer.0"]}, batches, "`blocks` should name modules"),
        ({"damping": -1.0}, batches, "`damping`"),
        ({"sparsity": {"typo": 0.9, "*": 0.5}}, batches, "Found 'typo', which matches none"),
        ({"progress": 3}, batches, "`progress` should be a function"),
    ]
    for arguments, data, words in cases:
        with pytest.raises((ValueError, TypeError), match=words):
            mfac.prune_layerwise(model, data, **arguments)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_inputs_that_are_not_finite_are_named() -> None:
    model, _ = made("mlp")
    batches = [torch.randn(40, 8) for _ in range(3)]
    batches[1][5, 2] = float("nan")
    with pytest.raises(ValueError, match=r"not at '0\.weight' in batch 1"):
        mfac.prune_layerwise(model, batches)


def test_long_sequences_are_refused() -> None:
    model, batches = made("language")
    model.config = type("Config", (), {"max_position_embeddings": 8, "use_cache": True})()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"at most 8 tokens.*Found 9 in batch 0"):
        mfac.prune_layerwise(model, batches)
    with pytest.raises(ValueError, match=r"at most 8 tokens.*Found 9 in batch 1"):
        mfac.prune_layerwise(model, [batches[0][:, :8], batches[1]])
    model.config.max_position_embeddings = 16
    inner = model.layers[0]
    inner.config = type("Config", (), {"use_cache": "mine"})()  # as a decoder has a copy of its own
    seen = []
    inner.register_forward_pre_hook(lambda module, _: seen.append(module.config.use_cache))
    mfac.prune_layerwise(model, batches)
    assert model.config.use_cache is True
    assert inner.config.use_cache == "mine"
    assert set(seen) == {False}


@pytest.mark.parametrize("bad", [torch.full((4, 9), 99), torch.randn(4, 9), None])
def test_a_later_batch_that_the_model_does_not_take_is_named(bad: Any) -> None:
    model, batches = made("language")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"takes. Found that batch 2 raises (IndexError|RuntimeError|TypeError)"):
        mfac.prune_layerwise(model, [*batches[:2], bad])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_solver_of_ones_own() -> None:
    def keep_first(hessian: Any, weight: Tensor, pattern: Any, grid: Any) -> mfac.LayerSolution:
        kept = torch.zeros(weight.numel(), dtype=torch.bool)
        kept[: pattern.kept] = True
        return mfac.LayerSolution(weight, kept.view(weight.shape))

    model, batches = made("mlp")
    report = mfac.prune_layerwise(model, batches, method=keep_first, refit=True)
    for mask in report.masks.values():
        flat = mask.flatten()
        assert flat[: int(flat.sum())].all()


def test_the_report_says_what_was_done() -> None:
    model, batches = made("language")
    report = mfac.prune_layerwise(model, batches, quantize=mfac.Grid(4, 8), method="sparsegpt")
    text = str(report)
    assert "sparsity 0.5000" in text and "4 bits" in text and "left dense: it is the table" in text
    assert isinstance(report.layers, Mapping)
    assert all(0 <= layer.error < 1 and layer.samples == 4 * 72 for layer in report.layers.values())


class Block(nn.Module):
    """A linear layer with options that only some blocks are given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None, skip: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = torch.tanh(self.linear(x)) * scale
        y = y if mask is None else y * mask
        return y if skip is None else y + skip


class Options(nn.Module):
    """Masks of two kinds, none for some blocks, and a number that differs from block to block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        masks = [(x[:, :1] > 0).float(), None, (x[:, 1:2] > 0).float(), (x[:, :1] > 0).float()]
        for number, (block, mask) in enumerate(zip(self.blocks, masks, strict=True)):
            x = block(x, mask=mask, scale=1.0 + number)
        return x


class Skips(nn.Module):
    """A block that takes what the first one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.blocks[0](x)
        x = self.blocks[2](self.blocks[1](x))
        return self.blocks[3](x, skip=first)


def test_blocks_with_options_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, batches = Options(), [torch.randn(32, 6) for _ in range(3)]
    again = copy.deepcopy(model)
    report = mfac.prune_layerwise(model, batches, method="sparsegpt")
    assert not report.notes
    monkeypatch.setattr(Chain, "begin", lambda self: "a test asks for it")
    mfac.prune_layerwise(again, batches, method="sparsegpt")
    for block, other in zip(model.blocks, again.blocks, strict=True):
        torch.testing.assert_close(block.linear.weight, other.linear.weight, rtol=1e-4, atol=1e-5)


def test_skips_past_a_block_are_seen() -> None:
    torch.manual_seed(0)
    report = mfac.prune_layerwise(Skips(), [torch.randn(32, 6)], method="sparsegpt")
    assert "block 'blocks.3' takes what an earlier block returns" in report.notes[0]


def test_a_finish_whose_loss_is_missing_is_refused_before_any_weight_changes() -> None:
    model, batches = made("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="`loss_fn` should be given with `finish`"):
        mfac.prune_layerwise(model, batches, finish="fisher")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_that_only_sees_zeros_is_named_and_earlier_layers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[2].bias.fill_(-1e6)  # so that the last layer's inputs are zero
    with pytest.raises(ValueError, match=r"Found only zeros at '4\.weight'"):
        mfac.prune_layerwise(model, [torch.randn(64, 8)], sparsity=0.5, allocation="uniform")
    assert [round(float((model[i].weight == 0).float().mean()), 2) for i in (0, 2, 4)] == [0.5, 0.5, 0.0]


def test_without_sparsity_nothing_changes() -> None:
    model, data = nn.Linear(4, 6), torch.randn(9, 4)
    data[:, 1] = 0
    before = model.weight.detach().clone()
    mfac.prune_layerwise(model, [data], sparsity=0.0)
    assert torch.equal(model.weight, before)


def test_a_name_counts_before_patterns() -> None:
    model, batches = made("mlp")
    report = mfac.prune_layerwise(
        model, batches, {"*": 0.5, "0.weight": 0.25}, pattern={"*": "unstructured", "0.weight": "1x2"}
    )
    assert report.sparsity_by_parameter["0.weight"] == 0.25


def test_groups_that_do_not_divide_the_inputs_are_refused_by_name() -> None:
    model, data = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)), [torch.randn(50, 10)]
    with pytest.raises(ValueError, match=r"`pattern` should divide .* Found 2:4 for '0\.weight' with 10"):
        mfac.prune_layerwise(model, data, pattern="2:4")
    report = mfac.prune_layerwise(model, data, pattern={"0.weight": "unstructured", "*": "2:4"})
    assert report.sparsity == 0.5


def test_what_a_beginner_runs_into() -> None:
    model, batches = made("mlp")
    with pytest.raises(ValueError, match=r"reach the layers that are pruned. Found that no batch reaches one of 3"):
        mfac.prune_layerwise(model, batches, forward=lambda model, batch: batch)
    with pytest.raises(ValueError, match="should be given with method='keep_zeros'"):
        mfac.prune_layerwise(model, batches, method="keep_zeros")
    with pytest.raises(TypeError, match=r"as mfac.Grid\(bits=4\). Found 4"):
        mfac.prune_layerwise(model, batches, quantize=4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"should be a torch.nn.Module. Found <class"):
        mfac.prune_layerwise(type(model), batches)  # type: ignore[arg-type]
    used_up = iter(batches)
    list(used_up)
    with pytest.raises(ValueError, match="an iterator that was used up gives none"):
        mfac.prune_layerwise(model, used_up)
    with torch.device("meta"), pytest.raises(ValueError, match="weights in memory, as a plan runs it"):
        mfac.plan_layerwise(nn.Linear(4, 4), [torch.zeros(2, 4, device="cpu")])
