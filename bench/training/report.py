"""The tables of bench.training."""

from __future__ import annotations

import math
import statistics

from bench.training.tasks import Task

Results = dict[str, dict[str, dict[str, dict[str, list[float]]]]]  # task, method, rate, seed: measures


def report(name: str, task: Task, results: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """Final measures by method and rate, the best rate of each, and what is useful around it."""
    print(f"\n{name}: {task.note}; {'accuracy in %' if task.higher else 'loss'} at the end, mean over seeds")
    sign = 1 if task.higher else -1
    best_of: dict[str, tuple[float, str]] = {}
    for method, by_rate in results.items():
        means = {rate: _mean([curve[-1] for curve in runs.values()]) for rate, runs in by_rate.items()}
        finite = {rate: value for rate, value in means.items() if math.isfinite(value)}
        if not finite:
            print(f"  {method:<16} diverged at every rate")
            continue
        rate = max(finite, key=lambda r: sign * finite[r])
        best_of[method] = (finite[rate], rate)
        ends = [curve[-1] for curve in by_rate[rate].values()]
        spread = statistics.stdev(ends) if len(ends) > 1 else 0.0
        margin = 1.0 if task.higher else 0.02 * finite[rate]
        useful = [float(r) for r, value in finite.items() if sign * (finite[rate] - value) <= margin]
        line = "  ".join(f"{r}: {means[r]:.2f}" for r in sorted(means, key=float))
        print(
            f"  {method:<16} {finite[rate]:7.3f} ± {spread:.3f} at {rate:<6} ({len(ends)} seeds)  "
            f"useful ×{max(useful) / min(useful):.0f}   {line}"
        )
    _steps(task, results, best_of)


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def _steps(
    task: Task, results: dict[str, dict[str, dict[str, list[float]]]], best_of: dict[str, tuple[float, str]]
) -> None:
    """Share of all steps until a method is as good as the best baseline ends."""
    sign = 1 if task.higher else -1
    baselines = {m: best_of[m] for m in ("SGD", "AdamW", "Muon") if m in best_of}
    if not baselines:
        return
    mark = max((value for value, _ in baselines.values()), key=lambda value: sign * value)
    print(f"  steps of {task.steps()} until the mean is {mark:.3f}, what the best baseline ends with:")
    for method, (_, _) in best_of.items():
        shares = []
        for runs in results[method].values():
            curves = list(runs.values())
            means = [_mean([curve[i] for curve in curves]) for i in range(len(curves[0]))]
            reached = [i + 1 for i, value in enumerate(means) if sign * (value - mark) >= 0]
            if reached:
                shares.append(reached[0] / len(means))
        print(f"    {method:<16} {f'{100 * min(shares):.0f} %' if shares else 'not reached'}")
