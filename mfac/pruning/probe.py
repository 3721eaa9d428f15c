"""How long the parts of a pruning step take, measured on a small network of random numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mfac.curvature.damping import RelativeDamping, relative
from mfac.curvature.fisher import EmpiricalFisher
from mfac.curvature.streamed import StreamedFisher
from mfac.gradients.prunable import PrunableWeight
from mfac.masks.patterns import Candidates, Unstructured
from mfac.pruning.allocation import Global
from mfac.pruning.context import StepContext
from mfac.pruning.counts import choose_units
from mfac.pruning.obs import prune_step
from mfac.pruning.rows import store_for
from mfac.pruning.settings import Settings

_WINDOW_ENTRIES = 1 << 24  # of the window that a step is timed on: more than caches hold
_RANKED = 1 << 20  # weights that a choice is timed on: more than caches hold, and within a second
_FEW = 8  # one weight in so many is alive in the second choice that is timed


@dataclass(frozen=True)
class StepTimes:
    """Seconds for each weight.

    Attributes:
        factoring: To factor the Fisher over it.
        step: Of a pruning step in which it is alive, beyond choosing and beyond the Fisher over
            the kept weights.
        choosing: To rank it in such a step.
        chaining: To look at it in any step, whether it is alive or not.
    """

    factoring: float
    step: float
    choosing: float
    chaining: float


class Probe:
    """Times steps of a run before it begins.

    Args:
        settings: Of the run; its numbers of gradients and stages are not looked at.
        parameters: What is known of each that is pruned.
        live: How many weights are alive.
        device: Where the run computes.
    """

    def __init__(
        self, settings: Settings, parameters: Sequence[PrunableWeight], live: int, device: torch.device
    ) -> None:
        self.settings, self.parameters, self.live, self.device = settings, parameters, live, device
        joined = any(len(group) > 1 for group in settings.rules.pattern.together(parameters))
        self._pattern = Unstructured() if joined else settings.rules.pattern  # the one row has no partners
        self._found: dict[int, StepTimes] = {}
        self._choice: tuple[float, float] | None = None

    def times(self, rank: int) -> StepTimes:
        """What parts of a step take.

        Args:
            rank: m.

        Returns:
            Seconds; measured once for each m.
        """
        if rank not in self._found:
            count = max(1, min(_WINDOW_ENTRIES // rank, self.live))
            generator = torch.Generator().manual_seed(0)
            grads = torch.randn((rank, count), generator=generator).to(self.device)
            weights = torch.randn(count, generator=generator).to(grads)
            few = min(count, max(64, count // 64))
            self._step(grads[:, :few].contiguous(), weights[:few])  # warms up
            factoring, step, kept = self._step(grads, weights)
            choosing, chaining = self._choosing()
            if isinstance(self._pattern, Unstructured):  # `step` has a choice among few in it
                step -= self._chosen([_row(self.parameters[0], count)], 1)
            beyond = max(0.0, step - factoring * kept / count) / count
            self._found[rank] = StepTimes(factoring / count, beyond, choosing, chaining)
        return self._found[rank]

    def _step(self, grads: Tensor, weights: Tensor) -> tuple[float, float, int]:
        """Seconds to factor a Fisher and of a step with it, and how many weights that keeps."""
        settings, count = self.settings, weights.numel()
        damping = settings.damping if isinstance(settings.damping, RelativeDamping) else relative(0.02)
        in_memory = settings.gradients == "ram" or grads.shape[0] >= count
        store = None if in_memory else store_for(settings.gradients, len(grads), count, grads.dtype, grads.device)
        if store is not None:
            store.write_(0, grads)
        start = time.perf_counter()
        if store is None:
            fisher = EmpiricalFisher(grads, damping, settings.block_size)
        else:
            fisher = StreamedFisher(store, damping)
        factored = time.perf_counter()
        live, kept = torch.ones(count, dtype=torch.bool, device=weights.device), max(1, count * 3 // 4)
        row = _row(self.parameters[0], count)
        context = StepContext(weights, fisher, [row], live, lambda _: 0.0, lambda: {row.name: torch.ones(row.shape)})
        rules = replace(settings.rules, pattern=self._pattern, allocation=Global(), step_check=False)
        prune_step(rules, context, kept, max(1, count // 2))
        _ = context.kept_fisher
        return factored - start, time.perf_counter() - factored, kept

    def _choosing(self) -> tuple[float, float]:
        """Seconds of a choice for each weight that is alive, and for each that there is."""
        if self._choice is None:
            if isinstance(self._pattern, Unstructured):
                parameters = _shrunk(self.parameters)
                total = sum(parameter.size for parameter in parameters)
                of_all, of_few = (self._chosen(parameters, every) for every in (1, _FEW))
                choosing = max(0.0, of_all - of_few) / (total - total / _FEW)
                self._choice = choosing, max(0.0, of_all / total - choosing)
            else:
                self._choice = 0.0, 0.0
        return self._choice

    def _chosen(self, parameters: Sequence[PrunableWeight], every: int) -> float:
        """Seconds of a choice where one weight in `every` is alive."""
        total = sum(parameter.size for parameter in parameters)
        live = torch.zeros(total, dtype=torch.bool, device=self.device)
        live[::every] = True
        scores = torch.rand(int(live.sum()), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scores = scores.to(self.device)
        wanted = self.settings.rules.allocation
        allocation = wanted if isinstance(wanted, Global) else Global(floor=0)
        context, pattern = StepContext(scores, None, parameters, live), Unstructured()
        start = time.perf_counter()
        units = pattern.units(Candidates(parameters, live, scores))
        count = scores.numel()
        choose_units(allocation, pattern, context, units, max(1, count * 3 // 4), max(1, count // 2))
        return time.perf_counter() - start


def _row(parameter: PrunableWeight, count: int) -> PrunableWeight:
    """A parameter as one row of so many weights."""
    return PrunableWeight(parameter.name, torch.Size((1, count)), (1, count, 1), parameter.layer)


def _shrunk(parameters: Sequence[PrunableWeight]) -> list[PrunableWeight]:
    """The same parameters, with fewer channels where there are more weights than are timed."""
    factor = math.sqrt(max(1.0, sum(parameter.size for parameter in parameters) / _RANKED))
    found = []
    for parameter in parameters:
        layout = parameter.layout
        if factor == 1 or layout is None or layout != (*parameter.shape[:2], math.prod(parameter.shape[2:])):
            found.append(parameter if factor == 1 else _row(parameter, max(1, round(parameter.size / factor**2))))
            continue
        outs, ins = (max(1, round(channels / factor)) for channels in layout[:2])
        shape = torch.Size((outs, ins, *parameter.shape[2:]))
        found.append(PrunableWeight(parameter.name, shape, (outs, ins, layout[2]), parameter.layer))
    return found
