"""Weights that modules multiply with inputs themselves, beside the same weights in layers."""

from __future__ import annotations

import copy
from collections import OrderedDict
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
            inner = functional.linear(flat[mine].to(self.w_up), weight=self.w_up[number])
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
        self.blocks = nn.ModuleList(nn.Sequential(OrderedDict(experts=block)) for block in blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def pair(kind: type[Stacked]) -> tuple[Chain, Chain, list[Tensor]]:
    """Experts in lists of layers, the same in stacks, and batches."""
    torch.manual_seed(0)
    plain = ListedForAll if kind in (InOneProduct, Einsum, Flattened) else Listed
    listed = [plain() for _ in range(2)]
    return Chain([*listed]), Chain([kind(one) for one in listed]), [torch.randn(3, 20, WIDTH) for _ in range(4)]


def by_expert(stacked: Chain, block: int, name: str, tensor: Tensor | None = None) -> list[Tensor]:
    """The matrices [out, in] of a stack."""
    holder: Any = stacked.blocks[block].experts
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
        for block in (0, 1)
        for name in ("up", "down")  # as they are solved: in the order of use
    ]
    assert list(found.layers) == [f"blocks.{block}.experts.w_{name}" for block in (0, 1) for name in ("up", "down")]
    for block in (0, 1):
        for name in ("up", "down"):
            layers: Any = getattr(listed.blocks[block].experts, name)
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
        (lambda: torch.addmm(mat1=x, mat2=stack[1].T, input=torch.zeros(2, 4)), False, [1]),
        (lambda: torch.matmul(other=stack[1].T, input=x), False, [1]),
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
        _ = functional.linear(x, stack[0, :2])  # of some outputs, whose others may have other inputs
        _ = stack[1] @ stack[0].T
        _ = x.to(stack), x.type_as(stack[0]), stack.new_zeros(3), torch.isfinite(stack)
        _ = stack[0] * 2
        _ = torch.einsum("td,efd->tf", x, stack)  # a sum over the stack
        _ = torch.einsum("td,efd->ef", x, stack)  # and over the inputs
        _ = torch.vmap(lambda one: functional.linear(one, stack[0]))(x)
        _ = stack.double()
    names = ["linear", "linear", "__matmul__", "mul", "einsum", "einsum", "linear", "double"]
    assert others == [("stack", name.replace("__matmul__", "matmul")) for name in names]


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


def errors_of(model: nn.Module, dense: nn.Module, batches: list[Tensor], weight: str, inputs: Tensor) -> float:
    """The change of what a weight makes of inputs, relative to it."""
    one, other = (made.get_parameter(weight).detach().double() for made in (model, dense))
    inputs = inputs.double()
    return float((inputs @ (one - other).T).square().sum() / (inputs @ other.T).square().sum())


