"""The device that tests compute on: the CPU, or the one that MFAC_TEST_DEVICE names.

Tests say nothing of devices: torch's default device is set for all of them, windows are made there,
and random numbers are those of the CPU whatever the device, so that a test that fails on one can be
looked at on the other.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import mfac

DEVICE = torch.device(os.environ.get("MFAC_TEST_DEVICE", "cpu"))


class SameDraws(TorchFunctionMode):
    """Draws from a generator of the CPU on the CPU, for whichever device the numbers are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is None or generator.device.type != "cpu" or isinstance(func, type) or "device" in kwargs:
            return func(*args, **kwargs)
        return func(*args, **kwargs, device="cpu").to(DEVICE)


def look(W: mfac.GradientWindow) -> None:
    """Raises any refusal of the last push; on a GPU it comes with the next look at the window."""
    if DEVICE.type != "cpu":
        W.state_dict(copy=False)


def push(W: mfac.GradientWindow, gradient: torch.Tensor) -> None:
    """A push that is refused here if it is refused."""
    W.push(gradient)
    look(W)


def refusal(message: str) -> str:
    """What a refused push says: on the CPU this pattern, elsewhere not always with the reason."""
    return message if DEVICE.type == "cpu" else r"Parameter `gradient` should be finite"


def use_device() -> None:
    """Makes it the device of everything in this process, and of tensors without one."""
    if DEVICE.type == "cpu":
        return
    torch.set_default_device(DEVICE)
    SameDraws().__enter__()
    # Results are compared with float64, and bit by bit where a computation goes on from a state.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    defaults = [
        parameter.default
        for parameter in inspect.signature(mfac.GradientWindow.__init__).parameters.values()
        if parameter.default is not parameter.empty
    ]
    assert defaults.count("cpu") == 1
    mfac.GradientWindow.__init__.__defaults__ = tuple(DEVICE if value == "cpu" else value for value in defaults)
