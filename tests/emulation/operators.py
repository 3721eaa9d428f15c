"""Puts the CUDA twins, executed on the CPU, in the place of the operators that `mfac` calls."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from emulation.build import build
from mfac import cuda_ops, ops

ON_THE_CPU_ONLY = {"prefer_huge_pages_"}
MADE_OF_ATEN = {"gram": cuda_ops.gram}


class CudaTwins:
    """torch.ops.mfac with the CUDA twin of every operator that has one."""

    def __getattr__(self, name: str) -> Any:
        if name in MADE_OF_ATEN:
            return MADE_OF_ATEN[name]
        return getattr(torch.ops.mfac if name in ON_THE_CPU_ONLY else torch.ops.mfac_emulated, name)


def load(sanitizer: str = "plain") -> CudaTwins:
    """The operators, built for a sanitizer and loaded."""
    torch.ops.load_library(str(build(sanitizer)))
    return CudaTwins()


@contextmanager
def use_cuda_twins(sanitizer: str = "plain") -> Generator[None, None, None]:
    """Inside, `mfac` computes with the CUDA twins."""
    before = ops._ops
    ops._ops = load(sanitizer)  # type: ignore[assignment]
    try:
        yield
    finally:
        ops._ops = before
