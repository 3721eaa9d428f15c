"""Shrinking: the smaller model computes the same function, and what cannot be cut out is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import batches, cross_entropy
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mfac


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.Tanh(), nn.Dropout(), nn.Linear(7, 3))


def cnn(padding: int = 0) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=padding), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 5, 2, padding=padding, bias=False), nn.GELU(), nn.Flatten(), nn.LazyLinear(8), nn.Sigmoid()),
        nn.Linear(8, 3),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.down(torch.relu(self.up(x))))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one = mlp(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(self.body(x)) if float(x.sum()) > 0 else self.body(x)


def unbiased() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.GELU(), nn.Linear(7, 3)
    )


INPUTS = {
    "unbiased": (12,),
    "mlp": (12,),
    "cnn": (2, 8, 8),
    "padded": (2, 8, 8),
    "residual": (12,),
    "untraceable": (12,),
}
MAKERS = {
    "unbiased": unbiased,
    "mlp": mlp,
    "cnn": cnn,
    "padded": lambda: cnn(1),
    "residual": Residual,
    "untraceable": Untraceable,
}


def emptied(kind: str, seed: int, share: float, axis: int) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model, x = MAKERS[kind]().double(), torch.randn(16, *INPUTS[kind]).double()
    model(x)  # lazy layers, and statistics of batch norm
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                gone = torch.rand(parameter.shape[axis]) < share
                shape = [1] * parameter.dim()
                shape[axis] = -1
                masks[name] = (~gone).view(shape).expand(parameter.shape)
                parameter.mul_(masks[name])
    return model.eval(), x, masks


@pytest.mark.filterwarnings("ignore:The model has no empty channel:UserWarning")  # inputs of the first layer alone
@given(kind=st.sampled_from(sorted(MAKERS)), seed=st.integers(0, 50), share=st.floats(0, 1), axis=st.integers(0, 1))
def test_the_smaller_model_computes_the_same(kind: str, seed: int, share: float, axis: int):
    model, x, masks = emptied(kind, seed, share, axis)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        shrunk = mfac.shrink(model, masks, example=x if kind == "untraceable" else None)
    except ValueError as error:  # nothing can be cut out, or only what a padded convolution sees
        assert "Parameter `model` should have emptied channels" in str(error)
        return
    torch.testing.assert_close(shrunk.model(x), model(x), rtol=1e-9, atol=1e-11)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rows_of_a_run_are_removed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    pattern, allocation = {"4.*": "unstructured", "*": "rows"}, {"4.*": 0.0, "*": 0.5}
    report = mfac.prune(
        model, cross_entropy, batches(30), pattern=pattern, allocation=allocation, num_gradients=24, stages=2
    )
    shrunk = mfac.shrink(model, report)
    assert shrunk.removed == {"0": 16, "2": 8} and not {"0", "2"} & set(shrunk.left)
    assert [tuple(layer.weight.shape) for layer in shrunk.model if isinstance(layer, nn.Linear)] == [
        (16, 12),
        (8, 16),
        (3, 8),
    ]
    x = torch.randn(8, 12)
    torch.testing.assert_close(shrunk.model(x), model(x), rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.body, self.head = nn.Linear(12, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.up(x)[:, None])[0][:, -1])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(x))) if float(x.sum()) > 0 else x


def masked(model: nn.Module, name: str, place: tuple[slice, slice]) -> dict[str, Tensor]:
    parameter = model.get_parameter(name)
    mask = torch.ones_like(parameter, dtype=torch.bool)
    mask[place] = False
    with torch.no_grad():
        parameter.mul_(mask)
    return {name: mask}


ROWS, COLUMNS = (slice(2), slice(None)), (slice(None), slice(2))


@pytest.mark.parametrize(
    ("model", "name", "place", "why"),
    [
        (Recurrent(), "body.weight_ih_l0", ROWS, "'body' is a GRU, whose output channels are not cut"),
        (Branching(), "up.weight", ROWS, "'up' is called in no part of the model that torch.fx can trace"),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)),
            "0.weight",
            COLUMNS,
            "'0' is a ConvTranspose2d, whose output channels are not cut",
        ),
    ],
)
def test_empty_rows_of_any_layer_are_named(model: nn.Module, name: str, place: tuple[slice, slice], why: str):
    with pytest.raises(ValueError, match=why):
        mfac.shrink(model, masked(model, name, place))


@pytest.mark.parametrize(
    ("model", "name", "layer"),
    [
        (Recurrent(), "body.weight_ih_l0", "body"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)), "2.weight", "2"),
        (mlp(), "0.weight", "0"),
    ],
)
def test_empty_input_channels_that_stay_are_counted(model: nn.Module, name: str, layer: str):
    with pytest.warns(UserWarning, match=f"'{layer}' has 2 input channels of zeros"):
        shrunk = mfac.shrink(model, masked(model, name, COLUMNS))
    assert shrunk.inputs_left == {layer: 2} and "2 input channels of zeros stay" in str(shrunk)


def test_a_layer_of_which_every_row_is_empty_keeps_one():
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    shrunk = mfac.shrink(model, masked(model, "0.weight", (slice(None), slice(None))))
    assert shrunk.removed == {"0": 2} and not shrunk.left


class Called(nn.Module):
    """Layers called by a function of their own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def ends(ins: int, outs: int, hidden: int = 6, **more: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Linear(ins, hidden), "b": nn.Linear(outs, 3), **more}


