"""Executes every CUDA kernel on the CPU in each mode: `python tests/emulation/check.py [mode ...]`.

A mode is an order of threads and a sanitizer. In each, the tests that hold CUDA twins to CPU
kernels run, and in the first all tests of the operators; every instance of every kernel has to be
launched. That is kept for `table.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from emulation.build import ROOT, build, environment

OPERATORS = [str(path) for path in sorted((ROOT / "tests").rglob("test_ops*.py"))]
TWINS = [str(ROOT / "tests" / "cuda" / "test_cuda_twins.py")]  # which reaches every instance of every kernel


class Mode(NamedTuple):
    """How kernels are executed, by which tests, and at how many shapes for each kernel instance."""

    sanitizer: str
    order: str
    tests: list[str]
    shapes: int


MODES = {
    "forward": Mode("plain", "forward", [*TWINS, *OPERATORS], 3),
    "reverse": Mode("plain", "reverse", TWINS, 3),
    "random": Mode("plain", "random:1", TWINS, 3),
    "address": Mode("address", "forward", TWINS, 2),
    "thread": Mode("thread", "random:2", TWINS, 1),
}


def report_of(mode: str) -> Path:
    """Where what a mode launched is kept."""
    return ROOT / "build" / "emulation" / f"launches-{mode}.tsv"


def launches(mode: str) -> dict[str, list[str]]:
    """Every kernel, and the integer arguments it was launched with in a mode."""
    lines = (line.split("\t") for line in report_of(mode).read_text().splitlines())
    return {name: sizes for name, *sizes in lines}


def run(mode: str) -> None:
    """Runs the tests of values in a mode; exits if one fails or a kernel is not launched."""
    sanitizer, order, tests, shapes = MODES[mode]
    build(sanitizer)
    report_of(mode).unlink(missing_ok=True)
    settings = {
        **{"MFAC_SIMT_ORDER": order, "MFAC_SIMT_LAUNCHES": str(report_of(mode))},
        **{"MFAC_TWIN_SHAPES": str(shapes), "OMP_NUM_THREADS": "1"},
    }
    started = time.monotonic()
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", *tests],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment(sanitizer), **settings},
    )
    said = outcome.stdout + outcome.stderr
    if outcome.returncode or "WARNING: ThreadSanitizer" in said:
        raise SystemExit(f"{mode}: exit status {outcome.returncode}\n{said[-20000:]}")
    found = launches(mode)
    if never := [name for name, sizes in found.items() if not sizes]:
        raise SystemExit(f"{mode}: never launched:\n" + "\n".join(never))
    passed = next(line for line in reversed(outcome.stdout.splitlines()) if " passed" in line)
    print(f"{mode}: {len(found)} kernels launched, {passed} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or MODES:
        run(chosen)
