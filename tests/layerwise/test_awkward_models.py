"""Models that call layers in their own ways: what is solved is right, and what is not is named."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune as torch_prune

import mfac

PLAIN: dict[str, Any] = {"method": "sparsegpt", "allocation": "uniform", "sparsity": 0.6}


def true_errors(dense: nn.Module, pruned: nn.Module, report: Any, batches: Sequence[Any]) -> dict[str, float]:
    """‖(W - W')X‖²/‖WX‖² of each layer, X as the pruned model gives it, by layers' own calls."""
    lost: dict[str, list[Tensor]] = {name: [torch.zeros(()), torch.zeros(())] for name in report.layers}
    layers = dict(dense.named_modules())
    handles = []
    for name in report.layers:
        twin = layers[name.rsplit(".", 1)[0]]

        def hook(module: Any, given: Any, named: Any, output: Tensor, name: str = name, twin: Any = twin) -> None:
            whole = twin(*given, **named)
            bias = module.bias
            if bias is not None:
                shape = [1, -1, *[1] * (whole.dim() - 2)] if hasattr(module, "stride") else [-1]
                whole, output = whole - bias.view(shape), output - bias.view(shape)
            lost[name][0] += (whole - output).square().sum()
            lost[name][1] += whole.square().sum()

        own = dict(pruned.named_modules())[name.rsplit(".", 1)[0]]
        handles.append(own.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        for batch in batches:
            pruned(*batch) if isinstance(batch, tuple) else pruned(batch)
    for handle in handles:
        handle.remove()
    return {name: float(a / b) for name, (a, b) in lost.items()}


def check(model: nn.Module, batches: Sequence[Any], **options: Any) -> Any:
    """Prunes, and compares every error that is reported with the true one."""
    model.eval()
    dense = copy.deepcopy(model)
    report = mfac.prune_layerwise(model, batches, **{**PLAIN, **options})
    for name, error in true_errors(dense, model, report, batches).items():
        assert report.layers[name].error == pytest.approx(error, rel=1e-3, abs=1e-6), name
    return report


class Block(nn.Module):
    def __init__(self, width: int = 12, tells: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.tells = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), tells

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        y = x + self.b(torch.relu(self.a(x))) * (1.0 if scale is None else scale)
        return (y, y.mean(-1).square().mean(-1)) if self.tells else y


class Telling(nn.Module):
    """Blocks whose second output, of a shape of its own, scales the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(tells=True) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scale = None
        for layer in self.layers:
            x, told = layer(x, scale)
            scale = 1 + told[:, None, None]
        return x


class Between(nn.Module):
    """Two lists called in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.downs = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for down, block in zip(self.downs, self.blocks, strict=True):
            x = block(torch.tanh(down(x)))
        return x


class Optional(nn.Module):
    """A branch that a batch may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.image, self.more, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.o(x if image is None else x + torch.tanh(self.more(torch.tanh(self.image(image)))))


def rows(count: int = 4, width: int = 12) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 5, width) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"blocks": []}], ids=["blocks", "none"])
def test_blocks_that_depend_on_what_others_tell_them(options: dict[str, Any]):
    torch.manual_seed(0)
    report = check(Telling(), rows(), **options)
    assert len(report.layers) == 8
    assert options or "depends on what blocks compute" in report.notes[0]


def test_layers_between_blocks_are_solved_in_the_models_order():
    torch.manual_seed(0)
    report = check(Between(), rows())
    expected = [
        f"{kind}.{i}{part}" for i in range(3) for kind, part in (("downs", ""), ("blocks", ".a"), ("blocks", ".b"))
    ]
    assert [name.removesuffix(".weight") for name in report.layers] == expected
    assert "other layers are called between its blocks" in report.notes[0]


