"""Every kind of layer that `mfac.prune` prunes, and the operations that work on it.

A cell gives the number that was reached; otherwise the program raises.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import mfac
from bench.pruning.table import Table

SETTINGS: dict[str, Any] = {"num_gradients": 16, "stages": 2, "recomputations": 2}


class Conv1D(nn.Module):
    """Hugging Face's linear layer with a transposed weight, known by its name and shape."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 4), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] to [n, out]."""
        return x @ self.weight + self.bias


class First(nn.Module):
    """A module that returns several things, of which the first counts."""

    def __init__(self, inner: nn.Module, copies: int = 1) -> None:
        super().__init__()
        self.inner, self.copies = inner, copies

    def forward(self, x: Tensor) -> Tensor:
        """The inner module's first result, its input given as often as it wants it."""
        return self.inner(*[x] * self.copies)[0]


class Separate(nn.Module):
    """Attention with keys and values of another width than its queries, so with three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, 8] to [n, t, 8]."""
        return self.inner(x, x[..., :4], x[..., 4:])[0]


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """[n, 16] to [n, 16]."""
        return self.b(torch.relu(self.a(x)))


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    Attributes:
        make: The layer.
        shape: Of one of its inputs, without the batch.
        params: What is pruned, where it has to be named.
        has_channels: Whether it has input channels, without which an N:M pattern is refused.
        plain: The layer that an exported file is read into, where that is another.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    params: str | None = None
    plain: Callable[[], nn.Module] | None = None
    has_channels: bool = True


def _under_torch_pruning() -> nn.Module:
    return torch_prune.l1_unstructured(nn.Linear(16, 16), "weight", amount=0.25)


KINDS: dict[str, Kind] = {
    "Linear": Kind(lambda: nn.Linear(16, 16), (16,)),
    "Conv1d": Kind(lambda: nn.Conv1d(8, 8, 3), (8, 6)),
    "Conv2d": Kind(lambda: nn.Conv2d(8, 8, 3), (8, 4, 4)),
    "Conv2d, channels_last": Kind(lambda: nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), (8, 4, 4)),
    "Conv3d": Kind(lambda: nn.Conv3d(8, 8, 2), (8, 3, 3, 3)),
    "Conv2d, 2 groups": Kind(lambda: nn.Conv2d(16, 8, 3, groups=2), (16, 4, 4)),
    "Conv2d, depthwise": Kind(lambda: nn.Conv2d(8, 8, 3, groups=8), (8, 4, 4)),
    "ConvTranspose2d": Kind(lambda: nn.ConvTranspose2d(8, 8, 3), (8, 4, 4)),
    "GRU": Kind(lambda: First(nn.GRU(8, 8, batch_first=True)), (4, 8)),
    "LSTM": Kind(lambda: First(nn.LSTM(8, 8, batch_first=True)), (4, 8)),
    "GRUCell": Kind(lambda: nn.GRUCell(8, 8), (8,)),
    "MultiheadAttention, packed": Kind(lambda: First(nn.MultiheadAttention(8, 2, batch_first=True), 3), (4, 8)),
    "MultiheadAttention, separate": Kind(Separate, (4, 8)),
    "Conv1D of transformers": Kind(lambda: Conv1D(16, 16), (16,)),
    "Linear, tied": Kind(Tied, (16,)),
    "Linear under torch.nn.utils.prune": Kind(_under_torch_pruning, (16,), plain=lambda: nn.Linear(16, 16)),
    "Embedding, named": Kind(lambda: nn.Embedding(16, 8), (), "0.weight", has_channels=False),
    "Linear in bfloat16": Kind(lambda: nn.Linear(16, 16).bfloat16(), (16,)),
    "Linear in float64": Kind(lambda: nn.Linear(16, 16).double(), (16,)),
}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared distance."""
    inputs, targets = batch
    return (model(inputs).flatten(1).float() - targets).square().mean()


def prepare(kind: Kind) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network of the layer alone, and batches for it."""
    torch.manual_seed(0)
    model = nn.Sequential(kind.make())
    dtype = next(model.parameters()).dtype
    inputs = [torch.randn(4, *kind.shape).to(dtype) if kind.shape else torch.arange(16) for _ in range(32)]
    targets = [torch.randn(model(x).flatten(1).shape) for x in inputs]
    return model, list(zip(inputs, targets, strict=True))


def check_zeros(model: nn.Module, masks: dict[str, Tensor]) -> float:
    """Share of zeros in what is masked, in %; an error if a dropped weight is none."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if bool(parameters[name][~mask].any()):
            raise AssertionError(f"A dropped weight of {name!r} should be zero. Found others.")
    kept, total = (sum(int(f(mask)) for mask in masks.values()) for f in (torch.sum, torch.numel))
    return 100 * (1 - kept / total)


def fine_tune(model: nn.Module, batches: list[Any], masks: mfac.Masks) -> None:
    """Some steps of Adam with the masks attached."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    handle = masks.attach(model, optimizer)
    for batch in batches[:8]:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    handle.remove()


def export(model: nn.Module, fresh: nn.Module, report: mfac.PruningReport) -> str:
    """Writes the compact file, reads it into a fresh model and compares every tensor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        mfac.save_compact(model, report.masks, path)
        mfac.load_compact_(fresh, path)
    theirs = mfac.plain_state_dict(fresh)
    for name, ours in mfac.plain_state_dict(model).items():
        if not torch.equal(ours, theirs[name]):
            raise AssertionError(f"{name!r} should come back as it was. Found other values.")
    return "equal"


def pattern_holds(model: nn.Module, report: mfac.PruningReport) -> str:
    """Sparsity of a 2:4 model, once the library has proved its groups keep at most two of four."""
    proved = mfac.verify(model, report)
    if not any("2:4" in line or "2 of 4" in line or "of 4" in line for line in proved):
        raise AssertionError(f"The pattern should be among what is proved. Found {proved}.")
    return f"{100 * report.sparsity:.0f} %"


def table() -> None:
    """Prints the table: half of the weights; 2:4; fine-tuned, zeros kept; exported; verified."""
    lines = Table(["layer", "pruned", "2:4", "fine-tuned", "exported", "verified"], [34, 6, 7, 10, 8, 10])
    for name, kind in KINDS.items():
        cells = []
        model, batches = prepare(kind)
        report = mfac.prune(model, loss_fn, batches, sparsity=0.5, params=kind.params, **SETTINGS)
        cells.append(f"{check_zeros(model, report.masks):.0f} %")

        grouped = prepare(kind)[0]
        try:
            found = mfac.prune(grouped, loss_fn, batches, pattern="2:4", params=kind.params, **SETTINGS)
            cells.append(pattern_holds(grouped, found))
        except ValueError as error:
            if kind.has_channels or "no input channels" not in str(error):
                raise
            cells.append("refused")

        before = [parameter.detach().clone() for parameter in model.parameters()]
        fine_tune(model, batches, mfac.Masks(report.masks))
        if all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)):
            raise AssertionError("Fine-tuning should move the kept weights. Found none that moved.")
        cells.append(f"{check_zeros(model, report.masks):.0f} % zero")
        fresh = nn.Sequential((kind.plain or kind.make)())
        cells += [export(model, fresh, report), f"{len(mfac.verify(model, report))} promises"]
        lines.row(name, *cells)
