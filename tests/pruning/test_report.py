"""A report says, measures, keeps as JSON and draws; `verify` sees every broken promise."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from models import batches, classifier, conv_classifier, cross_entropy
from torch import nn

import mfac
from mfac.gradients.naming import parameter_named
from mfac.pruning.flops import counted_flops

SMALL = {"sparsity": 0.7, "num_gradients": 24, "stages": 1, "recomputations": 2}


def pruned(model: nn.Module | None = None, shape: tuple[int, ...] = (12,), **arguments):
    model = classifier() if model is None else model
    return model, mfac.prune(model, cross_entropy, batches(30, shape=shape), **{**SMALL, **arguments})


def test_what_is_measured_is_there():
    dense = classifier()
    model, report = pruned(copy.deepcopy(dense))
    data = batches(10, seed=7)
    measured = report.measure(model, cross_entropy, data, dense=dense)
    assert measured is report.measured
    with torch.no_grad():
        for wanted, net in ((measured.loss_before, dense), (measured.loss_after, model)):
            assert wanted == pytest.approx(sum(float(cross_entropy(net, b)) for b in data) / 10, rel=1e-6)
    assert measured.seconds_before > 0
    assert measured.seconds_after > 0
    for name, mask in report.masks.items():
        assert measured.dense_bytes[name] == 4 * mask.numel()
        assert measured.compact_bytes[name] == -(-mask.numel() // 8) + 4 * int(mask.sum())
        assert measured.dense_flops[name] == 2 * 8 * mask.numel()  # batches of 8 samples
        assert measured.sparse_flops[name] == 2 * 8 * int(mask.sum())
    assert report.measure(model).loss_after is None
    with pytest.raises(ValueError, match="Parameter `data` should yield at least one batch"):
        report.measure(model, cross_entropy, [])


def test_measuring_changes_nothing():
    model, report = pruned(conv_classifier(), (1, 6, 6))
    model.train()
    before = copy.deepcopy(model.state_dict())
    report.measure(model, cross_entropy, batches(3, shape=(1, 6, 6)), example=torch.zeros(2, 1, 6, 6))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, stride=2, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2)
        self.rnn = nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.linear = nn.Linear(10, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.conv(x).flatten(2)  # [2, 6, 9]
        x = self.up(x).transpose(1, 2)  # [2, 19, 4]
        x = self.rnn(x)[0]
        x = self.attention(x, key=x[:, :7], value=x[:, :7])[0]
        return self.linear(self.linear.weight.new_zeros(()) + x) + self.linear(x)


def test_operations_of_every_kind_of_layer():
    model = Everything().eval()
    with counted_flops(model) as counts:
        model(torch.randn(2, 4, 7, 7))
    size = {name: p.numel() for name, p in model.named_parameters()}
    wanted = {
        "conv.weight": 2 * 9 * size["conv.weight"],
        "up.weight": 2 * 9 * size["up.weight"],
        "attention.in_proj_weight": 2 * (19 + 7 + 7) * 100,
        "attention.out_proj.weight": 2 * 19 * 100,
        "linear.weight": 2 * 2 * 19 * 30,  # called twice
        **{name: 2 * 19 * count for name, count in size.items() if name.startswith("rnn.weight")},
    }
    assert counts == {name: 2 * products for name, products in wanted.items()}


def test_json_goes_and_comes_back(tmp_path: Path):
    model, report = pruned(pattern="2:4", sparsity=None)
    report.measure(model, cross_entropy, batches(2))
    text = report.to_json(tmp_path / "report.json")
    for again in (mfac.PruningReport.from_json(text), mfac.PruningReport.from_json(tmp_path / "report.json")):
        assert mfac.Masks(again.masks) == report.masks
        assert (again.steps, again.left_dense, again.pattern, again.measured, again.dense_zeros) == (
            report.steps,
            report.left_dense,
            report.pattern,
            report.measured,
            report.dense_zeros,
        )
        assert str(again) == str(report)
    bare = report.to_json(masks=False)
    assert len(bare) < len(text)
    assert mfac.Masks(mfac.PruningReport.from_json(bare, report.masks).masks) == report.masks
    with pytest.raises(ValueError, match="Parameter `masks` should be given"):
        mfac.PruningReport.from_json(bare)
    with pytest.raises(ValueError, match=r"should be a report as JSON, of format 'mfac.report'"):
        mfac.PruningReport.from_json("{}")


def test_the_text_is_for_reading():
    model, report = pruned(params=["0.weight"])
    report.measure(model, cross_entropy, batches(2), dense=model)
    lines = str(report).splitlines()
    kept = int(report.masks["0.weight"].sum())
    assert lines[0].startswith(f"sparsity {report.sparsity:.4f}: {kept} of 384 weights kept in 2 steps")
    assert any(line.strip().startswith("loss: ") and line.endswith("after") for line in lines)
    assert any(f"{kept} of 384  {48 + 4 * kept} of 1536 bytes" in line for line in lines)
    assert any(line.endswith("left dense: it was not selected") for line in lines)
    assert max(map(len, lines)) < 120


def test_a_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    _, report = pruned()
    report.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.png").stat().st_size > 5000
    monkeypatch.setattr("mfac.pruning.report_plot.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="`pip install matplotlib`"):
        report.plot(tmp_path / "s.png")


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel], ids=["bare", "wrapped"])
def test_what_holds_is_proved(pattern: str, wrap):
    model, report = pruned(pattern=pattern, sparsity=0.7 if pattern == "unstructured" else None)
    proved = mfac.verify(wrap(model), report)
    assert any("weights that were dropped are zero" in line for line in proved)
    assert any("at most 2 of 4" in line for line in proved) == (pattern == "2:4")
    again = mfac.PruningReport.from_json(report.to_json())
    assert mfac.verify(model, again) == proved


def test_patterns_by_name_are_proved_where_they_are_n_to_m():
    model, report = pruned(pattern={"0.*": "2:4", "*": "unstructured"}, sparsity=0.55)
    assert any("at most 2 of 4" in line and "'0.*'" in line for line in mfac.verify(model, report))
    mask = report.masks["0.weight"]
    mask[0, :4] = True
    report.steps.clear()
    with torch.no_grad():
        model[0].weight[0, :4] = 1.0
    with pytest.raises(ValueError, match=r"The pattern should be 2:4.*Found 4 kept of inputs 0 to 3 of output 0"):
        mfac.verify(model, report)


def broken(change) -> tuple[nn.Module, mfac.PruningReport]:
    model, report = pruned(pattern="2:4", sparsity=None, params=["0.weight"])
    with torch.no_grad():
        change(model, report)
    return model, report


def first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(mask.nonzero()[0].tolist())


def revive(model, report):
    model[0].weight[first(~report.masks["0.weight"])] = 1.0


def vanish(model, report):
    model[0].weight[first(report.masks["0.weight"])] = 0.0


def denser(model, report):  # masks and model agree, but neither is 2:4
    place = first(~report.masks["0.weight"])
    group = report.masks["0.weight"][place[0], place[1] // 4 * 4 : place[1] // 4 * 4 + 4]
    group[:] = True
    model[0].weight.masked_fill_(report.masks["0.weight"] & (model[0].weight == 0), 1.0)
    report.steps.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (revive, r"Weights that were dropped should be zero. Found 1 of 192 in '0.weight' that are not"),
        (vanish, r"Weights that were kept should not be zero. Found 1 of 192 in '0.weight' that are"),
        (denser, r"The pattern should be 2:4: at most 2 of 4 successive weights.* Found 4 kept .* in '0.weight'"),
        (lambda m, r: m[2].bias.fill_(torch.nan), r"Weights should be finite. Found 3 of 3 in '2.bias' that are not"),
        (lambda m, r: m[2].weight[0].fill_(0), r"no new zeros. Found 32 in '2.weight', which had 0"),
        (lambda m, r: r.masks.update({"9.weight": r.masks["0.weight"]}), r"Found no '9.weight' among"),
        (lambda m, r: r.masks.update({"0.weight": r.masks["0.weight"].T}), r"its mask's shape \[12, 32\]. Found \[32"),
    ],
    ids=["revived", "vanished", "pattern", "nan", "dense", "name", "shape"],
)
def test_every_broken_promise_is_seen(change, message: str):
    with pytest.raises(ValueError, match=message):
        mfac.verify(*broken(change))


def test_a_sparsity_that_was_reported_wrongly_is_seen():
    model, report = pruned()
    mask = report.masks["0.weight"]
    place = first(mask)
    mask[place] = False  # masks and model agree with each other, not with the last step
    with torch.no_grad():
        parameter_named(model, "0.weight")[place] = 0
    with pytest.raises(ValueError, match=r"The sparsity should be 0.7\d+, as reported. Found 0.7"):
        mfac.verify(model, report)


def test_scales_and_refits_are_in_text_and_json():
    _, report = pruned(step_check=True, refits=2)
    assert all(step.scale in {1.0, 0.5, 0.25, 0.0} for step in report.steps)
    assert len(report.refits) == 2 and set(report.refits) <= {1.0, 0.5, 0.25, 0.0}
    again = mfac.PruningReport.from_json(report.to_json())
    assert (again.steps, again.refits) == (report.steps, report.refits)
    assert "step-size check: updates scaled by" in str(again) and "2 refits after the last stage, scaled" in str(again)
    _, plain = pruned()
    assert plain.refits == [] and plain.steps[0].scale is None and "scaled" not in str(plain)
