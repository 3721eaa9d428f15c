"""What a pruning run is asked for: the arguments of `prune`, checked, and their consequences."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mfac.core.checks.choices import check_choice, check_flag
from mfac.core.checks.numbers import check_count, check_number
from mfac.core.named import resolve
from mfac.curvature.damping import Damping, check_damping
from mfac.curvature.held_out import HeldOutDamping, held_out
from mfac.gradients.modes import Mode
from mfac.gradients.parameters import Selection
from mfac.masks.patterns import resolve_pattern
from mfac.pruning.allocation import resolve_allocation
from mfac.pruning.compensation import COMPENSATIONS, Compensation
from mfac.pruning.obs import Rules
from mfac.pruning.saliencies.refined import Refined
from mfac.pruning.saliency import SALIENCIES, Saliency
from mfac.pruning.schedule import SCHEDULES, Schedule
from mfac.pruning.targets import ExistingZeros

Effort = Literal["fast", "default", "best"]
"""How much time a run may take where its gradients and stages are not given."""

GradientsIn = str | os.PathLike[str]
"""Where gradients are kept: "ram", "bf16", or a folder."""


@dataclass(frozen=True)
class Settings:
    """What a run is asked for, checked.

    Attributes:
        rules: Of a step.
        schedule: Of the kept counts.
        sparsity: Share of zeros, or None.
        num_gradients: m, of a stage; None until it is chosen.
        damping: λ, absolute, relative, or chosen from the first stage's gradients.
        block_size: Of a block-diagonal Fisher, or None.
        recomputations: Steps of a stage.
        stages: How many; None until it is chosen.
        per_sample: One gradient a sample.
        existing_zeros: What weights are that are zero.
        mode: Of the model while gradients are collected.
        seed: Of the order of the data.
        params: Which weights.
        batchnorm_batches: For the running statistics.
        effort: How much time the run may take where numbers are left open.
        time_budget: Seconds, in place of an effort.
        gradients: "ram", "bf16" or the folder of a file.
        or_fewer: Whether a stage goes on with fewer gradients where the data has no more.
        refits: Solves after the last stage, each with fresh gradients.
    """

    rules: Rules
    schedule: Schedule
    sparsity: float | None
    num_gradients: int | None
    damping: Damping | HeldOutDamping
    block_size: int | None
    recomputations: int
    stages: int | None
    per_sample: bool
    existing_zeros: ExistingZeros
    mode: Mode
    seed: int
    params: Selection
    batchnorm_batches: int
    effort: Effort
    time_budget: float | None
    gradients: Path | Literal["ram", "bf16"]
    or_fewer: bool
    refits: int = 0

    @property
    def step_check(self) -> bool:
        """Whether the size of each step is checked on batches of its own."""
        return self.rules.step_check

    @property
    def rank(self) -> int:
        """m, once it is chosen."""
        assert self.num_gradients is not None
        return self.num_gradients

    @property
    def total_stages(self) -> int:
        """How many, once that is chosen."""
        assert self.stages is not None
        return self.stages

    @property
    def total_steps(self) -> int:
        """Of all stages."""
        return self.total_stages * self.recomputations if self.rules.needs_fisher else 1

    def described(self) -> dict[str, str]:
        """What two runs of the same weights have in common if they prune alike, in words."""
        words = {
            "saliency": _described(self.rules.saliency),
            "pattern": _described(self.rules.pattern),
            "allocation": _described(self.rules.allocation),
            "compensation": _described(self.rules.compensation),
            "schedule": _described(self.schedule),
            "gradients": self.gradients if isinstance(self.gradients, str) else "a folder",
        }
        plain = (
            *("sparsity", "num_gradients", "stages", "recomputations", "effort", "time_budget", "damping"),
            *("block_size", "per_sample", "existing_zeros", "mode", "seed", "step_check", "refits"),
        )
        return {**words, **{name: repr(getattr(self, name)) for name in plain}}


def checked_settings(arguments: Mapping[str, Any]) -> Settings:
    """The settings that arguments of `prune` mean.

    Args:
        arguments: Every argument of `prune` by its name; other arguments are passed over.

    Returns:
        The settings.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is out of range.
    """
    given = arguments
    rules = Rules(
        resolve("saliency", given["saliency"], SALIENCIES, Saliency),  # type: ignore[type-abstract]
        resolve_pattern(given["pattern"]),
        resolve_allocation(given["allocation"]),
        resolve("compensation", given["compensation"], COMPENSATIONS, Compensation),  # type: ignore[type-abstract]
        given.get("step_check", False),
    )
    check_choice("existing_zeros", given["existing_zeros"], ("auto", "keep", "ignore"))
    check_choice("mode", given["mode"], ("auto", "eval", "train"))
    check_choice("effort", given["effort"], ("fast", "default", "best"))
    for name in ("per_sample", "step_check", "verbose"):
        check_flag(name, given.get(name, False))
    if (progress := given.get("progress")) is not None and not callable(progress):
        raise TypeError(f"Parameter `progress` should be a function of a PruningStep, or None. Found {progress!r}.")
    _check_folder("checkpoint", given.get("checkpoint"))
    if check_count("seed", given["seed"]) >= 2**63:
        raise ValueError(f"Parameter `seed` should be below 2**63. Found {given['seed']}.")
    budget = given["time_budget"]
    gradients = _checked_gradients(given["gradients"], given["block_size"])
    if gradients != "ram" and isinstance(rules.saliency, Refined):
        raise ValueError(
            f"Parameter `gradients` should be 'ram' with saliency=\"refined\", which reads single columns again and "
            f"again. Found {str(given['gradients'])!r}."
        )
    return Settings(
        rules=rules,
        schedule=resolve("schedule", given["schedule"], SCHEDULES, Schedule),  # type: ignore[type-abstract]
        sparsity=given["sparsity"],
        num_gradients=_count_or_none("num_gradients", given["num_gradients"]),
        damping=_checked_damping(given["damping"]),
        block_size=_count_or_none("block_size", given["block_size"]),
        recomputations=check_count("recomputations", given["recomputations"], least=1),
        stages=_count_or_none("stages", given["stages"]),
        per_sample=given["per_sample"],
        existing_zeros=given["existing_zeros"],
        mode=given["mode"],
        seed=given["seed"],
        params=given["params"],
        batchnorm_batches=check_count("batchnorm_batches", given["batchnorm_batches"]),
        effort=given["effort"],
        time_budget=None if budget is None else check_number("time_budget", budget, above=0),
        gradients=gradients,
        or_fewer=given["num_gradients"] is None,
        refits=check_count("refits", given.get("refits", 0)),
    )


def _count_or_none(name: str, value: Any) -> int | None:
    return None if value is None else check_count(name, value, least=1)


def _checked_damping(damping: object) -> Damping | HeldOutDamping:
    if isinstance(damping, HeldOutDamping):
        return damping
    if isinstance(damping, str):
        if damping != "auto":
            raise ValueError(
                f"Parameter `damping` should be a number, mfac.relative(c), mfac.held_out() or 'auto'. "
                f"Found {damping!r}."
            )
        return held_out()
    return check_damping(damping)  # type: ignore[arg-type]  # which refuses other types itself


def _checked_gradients(gradients: GradientsIn, block_size: int | None) -> Path | Literal["ram", "bf16"]:
    if not isinstance(gradients, str | os.PathLike):
        raise TypeError(f"Parameter `gradients` should be 'ram', 'bf16' or a folder. Found {type(gradients).__name__}.")
    if gradients == "ram":
        return "ram"
    if (
        isinstance(gradients, str)
        and gradients != "bf16"
        and not os.path.dirname(gradients)
        and not os.path.isdir(gradients)
    ):
        raise ValueError(
            f"Parameter `gradients` should be 'ram', 'bf16' or a folder. Found {gradients!r}, which is no folder; "
            f"{os.path.join('.', gradients)!r} would make one."
        )
    if gradients != "bf16":
        _check_folder("gradients", gradients)
    if block_size is not None:
        raise ValueError(
            f"Parameter `gradients` should be 'ram' for a block-diagonal Fisher. Found {str(gradients)!r} with "
            f"block_size={block_size}."
        )
    return "bf16" if gradients == "bf16" else Path(gradients)


def _check_folder(name: str, folder: object) -> None:
    """Refuses what is no path, and the path of a file."""
    if folder is None:
        return
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"Parameter `{name}` should be the path of a folder. Found {type(folder).__name__}.")
    path = Path(folder)
    for place in (path, *path.parents):  # the folder, or the first above that is there
        if place.exists():
            if not place.is_dir():
                raise ValueError(f"Parameter `{name}` should be a folder. Found a file at {str(place)!r}.")
            return


def _described(value: object) -> str:
    """An object by class and attributes, a function by name: addresses differ between runs."""
    if value is None or isinstance(value, str | int | float | bool):
        return repr(value)
    if isinstance(value, Mapping):
        return repr({key: _described(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return repr([_described(item) for item in value])
    if hasattr(value, "shape"):
        return f"a tensor of shape {list(value.shape)}"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return str(name)
    given = {name: item for name, item in vars(value).items() if not name.startswith("chosen")}  # a result of the run
    return f"{type(value).__name__}({', '.join(f'{k}={_described(v)}' for k, v in sorted(given.items()))})"
