"""The benchmark as a program: `python -m mfac.bench`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

import mfac
from mfac.bench import capacitance, ops, pruning, static
from mfac.bench.measurement import GEMM_DOUBLE, GEMM_SINGLE, HEADER, READ, Measurement, Setting
from mfac.bench.sweep import draw, exponent_in_rank, pyplot, sweep
from mfac.bench.timing import describe_machine
from mfac.bench.wanted import Ratio, ratios, table

OPS: Mapping[str, Callable[[Setting], list[Measurement]]] = {
    "fisher": static.whole,
    "step": ops.steps,
    "passes": ops.passes,
    "vectors": ops.many_vectors,
    "capacitance": capacitance.capacitance,
    "blocks": static.blocks,
    "pruning": pruning.pruning,
}
"""Measurements by the names that --ops takes; "exponent" is a further one."""

_EXPONENT = "exponent"
_WANTED = ("step", "capacitance", "fisher", "blocks")
_FULL = {"rank": 512, "dim": 272_474, "rounds": 7, "slow_rounds": 3, "network_width": 16}
_QUICK = {"rank": 128, "dim": 65_536, "rounds": 5, "slow_rounds": 1, "network_width": 4}
_THREADS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints.

    Args:
        argv: In place of the command line.

    Returns:
        The exit status.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    chosen = _QUICK if arguments.quick else _FULL
    setting = Setting(
        chosen["rank"] if arguments.rank is None else arguments.rank,
        chosen["dim"] if arguments.dim is None else arguments.dim,
        chosen["rounds"],
        chosen["slow_rounds"],
        chosen["network_width"],
        arguments.gradients,
    )
    if setting.rank < 2 or setting.dim <= 2 * setting.rank:
        parser.error(f"--rank should be at least 2 and below half of --dim. Found {setting.rank} and {setting.dim}.")
    built = mfac.build_info()["isas_built"]
    if unknown := set(arguments.isa or ()) - set(built):
        parser.error(f"--isa should name some of {', '.join(built)}. Found {', '.join(sorted(unknown))}.")
    torch.set_num_threads(min(_THREADS, os.cpu_count() or 1))
    started = time.perf_counter()
    full = (setting.rank, setting.dim) == (_FULL["rank"], _FULL["dim"])
    note = "" if full else ", at shapes smaller than those that the marks are meant for"
    if arguments.isa or (arguments.wanted and arguments.ratios is None):
        isas = arguments.isa or [mfac.build_info()["isa_chosen"]]
        found = {isa: ratios_of(isa, arguments, setting) for isa in isas}
    elif arguments.sweep is not None:
        print_machine(setting)
        run_sweep(arguments.sweep, arguments.quick)
        found = {}
    else:
        print_machine(setting)
        names = arguments.ops or (_WANTED if arguments.wanted else [*OPS, _EXPONENT])
        found = {mfac.build_info()["isa_chosen"]: run_ops(setting, names, arguments.quick)}
        if arguments.ratios is not None:
            arguments.ratios.write_text(json.dumps([ratio.as_dict() for one in found.values() for ratio in one]))
            return 0
    if found:
        print(f"\nRatios wanted{note}")
        print("\n".join(table(found)))
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mfac.bench", description=__doc__)
    parser.add_argument("--rank", type=int, metavar="M", help="rows of the sliding windows (512)")
    parser.add_argument("--dim", type=int, metavar="D", help="their columns (272474)")
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer rounds: under a minute")
    parser.add_argument("--ops", nargs="+", choices=[*OPS, _EXPONENT], metavar="NAME", help="some measurements alone")
    parser.add_argument("--wanted", action="store_true", help="what the ratios wanted need, and these alone printed")
    parser.add_argument("--isa", nargs="+", metavar="NAME", help="a process for each of these instruction sets")
    parser.add_argument(
        "--sweep",
        nargs="?",
        type=Path,
        const=Path("mfac-sweep.png"),
        metavar="PNG",
        help="instead: the cost of a step over d and m, with fitted exponents, drawn to a file (mfac-sweep.png)",
    )
    parser.add_argument("--ratios", type=Path, help=argparse.SUPPRESS)  # a file that the ratios are written to
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)  # a file of the network's gradients
    return parser


def ratios_of(isa: str, arguments: argparse.Namespace, setting: Setting) -> list[Ratio]:
    """The ratios that a process with one instruction set measures.

    Its output is dropped, unless the ratios alone are asked for.

    Args:
        isa: As MFAC_CPU_ISA has it.
        arguments: Of the command line.
        setting: Its gradients are made once, by this process.

    Returns:
        The ratios.

    Raises:
        SystemExit: If the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        ratios_file, gradients_file = Path(folder) / "ratios.json", Path(folder) / "gradients.pt"
        command = [sys.executable, "-m", "mfac.bench", "--ratios", str(ratios_file)]
        if not arguments.ops or "fisher" in arguments.ops:
            torch.save({"rows": setting.gradients.rows, "source": setting.gradients.source}, gradients_file)
            command += ["--gradients", str(gradients_file)]
        command += ["--rank", str(setting.rank), "--dim", str(setting.dim)]
        command += ["--quick"] if arguments.quick else []
        command += ["--wanted"] if arguments.wanted else []
        command += ["--ops", *arguments.ops] if arguments.ops else []
        print(f"MFAC_CPU_ISA={isa}", flush=True)
        done = subprocess.run(
            command, env={**os.environ, "MFAC_CPU_ISA": isa}, capture_output=arguments.wanted, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{done.stderr or ''}\nThe process with MFAC_CPU_ISA={isa} failed.")
        return [Ratio(**ratio) for ratio in json.loads(ratios_file.read_text())]


def print_machine(setting: Setting) -> None:
    """The machine, and the ceilings that everything is held against."""
    print(describe_machine())
    _, rates = setting.time({}, READ, GEMM_SINGLE, GEMM_DOUBLE)
    print(
        f"{READ} {rates[READ] / 1e9:.1f} GB/s, {GEMM_SINGLE} {rates[GEMM_SINGLE] / 1e9:.0f} GFLOP/s, "
        f"{GEMM_DOUBLE} {rates[GEMM_DOUBLE] / 1e9:.0f} GFLOP/s",
        flush=True,
    )


def run_ops(setting: Setting, names: Sequence[str], quick: bool) -> list[Ratio]:
    """Every measurement asked for, a line each as it comes.

    Args:
        setting: Shapes and rounds.
        names: Of OPS, or "exponent".
        quick: Whether the exponent is fitted to fewer points.

    Returns:
        The ratios wanted.
    """
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
    return ratios(lines, over_rank, mfac.build_info()["isa_chosen"])


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
