"""Weights that modules multiply with inputs themselves, beside the same weights in layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import mfac
from mfac.layerwise.products import Product, Products

WIDTH, INNER, EXPERTS = 8, 12, 4


class Listed(nn.Module):
    """Experts as linear layers: each token goes to one, and the last expert gets none."""

    every = False

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(WIDTH, INNER, bias=False) for _ in range(EXPERTS))
        self.down = nn.ModuleList(nn.Linear(INNER, WIDTH, bias=False) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        goes = flat[:, : EXPERTS - 1].argmax(1)
        out = torch.zeros_like(flat)
        for number in range(EXPERTS):
            mine = goes == number
            inner = torch.relu(self.up[number](flat if self.every else flat[mine]))
            back = self.down[number](inner)
            out[mine] = back[mine] if self.every else back
        return (flat + out).view(x.shape)


class ListedForAll(Listed):
    """The same, where every expert sees every token."""

    every = True


class Stacked(nn.Module):
    """Stacks of matrices [out, in] of all experts, one multiplied after the other."""

    turned = False

    def __init__(self, listed: Listed) -> None:
        super().__init__()
        up = torch.stack([layer.weight.detach() for layer in listed.up])
        down = torch.stack([layer.weight.detach() for layer in listed.down])
        self.w_down = nn.Parameter((down.mT if self.turned else down).contiguous())  # not in the order of use
        self.w_up = nn.Parameter((up.mT if self.turned else up).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        goes = flat[:, : EXPERTS - 1].argmax(1)
        return (flat + self.mixed(flat, goes)).view(x.shape)

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        out = torch.zeros_like(flat)
        for number in goes.unique():
            mine = goes == number
            a, b = self.w_up[number].chunk(2, 0)
            inner = torch.cat([functional.linear(flat[mine], a), functional.linear(flat[mine], b)], 1)
            out[mine] = functional.linear(torch.relu(inner), self.w_down[number])
        return out


class Turned(Stacked):
    """Matrices [in, out]."""

    turned = True

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        out = torch.zeros_like(flat)
        for number in range(EXPERTS):
            mine = goes == number
            inner = flat[mine] @ self.w_up[number]
            out[mine] = torch.relu_(inner) @ self.w_down[number]
        return out


class InGroups(Stacked):
    """Tokens sorted by their experts, and one call for all."""

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        order = goes.argsort(stable=True)
        ends = torch.bincount(goes, minlength=EXPERTS).cumsum(0).to(torch.int32)
        inner = functional.grouped_mm(flat[order], self.w_up.mT, offs=ends)
        out = torch.empty_like(flat)
        out[order] = functional.grouped_mm(torch.relu(inner), self.w_down.mT, offs=ends)
        return out


class InOneProduct(Turned):
    """All tokens for all experts, by one product of stacks."""

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        inner = torch.relu(torch.bmm(flat.expand(EXPERTS, -1, -1), self.w_up))
        return (inner @ self.w_down)[goes, torch.arange(len(flat))]


class Einsum(Stacked):
    """All tokens for all experts, by letters."""

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        inner = torch.relu(torch.einsum("td,efd->tef", flat, self.w_up))
        return torch.einsum("edf,tef->etd", self.w_down, inner)[goes, torch.arange(len(flat))]


class Flattened(Stacked):
    """All tokens for all experts, the stack as one long matrix, and the products turned around."""

    def mixed(self, flat: Tensor, goes: Tensor) -> Tensor:
        inner = torch.relu(functional.linear(flat, self.w_up.flatten(0, 1))).view(-1, EXPERTS, INNER)
        return (self.w_down @ inner.permute(1, 2, 0))[goes, :, torch.arange(len(flat))]


class Chain(nn.Module):
    """Blocks with experts."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"experts": block}) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["experts"](x)  # type: ignore[index]
        return x


def pair(kind: type[Stacked]) -> tuple[Chain, Chain, list[Tensor]]:
    """Experts in lists of layers, the same in stacks, and batches."""
    torch.manual_seed(0)
    plain = ListedForAll if kind in (InOneProduct, Einsum, Flattened) else Listed
    listed = [plain() for _ in range(2)]
    return Chain([*listed]), Chain([kind(one) for one in listed]), [torch.randn(3, 20, WIDTH) for _ in range(4)]


