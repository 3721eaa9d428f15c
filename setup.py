"""Builds mfac._C: one shared object on torch's stable ABI, with or without a CUDA part.

Everything else about the package stands in pyproject.toml. Environment:
    MFAC_CUDA=0|1|auto   the CUDA part: never, required, or where a toolkit is found (default).
    CUDA_HOME            the toolkit's own folder, the one with include/cuda_runtime.h.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

ROOT = Path(__file__).parent
OLDEST_TORCH = (2, 10)  # the first whose stable ABI has parallel_for


def find_cuda_toolkit() -> Path | None:
    """The folder of a CUDA toolkit that can compile, or None. A GPU is not needed."""
    wanted = os.environ.get("MFAC_CUDA", "auto")
    if wanted not in {"0", "1", "auto"}:
        raise SystemExit(f"Environment variable MFAC_CUDA should be 0, 1 or auto. Found {wanted!r}.")
    if wanted == "0":
        return None
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    for candidate in candidates:
        if candidate and (Path(candidate) / "include" / "cuda_runtime.h").exists():
            return Path(candidate)
    if wanted == "1":
        raise SystemExit("MFAC_CUDA=1, but no CUDA toolkit was found. Set CUDA_HOME to its folder.")
    return None


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))


def extension() -> Extension:
    toolkit = find_cuda_toolkit()
    if toolkit and os.environ.get("MFAC_CUDA") == "1":
        raise SystemExit("MFAC_CUDA=1, but this version of mfac has no CUDA kernels yet. Use MFAC_CUDA=auto or 0.")
    major, minor = OLDEST_TORCH
    return Extension(
        "mfac._C",
        sources=[name for name in sources("*.cpp") if not name.endswith("_cuda_op.cpp")],
        depends=sorted(str(path) for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".inl", ".cu", ".cuh"}),
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


setup(ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