class Broadcast(nn.Linear):
    """A batch of inputs times a matrix with a dimension of one before it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.T[None])


def test_a_matrix_that_is_broadcast_sees_the_whole_batch() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(1, 20, 16) * 0.01, torch.randn(7, 20, 16) @ torch.randn(16, 16)])
    model = nn.Sequential(Broadcast(16, 12, bias=False))
    dense = copy.deepcopy(model)
    report = mfac.prune_layerwise(model, [x])
    assert report.layers["0.weight"].samples == 160
    wanted = errors_of(model, dense, [x], "0.weight", x.reshape(-1, 16))
    assert report.layers["0.weight"].error == pytest.approx(wanted, rel=1e-4)


class Halves(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.weight.chunk(2)
        return functional.linear(x[:, :8], first) + functional.linear(x[:, 8:], second)


class Rotated(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("rotation", torch.linalg.qr(torch.randn(inputs, inputs))[0])

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x[:, : self.in_features], self.weight @ self.rotation)


class Regularised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.penalty = (self.weight @ self.weight.T).sum()
        return functional.linear(x[:, : self.in_features], self.weight)


class Mapped(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: functional.linear(row, self.weight))(x[:, : self.in_features])


@pytest.mark.parametrize(
    ("kind", "function"), [(Halves, "linear"), (Rotated, "matmul"), (Regularised, "matmul"), (Mapped, "linear")]
)
def test_what_is_not_inputs_times_the_weight_stays_dense(kind: type[nn.Linear], function: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(8, 8), nn.ReLU(), nn.Linear(4 if kind is Halves else 8, 3))
    report = mfac.prune_layerwise(model, [torch.randn(60, 16)])
    assert list(report.layers) == ["2.weight"]
    assert report.left_dense["0.weight"] == (
        f"is not multiplied with inputs as it is, but given to torch's {function!r}"
    )


def test_names_over_one_memory_are_one_stack() -> None:
    class Block(nn.Module):
        def __init__(self, experts: nn.Parameter) -> None:
            super().__init__()
            self.experts, self.last = experts, nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(torch.relu(x @ self.experts[0]) + torch.tanh(-x @ self.experts[1]))

    reports = []
    for alias in (False, True):
        torch.manual_seed(0)
        shared = nn.Parameter(torch.randn(2, 8, 8) / 3)
        blocks = [Block(shared), Block(nn.Parameter(shared.data) if alias else shared)]
        reports.append(mfac.prune_layerwise(nn.Sequential(*blocks), [torch.randn(100, 8)], method="sparsegpt"))
    for one in reports:
        assert one.layers["0.experts"].samples == 400
        assert list(one.layers) == ["0.experts", "0.last.weight", "1.last.weight"]
    assert torch.equal(reports[0].masks["0.experts"], reports[1].masks["0.experts"])


def test_matrices_count_by_their_samples() -> None:
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(2, 8, 32))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:-20] @ self.experts[0].T, x[-20:] @ self.experts[1].T])

    torch.manual_seed(0)
    x = torch.randn(1020, 32)
    x[:-20] = x[:-20] @ torch.randn(32, 32) / 6
    for allocation in ("uniform", "global"):
        model = Uneven()
        before = model(x).detach()
        report = mfac.prune_layerwise(model, [x], method="sparsegpt", allocation=allocation)  # type: ignore[arg-type]
        change = float((model(x).detach() - before).square().sum() / before.square().sum())
        assert report.layers["experts"].error == pytest.approx(change, rel=1e-4)


def test_parameters_in_one_flat_memory_are_told_apart() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 8, 8) / 3)
            self.more_experts = nn.Parameter(torch.randn(2, 8, 8) / 3)
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x = sum(functional.linear(x, self.experts[number]) for number in range(3))  # type: ignore[assignment]
            return self.last(torch.tanh(x) @ self.more_experts[1] + x @ self.more_experts[0])

    torch.manual_seed(0)
    model, x = Flat(), [torch.randn(100, 8)]
    flat = copy.deepcopy(model)
    memory, begin = torch.cat([p.detach().flatten() for p in flat.parameters()]), 0
    for parameter in flat.parameters():
        parameter.data = memory[begin : begin + parameter.numel()].view_as(parameter)
        begin += parameter.numel()
    wanted, found = (mfac.prune_layerwise(one, x, method="sparsegpt") for one in (model, flat))
    assert list(found.layers) == list(wanted.layers) and len(found.layers) == 4
    for name, mask in wanted.masks.items():
        assert torch.equal(found.masks[name], mask)


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


def test_weights_that_later_batches_use_first_are_heard() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(OwnForward(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[len(x) % 3](x)

    report = mfac.prune_layerwise(Routed(), [torch.randn(count, 8) for count in (30, 31, 32)])
    assert len(report.layers) == 3


def test_weights_that_parents_use_without_a_call_are_heard() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
            self.conv = nn.Conv1d(8, 8, 3, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = functional.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
            x = functional.conv1d((q * k.sigmoid() + v).mT, self.conv.weight, padding=1, groups=8).mT
            return functional.linear(x, self.out.weight)

    class Called(Parent):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            x = functional.pad((q * k.sigmoid() + v).mT, (1, 1))
            return functional.linear(self.conv(x).mT - self.conv.bias, self.out.weight)

    torch.manual_seed(0)
    used, called, batches = Parent(), Called(), [torch.randn(4, 9, 8) for _ in range(2)]
    called.load_state_dict(used.state_dict())
    found, wanted = (mfac.prune_layerwise(model, batches, method="sparsegpt") for model in (used, called))
    assert list(found.layers) == ["qkv.weight", "conv.weight", "out.weight"]
    for name, mask in wanted.masks.items():
        assert torch.equal(found.masks[name], mask)
        torch.testing.assert_close(used.get_parameter(name), called.get_parameter(name), rtol=1e-4, atol=1e-5)


def test_notes_are_those_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    _, stacked, batches = pair(Stacked)
    whole = mfac.prune_layerwise(copy.deepcopy(stacked), batches, method="sparsegpt")

    def stop(name: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    arguments: dict[str, Any] = {"method": "sparsegpt", "checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        mfac.prune_layerwise(copy.deepcopy(stacked), batches, progress=stop, **arguments)
    again = mfac.prune_layerwise(copy.deepcopy(stacked), batches, **arguments)
    assert again.notes == whole.notes and len(whole.notes) == 4


def test_outputs_of_convolutions_that_are_heard_are_not_weighed() -> None:
    class Turning(nn.Conv1d):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return functional.conv1d(x, self.weight, self.bias).flip(1), x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = Turning(4, 8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x)[0].mean(-1))

    torch.manual_seed(0)
    batches = [torch.randn(30, 4, 9)]
    models = [Net(), Net()]
    models[1].load_state_dict(models[0].state_dict())
    plain = mfac.prune_layerwise(models[0], batches, method="sparsegpt", allocation="uniform")
    weighed = mfac.prune_layerwise(
        models[1],
        batches,
        method="sparsegpt",
        allocation="uniform",
        weigh_outputs=True,
        weigh_inputs=True,
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )
    assert torch.equal(plain.masks["conv.weight"], weighed.masks["conv.weight"])


def test_stacks_of_other_numbers_stay_dense_and_are_named() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Parameter(torch.randn(2, 8, 8, dtype=torch.complex64))
            self.last = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((x.to(torch.complex64) @ self.experts[0]).real)

    report = mfac.prune_layerwise(Complex(), [torch.randn(50, 8)])
    assert list(report.layers) == ["last.weight"]
    assert "no contiguous floating-point tensor" in report.left_dense["experts"]


class Twice(nn.Module):
    """Layers that are called, whose weights their parent uses, too; `plain`: a layer for each."""

    def __init__(self, plain: bool, turned: bool = False) -> None:
        super().__init__()
        self.lin, self.conv, self.out = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.plain, self.turned = plain, turned
        if plain:
            self.again, self.wide = nn.Linear(8, 8), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
            self.again.weight, self.again.bias = self.lin.weight, self.lin.bias
            self.wide.weight, self.wide.bias = self.conv.weight, self.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(self.lin(x)) * 10
        if self.plain:
            inner = self.again(inner).mT
            return self.out((self.conv(inner) + self.wide(5 * inner)).mT)
        weight = self.lin.weight.T if self.turned else self.lin.weight
        inner = functional.linear(inner, weight, self.lin.bias).mT
        other = functional.conv1d(5 * inner, self.conv.weight, self.conv.bias, padding=2, dilation=2)
        return self.out((self.conv(inner) + other).mT)


def test_a_weight_that_its_layer_and_its_parent_use_is_fitted_to_both() -> None:
    torch.manual_seed(0)
    used, layers, batches = Twice(False), Twice(True), [torch.randn(6, 9, 8) for _ in range(3)]
    layers.load_state_dict(used.state_dict(), strict=False)
    found, wanted = (mfac.prune_layerwise(model, batches, method="sparsegpt") for model in (used, layers))
    assert {name: layer.samples for name, layer in found.layers.items()} == {
        "lin.weight": 324, "conv.weight": 324, "out.weight": 162,
    }  # fmt: skip
    for name in ("lin.weight", "out.weight"):
        assert torch.equal(found.masks[name], wanted.masks[name])
    assert found.layers["lin.weight"].error == pytest.approx(wanted.layers["lin.weight"].error, rel=1e-4)
    turned = mfac.prune_layerwise(Twice(False, turned=True), batches, method="sparsegpt")
    assert turned.left_dense["lin.weight"] == "is multiplied with inputs as it is, and transposed, too"


class Parts(nn.Module):
    """A layer of which the parent uses parts, or something computed, and never the layer."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.out, self.use = nn.Linear(8, 8), nn.Linear(8, 4), use

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.use(x, self.qkv.weight))


