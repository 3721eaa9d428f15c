"""Choices that meet: each pair works, or is refused by name before any work."""

from __future__ import annotations

import pytest
import torch
from models import batches, classifier, cross_entropy
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import mfac

SETTINGS = {"num_gradients": 16, "stages": 1}


def densities(report: mfac.PruningReport) -> dict[str, float]:
    return {name: float(mask.double().mean()) for name, mask in report.masks.items()}


@pytest.mark.parametrize("allocation", [{"*": 0.3}, mfac.Budget({"x": {0.0: 1.0}}, 1.0)])
def test_a_pattern_that_fixes_the_sparsity_takes_no_other_one(allocation):
    with pytest.raises(ValueError, match=r"`allocation` should be left out with pattern='2:4'"):
        mfac.prune(classifier(), cross_entropy, batches(20), pattern="2:4", allocation=allocation, **SETTINGS)


def test_sparsities_by_layer_hold_where_another_layer_is_sparser_already():
    model = classifier()
    with torch.no_grad():
        model[0].weight[:, :8] = 0
    report = mfac.prune(model, cross_entropy, batches(20), allocation={"*": 0.5}, **SETTINGS)
    assert densities(report) == {"0.weight": pytest.approx(1 / 3), "2.weight": 0.5}


def test_a_layer_is_never_emptied_by_its_sparsity():
    with pytest.raises(ValueError, match=r"`allocation\['\*'\]` should be finite and >= 0 and < 1. Found 1.0"):
        mfac.prune(classifier(), cross_entropy, batches(20), allocation={"*": 1.0}, **SETTINGS)


def test_zeros_of_torch_pruning_are_written_where_nothing_is_left_to_drop():
    model = classifier()
    torch_prune.l1_unstructured(model[0], "weight", 0.6)
    report = mfac.prune(model, cross_entropy, batches(20), sparsity=0.3, **SETTINGS)
    assert mfac.verify(model, report)


def test_views_of_one_memory_are_refused():
    model = nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 12, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.data.t())
    with pytest.raises(ValueError, match=r"Found '0.weight' and '2.weight', different views of the same memory"):
        mfac.prune(model, lambda m, b: functional.mse_loss(m(b[0]), b[0]), batches(20), **SETTINGS)


def test_a_module_that_stands_in_two_places_has_gradients_of_samples():
    torch.manual_seed(0)
    shared = nn.Linear(12, 12)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(12, 3))
    before = [id(parameter) for parameter in model.parameters()]
    found = mfac.collect_gradients(model, cross_entropy, batches(2), num_gradients=16, per_sample=True)
    assert [id(parameter) for parameter in model.parameters()] == before
    inputs, labels = batches(1)[0]
    singles = [(inputs[i : i + 1], labels[i : i + 1]) for i in range(len(labels))]
    expected = mfac.collect_gradients(model, cross_entropy, singles, num_gradients=len(singles))
    torch.testing.assert_close(found[: len(singles)], expected)


@pytest.mark.parametrize("saliency", ["wanda", "snip", "obd", "greedy", "obs"])
@pytest.mark.parametrize("gradients", ["ram", "bf16"])
@pytest.mark.parametrize("pattern", ["unstructured", "rows"])
def test_numbers_left_open_are_chosen_for_every_saliency(saliency: str, gradients: str, pattern: str):
    options = {"saliency": saliency, "gradients": gradients, "pattern": pattern, "effort": "fast"}
    planned = mfac.plan(classifier(), cross_entropy, batches(20), 0.5, **options)
    report = mfac.prune(classifier(), cross_entropy, batches(20), 0.5, **options)
    assert planned.seconds is not None and planned.steps == len(report.steps)
    assert report.sparsity == pytest.approx(0.5, abs=0.03)


def test_a_saliency_that_reads_single_columns_wants_them_in_memory():
    with pytest.raises(ValueError, match=r"`gradients` should be 'ram' with saliency=\"refined\""):
        mfac.prune(classifier(), cross_entropy, batches(20), saliency="refined", gradients="bf16", **SETTINGS)


