"""The benchmark as a program: `python -m bench.peers`, from any environment with mfac built."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.peers import environment
from demo.fetch import FetchError

OUT = Path(__file__).resolve().parents[1] / "out"
FULL = {"rounds": 31, "budget": 15.0}
QUICK = {"rounds": 5, "budget": 3.0}
THREADS = 2


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="mfac.MFAC against its peers.")
    parser.add_argument("--only", metavar="NETWORK", help="mlp, resnet20 or transformer")
    parser.add_argument("--methods", nargs="+", metavar="WORD", help="only methods with one of these words, and SGD")
    parser.add_argument("--quick", action="store_true", help="a few rounds")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, a process for each method")
    arguments = parser.parse_args(given)
    if environment.inside():
        return run(parser, arguments)
    environment.make()
    return environment.run_inside("bench.peers", given)


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Measure and report, inside the peers' environment."""
    import torch  # outside it, torch may not be there

    from bench.peers.measure import product_errors, time_steps
    from bench.peers.methods import BASELINE, METHODS
    from bench.peers.tasks import NETWORKS, load_tasks
    from mfac.bench.timing import describe_machine

    if arguments.only not in {None, *NETWORKS}:
        parser.error(f"--only should be one of {', '.join(NETWORKS)}. Found {arguments.only}.")
    words = [word.lower() for word in arguments.methods or [""]]
    names = [name for name in METHODS if name == BASELINE or any(word in name.lower() for word in words)]
    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    try:
        tasks = load_tasks([arguments.only] if arguments.only else list(NETWORKS))
        tiny = load_tasks(["tiny"])["tiny"]
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    machine = describe_machine()
    print(machine, flush=True)
    errors = product_errors(tiny, names)
    results = {}
    for network, task in tasks.items():
        print(f"{network}: times", flush=True)
        results[network] = time_steps(task, names, **(QUICK if arguments.quick else FULL))
        if not arguments.no_memory:
            print(f"{network}: memory", flush=True)
            add_memory(network, results[network])
    report(machine, results, errors)
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


def add_memory(network: str, results: dict) -> None:
    """Measure the memory of every method that could be timed."""
    from bench.peers.memory import measure_memory
    from bench.peers.report import is_timed

    for name, result in results.items():
        if not is_timed(result):
            continue
        try:
            result.memory = measure_memory(network, name)
        except (OSError, RuntimeError) as error:
            result.reasons["memory"] = str(error)


def report(machine: str, results: dict, errors: dict) -> None:
    """Print table, wins and requirements; write figure and raw numbers."""
    from bench.peers import report as texts
    from bench.peers.figure import plot_overheads

    failures = environment.failures()
    print(f"\n{texts.table(results, errors, failures)}")
    print(f"\nThe matrix of the IHVP error\n{texts.matrices()}")
    print(f"\nWhere a peer wins\n{texts.wins(results)}")
    if "resnet20" in results:
        print(f"\nRequirements, ResNet-20 at batch 128\n{texts.requirements(results['resnet20'])}")
    OUT.mkdir(exist_ok=True)
    raw = {
        "machine": machine,
        "failures": failures,
        "errors": errors,
        "results": {
            network: {name: asdict(result) for name, result in methods.items()} for network, methods in results.items()
        },
    }
    (OUT / "peers.json").write_text(json.dumps(raw, indent=1))
    plot_overheads(OUT / "peers.png", results, machine)
    print(f"\nFigure: {OUT / 'peers.png'}\nNumbers: {OUT / 'peers.json'}")


if __name__ == "__main__":
    sys.exit(main())
