"""Executes every CUDA kernel on the CPU in every mode: `python tests/emulation/check.py [mode ...]`.

A mode is an order of threads and a sanitizer. In each the tests of values run with the CUDA twins, and every instance of
every kernel has to be launched; what was launched is kept for `table.py`.
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

ROOMS = ("ops", "ops_window_push", "ops_block", "ops_capacitance", "ops_topk")
# Without what takes long and reaches no other kernel: the largest sizes, and every number of a format.
SMALL = "values" + "".join(
    f" and not {name}"
    for name in (
        *("2049", "1000", "1100", "8193", "40001", "1023", "1025", "1e10", "257", "long", "many"),
        *("every_tie", "every_finite", "edges", "beyond_shared", "layout9"),
    )
)


class Mode(NamedTuple):
    """How kernels are executed, and by which tests."""

    sanitizer: str
    order: str
    tests: str


MODES = {
    "forward": Mode("plain", "forward", "values"),
    "reverse": Mode("plain", "reverse", SMALL),
    "random": Mode("plain", "random:1", SMALL),
    "address": Mode("address", "forward", SMALL),
    "thread": Mode("thread", "random:2", SMALL),
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
    sanitizer, order, tests = MODES[mode]
    build(sanitizer)
    files = [str(ROOT / "tests" / f"test_{room}.py") for room in ROOMS]
    report_of(mode).unlink(missing_ok=True)
    settings = {"MFAC_SIMT_ORDER": order, "MFAC_SIMT_LAUNCHES": str(report_of(mode)), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    outcome = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", *files, "-k", tests],
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
