"""A network in the wrappers that spread it over processes, and its training on parts of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from several import MESHES
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import mfac


class Network(nn.Module):
    """A perceptron whose middle can be split among processes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.up, self.down = nn.Linear(7, 6), nn.Linear(6, 10), nn.Linear(10, 5)
        self.norm, self.head = nn.LayerNorm(5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.down(torch.tanh(self.up(torch.tanh(self.first(x)))))
        return self.head(self.norm(hidden))


class Trained:
    """A network and its optimizer.

    Args:
        kind: "one" process; "ddp", "fsdp", "tensor" parallel, over the mesh; "hsdp", or "fsdp and
            tensor", over a mesh of two dimensions.
        mesh: The name of the mesh.
        groups: The layers of each parameter group and its options; None for one group.
        options: Of all.
    """

    def __init__(
        self,
        kind: str = "one",
        mesh: str = "",
        groups: list[tuple[tuple[str, ...], dict[str, Any]]] | None = None,
        **options: Any,
    ) -> None:
        self.kind, self.model, self.time = kind, Network(), 0
        self.mesh = None if kind == "one" else MESHES[mesh]
        self.process_group = None
        if self.mesh is not None:
            self._spread()
        layers = dict(self.unwrapped.named_children())
        grouped: Any = self.model.parameters()
        if groups is not None:
            grouped = [{"params": [p for n in names for p in layers[n].parameters()], **own} for names, own in groups]
        options = {"rank": 8, "window_dtype": torch.float64, "process_group": self.process_group, **options}
        self.opt = mfac.MFAC(grouped, **options)

    @property
    def unwrapped(self) -> nn.Module:
        return self.model.module if self.kind == "ddp" else self.model

    def _spread(self) -> None:
        parts = self.mesh
        if self.kind == "ddp":
            self.process_group = self.mesh.get_group()
            self.model = DistributedDataParallel(self.model, process_group=self.process_group)
        if "tensor" in self.kind:
            inner = self.mesh if self.mesh.ndim == 1 else self.mesh["inner"]
            parallelize_module(self.model, inner, {"up": ColwiseParallel(), "down": RowwiseParallel()})
            parts = None if self.mesh.ndim == 1 else self.mesh["outer"]
        if "fsdp" in self.kind or self.kind == "hsdp":
            for layer in self.model.children():
                fully_shard(layer, mesh=parts)
            fully_shard(self.model, mesh=parts)
        self.parts, self.part = 1, 0  # of every batch
        if parts is not None:
            self.parts = parts.size()
            self.part = parts.get_rank() % self.parts if parts.ndim > 1 else parts.get_local_rank()

    def backward(self) -> None:
        x, y = batch(self.time)
        if self.mesh is not None:
            x, y = (whole.chunk(self.parts)[self.part] for whole in (x, y))
        self.opt.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.backward()
            self.opt.step()
            self.time += 1

    def weights(self) -> Tensor:
        return torch.cat([whole(p).detach().reshape(-1) for p in self.unwrapped.parameters()])

    def state(self) -> Iterator[Tensor]:
        """This process's part of everything that a step changes."""
        self.opt.state_dict()  # which has counts written anew
        for parameter in self.model.parameters():
            yield local(parameter.detach())
            yield from (local(v) for v in self.opt.state.get(parameter, {}).values() if isinstance(v, Tensor))


def batch(time: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(8, 7, generator=generator).double(), torch.randint(0, 3, (8,), generator=generator)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
