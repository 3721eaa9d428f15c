"""Runs what is missing of the table, prints it with what is wanted, and keeps every run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from multiprocessing import get_context

import torch

from bench.kept import keep_runs, kept_runs
from bench.sparse_training import __doc__ as about
from bench.sparse_training.overhead import overhead
from bench.sparse_training.report import report
from bench.sparse_training.runs import one_run, task_of, ways_of
from mfac.bench.timing import describe_machine

Runs = dict[str, dict[str, float]]  # "task/method/sparsity/seed" to what was measured


def _job(key: tuple[str, str, float, int]) -> tuple[tuple[str, str, float, int], dict[str, float]]:
    torch.set_num_threads(1)
    return key, one_run(*key)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sparse_training", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=["fashion", "paragraphs", "overhead"])
    parser.add_argument("--methods", nargs="+", help="names of the table (all)")
    parser.add_argument("--sparsities", nargs="+", type=float, help="some of each method's own (all)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 ... n-1 (5)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread (2)")
    parser.add_argument("--measured", action="store_true", help="take the runs in bench/measured/ as done")
    arguments = parser.parse_args(argv)
    print(describe_machine())
    if arguments.table == "overhead":
        overhead()
        return 0
    ways = ways_of(arguments.table)
    for name in arguments.methods or ():
        if name not in ways:
            parser.error(f"--methods should be of {list(ways)}. Found {name!r}.")
    results: Runs = kept_runs("sparse_training", arguments.measured)
    wanted = [
        (arguments.table, name, sparsity, seed)
        for seed in range(arguments.seeds)
        for name in arguments.methods or ways
        for sparsity in ways[name].sparsities
        if arguments.sparsities is None or sparsity in arguments.sparsities
        if _key((arguments.table, name, sparsity, seed)) not in results
    ]
    if wanted:
        task_of(arguments.table).data()  # before processes are made, so that they share it
        with get_context("fork").Pool(arguments.jobs) as pool:
            for key, found in pool.imap_unordered(_job, wanted):
                results = {**results, **kept_runs("sparse_training"), _key(key): found}  # others may run beside
                keep_runs("sparse_training", results)
                line = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
                print(f"{_key(key)}: {line}", file=sys.stderr, flush=True)
    report(arguments.table, {key: value for key, value in results.items() if key.startswith(f"{arguments.table}/")})
    return 0


def _key(parts: tuple[str, str, float, int]) -> str:
    table, name, sparsity, seed = parts
    return f"{table}/{name}/{sparsity:g}/{seed}"


if __name__ == "__main__":
    sys.exit(main())
