"""Rules by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mfac.optim.rules.base import Rule
from mfac.optim.rules.leave_one_out import Adam, LeaveOneOut, Spectral
from mfac.optim.rules.paper import Paper

RuleName = Literal["auto", "paper", "leave_one_out", "adam", "spectral"]

RULES: dict[str, Callable[[], Rule]] = {
    "paper": Paper,
    "leave_one_out": LeaveOneOut,
    "adam": Adam,
    "spectral": Spectral,
}
DEFAULT = "spectral"