def test_data_that_can_be_gone_through_once_serves_one_stage():
    report = mfac.prune(classifier(), cross_entropy, (batch for batch in batches(40)), sparsity=0.5)
    assert report.sparsity == 0.5
    assert {step.stage for step in report.steps} == {1}
    planned = mfac.plan(classifier(), cross_entropy, (batch for batch in batches(40)), sparsity=0.5)
    assert "the data can be gone through once" in str(planned)
    with pytest.raises(ValueError, match=r"Found only 0\. An iterator that was used up gives none"):
        mfac.prune(classifier(), cross_entropy, (batch for batch in batches(16)), num_gradients=16, stages=2)
    with pytest.raises(ValueError, match=r"Found only 4\. An iterator ends for good: a list or a DataLoader begins"):
        mfac.prune(classifier(), cross_entropy, (batch for batch in batches(20)), num_gradients=16, stages=2)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_no_plain_module_flag_or_folder_is_refused():
    with pytest.raises(TypeError, match=r"should be the module from before torch\.jit\.script"):
        mfac.prune(torch.jit.trace(classifier(), torch.zeros(1, 12)), cross_entropy, batches(20), **SETTINGS)
    with pytest.raises(TypeError, match=r"Parameter `per_sample` should be True or False. Found 'no'"):
        mfac.prune(classifier(), cross_entropy, batches(20), per_sample="no", **SETTINGS)
    with pytest.raises(ValueError, match=r"`gradients` should be 'ram', 'bf16' or a folder. Found 'bf-16'"):
        mfac.prune(classifier(), cross_entropy, batches(20), gradients="bf-16", **SETTINGS)
    with pytest.raises(ValueError, match=r"`damping` should be a number, .* or 'auto'. Found 'automatic'"):
        mfac.prune(classifier(), cross_entropy, batches(20), damping="automatic", **SETTINGS)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    def run(layer: int) -> None:
        model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        params = {f"{layer}.weight"}
        mfac.prune(model, cross_entropy, batches(20), 0.5, params=params, checkpoint=tmp_path, **SETTINGS)

    run(0)
    with pytest.raises(ValueError, match="another params"):
        run(2)


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        y = self.head(torch.tanh(self.body(input=x)))
        return {"loss": y.square().mean()} if self.training else y


def forces(model: nn.Module, batch) -> torch.Tensor:
    x = batch[0].clone().requires_grad_(True)
    return torch.autograd.grad(model(x).sum(), x, create_graph=True)[0].square().mean()


@pytest.mark.parametrize("compensation", ["none", "auto"])
@pytest.mark.parametrize(
    ("loss_fn", "mode"),
    [(forces, "auto"), (lambda m, b: m(b[0])["loss"], "auto"), (lambda m, b: m(b[0])["loss"], "train")],
    ids=["forces", "training mode found", "training mode given"],
)
@pytest.mark.filterwarnings("ignore:`loss_fn` returns no loss in evaluation mode")
def test_activations_are_seen_through_any_loss(loss_fn, mode: str, compensation: str):
    options = {"saliency": "wanda", "compensation": compensation, "mode": mode, "sparsity": 0.5, **SETTINGS}
    assert mfac.prune(Energy(), loss_fn, batches(20), **options).sparsity == 0.5
    model = Energy()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {name: options[name] for name in ("saliency", "compensation", "mode", "sparsity")}
    pruner = mfac.Pruner(model, optimizer, loss_fn, batches(20), end=1, num_gradients=16, **options)
    assert pruner.step().sparsity == 0.5


def test_a_saliency_by_activations_wants_data():
    with pytest.raises(ValueError, match=r"Parameter `data` should hold at least one batch"):
        mfac.prune(classifier(), cross_entropy, [], saliency="wanda", compensation="none", sparsity=0.5)


def costs_of(model: nn.Module, *levels: float) -> dict[str, dict[float, float]]:
    return {n: {s: (1 - s) * p.numel() for s in levels} for n, p in model.named_parameters() if p.dim() > 1}


def left(report: mfac.PruningReport) -> int:
    return sum(int(mask.sum()) for mask in report.masks.values())


@pytest.mark.parametrize("pattern", ["rows", "8x1", "4x12", "channels"])
def test_a_budget_holds_with_units_of_many_weights(pattern: str):
    costs = costs_of(classifier(), 0.0, 0.25, 0.5)
    for budget in (300, 350, 420):
        allocation = mfac.Budget(costs, budget)
        report = mfac.prune(
            classifier(), cross_entropy, batches(20), pattern=pattern, allocation=allocation, **SETTINGS
        )
        assert left(report) <= budget and all(bool(mask.any()) for mask in report.masks.values())


