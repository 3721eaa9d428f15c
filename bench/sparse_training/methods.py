"""The recipes that are compared, each as a function of sparsity and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mfac
from mfac import recipes

Make = Callable[[float, int], recipes.Recipe]


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        recipe: Of a sparsity and a number of steps; None for a dense network.
        windowed: Whether the optimizer is `mfac.MFAC`, not SGD.
        collects: Whether gradients are collected for a Fisher.
        cram: ρ of CrAM+, or None.
        sparsities: At which it is measured, beside 0.9.
    """

    recipe: Make | None = None
    windowed: bool = False
    collects: bool = False
    cram: float | None = None
    sparsities: tuple[float, ...] = field(default=(0.9,))


ALL = (0.8, 0.9, 0.95)
CUTS = 20  # of gradual pruning
CHANGES = 25  # of sparse training


def _gmp(sparsity: float, steps: int, **options: Any) -> recipes.Recipe:
    begin, end = steps // 10, steps * 3 // 4
    return recipes.GMP(sparsity, begin=begin, end=end, every=max(1, (end - begin) // (CUTS - 1)), **options)


def _every(steps: int) -> dict[str, int]:
    return {"end": steps * 3 // 4, "every": max(1, steps * 3 // 4 // CHANGES)}


FASHION: dict[str, Way] = {
    "dense": Way(sparsities=(0.0,)),
    "GMP*": Way(_gmp, sparsities=ALL),
    "AC/DC": Way(lambda sparsity, steps: recipes.ACDC(sparsity, end=steps), sparsities=ALL),
    "AC/DC, long": Way(
        lambda sparsity, steps: recipes.ACDC(sparsity, end=steps, phase=steps // 10, final=steps * 3 // 10)
    ),
    "AC/DC, end of 0.4": Way(lambda sparsity, steps: recipes.ACDC(sparsity, end=steps, final=steps * 4 // 10)),
    "AC/DC, end of 0.5": Way(lambda sparsity, steps: recipes.ACDC(sparsity, end=steps, final=steps // 2)),
    "AC/DC, end of 0.4, long": Way(
        lambda sparsity, steps: recipes.ACDC(sparsity, end=steps, phase=steps // 10, final=steps * 4 // 10)
    ),
    "GMP": Way(lambda sparsity, steps: _gmp(sparsity, steps, first_sparsity=0.0), sparsities=ALL),
    "GMP*, OBS": Way(lambda sparsity, steps: _gmp(sparsity, steps, saliency="obs"), collects=True),
    "RigL": Way(lambda sparsity, steps: recipes.RigL(sparsity, **_every(steps))),
    "SET": Way(lambda sparsity, steps: recipes.SET(sparsity, **_every(steps))),
    "SNFS": Way(lambda sparsity, steps: recipes.SNFS(sparsity, **_every(steps))),
    "SNFS, each epoch": Way(
        lambda sparsity, steps: recipes.SNFS(sparsity, end=steps * 3 // 4, every=max(1, steps // 10))
    ),
    "DSR": Way(
        lambda sparsity, steps: recipes.DSR(
            sparsity, end=steps * 3 // 4, periods=[max(1, steps * k // 186) for k in (2, 4, 8, 16)]
        )
    ),
    "static": Way(lambda sparsity, steps: recipes.Static(sparsity)),
    "static, uniform": Way(lambda sparsity, steps: recipes.Static(sparsity, allocation="uniform")),
    "SNIP": Way(lambda sparsity, steps: recipes.SNIP(sparsity)),
    "CrAM+": Way(cram=0.2, sparsities=(0.0,)),
    "MFAC, dense": Way(windowed=True, sparsities=(0.0,)),
    "MFAC, GMP*": Way(_gmp, windowed=True),
    "MFAC, GMP*, OBS": Way(lambda sparsity, steps: _gmp(sparsity, steps, saliency="obs"), windowed=True),
}
PARAGRAPHS: dict[str, Way] = {
    "dense": Way(sparsities=(0.0,)),
    "GMP": Way(lambda sparsity, steps: _gmp(sparsity, steps, first_sparsity=0.0)),
    "GMP*": Way(_gmp),
    "GMP*, OBS": Way(lambda sparsity, steps: _gmp(sparsity, steps, saliency="obs"), collects=True),
}


def training(
    way: Way, model: Any, optimizer: Any, sparsity: float, steps: int, seed: int, **more: Any
) -> mfac.MaskedTraining | None:
    """The masked training of a way; None of a dense network."""
    if way.recipe is None:
        return None
    return mfac.MaskedTraining(model, optimizer, way.recipe(sparsity, steps), seed=seed, **more)
