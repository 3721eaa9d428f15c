"""Attached masks: dropped weights and their momentum stay zero in every optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import batches, classifier, cross_entropy, random_masks, train
from torch import Tensor, nn

import mfac


def revived(model: nn.Module, masks: mfac.Masks) -> int:
    return sum(int((p[~masks[name]] != 0).sum()) for name, p in model.named_parameters() if name in masks)


def dropped_state(optimizer: torch.optim.Optimizer, model: nn.Module, masks: mfac.Masks) -> list[Tensor]:
    named = dict(model.named_parameters())
    found = []
    for name, mask in masks.items():
        state = [v for v in optimizer.state.get(named[name], {}).values() if v.shape == mask.shape]
        found += [value[~mask] for value in state]
    return found


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, initial_accumulator_value=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "mfac": lambda p: mfac.MFAC(p, lr=1e-3, rank=8, damping=1e-2, momentum=0.9, weight_decay=1e-3),
    "mfac_sparse": lambda p: mfac.MFAC(p, lr=1e-3, rank=8, damping=1e-2, momentum=0.9, density=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("earlier_steps", [0, 20])  # with momentum and a window from before the attach
def test_no_weight_and_no_momentum_comes_back_in_500_steps(name: str, earlier_steps: int):
    model = classifier()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, earlier_steps, seed=9)
    masks = random_masks(model)
    kept_before = {n: p.detach().clone() for n, p in model.named_parameters()}
    counted: list[int] = []
    masks.attach(model, optimizer)
    assert revived(model, masks) == 0
    train(model, optimizer, 500, after=lambda: counted.append(revived(model, masks)))
    assert counted == [0] * 500
    state = dropped_state(optimizer, model, masks)
    assert all(bool((value == 0).all()) for value in state)
    if isinstance(optimizer, mfac.MFAC):  # which keeps nothing of them
        assert not state
        assert optimizer.window.dim == sum(p.numel() for p in model.parameters()) - sum(
            int((~m).sum()) for m in masks.values()
        )
    else:
        assert len(state) >= 2
    leads_on = masks["2.weight"].any(0)  # hidden units that some output sees: the others get no gradient
    for p, mask in ((model[0].weight, masks["0.weight"] & leads_on[:, None]), (model[2].weight, masks["2.weight"])):
        moved = p.detach() != kept_before["0.weight" if p is model[0].weight else "2.weight"]
        assert float(moved[mask].double().mean()) > 0.95  # and the others have trained


def test_a_window_stores_the_columns_of_kept_weights_alone():
    model = classifier()
    optimizer = mfac.MFAC(model.parameters(), lr=1e-3, rank=4, damping=1e-2, weight_decay=0.1)
    masks = random_masks(model)
    masks.attach(model, optimizer)
    train(model, optimizer, 6)
    flat = torch.cat([masks.get(n, torch.ones(p.shape, dtype=bool)).reshape(-1) for n, p in model.named_parameters()])
    assert optimizer.window.rows.shape == (4, int(flat.sum()))


def test_rows_from_before_an_attach_keep_their_columns_of_kept_weights():
    """Then the step is that of a window that never had the others."""
    model = classifier(dtype=torch.float64)
    options = {"lr": 1e-3, "rank": 4, "damping": 1e-2, "momentum": 0.9, "window_dtype": torch.float64}
    optimizer = mfac.MFAC(model.parameters(), **options)
    train(model, optimizer, 6)
    masks = random_masks(model)
    flat = torch.cat([masks.get(n, torch.ones(p.shape, dtype=bool)).reshape(-1) for n, p in model.named_parameters()])
    before = optimizer.window.rows[:, flat].clone()
    newest = optimizer.window.newest
    masks.attach(model, optimizer)
    train(model, optimizer, 1)
    rows = optimizer.window.rows
    assert optimizer.window.newest == (newest + 1) % 4
    kept = [i for i in range(4) if i != optimizer.window.newest]
    assert torch.equal(rows[kept], before[kept])
    K = torch.tril(rows @ rows.T)
    torch.testing.assert_close(torch.tril(optimizer.window.capacitance.gram), K, rtol=1e-12, atol=1e-14)


def test_weights_that_masks_let_go_come_back_with_empty_columns():
    model = classifier()
    optimizer = mfac.MFAC(model.parameters(), lr=1e-2, rank=4)
    handle = random_masks(model).attach(model, optimizer)
    train(model, optimizer, 3)
    handle.remove()
    train(model, optimizer, 1)
    assert optimizer.window.dim == sum(p.numel() for p in model.parameters())
    assert revived(model, random_masks(model)) > 0


def test_a_masked_step_is_the_step_of_the_smaller_network():
    """Adam on the kept weights alone, as if the others did not exist."""
    model = classifier(dtype=torch.float64)
    masks = random_masks(model)
    masks.apply_(model)
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    masks.attach(model, optimizer)
    train(model, optimizer, 30)

    kept = {n: p.detach()[masks[n]].clone().requires_grad_() for n, p in other.named_parameters() if n in masks}
    rest = [p for n, p in other.named_parameters() if n not in masks]
    small = torch.optim.Adam([*kept.values(), *rest], lr=1e-2)
    for batch in batches(30):
        small.zero_grad()
        weights = {n: torch.zeros_like(masks[n], dtype=torch.float64).masked_scatter(masks[n], kept[n]) for n in kept}
        inputs, labels = batch
        output = torch.func.functional_call(other, weights, (inputs.double(),))
        nn.functional.cross_entropy(output, labels).backward()
        small.step()
    for name, mask in masks.items():
        torch.testing.assert_close(model.get_parameter(name)[mask], kept[name].detach(), rtol=1e-9, atol=1e-12)


def test_closures_are_cleared_too():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5)
    handle = masks.attach(model, optimizer)
    batch = batches(1)[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model, batch)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item(), optimizer.step(closure=closure).item()]
    assert losses[1] < losses[0]
    assert revived(model, masks) == 0
    for name, p in model.named_parameters():
        assert name not in masks or bool((p.grad[~masks[name]] == 0).all())
    handle.remove()


def test_groups_and_parameters_that_the_optimizer_does_not_have():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(
        [{"params": [model[2].weight], "lr": 0.1}, {"params": [model[2].bias], "lr": 0.01, "momentum": 0.9}], lr=1.0
    )
    masks.attach(model, optimizer)
    train(model, optimizer, 5)
    assert revived(model, masks) == 0
    with pytest.raises(ValueError, match=r"Parameter `optimizer` should have some of the masked parameters"):
        masks.attach(model, torch.optim.SGD(classifier().parameters(), lr=0.1))


def test_steps_that_a_scaler_skips():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks.attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = None
    for number, batch in enumerate(batches(6)):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model, batch)).backward()
        if number == 3:
            model[0].weight.grad[0, 0] = torch.inf
            before = model[2].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        if number == 3:
            assert torch.equal(before, model[2].weight)
        assert revived(model, masks) == 0
    assert scaler.get_scale() == 2.0


def test_an_infinite_gradient_of_a_dropped_weight_does_no_harm():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    cross_entropy(model, batches(1)[0]).backward()
    model[0].weight.grad[~masks["0.weight"]] = torch.nan
    optimizer.step()
    assert revived(model, masks) == 0
    assert bool(torch.isfinite(model[0].weight).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_memory_formats(dtype: torch.dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 4, 2)).to(dtype)
    model = model.to(memory_format=torch.channels_last)
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    masks.attach(model, optimizer)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(3, 4, 4, 4, dtype=dtype)).square().mean().backward()
        optimizer.state[model[0].weight]["in_float64"] = torch.ones(6, 4, 3, 3, dtype=torch.float64)
        optimizer.step()
        assert revived(model, masks) == 0
    assert torch.equal(optimizer.state[model[0].weight]["in_float64"] != 0, masks["0.weight"])
    assert bool((model[0].weight != before)[masks["0.weight"]].any())


def test_sparse_gradients():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 1))
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([[1, 1], [4, 2]])).square().mean().backward()
        optimizer.step()
    assert model[0].weight.grad.is_sparse
    assert revived(model, masks) == 0


def test_training_goes_on_bit_by_bit_from_saved_masks(tmp_path: Path):
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = classifier()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = start()
    masks = random_masks(model)
    masks.attach(model, optimizer)
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    masks.save(tmp_path / "masks.pt")
    train(model, optimizer, 10, seed=5)

    again, optimizer_again = start()
    loaded = mfac.Masks.load(tmp_path / "masks.pt")
    loaded.attach(again, optimizer_again)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["model"].keys() == classifier().state_dict().keys()
    again.load_state_dict(saved["model"])
    optimizer_again.load_state_dict(saved["optimizer"])
    train(again, optimizer_again, 10, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_state_of_before_is_cleared_by_the_step_after_it_is_loaded():
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    masks = random_masks(model)
    masks.attach(model, optimizer)
    optimizer.load_state_dict(state)
    train(model, optimizer, 1)
    assert revived(model, masks) == 0
    assert all(bool((value == 0).all()) for value in dropped_state(optimizer, model, masks))


def test_state_that_is_kept_is_left_alone():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    masks = mfac.Masks({"weight": torch.zeros(4, 4, dtype=torch.bool)})
    masks.attach(model, optimizer, keep_state=["exp_avg_sq"])
    assert bool((optimizer.state[model.weight]["exp_avg"] == 0).all())
    assert bool((optimizer.state[model.weight]["exp_avg_sq"] != 0).all())


def test_removal_and_copies():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = masks.attach(model, optimizer)
    copied = copy.deepcopy(model)
    assert copied.state_dict().keys() == classifier().state_dict().keys()
    assert not any(module._forward_pre_hooks or module._backward_hooks for module in model.modules())
    handle.remove()
    handle.remove()
    train(model, optimizer, 1)
    assert revived(model, masks) > 0
    with masks.attach(model, optimizer):
        train(model, optimizer, 1)
        assert revived(model, masks) == 0
    train(model, optimizer, 1)
    assert revived(model, masks) > 0


def test_masks_follow_the_model_to_another_dtype():
    model = classifier()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    train(model, optimizer, 2)
    model.double()
    train(model, optimizer, 2)
    assert model[0].weight.dtype == torch.float64
    assert revived(model, masks) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_masks_follow_the_model_to_another_device():
    model = classifier().cpu()
    masks = random_masks(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    masks.attach(model, optimizer)
    model.cuda()
    model(torch.randn(4, 12, device="cuda")).square().mean().backward()
    optimizer.step()
    assert revived(model, masks.to("cuda")) == 0


def test_weights_that_share_memory():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.data)  # another parameter, the same memory
    masks = mfac.Masks({"0.weight": torch.rand(6, 6) < 0.5})
    optimizer = torch.optim.Adam(model.parameters())
    masks.attach(model, optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
    assert revived(model, masks) == 0
    assert bool((optimizer.state[model[2].weight]["exp_avg"][~masks["0.weight"]] == 0).all())


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")], ids=["DataParallel", "compile"]
)
def test_wrapped_models_have_the_names_of_the_model_inside(wrap: Callable[[nn.Module], nn.Module]):
    model = classifier()
    masks = random_masks(model)
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    masks.attach(wrapped, optimizer)
    train(model, optimizer, 2)
    assert revived(model, masks) == 0
    assert mfac.Masks.from_zeros(wrapped) == masks


def test_masks_of_a_pruning_run_are_kept_in_fine_tuning():
    model = classifier()
    report = mfac.prune(model, cross_entropy, batches(30), sparsity=0.7, num_gradients=24, stages=1)
    masks = mfac.Masks(report.masks)
    assert masks.sparsity == pytest.approx(report.sparsity)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with masks.attach(model, optimizer):
        train(model, optimizer, 20)
    assert mfac.Masks.from_zeros(model) == masks


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (4,)])
def test_a_matrix_as_large_as_the_windows_own_leaves_these_alone(shape: tuple[int, ...]):
    torch.manual_seed(0)
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(shape))
    optimizer = mfac.MFAC(model.parameters(), rank=4, rule="adam")
    mask = torch.rand(shape) < 0.5
    mfac.Masks({"weight": mask}).attach(model, optimizer)
    for _ in range(9):
        model.weight.grad = torch.randn(shape)
        optimizer.step()
        rows = optimizer.window.format.as_dense(slice(0, 4))
        gram = optimizer.state[model.weight]["window_gram"]
        assert torch.allclose(gram.tril().float(), (rows @ rows.T).tril().float(), rtol=1e-4, atol=1e-6)
        assert bool(torch.isfinite(model.weight).all()) and not model.weight[~mask].any()
