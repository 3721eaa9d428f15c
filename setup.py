"""Builds mfac._C: one shared object on torch's stable ABI, with or without a CUDA part.

Everything else about the package stands in pyproject.toml. Environment:
    MFAC_CUDA=0|1|auto   the CUDA part: never, always, or where it can be used (default): a toolkit
                         is there, and a GPU, a CUDA build of torch or MFAC_CUDA_ARCHITECTURES as
                         well.
    CUDA_HOME            the toolkit's own folder, the one with include/cuda_runtime.h.
    MFAC_CUDA_ARCHITECTURES   some of those in CUDA_ARCHITECTURES, as 80,90; otherwise that of the
                         GPU found, or all.
    MFAC_WERROR=1        a warning of nvcc is an error. CI sets it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

ROOT = Path(__file__).parent
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has parallel_for
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")  # supported; the one list of them
WARNINGS_ARE_ERRORS = os.environ.get("MFAC_WERROR") == "1"
CUDA_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Icsrc", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def find_cuda_toolkit() -> Path | None:
    """The folder of the CUDA toolkit to build with, or None where the CUDA part is left out."""
    wanted = os.environ.get("MFAC_CUDA", "auto")
    if wanted not in {"0", "1", "auto"}:
        raise SystemExit(f"Environment variable MFAC_CUDA should be 0, 1 or auto. Found {wanted!r}.")
    if wanted == "0":
        return None
    toolkit = next((path for path in toolkit_candidates() if is_toolkit(path)), None)
    if wanted == "1" and toolkit is None:
        raise SystemExit("MFAC_CUDA=1, but no CUDA toolkit was found. Set CUDA_HOME to its folder.")
    if wanted == "auto" and toolkit is not None and not cuda_is_usable():
        print(
            f"mfac is built without CUDA kernels: there is a toolkit in {toolkit}, but no GPU, and torch "
            f"{torch.__version__} is a CPU build. MFAC_CUDA=1 builds them."
        )
        return None
    return toolkit


def toolkit_candidates() -> Iterator[Path]:
    """Folders that may be a toolkit's own: named ones, that of nvcc on PATH, the usual one."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if folder := os.environ.get(name):
            yield Path(folder)
    if nvcc := shutil.which("nvcc"):
        yield Path(nvcc).resolve().parent.parent
        # It may be a script that calls another one, which says where it lies.
        dry_run = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", "unused.o"]
        said = subprocess.run(dry_run, capture_output=True, text=True, check=False)
        if top := re.search(r"^#\$ TOP=(.+)$", said.stdout + said.stderr, re.MULTILINE):
            yield Path(top.group(1).strip()).resolve()
    yield Path("/usr/local/cuda")


def is_toolkit(folder: Path) -> bool:
    """Whether a folder has a compiler and the runtime's headers."""
    return all((folder / part).exists() for part in ("include/cuda_runtime.h", "bin/nvcc"))


def cuda_is_usable() -> bool:
    """Whether CUDA kernels are wanted: a GPU, a CUDA build of torch, or named architectures."""
    return bool(os.environ.get("MFAC_CUDA_ARCHITECTURES") or torch.version.cuda or present_capabilities())


def present_capabilities() -> list[str]:
    """Compute capabilities of the GPUs that nvidia-smi lists, as "90"."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return sorted({name.replace(".", "") for name in re.findall(r"^\d+\.\d+$", said, re.MULTILINE)}, key=int)


def cuda_architectures(toolkit: Path) -> list[str]:
    """Compute capabilities to compile for: requested ones, the GPU's, or all that nvcc knows."""
    codes = subprocess.check_output([toolkit / "bin" / "nvcc", "--list-gpu-code"], text=True).split()
    known = [name for name in CUDA_ARCHITECTURES if f"sm_{name}" in codes]
    wanted = os.environ.get("MFAC_CUDA_ARCHITECTURES")
    if wanted:
        found = wanted.replace(";", ",").split(",")
        if unknown := [name for name in found if name not in known]:
            raise SystemExit(
                f"Environment variable MFAC_CUDA_ARCHITECTURES should name some of {','.join(known)}. "
                f"Found {','.join(unknown)}."
            )
        return found
    if found := [name for name in present_capabilities() if name in known]:
        return found
    if missing := [name for name in CUDA_ARCHITECTURES if name not in known]:
        print(f"The CUDA toolkit in {toolkit} does not know compute capability {', '.join(missing)}: left out.")
    if not known:
        raise SystemExit(
            f"The CUDA toolkit in {toolkit} knows none of {', '.join(CUDA_ARCHITECTURES)}. Set MFAC_CUDA=0."
        )
    return known


