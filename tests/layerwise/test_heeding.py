"""Positions of inputs count by the squared gradients at a layer's outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.calling import call_model
from mfac.layerwise.found_views import views_of
from mfac.layerwise.heeding import LONGEST, heeding_of, weighted_rows
from mfac.layerwise.statistics import grams_of, stages_of
from tests.layerwise.networks import NETWORKS, made


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return call_model(model, batch).square().mean()


def seen_of(model: nn.Module, batches: list[Any]) -> tuple[Any, Any]:
    names = [name for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    views, _ = views_of(model, names)
    return views, heeding_of(model, views, batches, loss_of, outputs=True, inputs=True)


def test_weights_are_squared_gradients_at_the_outputs():
    model, batches = made("language")
    views, found = seen_of(model, batches)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    view = next(view for view in views if view.name.endswith("1.v.weight"))
    gradients: list[Tensor] = []
    handle = view.module.register_forward_hook(
        lambda _, __, output: (
            output.register_hook(lambda g: gradients.append(g.detach()))  # type: ignore[func-returns-value]
            and None
        )
    )
    for batch in batches:
        loss_of(model, batch).backward()
    handle.remove()
    squares = [gradient.double().square().flatten(0, -2) for gradient in gradients]
    positions = [square.sum(1) for square in squares]
    mean = torch.cat(positions).mean()
    for wanted, (mine,) in zip(positions, found.inputs[view.name], strict=True):
        torch.testing.assert_close(mine.double(), (wanted / mean).clamp(min=1), rtol=1e-5, atol=1e-9)
    outputs = torch.cat(squares).sum(0)
    weights = (outputs / outputs.mean()).clamp(min=1e-2)
    torch.testing.assert_close(found.outputs[view.name][0], weights / weights.mean(), rtol=1e-5, atol=1e-9)


def test_grams_are_of_weighted_and_shortened_inputs():
    model, batches = made("language")
    views, found = seen_of(model, batches)
    inputs: dict[str, list[Tensor]] = {}
    handles = [
        view.module.register_forward_pre_hook(lambda _, a, name=view.name: inputs.setdefault(name, []).append(a[0]))
        for view in views
    ]
    for batch in batches:
        call_model(model, batch)
    for handle in handles:
        handle.remove()

    def run(number: int) -> Any:
        return call_model(model, batches[number])

    every = list(range(len(batches)))
    seen = 0
    for stage in [stage.apart(found.inputs) for stage in stages_of(run, views, lambda _: None)]:
        grams = grams_of(run, stage, every, found.inputs).grams
        assert len({key for of_view in stage.keys.values() for key in of_view}) == len(stage.views)
        for view in stage.views:
            total = torch.zeros(view.shapes[0][1], view.shapes[0][1], dtype=torch.float64)
            for x, (weight,) in zip(inputs[view.name], found.inputs[view.name], strict=True):
                rows = x.detach().flatten(0, -2).double()
                lengths = rows.norm(dim=1)
                bound = LONGEST * lengths.median()
                rows = rows * (bound / lengths).clamp(max=1)[:, None]
                total += rows.T @ (rows * weight[:, None])
            (key,) = stage.keys[view.name]
            torch.testing.assert_close(grams[key].total, total, rtol=1e-4, atol=1e-6)
            seen += 1
    assert seen == len(views) > 6


def test_long_inputs_are_shortened_to_four_medians():
    rows = torch.randn(9, 5)
    rows[3] *= 1000
    found = weighted_rows(rows, torch.full((9,), 4.0))
    lengths = rows.norm(dim=1)
    assert float(found[3].norm()) == pytest.approx(float(2 * LONGEST * lengths.median()), rel=1e-5)
    torch.testing.assert_close(found[:3], 2 * rows[:3])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("quantize", [None, mfac.Grid(4, None)])
def test_runs_of_every_kind_of_network_take_it(kind: str, quantize: mfac.Grid | None):
    model, batches = made(kind)
    plain = copy.deepcopy(model)
    arguments: dict[str, Any] = {"method": "sparsegpt", "allocation": "uniform", "quantize": quantize}
    mfac.prune_layerwise(plain, batches, 0.5, **arguments)
    report = mfac.prune_layerwise(model, batches, 0.5, weigh_inputs=True, loss_fn=loss_of, **arguments)
    assert mfac.verify(model, report)
    if kind in ("language", "mlp"):
        assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


class Sink(nn.Module):
    """Every position adds the value of the first, whose input is short and of its own direction."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.value, self.head = nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        values = self.value(x)
        return self.head(0.1 * values + values[:, :1])


def test_what_all_positions_look_at_is_kept():
    model = Sink()
    batches = [torch.randn(8, 64, 16) for _ in range(4)]
    for x in batches:  # the last input follows the others, and makes up for their rounding
        x[..., 15] = 0.2 * x[..., :15].sum(-1)
        x[:, 0] = 0
        x[:, 0, 15] = 0.5
    errors = []
    for weigh in (False, True):
        found = copy.deepcopy(model)
        mfac.prune_layerwise(
            found,
            batches,
            0.0,
            method="sparsegpt",
            quantize=mfac.Grid(2, None),
            weigh_inputs=weigh,
            loss_fn=loss_of,
            params="value.weight",
        )
        errors.append(sum((found(x) - model(x)).square().mean().item() for x in batches))
    assert errors[1] < 0.5 * errors[0]


def test_models_in_files_are_refused():
    model, batches = made("language")
    with pytest.raises(ValueError, match="`weigh_inputs` should be False with `weights`"):
        mfac.prune_layerwise(model, batches, weigh_inputs=True, weights="nowhere")
