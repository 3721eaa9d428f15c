"""Times of steps and products, in turn, and errors of products against dense matrices."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from bench.peers.method import Method, NotOfferedError
from bench.peers.methods import BASELINE, METHODS
from bench.peers.tasks import Task

T = TypeVar("T")

_WARM_UP_STEPS = 6
_LEAST_ROUNDS = 5
_LEAST_ERROR_STEPS = 8


@dataclass
class Result:
    """What was measured of one method on one network; seconds, bytes.

    Attributes:
        update: Steps with an update of curvature and inverse.
        plain: Steps without, or all steps of a method that makes no difference.
        tails: Parts of the plain steps after their backward pass.
        update_tails: The same of the steps with an update.
        after_backward: Whether all that the method adds is in these parts.
        ihvp: Products of the inverse with a vector.
        losses: Of the warm-up batch, before its first and before its last step.
        parameters: Of the network.
        preconditioned: Of these, by the method.
        memory: Peak above that of the process before the method, not yet less SGD's.
        reasons: Why something was not measured, by its name.
    """

    update: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    tails: list[float] = field(default_factory=list)
    update_tails: list[float] = field(default_factory=list)
    after_backward: bool = True
    ihvp: list[float] = field(default_factory=list)
    losses: tuple[float, float] | None = None
    parameters: int = 0
    preconditioned: int = 0
    memory: int | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    def added_seconds(self, baseline: Result, interval: int) -> float:
        """Mean seconds that the method adds to a step of the baseline at this update interval.

        Of what runs after the backward pass, where that is all there is: whole steps vary by more
        than most methods add. Otherwise of whole steps, each less the baseline's of the same round.
        """
        if self.after_backward:
            least = statistics.median(baseline.tails)
            plain, update = ([tail - least for tail in tails] for tails in (self.tails, self.update_tails))
        else:
            plain, update = (
                [mine - theirs for mine, theirs in zip(steps, baseline.plain, strict=False)]
                for steps in (self.plain, self.update)
            )
        without = statistics.median(plain)
        with_update = statistics.median(update) if update else without
        return (with_update + (interval - 1) * without) / interval

    @property
    def spent(self) -> float:
        """Seconds that its counted steps took."""
        return sum(self.update) + sum(self.plain)


def time_steps(task: Task, names: Iterable[str], rounds: int, budget: float) -> dict[str, Result]:
    """Steps and products of every method, in turn.

    A method leaves after `rounds`, or `budget` seconds of steps.
    """
    results: dict[str, Result] = {}
    methods: dict[str, Method] = {}
    for name in names:
        results[name] = Result()
        method = _attempt(results[name], "step", partial(_prepare, task, name, results[name]))
        if method is not None:
            methods[name] = method
    generator = random.Random(0)
    for number, (images, labels) in zip(range(rounds), task.cycle(), strict=False):
        for name in generator.sample(list(methods), len(methods)):
            method, result = methods[name], results[name]
            over = result.spent > budget and number >= _LEAST_ROUNDS and name != BASELINE
            if over or "step" in result.reasons:
                continue
            _attempt(result, "step", partial(_time_round, result, method, images, labels))
    _time_products(methods, results, rounds)
    return results


def _prepare(task: Task, name: str, result: Result) -> Method:
    """Make the method, let it take steps on one batch, and fill what fills in a long run."""
    model = task.build()
    result.parameters = sum(parameter.numel() for parameter in model.parameters())
    method = METHODS[name].make(model)
    result.preconditioned = method.preconditioned
    result.after_backward = method.after_backward
    losses = [float(method.step(*task.batches[0], update=number % 2 == 0)) for number in range(_WARM_UP_STEPS)]
    result.losses = (losses[0], losses[-1])
    method.fill()
    return method


def _seconds(method: Method, images: torch.Tensor, labels: torch.Tensor, update: bool) -> tuple[float, float]:
    start = time.perf_counter()
    method.step(images, labels, update)
    return time.perf_counter() - start, method.tail_seconds


def _time_round(result: Result, method: Method, images: torch.Tensor, labels: torch.Tensor) -> None:
    if method.updates:
        seconds, tail = _seconds(method, images, labels, True)
        result.update.append(seconds)
        result.update_tails.append(tail)
    seconds, tail = _seconds(method, images, labels, False)
    result.plain.append(seconds)
    result.tails.append(tail)


def _time_products(methods: dict[str, Method], results: dict[str, Result], rounds: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for number in range(-1, rounds):
        for name, method in methods.items():
            if results[name].reasons:
                continue
            v = torch.randn(method.ihvp_dim, generator=generator)
            start = time.perf_counter()
            done = _attempt(results[name], "ihvp", partial(method.ihvp, v))
            if done is not None and number >= 0:
                results[name].ihvp.append(time.perf_counter() - start)


def product_errors(task: Task, names: Iterable[str]) -> dict[str, float | str]:
    """Relative error of each method's product against its own dense matrix, or why it has none."""
    errors: dict[str, float | str] = {}
    for name in names:
        try:
            errors[name] = _product_error(task, name)
        except (NotOfferedError, ImportError, RuntimeError, TypeError, ValueError) as error:
            errors[name] = _one_line(error)
    return errors


def _product_error(task: Task, name: str) -> float:
    method = METHODS[name].make(task.build())
    steps = max(_LEAST_ERROR_STEPS, METHODS[name].arguments.get("rank", 0))
    for _, (images, labels) in zip(range(steps), task.cycle(), strict=False):
        method.step(images, labels, update=True)
    dense = method.dense()  # first: it may compute the inverse anew
    v = torch.randn(method.ihvp_dim, generator=torch.Generator().manual_seed(2))
    expected = torch.linalg.solve(dense, v.double())
    return float((method.ihvp(v).double() - expected).norm() / expected.norm())


def _attempt(result: Result, what: str, function: Callable[[], T]) -> T | None:
    """What the function returns; the reason of a failure goes into the result and the table."""
    try:
        return function()
    except Exception as error:  # whatever a peer raises is its row's reason
        result.reasons[what] = _one_line(error)
        return None


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, NotOfferedError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
