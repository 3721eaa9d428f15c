"""Heads that are gone: the smaller attention computes the same, and what cannot be cut is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mfac
from mfac.masks.fewer_heads import FewerHeads
from mfac.masks.kinds.heads import attentions_of

WIDTH, HEADS = 12, 4


class Conv1D(nn.Module):
    """As transformers have it: a linear layer with its weight the other way round."""

    def __init__(self, outs: int, ins: int) -> None:
        super().__init__()
        self.nf, self.nx = outs, ins
        self.weight, self.bias = nn.Parameter(torch.randn(ins, outs) / ins**0.5), nn.Parameter(torch.randn(outs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Wrapped(nn.Module):
    """Torch's attention, and a layer after it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, q: Tensor, k: Tensor | None = None, v: Tensor | None = None, **more: Any) -> Any:
        mixed, weights = self.attention(q, q if k is None else k, q if v is None else v, **more)
        return self.head(mixed), weights


class Grouped(nn.Module):
    """Two heads share keys and values; head size as an attribute, as in transformers' Llama."""

    def __init__(self, by: str = "head_dim") -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim, self.by = HEADS, HEADS // 2, WIDTH // HEADS, by
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)

    def split(self, x: Tensor, heads: int) -> Tensor:
        width = self.head_dim if self.by == "head_dim" else WIDTH // self.num_heads
        return x.view(*x.shape[:2], heads, width).transpose(1, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        q = self.split(self.q_proj(x), self.num_heads)
        k, v = (self.split(p(x), self.num_key_value_heads) for p in (self.k_proj, self.v_proj))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return {"out": self.o_proj(mixed.transpose(1, 2).flatten(2)), "more": (x, "a text")}


class ByWidth(nn.Module):
    """Says only how wide a head is, as transformers' newer Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Packed(nn.Module):
    """As GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, WIDTH // HEADS, WIDTH
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in self.c_attn(x).split(self.split_size, 2)
        )
        return self.c_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def without_heads(model: nn.Module, *gone: int) -> dict[str, Tensor]:
    """Zeroes what `mfac.Heads` would drop; name to mask."""
    masks = {}
    for attention in attentions_of(model):
        for name in (*attention.inputs, *attention.outputs):
            parameter = dict(model.named_parameters())[name]
            across = isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
            weight = parameter.T if across else parameter
            outs, ins = weight.shape
            if name in attention.outputs:
                keep = ~torch.isin(torch.arange(ins) * attention.heads // ins, torch.tensor(gone))[None]
            else:
                each = outs // attention.inputs[name]
                keep = ~torch.isin(torch.arange(outs) % each * attention.heads // each, torch.tensor(gone))[:, None]
            keep = keep.expand(outs, ins)
            masks[name] = (keep.T if across else keep).contiguous()
            with torch.no_grad():
                parameter *= masks[name]
    return masks


def test_the_pattern_leaves_heads_that_can_be_removed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True), nn.Linear(12, 2))
    data = [torch.randn(4, 5, WIDTH) for _ in range(16)]
    rules: dict[str, Any] = {"params": ["*self_attn*"], "pattern": mfac.Heads(model), "sparsity": 0.5}
    report = mfac.prune(model, lambda m, x: m(x).square().mean(), data, num_gradients=16, stages=1, **rules)
    shrunk = mfac.shrink(model, report)
    assert shrunk.heads == {"0.self_attn": 2}
    assert "0.self_attn: 2 heads removed" in str(shrunk)
    assert sum(p.numel() for p in shrunk.model.parameters()) < sum(p.numel() for p in model.parameters()) - 2 * 4 * 36
    for training in (True, False):
        model.train(training), shrunk.model.train(training)
        with torch.no_grad():
            assert torch.allclose(shrunk.model(data[0]), model(data[0]), atol=1e-5)
    shrunk.model(data[0]).square().mean().backward()
    assert all(p.grad is not None for p in shrunk.model.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shapes", [{}, {"kdim": 7, "vdim": 5}])
@pytest.mark.parametrize("masked", ["no", "bool", "float", "padding", "both"])
def test_the_smaller_attention_is_the_masked_one(bias: bool, batch_first: bool, shapes: dict[str, int], masked: str):
    torch.manual_seed(0)
    model = Wrapped(bias=bias, batch_first=batch_first, **shapes).double()
    for parameter in model.parameters():  # biases of torch's attention start at zero
        nn.init.normal_(parameter)
    shrunk = mfac.shrink(model, without_heads(model, 0, 2))
    assert shrunk.heads == {"attention": 2}
    assert isinstance(shrunk.model.attention, FewerHeads)
    q, k, v = (
        torch.randn(2, 5, WIDTH),
        torch.randn(2, 6, shapes.get("kdim", 12)),
        torch.randn(2, 6, shapes.get("vdim", 12)),
    )
    q, k, v = (x.double() if batch_first else x.double().transpose(0, 1) for x in (q, k, v))
    options: dict[str, Any] = {}
    if masked in ("bool", "both"):
        options["attn_mask"] = torch.ones(5, 6).triu(1).bool()
    if masked == "float":
        options["attn_mask"] = torch.randn(5, 6).double()
    if masked in ("padding", "both"):
        options["key_padding_mask"] = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    model.eval(), shrunk.model.eval()
    wanted, found = model(q, k, v, **options), shrunk.model(q, k, v, **options)
    assert torch.allclose(found[0], wanted[0], atol=1e-12)
    assert found[1].shape == wanted[1].shape
    separate = shrunk.model(q, k, v, average_attn_weights=False, **options)[1]
    assert torch.allclose(separate, model(q, k, v, average_attn_weights=False, **options)[1][:, [1, 3]], atol=1e-12)
    none = shrunk.model(q, k, v, need_weights=False, **options)
    assert none[1] is None
    assert torch.allclose(none[0], wanted[0], atol=1e-12)
    if masked == "no":
        single = tuple(x.select(0 if batch_first else 1, 0) for x in (q, k, v))
        assert torch.allclose(shrunk.model(*single)[0], model(*single)[0], atol=1e-12)
        assert shrunk.model(*single)[1].shape == model(*single)[1].shape


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_padded_batches_of_an_encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    shrunk = mfac.shrink(model, without_heads(model, 1))
    assert shrunk.heads == {"layers.0.self_attn": 1, "layers.1.self_attn": 1}
    x, padding = torch.randn(3, 6, WIDTH), torch.arange(6)[None] >= torch.tensor([[6], [4], [2]])
    with torch.no_grad():
        wanted, found = (m(x, src_key_padding_mask=padding) for m in (model, shrunk.model.eval()))
    assert torch.allclose(found[~padding], wanted[~padding], atol=1e-5)


@pytest.mark.parametrize("make", [Grouped, ByWidth, Packed])
def test_other_attentions_are_cut_where_the_model_agrees(make: Any):
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(2, 5, WIDTH).double()
    with pytest.raises(ValueError, match="is run on `example`"):
        mfac.shrink(model, masks := without_heads(model, 1))
    shrunk = mfac.shrink(model, masks, example=x)
    gone = WIDTH // HEADS if make is Packed else WIDTH // 2
    assert shrunk.heads == {"": 1}
    wanted, found = model(x), shrunk.model(x)
    wanted, found = (y["out"] if make is Grouped else y for y in (wanted, found))
    assert torch.allclose(found, wanted, atol=1e-12)
    output = "c_proj.weight" if make is Packed else "o_proj.weight"
    assert shrunk.model.get_parameter(output).numel() == WIDTH * (WIDTH - gone)
    again = mfac.shrink(shrunk.model, without_heads(shrunk.model, 0), example=x) if make is Packed else None
    assert again is None or again.heads == {"": 1}


def test_an_attention_that_takes_its_width_from_elsewhere_is_left_as_it_was():
    torch.manual_seed(0)
    model, x = Grouped(by="model"), torch.randn(2, 5, WIDTH)
    masks = without_heads(model, 1)
    with pytest.raises(ValueError, match="does not run with fewer heads"):
        mfac.shrink(model, masks, example=x)
    both: Any = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, WIDTH)), model)
    with torch.no_grad():
        both[0][0].weight[0] = 0
    shrunk = mfac.shrink(both, {f"1.{name}": mask for name, mask in masks.items()}, example=x)
    assert list(shrunk.left) == ["1"]
    assert shrunk.model[1].num_heads == HEADS
    assert shrunk.model[1].q_proj.weight.shape == (WIDTH, WIDTH)
    assert shrunk.removed == {"0.0": 1}
    assert torch.allclose(shrunk.model(x)["out"], both(x)["out"], atol=1e-5)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_what_torchs_attention_has_more_is_refused(options: dict[str, bool]):
    model = Wrapped(**options)
    with pytest.raises(ValueError, match="'attention' has `bias_k` or `add_zero_attn`"):
        mfac.shrink(model, without_heads(model, 1))