@pytest.mark.parametrize(
    ("use", "function"),
    [
        (lambda x, w: torch.cat([functional.linear(x, w[:4]), functional.linear(2 * x, w[4:])], 1), "linear"),
        (lambda x, w: functional.linear(x, w / w.norm()), "norm"),
        (lambda x, w: functional.linear(x, w[:1].expand(8, -1)), "linear"),
    ],
)
def test_parts_and_other_uses_of_a_layers_weight_are_named(
    use: Callable[[Tensor, Tensor], Tensor], function: str
) -> None:
    report = mfac.prune_layerwise(Parts(use), [torch.randn(60, 8) for _ in range(2)])
    assert list(report.layers) == ["out.weight"]
    assert report.left_dense["qkv.weight"].endswith(f"but given to torch's {function!r}")


def test_a_penalty_on_a_layers_weight_changes_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.penalty = self.lin.weight.square().sum()
            return self.lin(x)

    report = mfac.prune_layerwise(Net(), [torch.randn(60, 8)])
    assert report.layers["lin.weight"].samples == 60


def test_rows_of_several_matrices_are_no_matrix() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.out = nn.Parameter(torch.randn(8, 8, 8)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(functional.linear(x, self.experts[:, 0]))

    report = mfac.prune_layerwise(Rows(), [torch.randn(60, 8)])
    assert list(report.layers) == ["out.weight"] and "given to torch's" in report.left_dense["experts"]
