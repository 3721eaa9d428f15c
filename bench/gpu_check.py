"""All checks that need a GPU, in turn: `make gpu-check`, or `python -m bench.gpu_check [part ...]`.

build        the CUDA kernels for the GPU found, in place, with the torch that is installed
values       every kernel at small shapes against float64 (python -m bench.gpu --quick)
benchmark    python -m bench.gpu
tests        the whole suite with its tensors on the GPU, a few files at a time
sanitizers   compute-sanitizer's memcheck and racecheck over tests of operators

What says most about the kernels comes first. Each part has its time. A line for each says how it
ended; the exit status is 1 if one failed. With --dry-run every part goes as far as it can without a
GPU, and says what it would run there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIME = {"build": 140, "values": 40, "benchmark": 70, "tests": 220, "sanitizers": 90}  # seconds
# Of pytest's plugins only Hypothesis's: warnings are errors here, those of other plugins too.
ON_GPU = {"MFAC_TEST_DEVICE": "cuda", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin")
BUILD = ("setup.py", "build_ext", "--inplace")  # no pip: it may want a network, or to build in isolation
NEEDED = ("setuptools", "ninja", "pybind11", "numpy", "torch", "pytest", "hypothesis")
SMALL = "values and (33 or layout1 or layout4) and not every and not long"  # layouts of sparse rows
FIND_GPU = """
import torch
if not torch.cuda.is_available():
    raise SystemExit(f"torch {torch.__version__} finds no GPU.")