def test_a_budget_that_cannot_be_reached_is_refused_by_name():
    costs = costs_of(classifier(), 0.0, 0.25, 0.5)

    def run(allocation: mfac.Budget, model: nn.Module | None = None, **options) -> mfac.PruningReport:
        options = {"allocation": allocation, **SETTINGS, **options}
        return mfac.prune(classifier() if model is None else model, cross_entropy, batches(20), **options)

    with pytest.raises(ValueError, match=r"`budget` should be at least 240, what the cheapest levels cost. Found 100"):
        mfac.Budget(costs, 100)
    with pytest.raises(ValueError, match=r"`budget` should be at least 43\d, what the cheapest levels cost. Found 300"):
        run(mfac.Budget(costs, 300), pattern="32x12")  # the first layer is one block

    class Fixed(mfac.masks.patterns.Unstructured):
        def least_kept(self, weights, live):
            return [weight.size for weight in weights]

    with pytest.raises(ValueError, match=r"Found nothing to drop: 480 .* keep 240 of them, and pattern=.* least 480"):
        run(mfac.Budget(costs, 300), pattern=Fixed())
    attention = nn.MultiheadAttention(12, 4, batch_first=True)
    with pytest.raises(ValueError, match=r"should not be a budget with pattern='heads of 1 attentions'"):
        run(mfac.Budget(costs_of(attention, 0.0, 0.5), 500), attention, pattern=mfac.Heads(attention))
    # what holds already needs no step, and no gradients
    assert run(mfac.Budget(costs_of(classifier(), 0.0), 480)).steps == []
    model = classifier()
    with torch.no_grad():
        model[0].weight[:, :8] = 0
    assert left(run(mfac.Budget(costs, 450), model)) == 224
    assert left(run(mfac.Budget(costs, 241), model)) == 128 + 48


@pytest.mark.parametrize("pattern", ["64x64", {"0.*": "2:4", "*": "64x64"}])
def test_blocks_larger_than_every_layer_are_refused(pattern):
    with pytest.raises(
        ValueError, match=r"should have blocks smaller than some weight .* Found '64x64', where outputs"
    ):
        mfac.prune(classifier(), cross_entropy, batches(20), 0.5, pattern=pattern, **SETTINGS)


def test_units_of_which_none_may_go_are_no_silent_success():
    model = classifier()
    with pytest.raises(ValueError, match=r"Found '32x6', of which no unit fits into the 38 weights"):
        mfac.prune(model, cross_entropy, batches(20), 0.1, pattern="32x6", params="0.weight", **SETTINGS)
    assert bool((model[0].weight != 0).all())


def partly_sparse() -> nn.Sequential:
    model = classifier()
    with torch.no_grad():
        model[0].weight[:, :8] = 0
    return model


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.8])
def test_uniform_takes_every_weight_to_the_sparsity_that_is_asked_for(sparsity: float):
    options = {"sparsity": sparsity, "allocation": "uniform", **SETTINGS}
    planned = mfac.plan(partly_sparse(), cross_entropy, batches(20), **options)
    report = mfac.prune(partly_sparse(), cross_entropy, batches(20), **options)
    first = max(sparsity, 2 / 3)
    assert report.sparsity_by_parameter == {
        "0.weight": pytest.approx(first, abs=0.01),
        "2.weight": pytest.approx(sparsity, abs=0.01),
    }
    assert planned.kept == left(report)


@pytest.mark.parametrize("options", [{"pattern": "2:4"}, {"sparsity": 0.1}, {"sparsity": 0.7}, {"pattern": "rows"}])
def test_a_plan_counts_what_torch_pruning_masks(options):
    def model() -> nn.Sequential:
        model = classifier()
        torch_prune.random_unstructured(model[0], "weight", 0.4)
        return model

    planned = mfac.plan(model(), cross_entropy, batches(20), **options, **SETTINGS)
    report = mfac.prune(model(), cross_entropy, batches(20), **options, **SETTINGS)
    assert left(report) - planned.kept in range(20)


def of_one_memory() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    model[2].weight.data = model[0].weight.data
    return model


