"""Databases: each level is what solving directly gives, builds go on, stitching is checked."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from models import batches, classifier, conv_classifier, snapshot
from torch import Tensor, nn

import mfac
from mfac.layerwise import database_build, statistics
from mfac.layerwise.level import DEFAULT_LEVELS
from mfac.layerwise.solvers.exact_obs import obs_order


class Attention(nn.Module):
    """A convolution, attention with packed projections, and a linear layer, of [n, 12]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front = nn.Conv1d(1, 8, 3, padding=1)
        self.mixer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.front(x[:, None]).transpose(1, 2)
        return self.head(self.mixer(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def data(shape: tuple[int, ...] = (12,), count: int = 3) -> list[Tensor]:
    return [x for x, _ in batches(count, size=32, shape=shape)]


NETWORKS = {"linear": (classifier, (12,)), "convolution": (conv_classifier, (1, 6, 6)), "attention": (Attention, (12,))}
LEVELS = [0.0, 0.3, 0.5, 0.9]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["exact_obs", "sparsegpt", "magnitude"])
def test_a_level_is_what_solving_directly_gives(network: str, method: str, tmp_path: Path):
    make, shape = NETWORKS[network]
    model = make()
    before = snapshot(model)
    database = mfac.LayerDatabase.build(model, data(shape), LEVELS, folder=tmp_path, method=method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert database.layers and all(database.levels(layer) == LEVELS for layer in database.layers)
    for layer in database.layers:
        assert torch.equal(database.load(layer, 0.0), before[layer])
        assert database.errors[layer][0.0] == database.absolute_errors[layer][0.0] == 0
        for level in LEVELS[1:]:
            direct = make()  # the one layer alone is solved, on what it sees in the dense model
            report = mfac.prune_layerwise(direct, data(shape), level, method=method, params=layer)
            torch.testing.assert_close(database.load(layer, level), direct.state_dict()[layer], rtol=0, atol=1e-6)
            assert torch.equal(database.mask(layer, level), report.masks[layer])
            assert database.errors[layer][level] == pytest.approx(report.layers[layer].error, rel=1e-9)
            assert database.sparsity(layer, level) == pytest.approx(report.sparsity)


def test_one_order_serves_all_sparsities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(database_build, "obs_order", lambda *given: calls.append(1) or obs_order(*given))
    database = mfac.LayerDatabase.build(classifier(), data(), folder=tmp_path)
    assert len(calls) == 2  # matrices
    assert database.levels("0.weight") == list(DEFAULT_LEVELS)
    assert len(DEFAULT_LEVELS) == 44 and DEFAULT_LEVELS[-1] < 0.99
    for errors in database.errors.values():
        found = list(errors.values())
        assert found == sorted(found)


def test_bits_times_patterns(tmp_path: Path):
    grids = {bits: mfac.Grid(bits=bits) for bits in (8, 4)}
    levels = [0.0, *(mfac.Level(pattern=p, grid=g) for g in grids.values() for p in (None, "2:4"))]
    model = classifier(hidden=16)
    database = mfac.LayerDatabase.build(model, data(), levels, folder=tmp_path)
    assert database.levels("0.weight") == [0.0, "8bit", "2:4 8bit", "4bit", "2:4 4bit"]
    masks = database.stitch({"0.weight": "2:4 4bit", "2.weight": "4bit"}, model)
    assert int(masks["0.weight"].view(16, 3, 4).sum(2).max()) == 2
    assert bool(masks["2.weight"].all())
    assert max(len(row.unique()) for row in model[0].weight) <= 16
    (values,) = database.grids("0.weight", "2:4 4bit")
    torch.testing.assert_close(values.round(model[0].weight.detach()).float(), model[0].weight.detach())
    errors = database.errors["0.weight"]
    assert 0 < errors["8bit"] < errors["4bit"] < errors["2:4 4bit"]
    direct = classifier(hidden=16)
    mfac.prune_layerwise(
        direct, data(), pattern="2:4", method="exact_obs", quantize=mfac.Grid(bits=4), params="0.weight"
    )
    torch.testing.assert_close(model[0].weight, direct[0].weight, rtol=0, atol=1e-6)


def test_costs_of_a_compact_form(tmp_path: Path):
    model = classifier(hidden=16)
    database = mfac.LayerDatabase.build(model, data(), [0.0, 0.5, "4bit", "2:4 8bit"], folder=tmp_path)
    bits = database.costs("bits")["0.weight"]
    assert bits == {
        0.0: 192 * 32,
        0.5: 96 * 32 + 192,
        "4bit": 192 * 4 + 16 * (16 + 4),
        "2:4 8bit": 96 * 8 + 192 + 16 * (16 + 8),
    }
    assert database.costs("bytes")["0.weight"][0.5] == bits[0.5] / 8
    flops = database.costs("flops", model, torch.zeros(5, 12))
    assert flops["0.weight"] == {0.0: 1920, 0.5: 960, "4bit": 1920, "2:4 8bit": 960}
    with pytest.raises(ValueError, match=r"`model` and `example` should be given"):
        database.costs("flops")


@pytest.mark.parametrize("form", [".safetensors", ".pt"])
def test_a_stopped_build_goes_on(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if form == ".pt":
        monkeypatch.setattr("mfac.layerwise.database_files.find_spec", lambda _: None)
    else:
        pytest.importorskip("safetensors")

    class StopError(Exception):
        pass

    def stop(name: str, done: int, count: int) -> None:
        assert count == 4
        if done == 2:
            raise StopError

    whole = mfac.LayerDatabase.build(Attention(), data(), LEVELS, folder=tmp_path / "whole")
    with pytest.raises(StopError):
        mfac.LayerDatabase.build(Attention(), data(), LEVELS, folder=tmp_path / "parts", progress=stop)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(written) == 2 and {path.suffix for path in written} == {form}
    with pytest.raises(ValueError, match=r"`folder` should hold a database that was built to its end. Found no"):
        mfac.LayerDatabase.open(tmp_path / "parts")
    with pytest.raises(
        ValueError, match=r"`folder` should be empty, or of a build of the same. Found one with another `l"
    ):
        mfac.LayerDatabase.build(Attention(), data(), [0.0, 0.5], folder=tmp_path / "parts")
    other = Attention()
    other.head.weight.data += 1
    with pytest.raises(ValueError, match="Found one with another `model`"):
        mfac.LayerDatabase.build(other, data(), LEVELS, folder=tmp_path / "parts")
    done: list[str] = []
    parts = mfac.LayerDatabase.build(
        Attention(), data(), LEVELS, folder=tmp_path / "parts", progress=lambda name, *_: done.append(name)
    )
    assert len(done) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    again = mfac.LayerDatabase.open(tmp_path / "parts")
    assert again.layers == parts.layers == whole.layers and again.errors == whole.errors
    for layer in whole.layers:
        for level in LEVELS:
            assert torch.equal(again.load(layer, level), whole.load(layer, level))


def test_hessians_that_do_not_fit_together_take_more_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    together = mfac.LayerDatabase.build(Attention(), data(), LEVELS, folder=tmp_path / "together")
    monkeypatch.setattr(statistics, "_BYTES", 1)
    apart = mfac.LayerDatabase.build(Attention(), data(), LEVELS, folder=tmp_path / "apart")
    for layer, errors in together.errors.items():  # float32 inputs; where they lie in memory shows in the last bits
        assert apart.errors[layer] == pytest.approx(errors, rel=1e-5)


def test_a_model_in_bfloat16_stays_in_it(tmp_path: Path):
    model = classifier(dtype=torch.bfloat16)
    inputs = [x.bfloat16() for x in data()]
    database = mfac.LayerDatabase.build(model, inputs, LEVELS, folder=tmp_path)
    assert database.load("0.weight", 0.5).dtype == torch.bfloat16
    masks = database.stitch({"0.weight": 0.5}, model)
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[0].weight, database.load("0.weight", 0.5))
    assert not bool(model[0].weight[~masks["0.weight"]].any())
    assert database.costs("bytes")["0.weight"][0.0] == 2 * model[0].weight.numel()
    single = classifier()
    database.stitch({"2.weight": 0.9}, single)
    assert single[2].weight.dtype == torch.float32


def test_masks_of_a_stitched_model_attach(tmp_path: Path):
    model = conv_classifier()
    database = mfac.LayerDatabase.build(model, data((1, 6, 6)), LEVELS, folder=tmp_path)
    dense = model[0].weight.detach().clone()
    masks = mfac.Masks(database.stitch({"4.weight": 0.9}, model))
    assert list(masks) == ["4.weight"] and torch.equal(model[0].weight, dense)
    assert masks.sparsity == pytest.approx(0.9, abs=0.01)
    masks.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_layer_that_sees_nothing_is_left_dense(tmp_path: Path):
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    database = mfac.LayerDatabase.build(Partial(), data(), LEVELS, folder=tmp_path)
    assert database.layers == ["used.weight"]
    assert database.left_dense["idle.weight"] == "saw no sample of the calibration data"


def test_what_does_not_fit_is_refused(tmp_path: Path):
    model = classifier()
    database = mfac.LayerDatabase.build(model, data(), LEVELS, folder=tmp_path / "one")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"`layer` should be one of the database's, .* Found '1.weight'"):
        database.stitch({"2.weight": 0.5, "1.weight": 0.5}, model)
    with pytest.raises(ValueError, match=r"`level` should be one of '0.weight' in the database, .* Found 0.4"):
        database.stitch({"2.weight": 0.5, "0.weight": 0.4}, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"`model` should have a weight '0.weight' of shape \[32, 12\].* \[8, 12\]"):
        database.stitch({"0.weight": 0.5}, classifier(hidden=8))
    with pytest.raises(ValueError, match=r"`model` should have a weight '0.weight' .* Found no such parameter"):
        database.stitch({"0.weight": 0.5}, nn.Linear(3, 3))

    def build(levels: object, **options: object) -> None:
        mfac.LayerDatabase.build(model, data(), levels, folder=tmp_path / "two", **options)

    with pytest.raises(ValueError, match=r"`levels` should have every level once. Found 0.5 twice"):
        build([0.5, mfac.Level(0.5)])
    with pytest.raises(ValueError, match=r"`levels` should have no sparsities where `pattern` fixes it"):
        build([0.5], pattern="2:4")
    with pytest.raises(ValueError, match=r'`pattern` should be "unstructured", N:M or blocks with method="exact_obs"'):
        build(["0.5 rows"])
    with pytest.raises(ValueError, match=r"`levels` should give every weight some. Found none for '2.weight'"):
        build({"0.*": [0.5]})
    with pytest.raises(ValueError, match=r"`levels` should be finite and >= 0 and < 1"):
        build([1.0])
    assert not (tmp_path / "two").exists()
    with pytest.raises(ValueError, match=r"Found no database\.json"):
        mfac.LayerDatabase.open(tmp_path)


def test_levels_by_name(tmp_path: Path):
    levels = {"0.*": [0.0, "8bit"], "*": [0.0, 0.5, "0.5 channels"]}
    with pytest.raises(ValueError, match='method="exact_obs"'):
        mfac.LayerDatabase.build(classifier(), data(), levels, folder=tmp_path)
    levels["*"] = [0.0, 0.5, "0.5 1x4"]
    database = mfac.LayerDatabase.build(classifier(), data(), levels, folder=tmp_path)
    assert database.levels("0.weight") == [0.0, "8bit"]
    assert database.levels("2.weight") == [0.0, 0.5, "0.5 1x4"]
    assert set(database.mask("2.weight", "0.5 1x4").view(3, 8, 4).sum(2).unique().tolist()) == {0, 4}


def test_a_default_grid_rounds_all_but_the_dense_level(tmp_path: Path):
    grid = mfac.Grid(bits=4, group_size=None)
    database = mfac.LayerDatabase.build(classifier(), data(), [0.0, 0.5, "8bit"], folder=tmp_path, quantize=grid)
    assert database.levels("0.weight") == [0.0, "0.5 4bit/row", "8bit"]


@pytest.mark.parametrize(
    "level",
    [
        mfac.Level(),
        mfac.Level(0.25),
        mfac.Level(pattern="4:8"),
        mfac.Level(0.5, "16x1", mfac.Grid(bits=3, group_size=64)),
        mfac.Level(grid=mfac.Grid(bits=2, group_size=None, symmetric=True, search=True)),
    ],
    ids=lambda level: str(level.key),
)
def test_keys_are_read_as_they_are_written(level: mfac.Level):
    assert mfac.Level.of(level.key) == level
    assert mfac.Level.of(str(level.key)) == level
    assert len({level, mfac.Level.of(level.key)}) == 1


def test_levels_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"`sparsity` should be left out with the pattern '2:4'"):
        mfac.Level(0.7, "2:4")
    with pytest.raises(TypeError, match=r"`grid` should be a mfac.Grid"):
        mfac.Level(grid=4)
    with pytest.raises(ValueError, match=r"`pattern` should be 'unstructured'"):
        mfac.Level.of("half")
    with pytest.raises(ValueError, match=r"`levels` should name one pattern a level"):
        mfac.Level.of("2:4 rows")


def test_nothing_is_warned_of(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        database = mfac.LayerDatabase.build(Attention(), data(), LEVELS, folder=tmp_path)
        database.stitch(dict.fromkeys(database.layers, 0.5), Attention())
