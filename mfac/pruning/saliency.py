"""Saliencies by name: estimates of the loss that dropping each weight costs.

To add one, derive from `Saliency`, and give `prune` the object or add its name to `SALIENCIES`
(docs/extending/saliency.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from mfac.pruning.saliencies.base import Choose, Saliency
from mfac.pruning.saliencies.greedy import Greedy
from mfac.pruning.saliencies.obs import OBS
from mfac.pruning.saliencies.refined import Refined
from mfac.pruning.saliencies.single import OBD, SNIP, Magnitude
from mfac.pruning.saliencies.wanda import Wanda

__all__ = ["SALIENCIES", "Choose", "Saliency", "SaliencyName"]

SaliencyName = Literal["obs", "magnitude", "obd", "snip", "wanda", "greedy", "refined"]

SALIENCIES: Mapping[str, Callable[[], Saliency]] = {
    "obs": OBS,
    "magnitude": Magnitude,
    "obd": OBD,
    "snip": SNIP,
    "wanda": Wanda,
    "greedy": Greedy,
    "refined": Refined,
}
"""By name; a saliency of your own is added here, or given as an object."""