def by_expert(stacked: Chain, block: int, name: str, tensor: Tensor | None = None) -> list[Tensor]:
    """The matrices [out, in] of a stack."""
    holder: Any = stacked.blocks[block]["experts"]  # type: ignore[index]
    stack = getattr(holder, f"w_{name}").detach() if tensor is None else tensor
    return list(stack.mT if holder.turned else stack)


KINDS = [Stacked, Turned, InGroups, InOneProduct, Einsum, Flattened]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_stacks_of_experts_are_solved_as_layers_are(kind: type[Stacked], pattern: str) -> None:
    listed, stacked, batches = pair(kind)
    before = copy.deepcopy(stacked)
    plan = mfac.plan_layerwise(stacked, batches)
    wanted = mfac.prune_layerwise(listed, batches, method="sparsegpt", pattern=pattern)
    found = mfac.prune_layerwise(stacked, batches, method="sparsegpt", pattern=pattern)
    assert set(plan.weights) == set(found.masks)
    assert [layer.samples for layer in found.layers.values()] == [
        sum(wanted.layers[f"blocks.{block}.experts.{name}.{number}.weight"].samples for number in seen(kind))
        * (2 if kind is Stacked and name == "up" else 1)  # which is multiplied half by half
        for block in (0, 1)
        for name in ("up", "down")  # as they are solved: in the order of use
    ]
    assert list(found.layers) == [f"blocks.{block}.experts.w_{name}" for block in (0, 1) for name in ("up", "down")]
    for block in (0, 1):
        for name in ("up", "down"):
            layers: Any = getattr(listed.blocks[block]["experts"], name)  # type: ignore[index]
            masks = by_expert(stacked, block, name, found.masks[f"blocks.{block}.experts.w_{name}"])
            pairs = zip(by_expert(stacked, block, name), layers, masks, strict=True)
            for number, (matrix, layer, mask) in enumerate(pairs):
                if number not in seen(kind):
                    assert torch.equal(matrix, by_expert(before, block, name)[number])
                    assert bool(mask.all())
                    continue
                assert torch.equal(mask, wanted.masks[f"blocks.{block}.experts.{name}.{number}.weight"])
                torch.testing.assert_close(matrix, layer.weight.detach(), rtol=1e-4, atol=1e-5)
    said = [note for note in found.notes if "saw no sample" in note]
    assert len(said) == (0 if len(seen(kind)) == EXPERTS else 4), found.notes
    assert mfac.verify(stacked, found)


def seen(kind: type[Stacked]) -> list[int]:
    """The experts that some token is sent to."""
    return list(range(EXPERTS if kind in (InOneProduct, Einsum, Flattened) else EXPERTS - 1))


@pytest.mark.parametrize("kind", [Stacked, Turned])
def test_stacks_are_rounded_saved_and_read(kind: type[Stacked], tmp_path: Path) -> None:
    _, stacked, batches = pair(kind)
    fresh = copy.deepcopy(stacked)
    report = mfac.prune_layerwise(stacked, batches, quantize=mfac.Grid(4, 4), method="sparsegpt")
    assert any("rounded to the nearest step" in note for note in report.notes)
    mfac.save_quantized(tmp_path / "model.pt", stacked, report)
    masks = mfac.load_quantized_(tmp_path / "model.pt", fresh)
    for name, parameter in stacked.named_parameters():
        assert torch.equal(fresh.get_parameter(name), parameter)
        assert torch.equal(masks[name], report.masks[name])


