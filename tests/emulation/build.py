"""Builds the CUDA twins for execution on the CPU, as torch.ops.mfac_emulated.

`python tests/emulation/build.py [plain|address|thread|bytes]` prints the path of the library; what
is up to date is left as it is. With a sanitizer, kernels are instrumented and the library has to be
loaded into a process that has preloaded the sanitizer's runtime (`environment`). With `bytes` they
count what they move (`moved.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
EMULATION = Path(__file__).parent
SANITIZERS = {
    "plain": ["-O2"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
    "bytes": ["-O1", "-fsanitize=thread", "-DMFAC_COUNT_BYTES"],  # with bytes.cpp for the sanitizer's runtime
}
RUNTIMES = {"plain": [], "address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so"], "bytes": []}
COMMON = ["-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-fvisibility=hidden", f"-I{CSRC}"]
# Kernels keep each operation's own rounding, and their fibers' thread-local variables need no call.
KERNEL = ["-x", "c++", f"-I{EMULATION}", "-ffp-contract=off", "-ftls-model=initial-exec"]
ADAPTER = [
    *["-O1", "-Wno-psabi", "-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
    *["-DMFAC_EMULATED", "-DMFAC_LIBRARY=mfac_emulated", *(f"-isystem{path}" for path in include_paths())],
]


def compile_one(source: Path, target: Path, flags: list[str]) -> Path:
    """The object of a source, compiled again only where something it includes is newer."""
    depends = target.with_suffix(".d")
    if target.exists() and depends.exists():
        inputs = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        if all(Path(p).exists() and Path(p).stat().st_mtime < target.stat().st_mtime for p in [*inputs, __file__]):
            return target
    target.parent.mkdir(parents=True, exist_ok=True)
    command = ["g++", *COMMON, *flags, "-MMD", "-MF", str(depends), "-c", str(source), "-o", str(target)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{outcome.stderr}")
    return target


def link(objects: list[Path], target: Path, flags: list[str]) -> Path:
    """The shared library of these objects and, by flags, other libraries."""
    if not target.exists() or any(o.stat().st_mtime > target.stat().st_mtime for o in objects):
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        subprocess.run(["g++", "-shared", *map(str, objects), *flags, "-o", str(unfinished)], check=True)
        unfinished.replace(target)
    return target


def build(sanitizer: str = "plain") -> Path:
    """The library with kernels built for one sanitizer, or "plain"."""
    folder = ROOT / "build" / "emulation"
    flags = SANITIZERS[sanitizer]
    adapters = [CSRC / "schemas.cpp", *sorted(CSRC.rglob("*_cuda_op.cpp"))]
    kernels = [EMULATION / "report.cpp", *sorted(CSRC.rglob("*.cu"))]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(compile_one, s, folder / "adapters" / f"{s.stem}.o", ADAPTER) for s in adapters]
        jobs += [pool.submit(compile_one, s, folder / sanitizer / f"{s.stem}.o", [*KERNEL, *flags]) for s in kernels]
        if sanitizer == "bytes":
            # Not instrumented, but the emulation's classes are those of instrumented code.
            hooks = [*KERNEL, "-O2", "-DMFAC_COUNT_BYTES", "-D__SANITIZE_THREAD__"]
            jobs.append(pool.submit(compile_one, EMULATION / "bytes.cpp", folder / sanitizer / "bytes.o", hooks))
        objects = [job.result() for job in jobs]
    torch = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu"]
    runtime = [] if sanitizer == "bytes" else flags
    return link(objects, folder / sanitizer / "libmfac_emulated.so", [*runtime, *torch])


def build_planted(sanitizer: str) -> Path:
    """A library of kernels with faults."""
    folder = ROOT / "build" / "emulation" / sanitizer
    flags = SANITIZERS[sanitizer]
    planted = compile_one(EMULATION / "planted.cpp", folder / "planted.o", [*KERNEL, *flags])
    return link([planted], folder / "libplanted.so", flags)


def environment(sanitizer: str) -> dict[str, str]:
    """What a process that loads the library needs in its environment."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in RUNTIMES[sanitizer]
    ]
    return {
        "MFAC_TEST_KERNELS": sanitizer,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0,abort_on_error=0",
        "TSAN_OPTIONS": "exitcode=66,halt_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
