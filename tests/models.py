"""Small models, losses and data that the pruner's and the optimizer's tests share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import mfac

Batch = tuple[Tensor, Tensor]


def classifier(seed: int = 0, hidden: int = 32, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return model if dtype == torch.float32 else model.to(dtype)


def conv_classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )  # of [n, 1, 6, 6]


def batches(count: int, size: int = 8, seed: int = 1, shape: tuple[int, ...] = (12,)) -> list[Batch]:
    """Batches of inputs [size, *shape] and three classes that depend on the first inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, *shape, generator=generator) for _ in range(count)]
    return [(x, (x.flatten(1)[:, :3].argmax(dim=1))) for x in inputs]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs.to(next(model.parameters()).dtype)), labels)


def trained_classifier(seed: int = 0, steps: int = 150, hidden: int = 32) -> nn.Sequential:
    model = classifier(seed, hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for batch in batches(steps, size=32, seed=seed + 100):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module, data: list[Batch]) -> float:
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == y).double().mean()) for x, y in data) / len(data)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def deep(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), middle or nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = kind(4, 8, batch_first=True, **options), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.view(len(x), 3, 4))[0][:, -1])


def recurrent(kind: type[nn.RNNBase], **options: object) -> Recurrent:
    model = Recurrent(kind, **options)
    model(torch.zeros(1, 12))  # makes the lazy layer
    return model


def random_masks(model: nn.Module, density: float = 0.4, seed: int = 3) -> mfac.Masks:
    generator = torch.Generator().manual_seed(seed)
    return mfac.Masks(
        {
            name: torch.rand(p.shape, generator=generator) < density
            for name, p in model.named_parameters()
            if p.dim() > 1
        }
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int = 1,
    after: Callable[[], object] = lambda: None,
) -> None:
    for batch in batches(steps, seed=seed):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
        after()
