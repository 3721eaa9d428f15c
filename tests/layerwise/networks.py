"""Networks of several kinds, each with batches that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mfac.layerwise.calling import call_model


class Residual(nn.Module):
    """Two convolutions, the second grouped, and a sum that is made in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.second(torch.relu(self.norm(self.first(x)))) + x)


class Decoder(nn.Module):
    """A block with attention of its own, and keyword arguments as transformers' have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, *, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, None]:
        x = self.norm1(hidden)
        scores = self.q(x) @ self.k(x).transpose(1, 2) * scale + mask
        hidden = hidden + self.o(scores.softmax(-1) @ self.v(x))
        x = self.norm2(hidden)
        return hidden + self.down(torch.relu(self.gate(x)) * self.up(x)), None


class Language(nn.Module):
    """Token ids to logits, the head tied to the embedding."""

    def __init__(self, words: int = 19, width: int = 12, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(Decoder(width) for _ in range(blocks))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x, length = self.embed(input_ids), input_ids.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        for layer in self.layers:
            x, _ = layer(x, mask=mask, scale=x.shape[-1] ** -0.5)
        return self.head(x)


class Experts(nn.Module):
    """A mixture of experts: each token goes to one, and the last expert gets none."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x)[..., :-1].argmax(-1)
        out = x.clone()
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                out[mine] = out[mine] + expert(x[mine])
        return out


class Mixture(nn.Module):
    """Blocks of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Experts(8, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Stack(nn.Module):
    """The experts of a mixture as two stacks of matrices [in, out]."""

    is_transposed = True

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, width, 6) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, 6, width) * 6**-0.5)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        out = x.clone()
        for number in chosen.unique():
            mine = chosen == number
            out[mine] = out[mine] + torch.tanh(x[mine] @ self.up[number]) @ self.down[number]
        return out


class Stacks(nn.Module):
    """Blocks of a router and such experts."""

    class Block(nn.Module):
        def __init__(self, width: int, experts: int) -> None:
            super().__init__()
            self.router = nn.Linear(width, experts)
            self.experts = Stack(width, experts)

        def forward(self, x: Tensor) -> Tensor:
            return self.experts(x, self.router(x).argmax(-1))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(8, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Broken(nn.Module):
    """Blocks between which something else happens, so that none takes what the last returns."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + 0.5 * block(x)
        return x


class Carried(nn.Module):
    """Blocks that pass on a second tensor, which the first one makes."""

    class Block(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.bias = nn.Linear(6, 6) if first else None
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
            if self.bias is not None:
                bias = self.bias(x).mean(0)
            assert bias is not None
            return torch.tanh(self.linear(x) + bias), bias

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block(number == 0) for number in range(3))

    def forward(self, x: Tensor) -> Tensor:
        bias = None
        for block in self.blocks:
            x, bias = block(x, bias)
        return x


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Sequential(Residual(8), Residual(8), Residual(8)),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "convolutional": (convolutional, lambda: (torch.randn(16, 3, 12, 12), torch.zeros(16))),
    "encoder": (encoder, lambda: {"src": torch.randn(8, 7, 16)}),
    "language": (Language, lambda: torch.randint(0, 19, (8, 9))),
    "mixture": (Mixture, lambda: torch.randn(40, 8)),
    "stacks": (Stacks, lambda: torch.randn(40, 8)),
    "broken chain": (Broken, lambda: torch.randn(40, 6)),
    "carried": (Carried, lambda: torch.randn(40, 6)),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)),
        lambda: [torch.randn(40, 8)],
    ),
}
"""Name to what makes the network and what makes a batch of random numbers."""


def made(kind: str, batches: int = 4) -> tuple[nn.Module, list[Any]]:
    """A network of a kind, the same every time, and batches."""
    torch.manual_seed(0)
    model, batch = NETWORKS[kind]
    return model().eval(), [batch() for _ in range(batches)]


def outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """What a model returns for all batches."""
    with torch.no_grad():
        return torch.cat([call_model(model, batch) for batch in batches])
