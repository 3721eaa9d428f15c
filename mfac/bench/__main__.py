"""The benchmark as a program: `python -m mfac.bench`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mfac.bench import capacitance, ops, pruning, static
from mfac.bench.measurement import GEMM_DOUBLE, GEMM_SINGLE, HEADER, READ, Measurement, Setting
from mfac.bench.sweep import draw, exponent_in_rank, pyplot, sweep
from mfac.bench.timing import describe_machine
from mfac.bench.wanted import wanted

OPS: Mapping[str, Callable[[Setting], list[Measurement]]] = {
    "step": ops.steps,
    "passes": ops.passes,
    "vectors": ops.many_vectors,
    "capacitance": capacitance.capacitance,
    "fisher": static.whole,
    "blocks": static.blocks,
    "pruning": pruning.pruning,
}
"""Measurements by the names that --ops takes; "exponent" is a further one."""

_EXPONENT = "exponent"
_FULL = {"rank": 512, "dim": 272_474, "rounds": 7, "slow_rounds": 3}
_QUICK = {"rank": 128, "dim": 65_536, "rounds": 5, "slow_rounds": 1}
_THREADS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints.

    Args:
        argv: In place of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m mfac.bench", description=__doc__)
    parser.add_argument("--rank", type=int, metavar="M", help="rows of the sliding windows (512)")
    parser.add_argument("--dim", type=int, metavar="D", help="their columns (272474)")
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer rounds: under a minute")
    parser.add_argument("--ops", nargs="+", choices=[*OPS, _EXPONENT], default=[*OPS, _EXPONENT], metavar="NAME")
    parser.add_argument(
        "--sweep",
        nargs="?",
        type=Path,
        const=Path("mfac-sweep.png"),
        metavar="PNG",
        help="instead: the cost of a step over d and m, with fitted exponents, drawn to a file (mfac-sweep.png)",
    )
    arguments = parser.parse_args(argv)
    chosen = _QUICK if arguments.quick else _FULL
    setting = Setting(
        chosen["rank"] if arguments.rank is None else arguments.rank,
        chosen["dim"] if arguments.dim is None else arguments.dim,
        chosen["rounds"],
        chosen["slow_rounds"],
    )
    if setting.rank < 2 or setting.dim <= 2 * setting.rank:
        parser.error(f"--rank should be at least 2 and below half of --dim. Found {setting.rank} and {setting.dim}.")
    torch.set_num_threads(min(_THREADS, os.cpu_count() or 1))
    started = time.perf_counter()
    print_machine(setting)
    if arguments.sweep is not None:
        run_sweep(arguments.sweep, arguments.quick)
    else:
        run_ops(setting, arguments.ops, arguments.quick)
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


def print_machine(setting: Setting) -> None:
    """The machine, and the ceilings that everything is held against."""
    print(describe_machine())
    _, rates = setting.time({}, READ, GEMM_SINGLE, GEMM_DOUBLE)
    print(
        f"{READ} {rates[READ] / 1e9:.1f} GB/s, {GEMM_SINGLE} {rates[GEMM_SINGLE] / 1e9:.0f} GFLOP/s, "
        f"{GEMM_DOUBLE} {rates[GEMM_DOUBLE] / 1e9:.0f} GFLOP/s",
        flush=True,
    )


def run_ops(setting: Setting, names: Sequence[str], quick: bool) -> None:
    """Every measurement asked for, a line each as it comes, and the ratios wanted."""
    print(f"\n{HEADER}", flush=True)
    lines: list[Measurement] = []
    for name, measure in OPS.items():
        if name in names:
            for line in measure(setting):
                print(line, flush=True)
                lines.append(line)
    over_rank = exponent_in_rank(quick) if _EXPONENT in names else None
    if over_rank is not None:
        print(f"step {over_rank}")
    print(
        "ceiling: share of the streaming read, or of GEMM in the arithmetic used, timed in turn. "
        "torch, paper: their time / ours."
    )
    full = (setting.rank, setting.dim) == (_FULL["rank"], _FULL["dim"])
    print(f"\nRatios wanted{'' if full else ', which are meant for the full shapes'}")
    print("\n".join(wanted(lines, over_rank, full)))


def run_sweep(file: Path, quick: bool) -> None:
    """The cost of a step over d and m, printed and drawn."""
    pyplot()  # says now if it is missing
    series = sweep(quick)
    for one in series:
        print()
        for point in one.points:
            print(f"m = {point.rank:>5}, d = {point.dim:>8}: {point.seconds * 1e3:>9.3f} ms")
        print(f"step {one}")
    draw(file, series, describe_machine())
    print(f"\nFigure: {file}")


if __name__ == "__main__":
    sys.exit(main())
