"""N:M pruning: the pattern holds exactly in every kind of layer, whatever else is asked for."""

from __future__ import annotations

import copy

import pytest
import torch
from models import batches, classifier, cross_entropy, same_state, snapshot, trained_classifier
from torch import Tensor, nn

import mfac
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import NM, Candidates

SMALL = {"num_gradients": 24, "stages": 2, "recomputations": 2}


def along_inputs(weight: Tensor, channels: int) -> Tensor:
    """[rows, channels]: every line of `channels` input channels of a weight [out, in, ...]."""
    return weight.detach().movedim(1, -1).reshape(-1, channels)


def counts(lines: Tensor, group: int) -> list[tuple[int, int]]:
    """(length, number of non-zeros) of every group, the last of each line included."""
    return [(piece.shape[0], int((piece != 0).sum())) for line in lines for piece in line.split(group)]


def assert_pattern_holds(lines: Tensor, keep: int, group: int) -> None:
    assert all(kept == min(keep, length) for length, kept in counts(lines, group))


class Mixed(nn.Module):
    """Every kind of layer, with odd numbers of channels; inputs [n, 12]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.plain = nn.Conv2d(3, 10, 3, padding=1)
        self.grouped = nn.Conv2d(10, 10, 1, groups=2)
        self.depthwise = nn.Conv2d(10, 10, (2, 1), groups=10)
        self.up = nn.ConvTranspose2d(10, 6, 2, groups=2)
        self.up1 = nn.ConvTranspose1d(7, 3, 1)
        self.line = nn.Conv1d(18, 7, 3, padding=1)
        self.head = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.plain(x.view(-1, 3, 2, 2)))
        x = torch.tanh(self.up(self.depthwise(torch.tanh(self.grouped(x)))))  # [n, 6, 2, 3]
        x = torch.tanh(self.line(x.reshape(x.shape[0], -1, 2).repeat(1, 1, 2)[:, :18, :3]))  # [n, 7, 3]
        return self.head(torch.tanh(self.up1(x)).flatten(1))


def lines_of(model: Mixed) -> list[Tensor]:
    """The input channels of every layer, laid out by hand."""
    up = model.up.weight.detach()  # [10, 3, 2, 2]: five input channels in each of two groups
    return [
        along_inputs(model.plain.weight, 3),
        along_inputs(model.grouped.weight, 5),
        along_inputs(model.depthwise.weight, 1),
        torch.cat([up[:5].reshape(5, -1).T, up[5:].reshape(5, -1).T]),
        model.up1.weight.detach().reshape(7, -1).T,
        along_inputs(model.line.weight, 18),
        model.head.weight.detach(),
    ]


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", "1:2", "3:5", "1:64", "63:64"])
def test_pattern_holds_in_every_kind_of_layer(pattern: str):
    model = Mixed()
    report = mfac.prune(model, cross_entropy, batches(30), pattern=pattern, **SMALL)
    keep, group = map(int, pattern.split(":"))
    for lines in lines_of(model):
        assert_pattern_holds(lines, keep, group)
    total = sum(lines.numel() for lines in lines_of(model))
    kept = sum(min(keep, length) for lines in lines_of(model) for length, _ in counts(lines, group))
    assert report.sparsity == (total - kept) / total
    for name, mask in report.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)


@pytest.mark.parametrize("saliency", ["obs", "magnitude"])
@pytest.mark.parametrize("compensation", ["joint", "summed", "none"])
@pytest.mark.parametrize("block_size", [None, 7])
def test_pattern_holds_with_every_saliency_and_compensation(saliency: str, compensation: str, block_size: int | None):
    model, sparsities = classifier(), []
    report = mfac.prune(
        model,
        cross_entropy,
        batches(30),
        pattern="2:4",
        saliency=saliency,
        compensation=compensation,
        block_size=block_size,
        progress=lambda step: sparsities.append(step.sparsity),
        **SMALL,
    )
    assert report.sparsity == 0.5
    assert sparsities == sorted(set(sparsities)) and sparsities[-1] == 0.5  # a little more at each step
    for weight in (model[0].weight, model[2].weight):
        assert_pattern_holds(weight, 2, 4)


def test_magnitude_keeps_the_largest_of_each_group():
    model = classifier()
    before = model[0].weight.detach().clone()
    mfac.prune(model, cross_entropy, [], pattern="2:4", saliency="magnitude", compensation="none")
    groups = before.view(-1, 4)
    largest = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2).indices, 1.0)
    assert torch.equal(model[0].weight, before * largest.view_as(before))


def test_memory_format_makes_no_difference():
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3))
        model = model.double().to(memory_format=layout)  # in float64, so that rounding decides nothing
        masks.append(mfac.prune(model, cross_entropy, batches(30, shape=(6, 2, 2)), pattern="2:4", **SMALL).masks)
        assert_pattern_holds(along_inputs(model[0].weight, 6), 2, 4)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_obs_loses_less_than_magnitude():
    dense, held_out = trained_classifier(), batches(40, size=64, seed=9)
    losses = {}
    for name, arguments in {"obs": {}, "magnitude": {"saliency": "magnitude", "compensation": "none"}}.items():
        model = copy.deepcopy(dense)
        mfac.prune(model, cross_entropy, batches(64, seed=5), pattern="2:4", num_gradients=64, stages=4, **arguments)
        with torch.no_grad():
            losses[name] = sum(float(cross_entropy(model, batch)) for batch in held_out) / len(held_out)
    assert losses["obs"] < losses["magnitude"]


def test_zeros_count_and_stay():
    model = classifier()
    mfac.prune(model, cross_entropy, batches(30), sparsity=0.4, **SMALL)
    before = [model[0].weight != 0, model[2].weight != 0]
    report = mfac.prune(model, cross_entropy, batches(30), pattern="2:4", **SMALL)
    alive = 0
    for weight, live in zip((model[0].weight, model[2].weight), before, strict=True):
        assert not bool(((weight != 0) & ~live).any())
        of_groups = live.view(-1, 4).sum(1).clamp(max=2)
        assert torch.equal((weight != 0).view(-1, 4).sum(1), of_groups)
        alive += int(of_groups.sum())
    assert report.sparsity == (480 - alive) / 480

    again = mfac.prune(model, cross_entropy, batches(30), pattern="2:4", **SMALL)
    assert again.steps == [] and again.sparsity == report.sparsity


def test_a_network_of_zeros_obeys_any_pattern():
    model = classifier()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert mfac.prune(model, cross_entropy, batches(30), pattern="2:4", existing_zeros="keep", **SMALL).sparsity == 1


def test_a_tied_weight_counts_once():
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12))
    model[2].weight = model[0].weight
    report = mfac.prune(model, cross_entropy, batches(30), pattern="2:4", **SMALL)
    assert list(report.masks) == ["0.weight"] and report.sparsity == 0.5
    assert_pattern_holds(model[0].weight, 2, 4)


def test_sparsity_may_be_given_where_it_is_that_of_the_pattern():
    reports = [
        mfac.prune(classifier(), cross_entropy, batches(30), pattern="2:4", sparsity=sparsity, **SMALL)
        for sparsity in (None, 0.5)
    ]
    assert all(torch.equal(reports[0].masks[name], reports[1].masks[name]) for name in reports[0].masks)
    default = mfac.prune(classifier(), cross_entropy, batches(30), **SMALL)
    assert default.sparsity == 0.9  # of what is unstructured


def random_saliencies(live: Tensor, seed: int) -> Tensor:
    return torch.rand(int(live.sum()), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("layout", [(4, 10, 1), (2, 7, 9), (1, 33, 5)])
def test_a_step_drops_the_lowest_of_what_the_pattern_would_drop(layout: tuple[int, int, int]):
    pattern, size = NM(2, 4), layout[0] * layout[1] * layout[2]
    weights = [PrunableWeight(name, torch.Size([size]), layout, "Linear") for name in ("a", "b")]
    live = torch.rand(2 * layout[0] * layout[1] * layout[2], generator=torch.Generator().manual_seed(1)) < 0.8
    finally_kept, step = sum(pattern.least_kept(weights, live)), 0
    while int(live.sum()) > finally_kept:
        saliency = random_saliencies(live, step)
        count = min(7, int(live.sum()) - finally_kept)
        units = pattern.units(Candidates(weights, live, saliency))
        first = min(count, units.counts[0])
        dropped = units.lowest([first, count - first])
        scores = torch.full(live.shape, -1.0, dtype=torch.float64).masked_scatter_(live, saliency)
        candidates = ~pattern.mask(weights, scores)[live]
        assert int(dropped.sum()) == count and not bool((dropped & ~candidates).any())
        for piece in (slice(0, int(live[:size].sum())), slice(int(live[:size].sum()), None)):
            gone, stay = saliency[piece][dropped[piece]], saliency[piece][(candidates & ~dropped)[piece]]
            assert gone.numel() == 0 or stay.numel() == 0 or gone.max() <= stay.min()
        live = live.masked_scatter(live, ~dropped)
        step += 1
        assert sum(pattern.least_kept(weights, live)) == finally_kept
    assert int(live.sum()) == finally_kept


@pytest.mark.parametrize("after", [0, 30])
def test_an_error_leaves_the_model_as_it_was(after: int):
    model, calls = Mixed(), []
    before = snapshot(model)

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(None)
        return cross_entropy(model, batch) * (float("nan") if len(calls) > after else 1)

    with pytest.raises(ValueError, match=r"`loss_fn` should return a finite loss"):
        mfac.prune(model, loss_fn, batches(40), pattern="2:4", **SMALL)
    assert same_state(model, before) and model.training


def with_a_bias(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith("0.")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(
            (
                {"pattern": pattern},
                ValueError,
                rf"`pattern` should be .* 'N:M' with 1 <= N < M <= 64, 'AxB' .*, or a Pattern. Found '{pattern}'",
            )
            for pattern in ("4:4", "4:2", "0:4", "2:65", "2:4:8", "two:four", "2", "", " 2:4", "-1:4")
        ),
        ({"pattern": None}, TypeError, r"`pattern` should be a string, a mapping or a Pattern. Found NoneType"),
        (
            {"pattern": "2:4", "sparsity": 0.9},
            ValueError,
            r"`sparsity` should be left out with pattern='2:4', which fixes it, or be 0.5. Found 0.9",
        ),
        (
            {"pattern": "2:4", "sparsity": float("nan")},
            ValueError,
            r"`sparsity` should be finite and >= 0 and < 1. Found nan",
        ),
        ({"pattern": "2:4", "sparsity": "half"}, TypeError, r"`sparsity` should be a real number. Found 'half'"),
        (
            {"pattern": "2:4", "params": with_a_bias},
            ValueError,
            r"`params` should select weights of layers whose input channels are known .* Found '0.bias'",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], message: str):
    model = classifier()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        mfac.prune(model, cross_entropy, batches(30), **{**SMALL, **arguments})
    assert same_state(model, before)