def with_hook(pre: bool) -> nn.Module:
    model = Called(lambda m, x: m.b(torch.relu(m.a(x))), **ends(5, 6))
    if pre:
        model.b.register_forward_pre_hook(lambda _, given: (given[0] - 1,))
    else:
        model.a.register_forward_hook(lambda *given: given[2] + 1)
    return model


AXES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str | None]] = {
    "tokens side by side": (lambda: Called(lambda m, x: m.b(m.a(x).relu().flatten(1)), **ends(5, 24)), (4, 5), None),
    "flattened by a module": (
        lambda: Called(lambda m, x: m.b(m.f(m.a(x))), **ends(5, 24), f=nn.Flatten()),
        (4, 5),
        None,
    ),
    "pooled along features": (
        lambda: Called(lambda m, x: m.b(m.p(m.a(x))), **ends(5, 6), p=nn.MaxPool1d(3, 1, 1)),
        (4, 5),
        "passes 'p', a MaxPool1d",
    ),
    "a convolution over tokens": (
        lambda: Called(lambda m, x: m.b(m.a(x)), a=nn.Linear(5, 6), b=nn.Conv1d(6, 3, 1)),
        (6, 5),
        "whose inputs are not its channels",
    ),
    "a linear layer along the width": (
        lambda: Called(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(2, 6, 1), b=nn.Linear(6, 3)),
        (2, 6, 6),
        "whose inputs are not its channels",
    ),
    "patches": (
        lambda: Called(lambda m, x: m.b(m.f(m.a(x))), a=nn.Conv2d(2, 6, 1), b=nn.Linear(36, 3), f=nn.Flatten(2)),
        (2, 6, 6),
        "passes 'f', a Flatten",
    ),
    "a hook": (lambda: with_hook(False), (5,), "has hooks"),
    "a hook of the next": (lambda: with_hook(True), (5,), "has hooks"),
    "a weight used again": (
        lambda: Called(lambda m, x: nn.functional.linear(torch.relu(m.a(x)), m.a.weight.t()), a=nn.Linear(5, 6)),
        (5,),
        "has a weight that is used beside it",
    ),
    "another way in training": (
        lambda: Called(lambda m, x: m.b(m.a(x)) if m.training else m.a(x), **ends(5, 6)),
        (5,),
        "is the output",
    ),
    "a weight that is computed": (
        lambda: Called(
            lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(5, 6), b=parametrizations.weight_norm(nn.Linear(6, 3))
        ),
        (5,),
        "has a weight that is computed from others",
    ),
}


