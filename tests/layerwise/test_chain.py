"""Chains of blocks that are given something else in other batches than in the first."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import mfac
from mfac.layerwise.chain import Chain, InMemory, NamedBlock, find_chains
from mfac.layerwise.found_views import views_of
from tests.layerwise.test_true_errors import check_errors

WIDTH, WINDOW = 16, 4


class Attending(nn.Module):
    """Causal attention; None for a mask is the causal one, as transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        scores = 4 * self.q(hidden) @ self.k(hidden).transpose(1, 2)
        length = hidden.shape[1]
        mask = torch.ones(length, length).tril().bool() if mask is None else mask
        scores = scores.masked_fill(~mask, -torch.inf)
        return hidden + scale * self.o(scores.softmax(-1) @ self.v(hidden))


class Attentions(nn.Module):
    """Blocks that attend to a window or to everything, in turn; masks come where needed."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attending() for _ in range(4))
        self.kinds = [first, "full" if first == "sliding" else "sliding"] * 2

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        within = torch.ones(length, length).tril().bool()
        masks = {"full": None, "sliding": within.triu(1 - WINDOW) if length > WINDOW else None}
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            x = layer(x, mask=masks[kind])
        return x


class Scaled(nn.Module):
    """Blocks with numbers that depend on the batch, one for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attending() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, scale=float(x.shape[1]) * (1 + number))
        return x


class Skipping(nn.Module):
    """Blocks that some batches skip: the first, one in between or the last, by their length."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attending() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        skipped = {3: 0, 5: 2, 6: 3}.get(x.shape[1])
        for number, layer in enumerate(self.layers):
            x = x if number == skipped else layer(x)
        return x


def sequences(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    mixing = torch.randn(WIDTH, WIDTH) / 4
    return [torch.randn(40, length, WIDTH) @ mixing for length in lengths]


@pytest.mark.parametrize("first", ["sliding", "full"])
@pytest.mark.parametrize("lengths", [(3, 20, 12), (20, 3, 12), (20, 20)])
def test_masks_that_are_not_alike_in_every_batch(first: str, lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    report = check_errors(Attentions(first), sequences(*lengths))
    assert not report.notes


def test_numbers_that_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    assert not check_errors(Scaled(), sequences(1, 9, 4)).notes


def test_blocks_that_later_batches_skip() -> None:
    torch.manual_seed(0)
    report = check_errors(Skipping(), sequences(4, 3, 5, 6))
    assert not report.notes
    samples = [report.layers[f"layers.{number}.q.weight"].samples for number in range(4)]
    assert samples == [40 * (18 - without) for without in (3, 0, 5, 6)]


class Looped(nn.Module):
    """Blocks that are gone through twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attending() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, *self.layers]:
            x = layer(x)
        return x


def test_blocks_that_are_called_again_after_the_last() -> None:
    torch.manual_seed(0)
    report = mfac.prune_layerwise(Looped(), sequences(5), method="wanda")
    assert "its blocks are not called once each, in order" in report.notes[0]
    assert report.layers["layers.0.q.weight"].samples == 400


class OnDisk(InMemory):
    """A store that says how often blocks are called while their weights can be read."""

    on_disk = True

    def __init__(self) -> None:
        self.inside, self.forwards = False, 0

    @contextmanager
    def calls(self) -> Generator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False


def chain_of(model: nn.Module) -> list[NamedBlock]:
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 2]
    (blocks,) = find_chains(model, views_of(model, names)[0], None)
    return blocks


@pytest.mark.parametrize("make", [lambda: Attentions("full"), Scaled, Skipping])
def test_blocks_on_disk_are_not_read_for_every_batch(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    batches = sequences(4, 20, 12, 3, 5, 6)
    (blocks,) = find_chains(
        model, views_of(model, [name for name, _ in model.named_parameters() if "weight" in name])[0], None
    )
    store = OnDisk()

    def compute(*_: object) -> None:
        assert store.inside
        store.forwards += 1

    for block in blocks:
        block.module.q.register_forward_hook(compute)  # type: ignore[union-attr]
    chains = [Chain(blocks, lambda n: model(batches[n]), range(len(batches)), kept) for kept in (InMemory(), store)]
    store.inside = True
    assert chains[0].begin() is None
    store.inside, store.forwards = False, 0
    assert chains[1].begin() is None
    assert store.forwards == 2 * len(blocks)  # the first batch, and the blocks by themselves
    store.inside = True
    for _ in blocks:
        for number in range(len(batches)):
            one, other = (chain.run(number) for chain in chains)
            assert (one is None and other is None) or torch.equal(one, other)
        for chain in chains:
            chain.advance()
    assert all("forward" not in vars(block.module) for block in blocks)


class OfOutputs(Scaled):
    """Numbers that depend on what blocks compute, which no stand-in knows."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, scale=float(x.detach().abs().mean()))
        return x


def test_arguments_that_depend_on_what_blocks_compute() -> None:
    torch.manual_seed(0)
    report = check_errors(OfOutputs(), sequences(4, 20))
    assert "what block 'layers.1' is given depends on what blocks compute" in report.notes[0]


def test_such_blocks_on_disk_are_read_for_every_batch() -> None:
    torch.manual_seed(0)
    model, store = OfOutputs().eval(), OnDisk()
    batches = sequences(4, 20)
    blocks = chain_of(model)
    blocks[0].module.q.register_forward_hook(lambda *_: setattr(store, "forwards", store.forwards + 1))  # type: ignore[union-attr]
    chain = Chain(blocks, lambda n: model(batches[n]), range(2), store)
    assert chain.begin() is None
    assert store.forwards == 3  # both batches, and the block by itself
    for _ in blocks[:-1]:
        chain.advance()
    torch.testing.assert_close(chain.run(1), model(batches[1]))


class Leaving(Scaled):
    """Leaves the blocks early where what they compute is large."""

    def __init__(self, large: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._large = large

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self._large(x.detach().abs().mean()):
                break
        return x


READINGS: dict[str, Callable[[Tensor], bool]] = {
    "bool": lambda mean: bool(mean > 2.0),
    "item": lambda mean: mean.item() > 2.0,
    "tolist": lambda mean: mean.tolist() > 2.0,
    "numpy": lambda mean: bool(mean.numpy() > 2.0),
    "shape": lambda mean: (mean.reshape(1) > 2.0).nonzero().shape[0] > 0,
}


@pytest.mark.parametrize("reading", READINGS)
def test_batches_that_leave_early_are_not_foreseen_by_blocks_that_compute_nothing(reading: str) -> None:
    torch.manual_seed(0)
    model = Leaving(READINGS[reading]).eval()
    small, large = torch.randn(2, 8, WIDTH), torch.randn(2, 8, WIDTH)
    with torch.no_grad():
        large *= 1.9 / float(large.abs().mean())
        assert float(model.layers[0](large).abs().mean()) > 2.0
    batches = [small, large]
    chain = Chain(chain_of(model), lambda n: model(batches[n]), range(2), InMemory())
    assert chain.begin() is None
    chain.advance()
    assert chain.run(0) is not None
    assert chain.run(1) is None


def test_blocks_compute_nothing_while_it_is_noted_what_they_are_given() -> None:
    torch.manual_seed(0)
    model = Scaled().eval()
    batches = sequences(4, 20, 7)
    calls = []
    blocks = chain_of(model)
    blocks[0].module.q.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr]
    chain = Chain(blocks, lambda n: model(batches[n]), range(3), InMemory())
    assert chain.begin() is None
    assert len(calls) == 2  # the first batch, and the block by itself