def test_a_database_holds_stacks(tmp_path: Path) -> None:
    _, stacked, batches = pair(Turned)
    database = mfac.LayerDatabase.build(stacked, batches, [0.5, "0 4bit"], folder=tmp_path, method="sparsegpt")
    assert len(database.layers) == 4
    pruned = copy.deepcopy(stacked)
    database.stitch(dict.fromkeys(database.layers, 0.5), pruned)
    for name, parameter in pruned.named_parameters():
        matrices = parameter.detach()
        assert [int((matrix == 0).sum()) for matrix in matrices] == [WIDTH * INNER // 2] * 3 + [0], name


def test_blocks_of_weights_within_turned_stacks() -> None:
    _, stacked, batches = pair(Turned)
    report = mfac.prune_layerwise(stacked, batches, pattern="1x4", method="sparsegpt")
    for name in ("up", "down"):
        masks = by_expert(stacked, 0, name, report.masks[f"blocks.0.experts.w_{name}"])
        for number, mask in enumerate(masks):
            blocks = mask.reshape(mask.shape[0], -1, 4).sum(2)
            assert set(blocks.unique().tolist()) == ({0, 4} if number < EXPERTS - 1 else {4})
    assert mfac.verify(stacked, report)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    _, stacked, batches = pair(Stacked)
    whole, stopped = copy.deepcopy(stacked), copy.deepcopy(stacked)
    mfac.prune_layerwise(whole, batches, method="sparsegpt")

    def stop(name: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mfac.prune_layerwise(stopped, batches, method="sparsegpt", checkpoint=tmp_path, progress=stop)
    again = copy.deepcopy(stacked)
    mfac.prune_layerwise(again, batches, method="sparsegpt", checkpoint=tmp_path)
    for name, parameter in whole.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


class Own(nn.Module):
    """A weight of no layer, used as one; with `also` in another way, too."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 8))
        self.last = nn.Linear(6, 3)
        self.also = also

    def forward(self, x: Tensor) -> Tensor:
        extra = self.table.sum() if self.also else 0.0
        return self.last(torch.relu(functional.linear(x, self.table) + extra))


def test_weights_of_no_layer_are_solved_where_they_are_named() -> None:
    batches = [torch.randn(50, 8)]
    model = Own(False)
    assert "only when named" in mfac.prune_layerwise(copy.deepcopy(model), batches).left_dense["table"]
    report = mfac.prune_layerwise(model, batches, params=["table"], method="sparsegpt")
    assert report.sparsity == 0.5
    assert 0 < report.layers["table"].error < 0.5
    with pytest.raises(ValueError, match="whose inputs can be seen"):
        mfac.prune_layerwise(Own(True), batches, params=["table"])


def test_a_product_tells_which_matrix_and_which_way() -> None:
    stack, x = torch.randn(3, 4, 5), torch.randn(2, 5)
    found: list[Product] = []
    others: list[tuple[str, str]] = []
    cases: list[tuple[Callable[[], object], bool, list[int]]] = [
        (lambda: functional.linear(x, stack[1]), False, [1]),
        (lambda: x @ stack[2].T, False, [2]),
        (lambda: stack[0] @ x.T, False, [0]),
        (lambda: torch.randn(2, 4) @ stack[0], True, [0]),
        (lambda: torch.addmm(torch.zeros(2, 4), x, stack[1].T), False, [1]),
        (lambda: functional.linear(x, stack[1, 1:3]), False, [1]),
        (lambda: x @ stack.mT, False, [0, 1, 2]),
        (lambda: torch.matmul(stack[1:], x.T), False, [1, 2]),
        (lambda: torch.einsum("td,efd->tef", x, stack), False, [0, 1, 2]),
        (lambda: stack[2] @ x[0], False, [2]),
    ]
    with Products({"stack": stack}, found.append, lambda *what: others.append(what)):
        for call, turned, numbers in cases:
            found.clear()
            call()
            assert [(one.name, one.turned, list(one.inputs)) for one in found] == [("stack", turned, numbers)]
        assert not others
        _ = functional.linear(x[:, :3], stack[0][:, :3])  # of some inputs alone
        _ = stack[0] * 2
        _ = torch.einsum("td,efd->tf", x, stack)  # a sum over the stack
    assert others == [("stack", "linear"), ("stack", "mul"), ("stack", "einsum")]


def test_a_transpose_in_a_later_batch_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.experts[0] if bool(x[0, 0] > 0) else self.experts[0].T)

    one = torch.ones(5, 4) + torch.rand(5, 4)
    with pytest.raises(ValueError, match="in the same way in every batch"):
        mfac.prune_layerwise(Both(), [one, -one])
