"""Shrinking: the smaller model computes the same function, and what cannot be cut out is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import batches, cross_entropy
from torch import Tensor, nn

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
        shrunk = mfac.shrink(model, masks)
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
