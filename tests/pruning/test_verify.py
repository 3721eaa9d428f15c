"""`verify` proves every pattern and sees the unit that breaks it; earlier zeros are no fault."""

from __future__ import annotations

import pytest
import torch
from models import batches, classifier, cross_entropy
from torch import Tensor, nn

import mfac
from mfac.masks.kinds.heads import Attention

SETTINGS = {"num_gradients": 16, "stages": 1, "recomputations": 2}


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :].expand(-1, 2, -1)
        return self.head(self.attention(x, x, x)[0].mean(1))


def pruned(model: nn.Module, **arguments) -> mfac.PruningReport:
    return mfac.prune(model, cross_entropy, batches(20), **{**SETTINGS, **arguments})


def flip(model: nn.Module, report: mfac.PruningReport, name: str, place: tuple[int, ...]) -> None:
    """Mask and model agree with each other and with the sparsity; the unit is broken."""
    with torch.no_grad():
        report.masks[name][place] = ~report.masks[name][place]
        model.get_parameter(name)[place] = float(report.masks[name][place])
    report.steps.clear()


CONVOLUTIONS = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("make", "pattern", "name", "place", "unit"),
    [
        (classifier, "4x1", "0.weight", (5, 7), "of the block of outputs 4 to 7 by inputs 7 to 7 in '0.weight'"),
        (classifier, "2x8", "0.weight", (30, 9), "of the block of outputs 30 to 31 by inputs 8 to 11 in '0.weight'"),
        (lambda: CONVOLUTIONS, "2x2", "1.weight", (3, 2, 0, 1), "outputs 2 to 3 by inputs 2 to 2 at position 1 in '1."),
        (classifier, "rows", "0.weight", (9, 2), "of output channel 9 in '0.weight'"),
        (classifier, "channels", "0.weight", (9, 2), "of input channel 2 in '0.weight'"),
        (classifier, {"0.*": "rows", "*": "unstructured"}, "0.weight", (9, 2), "of output channel 9 in '0.weight'"),
        (classifier, {"2.*": "unstructured", "*": "8x2"}, "0.weight", (9, 2), "outputs 8 to 15 by inputs 2 to 3"),
    ],
)
def test_the_unit_that_breaks_a_pattern_is_named(make, pattern, name: str, place: tuple[int, ...], unit: str):
    model = make()
    report = pruned(model, sparsity=0.4, pattern=pattern)
    again = mfac.PruningReport.from_json(report.to_json())
    proved = mfac.verify(model, again)
    assert sum("kept whole or dropped whole" in line for line in proved) == 1
    flip(model, again, name, place)
    with pytest.raises(ValueError, match=rf"The pattern should be .*whole. Found \d+ of \d+ weights kept .*{unit}"):
        mfac.verify(model, again)


@pytest.mark.filterwarnings("ignore:The network is at a sparsity")  # heads are a third of it
@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
def test_heads_are_proved(given: bool):
    model = Attentive()
    attention = Attention(4, {"attention.in_proj_weight": 3}, ["attention.out_proj.weight"])
    heads = mfac.Heads([attention] if given else model)
    report = pruned(model, sparsity=0.4, pattern={"attention.*": heads, "*": "unstructured"})
    if given:
        assert not any("heads" in line for line in mfac.verify(model, report))
    pattern = {"attention.*": heads, "*": "unstructured"} if given else None
    assert any("of 'attention.*' heads are kept whole" in line for line in mfac.verify(model, report, pattern))
    flip(model, report, "attention.out_proj.weight", (0, 4))
    with pytest.raises(ValueError, match=r"Found \d+ of 144 weights kept of head 1 in 'attention.in_proj_weight'"):
        mfac.verify(model, report, pattern)


def test_earlier_zeros_may_break_up_units_and_new_ones_may_not():
    model = classifier()
    with torch.no_grad():
        model[0].weight[::2, 3] = 0
    report = pruned(model, sparsity=0.4, pattern="rows", params=["0.weight"])
    assert report.broken_units["0.weight"] > 0
    again = mfac.PruningReport.from_json(report.to_json())
    assert any("but for" in line and "were not so when pruning ended" in line for line in mfac.verify(model, again))
    whole = int(report.masks["0.weight"].all(1).nonzero()[0])
    flip(model, again, "0.weight", (whole, 1))
    with pytest.raises(ValueError, match=r"in '0.weight', and \d+ more; \d+ were so when pruning ended"):
        mfac.verify(model, again)


def test_kept_zeros_are_allowed_where_zeros_were_like_any_other_weight():
    assert pruned(classifier(), sparsity=0.3).kept_zeros == {}
    model = classifier()
    with torch.no_grad():
        model[0].weight.zero_()
    report = pruned(model, sparsity=0.25, existing_zeros="ignore", saliency="magnitude", compensation="none")
    zeros = report.kept_zeros["0.weight"]
    assert zeros > 0
    again = mfac.PruningReport.from_json(report.to_json())
    assert any(f"and {zeros} others, as when pruning ended" in line for line in mfac.verify(model, again))
    with torch.no_grad():
        model[2].weight[report.masks["2.weight"]] = 0
    with pytest.raises(ValueError, match=r"Weights that were kept should not be zero. Found \d+ of \d+ in '2.weight'"):
        mfac.verify(model, again)
