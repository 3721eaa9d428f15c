"""Weights as matrices: the inputs that a view gives, times the matrix, are the layer's outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mfac.layerwise.found_views import views_of


class Conv1D(nn.Module):
    """As transformers has it: weight [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


LAYERS = {
    "linear": (nn.Linear(5, 3, bias=False), (2, 4, 5)),
    "Conv1D": (Conv1D(3, 5), (2, 4, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False), (2, 4, 9, 8)),
    "conv2d, grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (2, 4, 9, 8)),
    "conv2d, depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding="same", bias=False), (2, 4, 9, 8)),
    "conv2d, reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False), (2, 4, 9, 8)),
    "conv2d, one image": (nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 9, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=2, bias=False), (2, 2, 4, 6, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=False), (2, 4, 5, 4)),
    "transposed, grouped": (nn.ConvTranspose1d(4, 6, 4, stride=3, dilation=2, groups=2, bias=False), (2, 4, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_inputs_times_matrix_is_the_output(kind: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    x = torch.randn(shape)
    (view,), unseen = views_of(layer, ["weight"])
    assert not unseen
    parts = []
    for number, (source, matrix) in enumerate(zip(view.sources(((x,), {})), view.matrices(), strict=True)):
        rows = torch.cat(list(view.rows(number, source))).double()
        parts.append(rows @ matrix.T)
    wanted = layer(x).detach().double()
    if kind.startswith(("conv", "transposed")):
        wanted = (wanted if wanted.dim() == x.dim() and "one image" not in kind else wanted[None]).movedim(1, -1)
    torch.testing.assert_close(torch.cat(parts, 1), wanted.reshape(-1, wanted.shape[-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("dims", [{}, {"kdim": 6, "vdim": 7}])
def test_attention_sees_its_four_projections(same: bool, dims: dict[str, int]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=False, **dims)
    names = [name for name, _ in attention.named_parameters()]
    q = torch.randn(2, 5, 8)
    k = torch.randn(2, 4, dims.get("kdim", 8))
    v = torch.randn(2, 4, dims.get("vdim", 8))
    if same and not dims:
        k = v = q
    views, unseen = views_of(attention, names)
    assert not unseen
    assert [view.name for view in views] == names
    inputs = {id(q): q, id(k): k, id(v): v}
    for view in views[:-1]:
        for source in view.sources(((q, k), {"value": v})):
            assert any(torch.equal(source, x) for x in inputs.values())
    (mixed,) = views[-1].sources(((q, k), {"value": v}))
    output = attention(q, k, v)[0]
    torch.testing.assert_close(mixed @ attention.out_proj.weight.T, output)


@pytest.mark.parametrize("kind", LAYERS)
def test_matrices_are_written_back(kind: str) -> None:
    layer, _ = LAYERS[kind]
    (view,), _ = views_of(layer, ["weight"])
    before = view.parameter.detach().clone()
    view.write([2 * matrix for matrix in view.matrices()])
    torch.testing.assert_close(view.parameter.detach(), 2 * before)
    view.write([matrix / 2 for matrix in view.matrices()])
    assert torch.equal(view.parameter.detach(), before)