major, minor = torch.cuda.get_device_capability()
print(f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, torch {torch.__version__}")
"""
FIND_KERNELS = """
import mfac
info = mfac.build_info()
if info["cuda_toolkit"] is None:
    raise SystemExit("The extension has no CUDA part: build it with MFAC_CUDA=1, as the part `build` does.")
print(f"CUDA {info['cuda_toolkit']}, kernels for {', '.join(info['cuda_architectures'])}")
"""


VERSIONS = """
import importlib, sys
from importlib.metadata import version
for name in sys.argv[1:]:
    importlib.import_module(name)
if int(version("setuptools").split(".")[0]) < 77:
    raise SystemExit(f"setuptools is {version('setuptools')}, which cannot read pyproject.toml: 77 can.")
print(", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))
"""


class PartError(Exception):
    """A part that failed, and why."""


def run(*arguments: str, seconds: float, program: str = sys.executable, env: Mapping[str, str] | None = None) -> str:
    """What a program printed, in the repository's root.

    Raises:
        PartError: If it ended with an error, or did not end in time.
    """
    command = [program, *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)  # what it has started too: compilers, or the program that is checked
        said, _ = process.communicate()  # what it had printed
        raise PartError(
            f"did not end within {seconds:.0f} s: {' '.join(command[1:6])}\n{said[-4000:]}".rstrip()
        ) from late
    if process.returncode:
        raise PartError(f"exit status {process.returncode}\n{said[-16000:]}".rstrip())
    return said


def build() -> str:
    """Builds in place."""
    run(*BUILD, seconds=TIME["build"], env={"MFAC_CUDA": "1"})
    return say("-c", FIND_KERNELS)


def values() -> str:
    """Checks every kernel once, at small shapes, before anything takes long."""
    print(run("-m", "bench.gpu", "--quick", seconds=TIME["values"]), flush=True)
    return "every result was right"


def tests() -> str:
    """Runs every file of tests, in a process for each processor at a time, but in four at most."""
    deadline = time.monotonic() + TIME["tests"]

    def one(path: Path) -> str | PartError:
        try:
            said = run(*PYTEST, str(path), seconds=deadline - time.monotonic(), env=ON_GPU)
            return next(line for line in reversed(said.splitlines()) if " in " in line)
        except PartError as failed:
            return PartError(f"{path.name}: {failed}")

    files = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(one, files))
    if failures := [outcome for outcome in outcomes if isinstance(outcome, PartError)]:
        raise PartError("\n".join(map(str, failures)))
    passed = sum(int(line.split(" passed")[0].split()[-1]) for line in outcomes if " passed" in str(line))
    return f"{passed} tests passed in {len(files)} files"


def sanitizer() -> tuple[str | None, tuple[str, ...]]:
    """Where compute-sanitizer is, and the options that restrict it to mfac's own kernels."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    tool = shutil.which("compute-sanitizer", path=path)
    if tool is None:
        return None, ()
    options = run("--help", program=tool, seconds=20)
    named = next((f"--{name}" for name in ("kernel-name", "kernel-regex") if f"--{name}" in options), None)
    return tool, (named, "kns=mfac") if named else ()


def sanitizers() -> str:
    """Runs tests of operators under compute-sanitizer, with checks of mfac's own kernels alone."""
    tool, ours = sanitizer()
    if tool is None:
        return "skipped: compute-sanitizer is neither on PATH nor in CUDA_HOME/bin"
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_ops*.py"))]
    for check in ("memcheck", "racecheck"):
        settings = ("--tool", check, "--error-exitcode", "86", *ours, sys.executable)
        env = {**ON_GPU, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor has its own end
        run(*settings, *PYTEST, *files, "-k", SMALL, program=tool, seconds=TIME["sanitizers"] / 2, env=env)
    return "memcheck and racecheck found nothing"


def benchmark() -> str:
    """Prints the lines of the benchmark."""
    print(run("-m", "bench.gpu", seconds=TIME["benchmark"]), flush=True)
    return "every result was right before it was timed"


def dry_build() -> str:
    """Builds as on a GPU's machine, for the architecture in the environment or else for 90."""
    versions = say("-c", VERSIONS, *NEEDED)
    env = {"MFAC_CUDA": "1", "MFAC_CUDA_ARCHITECTURES": os.environ.get("MFAC_CUDA_ARCHITECTURES", "90")}
    named = " ".join(f"{name}={value}" for name, value in env.items())
    print(f"{sys.executable}, {versions}\nwould run: MFAC_CUDA=1 {' '.join(BUILD)}; now runs with {named}", flush=True)
    run(*BUILD, seconds=10 * TIME["build"], env=env)
    return say("-c", FIND_KERNELS)


def dry_values() -> str:
    """Runs the benchmark's code on the CPU, at small shapes."""
    lines = run("-m", "bench.gpu", "--device", "cpu", "--quick", seconds=3 * TIME["values"]).splitlines()
    return f"would run: -m bench.gpu --quick; on the CPU it printed {len(lines)} lines"


def dry_benchmark() -> str:
    """Parses the benchmark's arguments."""
    run("-m", "bench.gpu", "--help", seconds=60)
    return "would run: -m bench.gpu"


def collect(*arguments: str) -> str:
    """Collects tests as on a GPU, or on the CPU with a CPU build of torch; pytest's last line."""
    fake = "cuda" if say("-c", "import torch; print(torch.version.cuda)") != "None" else "cpu"
    plugin = ("-p", "bench.fake_gpu") if fake == "cuda" else ()
    env = {**ON_GPU, "MFAC_TEST_DEVICE": fake}
    said = run(*PYTEST, *plugin, "--collect-only", *arguments, seconds=TIME["tests"], env=env)
    return f"for {fake} {next(line for line in reversed(said.splitlines()) if ' collected' in line)}"


def dry_tests() -> str:
    """Collects the tests: their arguments are made on a GPU that is missing, without values."""
    return f"would run: MFAC_TEST_DEVICE=cuda {' '.join(PYTEST)} FILE; {collect('tests')}"


def dry_sanitizers() -> str:
    """Collects the tests for compute-sanitizer, and tries its options where it is installed."""
    tool, ours = sanitizer()
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_ops*.py"))]
    found = f"{tool} {' '.join(ours)}" if tool else "compute-sanitizer, which is not here"
    return f"would run: {found}; {collect(*files, '-k', SMALL)}"


PARTS: Mapping[str, Callable[[], str]] = {
    "build": build,
    "values": values,
    "benchmark": benchmark,
    "tests": tests,
    "sanitizers": sanitizers,
}
DRY_PARTS: Mapping[str, Callable[[], str]] = {
    "build": dry_build,
    "values": dry_values,
    "benchmark": dry_benchmark,
    "tests": dry_tests,
    "sanitizers": dry_sanitizers,
}


def say(*arguments: str) -> str:
    """The line that a short program prints."""
    try:
        return run(*arguments, seconds=60).strip()
    except PartError as failed:
        raise PartError(str(failed).splitlines()[-1]) from failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check")
    parser.add_argument("part", nargs="*", help=f"some of {', '.join(PARTS)}; all where none is named")
    parser.add_argument("--dry-run", action="store_true", help="every step up to the first kernel, without a GPU")
    arguments = parser.parse_args()
    names = arguments.part or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"gpu-check: parts are {', '.join(PARTS)}. Found {', '.join(unknown)}.")
        return 2
    parts = DRY_PARTS if arguments.dry_run else PARTS
    if not arguments.dry_run:
        try:
            print(say("-c", FIND_GPU), flush=True)
            if "build" not in names:
                print(say("-c", FIND_KERNELS), flush=True)
        except PartError as failed:
            print(f"gpu-check: {failed}")
            return 1
    status = 0
    for name in names:
        started = time.monotonic()
        try:
            outcome = parts[name]()
        except PartError as failed:
            status, outcome = 1, f"FAILED: {failed}"
        print(f"{name:<10} {time.monotonic() - started:4.0f} s  {outcome}", flush=True)
        if status and name == "build":
            break
    return status


if __name__ == "__main__":
    sys.exit(main())