@pytest.mark.parametrize("first", [0, 1])
def test_what_the_first_batch_does_not_reach_is_solved_in_its_place(first: int):
    torch.manual_seed(0)
    found = rows()
    batches = [(x, found[-1 - i]) if i % 2 == first else (x,) for i, x in enumerate(found)]
    report = check(Optional(), batches)
    assert [name[0] for name in report.layers] == ["a", "i", "m", "o"]


class Up(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=groups)
        self.out = nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = [2 * x.shape[2] - x.shape[3] % 2, 2 * x.shape[3]]
        return self.out(torch.tanh(self.up(x, output_size=size)))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolutions_that_are_told_their_output_size(groups: int):
    torch.manual_seed(0)
    check(Up(groups), [torch.randn(3, 4, *shape) for shape in ((5, 6), (6, 5), (7, 7))])


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (2, 0)))


class Normed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.normalize(x, dim=-1))


class Same(nn.Conv2d):
    """Padding by the input's size, as of networks that come from TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = ((-n % s) + k - s for n, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True))
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups, dilation=self.dilation)


class Squared(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.square(), self.bias)


def test_layers_with_a_forward_of_their_own_are_solved_by_their_products():
    torch.manual_seed(0)
    model = nn.Sequential(Causal(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 6, 3), nn.Flatten(), Normed(36, 5), nn.Linear(5, 5))
    report = check(model, [torch.randn(9, 4, 8)])
    assert list(report.layers) == ["0.weight", "2.weight", "4.weight", "5.weight"]
    nested = nn.Sequential(Same(3, 8, 3, 2), nn.Tanh(), Same(8, 8, (3, 2), groups=2), Same(8, 4, 3, 1, "same"))
    report = check(nested, [torch.randn(4, 3, 9, 8), torch.randn(2, 3, 6, 7)])
    assert list(report.layers) == ["0.weight", "2.weight", "3.weight"]


def test_layers_that_compute_with_another_weight_stay_dense_and_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(Squared(6, 6), nn.Linear(6, 6))
    before = copy.deepcopy(model)
    report = check(model, [torch.randn(50, 6)])
    assert report.left_dense["0.weight"].endswith("but given to torch's 'square'")
    assert torch.equal(model[0].weight, before[0].weight)


@pytest.mark.parametrize("padding", [1, (2, 1), "same", "valid"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_that_are_heard_are_those_that_are_called(padding: int | tuple[int, int] | str, groups: int):
    class Other(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    batches = [torch.randn(6, 4, 8, 7), torch.randn(4, 9, 9)]
    called = nn.Sequential(nn.Conv2d(4, 6, (3, 2), padding=padding, dilation=(1, 2), groups=groups))
    heard = nn.Sequential(Other(4, 6, (3, 2), padding=padding, dilation=(1, 2), groups=groups))
    heard.load_state_dict(called.state_dict())
    wanted, found = (mfac.prune_layerwise(model, batches, method="sparsegpt") for model in (called, heard))
    assert torch.equal(found.masks["0.weight"], wanted.masks["0.weight"])
    assert torch.equal(heard[0].weight, called[0].weight)
    assert found.layers["0.weight"].samples == wanted.layers["0.weight"].samples


def test_weights_under_a_mask_of_torch_prune_stay_and_are_named():
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    torch_prune.l1_unstructured(model[0], "weight", 0.5)
    report = mfac.prune_layerwise(model, rows(), **PLAIN)
    assert "prune.remove" in report.left_dense["0.weight_orig"] and set(report.layers) == {"2.weight"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named_and_nothing_changes(value: float, tmp_path: Path):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    with torch.no_grad():
        model[2].weight[3, 4] = value
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"finite weights. Found others in '2.weight'"):
        mfac.prune_layerwise(model, rows())
    with pytest.raises(ValueError, match=r"finite weights. Found others in '2.weight'"):
        mfac.LayerDatabase.build(model, rows(), folder=tmp_path)
    assert torch.equal(model[0].weight, before)


def test_a_model_that_changes_its_batches_is_refused():
    class InPlace(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(0.5))

    with pytest.raises(ValueError, match="changes tensors of batch 0 in place"):
        mfac.prune_layerwise(InPlace(nn.Linear(12, 12)), rows())


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2x4"])
@pytest.mark.parametrize("size", [4, 5, 6, 10, 18, 128])
def test_groups_of_a_grid_part_no_unit_of_a_pattern(pattern: str, size: int):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 48))
    report = mfac.prune_layerwise(
        model, rows(width=48), pattern=pattern, method="sparsegpt", quantize=mfac.Grid(4, size)
    )
    assert not report.broken_units
    if pattern != "2x4":
        for mask in report.masks.values():
            assert set(mask.view(-1, 4).sum(1).tolist()) == {int(pattern[0])}


def test_a_stem_of_three_channels_keeps_two_of_each_position():
    torch.manual_seed(0)
    report = mfac.prune_layerwise(
        nn.Conv2d(3, 16, 7), [torch.randn(2, 3, 12, 12)], pattern="2:4", method="sparsegpt", quantize=mfac.Grid(4)
    )
    assert set(report.masks["weight"].sum(1).flatten().tolist()) == {2}


def doubled(model: nn.Module, batch: Any) -> Any:
    return model(2 * batch)


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).square().mean()


def other_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).abs().mean()


def solver(scale: float, hessian: Any, weight: Tensor, pattern: Any, grid: Any) -> Any:
    from mfac.layerwise.solvers.sweep import sparsegpt

    return sparsegpt(hessian, scale * weight, pattern, grid)


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({}, {"forward": doubled}, "forward"),
        ({"method": partial(solver, 1.0)}, {"method": partial(solver, 1.1)}, "method"),
        ({"weigh_outputs": True, "loss_fn": loss_of}, {"weigh_outputs": True, "loss_fn": other_loss}, "loss_fn"),
        ({"bias": 0.0}, {"bias": 1.0}, "model"),
    ],
    ids=["forward", "partial", "loss", "bias"],
)
def test_a_checkpoint_of_another_run_is_refused(
    first: dict[str, Any], second: dict[str, Any], named: str, tmp_path: Path
):
    def go(bias: float = 0.0, **options: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
        with torch.no_grad():
            model[0].bias += bias
        mfac.prune_layerwise(model, rows(), **{**PLAIN, "checkpoint": tmp_path, **options})

    go(**first)
    go(**first)
    with pytest.raises(ValueError, match=f"another `{named}`"):
        go(**second)


def test_a_database_of_another_forward_is_refused(tmp_path: Path):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    mfac.LayerDatabase.build(model, rows(), folder=tmp_path, levels=[0.5])
    with pytest.raises(ValueError, match="another `forward`"):
        mfac.LayerDatabase.build(model, rows(), folder=tmp_path, levels=[0.5], forward=doubled)


def at_batch(bad: int, batches: Sequence[Tensor], value: Any) -> Any:
    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        loss = model(batch).square().mean()
        if batch is batches[bad]:
            if isinstance(value, Exception):
                raise value
            loss = loss * value
        return loss

    return loss_fn


@pytest.mark.parametrize("bad", [0, 3, 8])
@pytest.mark.parametrize("options", [{"finish": "fisher"}, {"weigh_outputs": True}, {"weigh_inputs": True}])
def test_a_loss_that_is_not_finite_names_its_batch(options: dict[str, Any], bad: int):
    batches = rows(12)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    with pytest.raises(ValueError, match=f"finite loss. Found nan at batch {bad}"):
        mfac.prune_layerwise(model, batches, loss_fn=at_batch(bad, batches, torch.nan), **PLAIN, **options)


@pytest.mark.parametrize("how", ["raises", "nan", "diverges"])
def test_a_finish_that_fails_leaves_the_pruned_weights_and_the_gradients(how: str):
    batches = rows(12)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    plain = copy.deepcopy(model)
    mfac.prune_layerwise(plain, batches, **PLAIN)
    model[0].weight.grad = torch.ones(12, 12)
    calls = 0

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if how == "raises" and calls == 6:
            raise ZeroDivisionError
        return model(batch).square().mean() * (torch.nan if how == "nan" and calls == 6 else 1.0)

    finish = mfac.FisherFinish(lr=1e30 if how == "diverges" else 1e-3)
    arguments = {**PLAIN, "finish": finish, "loss_fn": loss_fn}
    if how == "raises":
        with pytest.raises(ZeroDivisionError):
            mfac.prune_layerwise(model, batches, **arguments)
    else:
        report = mfac.prune_layerwise(model, batches, **arguments)
        assert not report.finish.helped or how == "nan"
    if how != "nan":
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert torch.equal(model[0].weight.grad, torch.ones(12, 12))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return self.head(self.table(input_ids))


def test_ids_mask_and_labels_in_a_tuple_are_those_of_a_dict():
    torch.manual_seed(0)
    model, ids = Masked(), torch.randint(20, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    expected = mfac.evaluate_perplexity(model, [{"input_ids": ids, "attention_mask": mask, "labels": ids}])
    assert mfac.evaluate_perplexity(model, [(ids, mask, ids)]) == expected
    with pytest.raises(ValueError, match=r"Found 0 to 99 in sequences of 3 in batch 1"):
        mfac.evaluate_perplexity(model, [ids, torch.tensor([[0, 99, 1]])])


@pytest.mark.parametrize("options", [{"finish": "fisher"}, {"weigh_inputs": True}, {"weigh_outputs": True}])
def test_what_needs_a_loss_and_has_none_says_so(options: dict[str, Any]):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    with pytest.raises(ValueError, match=r"`loss_fn` should be given with .*Found None, and"):
        mfac.prune_layerwise(model, rows(), **options)
    with pytest.raises(TypeError, match=r"`loss_fn` should be a function or None. Found 3"):
        mfac.prune_layerwise(model, rows(), loss_fn=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss_fn", "found"), [(3, "Found 3"), (lambda model, batch: model(batch), "Found shape")])
def test_a_search_wants_a_loss_that_is_a_number(loss_fn: Any, found: str, tmp_path: Path):
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
    database = mfac.LayerDatabase.build(model, rows(), folder=tmp_path, levels=[0.5])
    with pytest.raises(TypeError, match=f"`loss_fn` should .*{found}"):
        mfac.spdy_search(database, "bytes", 1e9, loss_fn, rows(), model=model)


def test_parameters_of_two_names_over_one_memory_are_one_weight():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self, tied: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)
            if tied:
                self.b.weight = self.a.weight
            else:
                self.b.weight = nn.Parameter(self.a.weight.detach())

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    tied = Twice(True)
    other = Twice(False)
    other.load_state_dict(tied.state_dict())
    wanted, found = (mfac.prune_layerwise(model, rows(), **PLAIN) for model in (tied, other))
    assert found.layers["a.weight"].samples == wanted.layers["a.weight"].samples
    assert torch.equal(other.a.weight, tied.a.weight) and torch.equal(other.b.weight, tied.a.weight)


def test_errors_are_those_of_the_weights_as_they_are_written():
    torch.manual_seed(0)
    x = torch.randn(400, 16)
    layer = nn.Linear(16, 8, bias=False).bfloat16()
    dense = copy.deepcopy(layer)
    report = mfac.prune_layerwise(layer, [x.bfloat16()], sparsity=0.02, method="sparsegpt")
    rows_ = x.bfloat16().double()
    change = rows_ @ (layer.weight - dense.weight).detach().double().T
    wanted = float(change.square().sum() / (rows_ @ dense.weight.detach().double().T).square().sum())
    assert report.layers["weight"].error == pytest.approx(wanted, rel=1e-3)
