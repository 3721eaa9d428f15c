"""Short runs of MFAC in every kind of window and weight, that stop, are stored and go on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mfac

OF_RULES: dict[str, dict[str, Any]] = {
    "paper": {"momentum": 0.9, "damping": 0.1, "lr": 0.02},
    "leave_one_out": {"lr": 0.02},
    "adam": {"lr": 5e-3},
}
FORMATS = ((torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.int8, 1.0), (torch.float32, 0.1))
WEIGHTS = ((torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.bfloat16, "compensated"))


@dataclass(frozen=True)
class Kind:
    """A rule, a format of windows, and weights."""

    rule: str = "adam"
    window_dtype: torch.dtype = torch.float32
    density: float = 1.0
    weights: torch.dtype = torch.float32
    rounding: str = "nearest"

    def __str__(self) -> str:
        parts = (self.rule, self.window_dtype, self.density, self.weights, self.rounding)
        return "-".join(str(part).removeprefix("torch.") for part in parts)

    @property
    def options(self) -> dict[str, Any]:
        shape = {"window_dtype": self.window_dtype, "density": self.density, "rounding": self.rounding}
        return {"rule": self.rule, "rank": 4, **shape, **OF_RULES[self.rule]}


KINDS = [Kind(r, *f, *w) for r, f, w in itertools.product(OF_RULES, FORMATS, WEIGHTS)]
SOME_KINDS = [
    Kind("paper", torch.bfloat16),
    Kind("paper", torch.float32, 0.1, torch.bfloat16, "compensated"),
    Kind("leave_one_out", torch.int8, 1.0, torch.bfloat16, "stochastic"),
    Kind("adam"),
    Kind("adam", torch.float32, 1.0, torch.bfloat16, "compensated"),
]


class Bag(nn.Module):
    """Parameters of several shapes; those of more than one dimension are float32."""

    def __init__(self, weights: torch.dtype = torch.float32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wide = nn.Parameter(torch.randn(6, 12, generator=generator))
        self.bias = nn.Parameter(torch.randn(6, generator=generator).to(weights))
        self.last = nn.Parameter(torch.randn(3, 6, generator=generator))
        self.narrow = nn.Parameter(torch.randn(40, generator=generator).to(weights))
        self.scale = nn.Parameter(torch.tensor(2.0).to(weights))


class Run:
    """A model, its optimizer, and how far they have gone.

    Args:
        kind: Of the optimizer.
        seed: Of the weights.
        groups: One or two.
        options: In place of the kind's.
    """

    def __init__(self, kind: Kind, seed: int = 0, groups: int = 2, **options: Any) -> None:
        self.kind = kind
        self.model = Bag(kind.weights, seed)
        params: Any = self.model.parameters()
        if groups == 2:
            first = [self.model.wide, self.model.bias]
            others = [p for p in self.model.parameters() if all(p is not q for q in first)]
            params = [{"params": first}, {"params": others, "rank": 3, "weight_decay": 0.01}]
        self.opt = mfac.MFAC(params, **{**kind.options, **options})

    def go(self, first: int, steps: int) -> Run:
        """Takes steps, along gradients that are those of their number and depend on the weights."""
        for t in range(first, first + steps):
            give_gradients(self.model, t)
            self.opt.step()
            self.opt.zero_grad()
        return self

    def everything(self) -> dict[str, Any]:
        """Copies of what the run is made of."""
        return copied({"model": self.model.state_dict(), "opt": self.opt.state_dict()})


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in model.parameters():
        if p.requires_grad:
            noise = torch.randn(p.shape, generator=generator).to(p.device)
            p.grad = (0.5 * noise + 0.3 * p.detach().float()).to(p.dtype)


def copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    return [copied(entry) for entry in value] if isinstance(value, list) else value


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Of nested entries, that they are the same bit for bit."""
    assert type(a) is type(b), f"{where}: {type(a)} and {type(b)}"
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where