def sources(pattern: str) -> list[str]:
    """Files of csrc/ that match, relative to here."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


def is_up_to_date(target: Path, depends: Path, command: list[str]) -> bool:
    """Whether the target is newer than all that it was made from, and was made by this command."""
    record = target.with_suffix(".command")
    if not (target.exists() and depends.exists() and record.exists()) or record.read_text() != " ".join(command):
        return False
    inputs = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return all(Path(p).exists() and Path(p).stat().st_mtime <= target.stat().st_mtime for p in inputs)


def compile_cuda(toolkit: Path, source: str, architectures: list[str]) -> str:
    """The object of one .cu file; the compiler's notes on registers and spills lie beside it."""
    target = ROOT / "build" / "cuda" / f"{Path(source).stem}.o"
    depends = target.with_suffix(".d")
    generate = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    generate.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")  # for later GPUs
    command = [str(toolkit / "bin" / "nvcc"), *CUDA_FLAGS, *generate, "-MMD", "-MF", str(depends)]
    command += ["-c", source, "-o", str(target)]
    if not is_up_to_date(target, depends, command):
        target.parent.mkdir(parents=True, exist_ok=True)
        outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        said = outcome.stdout + outcome.stderr
        warned = "warning" in said
        if outcome.returncode or (warned and WARNINGS_ARE_ERRORS):
            target.unlink(missing_ok=True)
            raise SystemExit(f"{' '.join(command)}\n{said}")
        if warned:
            print(said)
        target.with_suffix(".log").write_text(said)
        target.with_suffix(".command").write_text(" ".join(command))
    return str(target)


def add_cuda(extension: Extension, toolkit: Path) -> None:
    """The CUDA twins: adapters, kernels for every architecture, and the static runtime."""
    architectures = cuda_architectures(toolkit)
    version = re.search(
        r"release (\d+\.\d+)", subprocess.check_output([toolkit / "bin" / "nvcc", "--version"], text=True)
    )
    assert version is not None
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = pool.map(lambda source: compile_cuda(toolkit, source, architectures), sources("*.cu"))
        extension.extra_objects += list(objects)
    extension.sources += sources("*_cuda_op.cpp")
    extension.define_macros += [
        ("MFAC_CUDA_TOOLKIT", version.group(1)),
        ("MFAC_CUDA_ARCHITECTURES", ",".join(architectures)),
    ]
    extension.library_dirs += [str(toolkit / name) for name in ("lib64", "lib") if (toolkit / name).exists()]
    extension.libraries += ["cudart_static", "dl", "rt", "pthread"]


def make_extension() -> Extension:
    """mfac._C without its CUDA part."""
    major, minor = OLDEST_TORCH
    return Extension(
        "mfac._C",
        sources=[name for name in sources("*.cpp") if not name.endswith("_cuda_op.cpp")],
        depends=[
            "pyproject.toml",
            "setup.py",
            *(name for kind in ("h", "inl", "cu", "cuh") for name in sources(f"*.{kind}")),
        ],
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_paths(),
        libraries=["torch_cpu"],
        define_macros=[
            ("TORCH_STABLE_ONLY", None),
            ("TORCH_TARGET_VERSION", f"{(major << 56) | (minor << 48):#018x}"),
            ("MFAC_OLDEST_TORCH", f"{major}.{minor}"),
        ],
        extra_compile_args=[
            *(f"-isystem{path}" for path in [pybind11.get_include(), *include_paths()]),
            *["-std=c++20", "-O3", "-g0", "-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden"],
        ],
        language="c++",
    )


class Build(BuildExtension):
    """Compiles the CUDA part first, where it is wanted."""

    def build_extensions(self) -> None:
        self.force = True  # ninja knows what is out of date; a change of MFAC_CUDA at least links anew
        self.extensions[0].define_macros.append(("MFAC_VERSION", self.distribution.get_version()))
        toolkit = find_cuda_toolkit()
        if toolkit:
            add_cuda(self.extensions[0], toolkit)
        super().build_extensions()


if __name__ == "__main__":
    setup(ext_modules=[make_extension()], cmdclass={"build_ext": Build})
