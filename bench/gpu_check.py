"""Everything that wants a GPU, one part after the other: `make gpu-check`, or `python -m bench.gpu_check [part ...]`.

build        the CUDA kernels for the GPU found, with the torch that is installed
tests        the whole suite with its tensors on the GPU, a few files at a time
sanitizers   compute-sanitizer's memcheck and racecheck over tests of operators
benchmark    python -m bench.gpu

Each part has its time. A line for each says how it ended; the exit status is 1 if one failed.
"""

from __future__ import annotations

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
TIME = {"build": 110, "tests": 220, "sanitizers": 90, "benchmark": 60}  # seconds
ON_GPU = {"MFAC_TEST_DEVICE": "cuda"}
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider")
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
        process.wait()
        raise PartError(f"did not end within {seconds:.0f} s: {' '.join(command[1:6])}") from late
    if process.returncode:
        raise PartError(f"exit status {process.returncode}\n{said[-16000:]}".rstrip())
    return said


def build() -> str:
    """Builds in place."""
    pip = ("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--editable", ".")
    run(*pip, seconds=TIME["build"], env={"MFAC_CUDA": "1"})
    return say("-c", FIND_KERNELS)


def tests() -> str:
    """Runs every file of tests, in as many processes at a time as there are processors, four at most."""
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


def sanitizers() -> str:
    """Runs tests of operators under compute-sanitizer, its checks restricted to kernels of our own."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    tool = shutil.which("compute-sanitizer", path=path)
    if tool is None:
        return "skipped: compute-sanitizer is neither on PATH nor in CUDA_HOME/bin"
    options = run("--help", program=tool, seconds=20)
    named = next((f"--{name}" for name in ("kernel-name", "kernel-regex") if f"--{name}" in options), None)
    ours = (named, "kns=mfac") if named else ()
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_ops*.py"))]
    for check in ("memcheck", "racecheck"):
        settings = ("--tool", check, "--error-exitcode", "86", *ours, sys.executable)
        env = {**ON_GPU, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # every tensor has its own end
        run(*settings, *PYTEST, *files, "-k", SMALL, program=tool, seconds=TIME["sanitizers"] / 2, env=env)
    return "memcheck and racecheck found nothing"


def benchmark() -> str:
    """Prints the lines of the benchmark."""
    print(run("-m", "bench.gpu", seconds=TIME["benchmark"]))
    return "every result was right before it was timed"


PARTS: Mapping[str, Callable[[], str]] = {
    "build": build,
    "tests": tests,
    "sanitizers": sanitizers,
    "benchmark": benchmark,
}


def say(*arguments: str) -> str:
    """The line that a short program prints."""
    try:
        return run(*arguments, seconds=60).strip()
    except PartError as failed:
        raise PartError(str(failed).splitlines()[-1]) from failed


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        print(f"gpu-check: parts are {', '.join(PARTS)}. Found {', '.join(unknown)}.")
        return 2
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
            outcome = PARTS[name]()
        except PartError as failed:
            status, outcome = 1, f"FAILED: {failed}"
        print(f"{name:<10} {time.monotonic() - started:4.0f} s  {outcome}", flush=True)
        if status and name == "build":
            break
    return status


if __name__ == "__main__":
    sys.exit(main())