@pytest.mark.parametrize("kind", sorted(AXES))
def test_channels_are_followed_along_their_own_axis_or_not_at_all(kind: str):
    make, shape, why = AXES[kind]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(3, *shape).double()
    masks = masked(model, "a.weight", ROWS)
    if why is not None:
        with pytest.raises(ValueError, match=why):
            mfac.shrink(model, masks)
        return
    shrunk = mfac.shrink(model, masks)
    assert shrunk.removed == {"a": 2}
    torch.testing.assert_close(shrunk.model(x), model(x))


class Tapped(nn.Module):
    """Cannot be traced, and looks at what is between the layers of its body."""

    def __init__(self, tap: bool) -> None:
        super().__init__()
        self.body, self.tap = mlp(), tap

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        return self.body(x) + self.body[0](x).sum(1, keepdim=True) if self.tap else self.body(x)


@pytest.mark.parametrize("tap", [False, True])
def test_parts_of_an_untraceable_model_are_cut_where_an_example_agrees(tap: bool):
    torch.manual_seed(0)
    model, x = Tapped(tap).eval(), torch.randn(4, 12)
    masks = masked(model, "body.0.weight", ROWS)
    with pytest.raises(ValueError, match="cannot trace as a whole, which is run on `example`"):
        mfac.shrink(model, masks)
    if tap:
        with pytest.raises(ValueError, match="then returns something else"):
            mfac.shrink(model, masks, example=x)
        return
    shrunk = mfac.shrink(model, masks, example=x)
    assert shrunk.removed == {"body.0": 2}
    torch.testing.assert_close(shrunk.model(x), model(x))


def test_what_is_put_back_is_as_it_was():
    torch.manual_seed(0)
    model, x = Tapped(True).eval(), torch.randn(4, 12)
    both = nn.Sequential(mlp(), nn.Linear(3, 12), model).eval()
    masks = masked(both, "0.0.weight", ROWS) | masked(both, "2.body.0.weight", ROWS)
    shrunk = mfac.shrink(both, masks, example=x)
    assert shrunk.removed == {"0.0": 2} and set(shrunk.left) == {"2.body.0"}
    assert shrunk.model[2].body[0].weight.shape == model.body[0].weight.shape
    torch.testing.assert_close(shrunk.model(x), both(x))


def test_masks_that_are_none_are_refused():
    with pytest.raises(TypeError, match="`masks` should be a report or a mapping"):
        mfac.shrink(mlp(), 5)


def test_what_cannot_be_removed_is_named():
    model = Residual()
    masks = {"down.weight": torch.ones(12, 20, dtype=torch.bool)}
    masks["down.weight"][3] = False
    with torch.no_grad():
        model.down.weight.mul_(masks["down.weight"])
    with pytest.raises(ValueError, match=r"cut out. Found 'down' passes 'add'"):
        mfac.shrink(model, masks)
    with pytest.raises(ValueError, match=r"`model` should be zero where its masks are. Found other weights in 'up"):
        mfac.shrink(model, {"up.weight": torch.zeros(20, 12, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"`masks` should have the model's names and shapes. Found 'other'"):
        mfac.shrink(model, {"other": torch.ones(1, dtype=torch.bool)})


def test_a_model_without_an_empty_channel_is_warned_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    report = mfac.prune(
        model, lambda model, batch: 0, [], sparsity=0.5, saliency="magnitude", compensation="none", params="0.weight"
    )
    with torch.no_grad():
        report.masks["0.weight"][:, 0] = True
        model[0].weight[:, 0] = 1.0
    with pytest.warns(UserWarning, match=r"no empty channel .* as large as before.* pattern=\"rows\""):
        assert mfac.shrink(model, report).removed == {}
