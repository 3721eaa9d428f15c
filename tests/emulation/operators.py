"""Puts the CUDA twins, executed on the CPU, in the place of the operators that `mfac` calls."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emulation.build import build
from mfac.core import cuda_ops, ops

ON_THE_CPU_ONLY = {"prefer_huge_pages_"}
MADE_OF_ATEN = {"gram": cuda_ops.gram, "restricted_solve": cuda_ops.restricted_solve}


class CudaTwins:
    """torch.ops.mfac with the CUDA twin of every operator that has one."""

    def __getattr__(self, name: str) -> Any:
        if name in MADE_OF_ATEN:
            return MADE_OF_ATEN[name]
        return getattr(torch.ops.mfac if name in ON_THE_CPU_ONLY else torch.ops.mfac_emulated, name)


@contextmanager
def use_cuda_twins(sanitizer: str = "plain") -> Generator[None, None, None]:
    """Inside, `mfac` computes with the CUDA twins, built for a sanitizer.

    What kernels were launched, with which integer arguments, goes to the file that
    MFAC_SIMT_LAUNCHES names.
    """
    library = str(build(sanitizer))
    torch.ops.load_library(library)
    before = ops._ops
    ops._ops = CudaTwins()  # type: ignore[assignment]
    try:
        yield
    finally:
        ops._ops = before
        if report := os.environ.get("MFAC_SIMT_LAUNCHES"):
            launches = ctypes.CDLL(library).mfac_simt_launches
            launches.restype = ctypes.c_char_p
            Path(report).write_bytes(launches())
