"""Trains every task with every method, learning rate and seed, and prints who ends where.

    python -m bench.training [--tasks digits fashion] [--methods MFAC AdamW] [--seeds 5] [--jobs 2]

Every finished run is kept in bench/out/training.json and not repeated, so this can be done in
pieces. With --measured the runs behind the tables of the documentation count as finished. A run is
measured ten times on its way, which gives the steps to an accuracy.
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bench.kept import keep_runs, kept_runs
from bench.training.methods import FINE_TUNING, METHODS, Method, ours
from bench.training.report import Results, report
from bench.training.tasks import TASKS, loss_fn
from demo.training import cosine
from mfac.bench.timing import describe_machine

MEASURED = 10
_MORE = {"paragraphs": {"window_dtype": torch.bfloat16, "rank": 32}}
"""What ours needs for a window to fit beside the network."""


def one_run(task_name: str, method: Method, lr: float, seed: int) -> tuple[list[float], float]:
    """Measures on the way, the last at the end, and seconds; NaN from where the loss diverged."""
    task = TASKS[task_name]
    torch.manual_seed(seed)
    model = task.model()
    model.train()
    more: dict[str, Any] = _MORE.get(task_name, {}) if method.make.__name__ == "MFAC" else {}
    optimizer = method.optimizer(model, lr, **more)
    steps = task.steps()
    scheduler = LambdaLR(optimizer, lambda step: cosine(step / steps))
    started, curve = time.perf_counter(), []
    for step, batch in enumerate(task.batches(seed), 1):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        if not math.isfinite(loss.item()):
            return [*curve, *[math.nan] * (MEASURED - len(curve))], time.perf_counter() - started
        loss.backward()
        try:
            optimizer.step()
        except ValueError:  # a gradient that is not finite
            return [*curve, *[math.nan] * (MEASURED - len(curve))], time.perf_counter() - started
        scheduler.step()
        if step * MEASURED // steps > (step - 1) * MEASURED // steps:
            curve.append(task.measure(model))
    return curve, time.perf_counter() - started


def _job(arguments: tuple[str, str, Method, float, int]) -> tuple[str, str, float, int, list[float], float]:
    task, name, method, lr, seed = arguments
    torch.set_num_threads(1)
    curve, seconds = one_run(task, method, lr, seed)
    return task, name, lr, seed, curve, seconds


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.training", description="Who trains best.")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--variant", nargs="+", default=[], help="NAME key=value ...: options of mfac.MFAC to try")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates, in place of the methods' own")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 ... n-1, of the weights and the order (5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread (2)")
    parser.add_argument("--measured", action="store_true", help="take the runs in bench/measured/training.json as done")
    arguments = parser.parse_args(argv)
    methods = {name: METHODS[name] for name in arguments.methods}
    if arguments.variant:
        name, *pairs = arguments.variant
        methods = {name: ours(**{key: _value(text) for key, text in (pair.split("=", 1) for pair in pairs)})}
    results: Results = kept_runs("training", arguments.measured)
    print(describe_machine())
    wanted = []
    for seed in range(arguments.seeds):
        for task in arguments.tasks:
            TASKS[task].data()  # before processes are made, so that they share it
            for name, method in methods.items():
                if task == "fashion" and name == "Muon":
                    continue  # torch's takes matrices alone
                scale = FINE_TUNING if task == "paragraphs" else 1.0
                for lr in arguments.rates or [float(f"{scale * rate:g}") for rate in method.rates]:
                    if str(seed) not in results.get(task, {}).get(name, {}).get(f"{lr:g}", {}):
                        wanted.append((task, name, method, lr, seed))
    with get_context("fork").Pool(arguments.jobs) as pool:
        for task, name, lr, seed, curve, seconds in pool.imap_unordered(_job, wanted):
            results.setdefault(task, {}).setdefault(name, {}).setdefault(f"{lr:g}", {})[str(seed)] = curve
            print(f"{task} {name} lr {lr:g} seed {seed}: {curve[-1]:.3f} after {seconds:.0f} s", file=sys.stderr)
            keep_runs("training", results)
    for task in arguments.tasks:
        report(task, TASKS[task], results.get(task, {}))
    return 0


def _value(text: str) -> Any:
    """An option as Python has it; a damping as the number of mean squared row norms."""
    if text.startswith("row_relative"):
        import mfac

        return mfac.row_relative(float(text.removeprefix("row_relative(").removesuffix(")")))
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
