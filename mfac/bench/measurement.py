"""What is measured, against which ceilings, and the line that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mfac.bench.network import NetworkGradients, network_gradients
from mfac.bench.timing import medians

BLOCK_SIZE = 128
DAMPING = 1e-2  # the rows have norm 1
READ, GEMM_SINGLE, GEMM_DOUBLE = "streaming read", "GEMM float32", "GEMM float64"

_READ_BYTES = 1 << 28
_GEMM_SIZE = 1536


@dataclass
class Setting:
    """Shapes and rounds; the ceilings are timed in turn with whatever is held against them.

    Attributes:
        rank: m of the sliding windows; the static Fisher has half of it, the capacitance twice,
            blocks an eighth.
        dim: d.
        rounds: Times that a function is timed.
        slow_rounds: The same for plain torch and the paper's recurrences, after ours.
        network_width: Of the ResNet-20 whose gradients the static Fisher has.
        saved_gradients: A file of these, which another process has written.
    """

    rank: int
    dim: int
    rounds: int = 7
    slow_rounds: int = 1
    network_width: int = 16
    saved_gradients: Path | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normally distributed numbers, rows of norm about 1."""
        return torch.randn(*shape, dtype=dtype, generator=self.generator).div_(shape[-1] ** 0.5)

    @cached_property
    def gradients(self) -> NetworkGradients:
        """The window of the static Fisher, of half the rank."""
        if self.saved_gradients is not None:
            saved = torch.load(self.saved_gradients)
            return NetworkGradients(saved["rows"], saved["source"])
        steps = 100 if self.network_width > 8 else 20
        return network_gradients(max(1, self.rank // 2), self.network_width, steps)

    @cached_property
    def _read(self) -> Tensor:
        return torch.ones(_READ_BYTES // 4)

    @cached_property
    def _square(self) -> Tensor:
        return self.normal(_GEMM_SIZE, _GEMM_SIZE, dtype=torch.float64)

    @cached_property
    def _single(self) -> Tensor:
        return self._square.float()

    def time(
        self, functions: Mapping[str, Callable[[], object]], *ceilings: str, rounds: int | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Median seconds of functions timed in turn with ceilings.

        Args:
            functions: By name.
            *ceilings: READ, GEMM_SINGLE or GEMM_DOUBLE.
            rounds: Other than the setting's.

        Returns:
            Seconds of each function; of each ceiling its bytes or flops a second.
        """
        known: dict[str, tuple[float, Callable[[], object]]] = {
            READ: (_READ_BYTES, lambda: self._read.sum()),
            GEMM_SINGLE: (2 * _GEMM_SIZE**3, lambda: self._single @ self._single),
            GEMM_DOUBLE: (2 * _GEMM_SIZE**3, lambda: self._square @ self._square),
        }
        chosen = {name: known[name][1] for name in ceilings}
        seconds = medians({**functions, **chosen}, self.rounds if rounds is None else rounds)
        rates = {name: known[name][0] / seconds.pop(name) for name in ceilings}
        return seconds, rates


@dataclass(frozen=True)
class Measurement:
    """One line.

    Attributes:
        op: What was timed.
        rank: m.
        dim: d.
        dtype: Of the window, or its format.
        seconds: Median.
        work: Bytes read and written, or flops.
        ceiling: Bytes or flops a second that the machine has to give.
        unit: "GB/s" or "GFLOP/s".
        plain: Seconds of the composition of plain torch.
        paper: Seconds of the paper's recurrence.
    """

    op: str
    rank: int
    dim: int
    dtype: str
    seconds: float
    work: float
    ceiling: float
    unit: str = "GB/s"
    plain: float | None = None
    paper: float | None = None

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.work / self.seconds / self.ceiling

    def __str__(self) -> str:
        return (
            f"{self.op:<24} {self.rank:>5} {self.dim:>8} {self.dtype:<9} {self.seconds * 1e6:>12.1f} "
            f"{self.work / self.seconds / 1e9:>7.1f} {self.unit:<7} {100 * self.share:>6.1f} % "
            f"{_ratio(self.plain, self.seconds):>9} {_ratio(self.paper, self.seconds):>9}"
        )


HEADER = f"{'op':<24} {'m':>5} {'d':>8} {'dtype':<9} {'µs':>12} {'rate':>15} {'ceiling':>8} {'torch':>9} {'paper':>9}"


def _ratio(other: float | None, seconds: float) -> str:
    return "-" if other is None else f"{other / seconds:.2f} x"