def test_an_attention_alone_is_refused():
    model = nn.MultiheadAttention(WIDTH, HEADS)
    with pytest.raises(ValueError, match="cannot be replaced within itself"):
        mfac.shrink(model, without_heads(model, 1))


def test_the_first_head_stays_where_all_are_empty():
    model = Wrapped(batch_first=True)
    shrunk = mfac.shrink(model, without_heads(model, 0, 1, 2, 3))
    assert shrunk.heads == {"attention": 3}
    x = torch.randn(2, 5, WIDTH)
    assert torch.allclose(shrunk.model(x)[0], model(x)[0], atol=1e-6)


def test_what_is_left_can_be_pruned_counted_and_verified():
    torch.manual_seed(0)
    model = Wrapped(batch_first=True)
    smaller = mfac.shrink(model, without_heads(model, 1)).model
    data = [torch.randn(4, 5, WIDTH) for _ in range(16)]
    loss: Any = lambda m, x: m(x)[0].square().mean()  # ruff: ignore[lambda-assignment]
    report = mfac.prune(smaller, loss, data, sparsity=0.5, num_gradients=16, stages=1)
    assert mfac.verify(smaller, report)
    report.measure(smaller, loss, data[:2], example=data[0])
    tokens, inner = 4 * 5, WIDTH - WIDTH // HEADS
    assert report.measured.dense_flops["attention.q_proj_weight"] == 2 * tokens * inner * WIDTH
    assert report.measured.dense_flops["attention.out_proj.weight"] == 2 * tokens * inner * WIDTH
    layerwise = mfac.prune_layerwise(smaller, data, sparsity=0.75)
    assert not layerwise.left_dense


def test_a_mask_for_each_head_is_refused():
    model = Wrapped(batch_first=True)
    smaller = mfac.shrink(model, without_heads(model, 1)).model
    with pytest.raises(ValueError, match="one for all heads"):
        smaller(torch.randn(2, 5, WIDTH), attn_mask=torch.zeros(8, 5, 5))


@dataclass
class Answer:
    """What a model returns, neither a tensor nor a mapping."""

    out: Tensor


class Answering(ByWidth):
    def __init__(self, silent: bool) -> None:
        super().__init__()
        self.silent = silent

    def forward(self, x: Tensor) -> Any:
        return "an answer" if self.silent else Answer(super().forward(x))


def test_models_are_compared_by_any_tensor_that_they_return():
    x = torch.randn(2, 5, WIDTH)
    model = Answering(silent=False)
    shrunk = mfac.shrink(model, without_heads(model, 1), example=x)
    assert torch.allclose(shrunk.model(x).out, model(x).out, atol=1e-6)
    model = Answering(silent=True)
    with pytest.raises(ValueError, match="returns no tensor for `example`"):
        mfac.shrink(model, without_heads(model, 1), example=x)
