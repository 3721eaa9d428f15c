"""Whether a compressed window costs accuracy: one training with every window format, several seeds.

python -m bench.convergence [--seeds 5] [--formats int8 top-k] [--epochs 4]

Every finished run is kept in bench/out/convergence.json and not repeated, so this can be done in
pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.optim import SGD, Optimizer

import mfac
from bench.fashion import load_fashion_mnist
from demo.digits import Digits
from demo.fetch import FetchError
from demo.networks import ResNet8
from demo.training import train
from mfac.bench.timing import describe_machine

OUT = Path(__file__).resolve().parent / "out" / "convergence.json"
IMAGES = 10_000
WIDTH = 16
BATCH_SIZE = 128
EPOCHS = 4
THREADS = 2
MFAC_ARGUMENTS = {"lr": 6e-3, "rank": 128, "damping": 1e-5, "momentum": 0.9}

FORMATS: Mapping[str, Mapping[str, object]] = {
    "float32": {"window_dtype": torch.float32},
    "bfloat16": {"window_dtype": torch.bfloat16},
    "float16": {"window_dtype": torch.float16},
    "int8": {"window_dtype": torch.int8},
    "top-k": {"density": 0.01},
}
"""Windows; the first is what the others are held against."""

BASELINE = "float32"
SGD_NAME = "SGD"
ONE_POINT = 1.0  # % of accuracy that the sparse window may lose

Results = dict[str, dict[str, float]]  # accuracy in % by run and seed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.convergence", description="Accuracy by window format.")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 ... n-1, of the weights and the order (5)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"passes through the images ({EPOCHS})")
    names = [*FORMATS, SGD_NAME]
    parser.add_argument("--formats", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    try:
        digits = load_fashion_mnist().subset(IMAGES)  # the same for every run
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    print(describe_machine())
    setup = f"ResNet8 width {WIDTH}, {IMAGES} images, {arguments.epochs} epochs, batch {BATCH_SIZE}, {MFAC_ARGUMENTS}"
    everything = json.loads(OUT.read_text()) if OUT.exists() else {}
    results: Results = everything.setdefault(setup, {})
    for seed in range(arguments.seeds):
        for name in names:
            if name not in arguments.formats or str(seed) in results.get(name, {}):
                continue
            accuracy, seconds = one_run(name, seed, digits, arguments.epochs)
            print(f"{name:<9} seed {seed}: {accuracy:.2f} % after {seconds:.0f} s", flush=True)
            results.setdefault(name, {})[str(seed)] = accuracy
            save(everything)
    report(results, setup)
    return 0


def save(everything: dict[str, Results]) -> None:
    """Writes all results, by a rename, so that a run cut short leaves the file whole."""
    OUT.parent.mkdir(exist_ok=True)
    scratch = OUT.with_suffix(".part")
    scratch.write_text(json.dumps(everything, indent=1))
    scratch.replace(OUT)


def one_run(name: str, seed: int, digits: Digits, epochs: int) -> tuple[float, float]:
    """Final test accuracy in %, NaN if the training diverged, and seconds."""
    torch.manual_seed(seed)
    model = ResNet8(WIDTH)
    optimizer: Optimizer
    if name == SGD_NAME:
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = mfac.MFAC(model.parameters(), **MFAC_ARGUMENTS, **FORMATS[name])
    try:
        history = train(model, optimizer, digits, epochs=epochs, batch_size=BATCH_SIZE, seed=seed)
    except FloatingPointError:
        return math.nan, math.nan
    return history.test_accuracies[-1], history.seconds


def report(results: Results, setup: str) -> None:
    """A line for each format, and whether it ends where it should."""
    print(f"\n{setup}\nfinal test accuracy in %\n")
    print(f"{'window':<9} {'runs':>4} {'mean':>7} {'min':>7} {'max':>7} {'sd':>6} {'to float32':>11} {'± 2 s.e.':>9}")
    for name in (*FORMATS, SGD_NAME):
        values = list(results.get(name, {}).values())
        if values:
            print(line(name, results))
    print("\nWanted")
    for name, wanted in CHECKS.items():
        print(f"  {name:<9} {wanted(name, results)}")


def line(name: str, results: Results) -> str:
    values = list(results[name].values())
    spread = f"{statistics.stdev(values):>6.2f}" if len(values) > 1 else f"{'-':>6}"
    text = (
        f"{name:<9} {len(values):>4} {statistics.fmean(values):>7.2f} {min(values):>7.2f} {max(values):>7.2f} {spread}"
    )
    if name == BASELINE or BASELINE not in results:
        return text
    difference, error = difference_to_baseline(name, results)
    return f"{text} {difference:>+11.2f} {'-' if error is None else f'{2 * error:.2f}':>9}"


def difference_to_baseline(name: str, results: Results) -> tuple[float, float | None]:
    """Difference of the means in points, and its standard error, which takes two runs of each."""
    mine, theirs = list(results[name].values()), list(results[BASELINE].values())
    difference = statistics.fmean(mine) - statistics.fmean(theirs)
    if min(len(mine), len(theirs)) < 2:
        return difference, None
    return difference, math.sqrt(statistics.variance(mine) / len(mine) + statistics.variance(theirs) / len(theirs))


def within_noise(name: str, results: Results) -> str:
    if name not in results or BASELINE not in results:
        return "not measured"
    difference, error = difference_to_baseline(name, results)
    if error is None:
        return "within noise of float32: two seeds of each are needed to say"
    met = "met" if abs(difference) <= 2 * error else "NOT met"
    return f"within noise of float32, |{difference:+.2f}| <= {2 * error:.2f}: {met}"


def within_a_point(name: str, results: Results) -> str:
    if name not in results or BASELINE not in results:
        return "not measured"
    difference, _ = difference_to_baseline(name, results)
    met = "met" if abs(difference) <= ONE_POINT else "NOT met"
    return f"within {ONE_POINT:g} point of float32, {difference:+.2f}: {met}"


CHECKS: Mapping[str, Callable[[str, Results], str]] = {
    "bfloat16": within_noise,
    "int8": within_noise,
    "top-k": within_a_point,
}
"""What each window should reach."""


if __name__ == "__main__":
    sys.exit(main())
