"""Rounded models on disk: what is written is what is read, to the last bit, or an error."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mfac
from mfac.layerwise.grid import Grid, GridValues
from mfac.layerwise.report import LayerwiseReport
from mfac.layerwise.solver import SOLVERS
from tests.layerwise.networks import made


def _rounded(
    grid: Grid, dtype: torch.dtype = torch.float32, sparsity: float = 0.0, method: str = "sparsegpt"
) -> tuple[nn.Sequential, LayerwiseReport]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 5), nn.BatchNorm1d(5)).to(dtype).eval()
    data = [torch.randn(200, 64).to(dtype)]
    return model, mfac.prune_layerwise(model, data, sparsity, method=method, quantize=grid)  # type: ignore[arg-type]


def _is_read(path: Path, model: nn.Module, report: LayerwiseReport) -> None:
    fresh = copy.deepcopy(model)
    for value in fresh.state_dict().values():
        value.zero_()
    mfac.save_quantized(path, model, report)
    masks = mfac.load_quantized_(path, fresh)
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    assert all(torch.equal(mask, report.masks[name]) for name, mask in masks.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_weights_are_read_to_the_last_bit(tmp_path: Path, dtype: torch.dtype, bits: int, sparsity: float) -> None:
    for grid in (Grid(bits, 16), Grid(bits, None, symmetric=True), Grid(bits, 24, search=True)):
        _is_read(tmp_path / "model.pt", *_rounded(grid, dtype, sparsity))


@pytest.mark.parametrize("method", SOLVERS)
def test_weights_of_every_solver_are_read(tmp_path: Path, method: str) -> None:
    _is_read(tmp_path / "model.pt", *_rounded(Grid(4, 16), sparsity=0.5, method=method))


@pytest.mark.parametrize(("kind", "sparsity"), [("language", 0.0), ("convolutional", 0.5), ("encoder", 0.5)])
def test_networks_are_read(tmp_path: Path, kind: str, sparsity: float) -> None:
    model, batches = made(kind)
    report = mfac.prune_layerwise(model, batches, sparsity, method="sparsegpt", quantize=Grid(4, 8))
    _is_read(tmp_path / "model.pt", model, report)


def test_weights_of_weighed_outputs_are_read(tmp_path: Path) -> None:
    model, batches = made("language")
    report = mfac.prune_layerwise(model, batches, method="sparsegpt", quantize=Grid(4, 8), weigh_outputs=True)
    _is_read(tmp_path / "model.pt", model, report)
    assert all(torch.equal(v.scales, v.scales.float().double()) for r in report.layers.values() for v in r.grids)


def test_scales_are_float32_where_that_is_exact(tmp_path: Path) -> None:
    for scale, dtype in ((0.1, torch.float64), (0.125, torch.float32)):
        model = nn.Linear(4, 2, bias=False).double()
        report = mfac.prune_layerwise(
            model, [torch.randn(9, 4).double()], 0.0, method="sparsegpt", quantize=Grid(4, None)
        )
        values = GridValues(
            Grid(4, None), torch.full((2, 1), scale, dtype=torch.float64), report.layers["weight"].grids[0].zeros
        )
        with torch.no_grad():
            model.weight.copy_(values.round(model.weight))
        report.layers["weight"] = replace(report.layers["weight"], grids=(values,))  # type: ignore[index]
        _is_read(tmp_path / "model.pt", model, report)
        assert torch.load(tmp_path / "model.pt")["tensors"]["weight|scales0"].dtype == dtype


def test_float32_holds_the_scales_of_a_grid() -> None:
    for size in (1e-300, 1e-42, 1e-3, 1.0, 1e30, 1e300):
        weight = size * torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        values = Grid(4, 8).fit(weight)
        assert bool((values.scales > 0).all() and values.scales.isfinite().all())
        assert torch.equal(values.weights(values.integers(values.round(weight))), values.round(weight))
        if 1e-30 < size < 1e31:
            assert torch.equal(values.scales, values.scales.float().double())


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, None), slice(7, 8)])
@pytest.mark.parametrize("factor", [1.5, 1 + 1e-6])
def test_a_weight_off_its_grid_is_found_beside_a_large_one(tmp_path: Path, rows: slice, factor: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight[0] *= 1000
    report = mfac.prune_layerwise(model, [torch.randn(200, 64)], 0.0, method="sparsegpt", quantize=Grid(4, None))
    _is_read(tmp_path / "model.pt", model, report)
    with torch.no_grad():
        model[0].weight[rows] *= factor
    with pytest.raises(ValueError, match=r"where rounding left them. Found others in '0.weight'"):
        mfac.save_quantized(tmp_path / "other.pt", model, report)
    assert not (tmp_path / "other.pt").exists()


def test_a_dropped_weight_that_is_back_is_found(tmp_path: Path) -> None:
    model, report = _rounded(Grid(4, 16), sparsity=0.5)
    values, mask = report.layers["0.weight"].grids[0], report.masks["0.weight"]
    with torch.no_grad():
        model[0].weight[~mask] = values.expanded(64)[0].float()[~mask]
    with pytest.raises(ValueError, match="where rounding left them"):
        mfac.save_quantized(tmp_path / "model.pt", model, report)


def test_the_model_of_another_report_is_refused(tmp_path: Path) -> None:
    _, report = _rounded(Grid(4, 16))
    with pytest.raises(ValueError, match=r"a weight '0.weight' of shape \[32, 64\], as the report has. Found none"):
        mfac.save_quantized(tmp_path / "model.pt", nn.Linear(64, 32), report)
    with pytest.raises(ValueError, match=r"'0.weight' of shape \[32, 64\].* Found \[32, 60\]"):
        mfac.save_quantized(tmp_path / "model.pt", nn.Sequential(nn.Linear(60, 32)), report)


def _network(inputs: int = 64, outputs: int = 8, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs), *more)


def _biases_of(size: int) -> nn.Sequential:
    model = _network()
    model[2].bias = nn.Parameter(torch.zeros(size))
    return model


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_network(60), r"a weight '0.weight' of shape \[16, 64\], as the file has. Found \[16, 60\]"),
        (_network(64, 9), r"a weight '2.weight' of shape \[8, 16\], as the file has. Found \[9, 16\]"),
        (_network()[:1], r"a weight '2.weight' of shape \[8, 16\], as the file has. Found none"),
        (_network(64, 8, nn.Linear(8, 3)), r"no more than the file has. Found '3.weight' of shape \[3, 8\]"),
        (_network(64, 8, nn.BatchNorm1d(8)), r"no more than the file has. Found '3.weight' of shape \[8\]"),
        (_biases_of(1), r"'2.bias' of shape \[8\], as the file has. Found \[1\]"),
        (nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 8, bias=False)), r"'2.bias' of shape.* Found none"),
        (
            nn.Sequential(nn.Embedding(16, 64), nn.Tanh(), nn.Linear(16, 8)),
            r"'0.weight' as the weight of a layer, as the file has. Found that it has inputs",
        ),
    ],
)
def test_other_models_are_refused_and_stay(tmp_path: Path, other: nn.Module, message: str) -> None:
    model = _network()
    report = mfac.prune_layerwise(model, [torch.randn(99, 64)], 0.0, method="sparsegpt", quantize=Grid(4, 128))
    mfac.save_quantized(tmp_path / "model.pt", model, report)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=message):
        mfac.load_quantized_(tmp_path / "model.pt", other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_bias_of_one_is_not_spread(tmp_path: Path) -> None:
    model = _biases_of(1)
    report = mfac.prune_layerwise(model, [torch.randn(99, 64)], 0.0, method="sparsegpt", quantize=Grid(4, 128))
    mfac.save_quantized(tmp_path / "model.pt", model, report)
    with pytest.raises(ValueError, match=r"'2.bias' of shape \[1\], as the file has. Found \[8\]"):
        mfac.load_quantized_(tmp_path / "model.pt", _network())


def test_weights_that_make_other_matrices_are_refused(tmp_path: Path) -> None:
    model, other = nn.Sequential(nn.Conv2d(4, 4, 3)), nn.Sequential(nn.Conv2d(8, 4, 3, groups=2))
    report = mfac.prune_layerwise(model, [torch.randn(4, 4, 8, 8)], 0.0, method="sparsegpt", quantize=Grid(4, None))
    mfac.save_quantized(tmp_path / "model.pt", model, report)
    with pytest.raises(ValueError, match=r"as matrices of shapes \[\[4, 36\]\].* Found \[\[2, 36\], \[2, 36\]\]"):
        mfac.load_quantized_(tmp_path / "model.pt", other)


def test_wrapped_models_are_written_as_themselves(tmp_path: Path) -> None:
    model, report = _rounded(Grid(4, 16))
    fresh = copy.deepcopy(model)
    fresh[3].running_mean.zero_()
    mfac.save_quantized(tmp_path / "model.pt", nn.DataParallel(model), report)
    mfac.load_quantized_(tmp_path / "model.pt", fresh)
    assert torch.equal(fresh[3].running_mean, model[3].running_mean)