@pytest.mark.parametrize(("frozen", "trained"), [(0, 2), (2, 0)])
def test_a_weight_that_shares_its_memory_with_a_frozen_one_is_left_dense(frozen: int, trained: int):
    def net() -> nn.Sequential:
        model = of_one_memory()
        model[frozen].weight.requires_grad_(False)
        return model

    report = mfac.prune(net(), cross_entropy, batches(20), 0.5, **SETTINGS)
    assert list(report.masks) == ["4.weight"]
    assert report.left_dense[f"{trained}.weight"] == f"shares its memory with '{frozen}.weight', which is frozen"
    with pytest.raises(ValueError, match=rf"Found '{trained}.weight': it shares its memory with '{frozen}.weight'"):
        mfac.prune(net(), cross_entropy, batches(20), 0.5, params=[f"{trained}.weight"], **SETTINGS)
    rows = mfac.collect_gradients(net(), cross_entropy, batches(4), 4, params=[f"{trained}.weight"])
    for row, batch in zip(rows, batches(4), strict=True):
        model = net()
        cross_entropy(model, batch).backward()
        torch.testing.assert_close(row.view(12, 12), model[trained].weight.grad)


def tied() -> nn.Sequential:
    model = of_one_memory()
    model[2].weight = model[0].weight
    return model


def test_any_name_of_a_parameter_that_stands_in_several_places():
    report = mfac.prune(tied(), cross_entropy, batches(20), 0.5, params="2.weight", **SETTINGS)
    assert list(report.masks) == ["0.weight"]
    rows = [mfac.collect_gradients(tied(), cross_entropy, batches(4), 4, params=[f"{i}.weight"]) for i in (0, 2)]
    assert torch.equal(*rows)
    model = tied()
    model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"Found '0.weight': it is frozen"):
        mfac.prune(model, cross_entropy, batches(20), 0.5, params="2.weight", **SETTINGS)
    assert list(mfac.prune(tied(), cross_entropy, batches(20), 0.5, params="*.weight", **SETTINGS).masks) == [
        "0.weight",
        "4.weight",
    ]


def test_a_sparsity_by_name_beside_a_pattern_that_fixes_one():
    pattern = {"0.*": "2:4", "*": "unstructured"}

    def run(**options) -> mfac.PruningReport:
        return mfac.prune(classifier(), cross_entropy, batches(20), pattern=pattern, **options, **SETTINGS)

    with pytest.raises(
        ValueError, match=r"leave out '0.weight', or give it the sparsity 0.5 that pattern=.*'0.\*': 0.8"
    ):
        run(allocation={"0.*": 0.8, "*": 0.5})
    assert densities(run(allocation={"0.*": 0.5, "*": 0.25})) == {"0.weight": 0.5, "2.weight": 0.75}
    assert densities(run(allocation={"*": 0.75})) == {"0.weight": 0.5, "2.weight": 0.25}
    with pytest.raises(ValueError, match=r"`sparsity` should be below 0.6000, where nothing is left of the weights"):
        run(sparsity=0.6)


@pytest.mark.parametrize("run", [mfac.prune, mfac.plan])
def test_the_generator_of_a_loader_is_put_back(run):
    generator = torch.Generator().manual_seed(3)
    samples = list(zip(*(torch.cat(parts) for parts in zip(*batches(20), strict=True)), strict=True))
    loader = torch.utils.data.DataLoader(samples, batch_size=8, shuffle=True, generator=generator)
    before = generator.get_state()
    run(classifier(), cross_entropy, loader, 0.5, num_gradients=16, stages=2)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"saliency": "greddy"}, r"or a Saliency. Found 'greddy'. Did you mean 'greedy'\?$"),
        ({"effort": "fats"}, r"Found 'fats'. Did you mean 'fast'\?$"),
        ({"pattern": "unstrctured"}, r"Found 'unstrctured'. Did you mean 'unstructured'\?$"),
        ({"params": "0.weigh"}, r"Found '0.weigh', which matches none of .*\]. Did you mean '0.weight'\?$"),
        ({"allocation": {"0.weigh": 0.5}}, r"Did you mean '0.weight'\?$"),
        ({"pattern": {"0.weigh": "rows", "*": "unstructured"}}, r"Did you mean '0.weight'\?$"),
        ({"saliency": "zzz"}, r"Found 'zzz'\.$"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(options, message: str):
    with pytest.raises(ValueError, match=message):
        mfac.prune(classifier(), cross_entropy, batches(20), **options, **SETTINGS)
