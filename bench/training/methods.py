"""Who trains, and on which grid of learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer

import mfac

_ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_SGD_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
FINE_TUNING = 0.1
"""What all rates are multiplied by where a trained network is trained on."""


def trained_and_ends(model: nn.Module) -> tuple[list[nn.Parameter], set[int]]:
    """The parameters that train, and the ids of embeddings and of the last matrix, the head."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return trained, embeddings | {id(p) for p in [q for q in trained if q.dim() == 2][-1:]}


class MuonAndAdamW(Optimizer):
    """Muon for hidden matrices, AdamW for the rest, as Muon's authors use it; one learning rate."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        trained, ends = trained_and_ends(model)
        hidden = [p for p in trained if p.dim() == 2 and id(p) not in ends]
        others = [p for p in trained if all(p is not q for q in hidden)]
        self.parts: list[Optimizer] = [AdamW(others, lr=lr, weight_decay=0.01)]
        self.parts.append(Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
        super().__init__(trained, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        """Takes a step of both."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()


@dataclass(frozen=True)
class Method:
    """An optimizer and the learning rates it is tried with."""

    make: Callable[..., Optimizer]
    rates: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def optimizer(self, model: nn.Module, lr: float, **more: Any) -> Optimizer:
        """For a model, with a learning rate."""
        if self.make is MuonAndAdamW:
            return MuonAndAdamW(model, lr)
        options = self.options | more
        by = options.pop("by", None)
        parameters: Any = [p for p in model.parameters() if p.requires_grad]
        if by is not None:
            parameters = mfac.group_parameters(model, by)
        if options.pop("ends_apart", False):
            trained, ends = trained_and_ends(model)
            apart = [p for p in trained if id(p) in ends]
            hidden = [p for p in trained if id(p) not in ends]
            parameters = [{"params": hidden}, {"params": apart, "orthogonal": False}]
        return self.make(parameters, lr=lr, **options)


def ours(rates: tuple[float, ...] = _ADAM_RATES, **options: Any) -> Method:
    """`mfac.MFAC` with options."""
    return Method(mfac.MFAC, rates, options)


METHODS: dict[str, Method] = {
    "SGD": Method(SGD, _SGD_RATES, {"momentum": 0.9}),
    "AdamW": Method(AdamW, _ADAM_RATES),
    "Muon": Method(MuonAndAdamW, (3e-3, 1e-2, 3e-2, 1e-1)),
    "MFAC": ours(),
    "MFAC, ends apart": ours(ends_apart=True),
    "adam": ours(rule="adam"),
    "adam, not grafted": ours(rule="adam", grafting=0.0),
    "adam, centred": ours(rule="adam", centred=True),
    "leave-one-out": ours(_SGD_RATES, rule="leave_one_out"),
    "paper": ours((3e-4, 1e-3, 3e-3, 1e-2), rule="paper", damping=1e-5, momentum=0.9, rank=64),
}
