"""The modes in which a model computes gradients: evaluation, or training without randomness."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mfac.gradients.naming import named_parameters

Mode = Literal["auto", "eval", "train"]
"""The model's mode while it computes gradients; "auto": "eval", or "train" if the loss needs it."""

QUIET = (_BatchNorm, _DropoutNd)
"""Layers that draw numbers or change state in training mode; "train" keeps them in evaluation."""


@contextmanager
def model_mode(model: nn.Module, mode: Literal["eval", "train"]) -> Generator[None]:
    """The model in a mode, and each of its modules back in its own afterwards.

    Args:
        model: The model.
        mode: "eval", or "train": training but for batch normalisation and dropout.

    Yields:
        Nothing.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = mode == "train" and not isinstance(module, QUIET)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def gradients_of(model: nn.Module, names: Collection[str]) -> Generator[None]:
    """Some parameters alone ask for gradients; afterwards those that did before.

    Args:
        model: The model.
        names: Of parameters; none for gradients of activations alone.

    Yields:
        Nothing.
    """
    named = named_parameters(model)
    were = {name: parameter.requires_grad for name, parameter in named.items()}
    for name, parameter in named.items():
        parameter.requires_grad_(name in names)
    try:
        yield
    finally:
        for name, parameter in named.items():
            parameter.requires_grad_(were[name])
