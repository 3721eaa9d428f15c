"""The ratios that the library aims for, beside measured ones with every instruction set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mfac.bench.measurement import Measurement
from mfac.bench.sweep import Series


@dataclass(frozen=True)
class Ratio:
    """One ratio.

    Attributes:
        name: What is divided by what.
        value: As measured; None if it was not.
        relation: "<=" or ">=".
        limit: The mark.
    """

    name: str
    value: float | None
    relation: str
    limit: float

    @property
    def missed_by(self) -> float:
        """By how many per cent of the mark it is missed; 0 if it is met or was not measured."""
        if self.value is None:
            return 0.0
        off = self.value / self.limit - 1 if self.relation == "<=" else 1 - self.value / self.limit
        return max(0.0, 100 * off)

    def as_dict(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)


def ratios(lines: Sequence[Measurement], over_rank: Series | None, isa: str) -> list[Ratio]:
    """The ratios wanted.

    Args:
        lines: What was measured.
        over_rank: Steps over m at a small d.
        isa: The instruction set that was used. With AVX2 conversions cost more, so the marks of
            compressed rows and of the static Fisher are lower.

    Returns:
        In the order of the table.
    """
    found = {(line.op, line.dtype): line for line in lines}
    step = {line.dtype: line for line in lines if line.op == "push + precondition"}
    wide = isa == "avx512"

    def against(dtype: str) -> float | None:
        return step[dtype].seconds / step["float32"].seconds if step else None

    def paper(op: str) -> float | None:
        line = found.get((op, "float32"))
        return line.paper / line.seconds if line and line.paper else None

    replace, both = found.get(("capacitance_replace_", "float64")), found.get(("factor + diagonal", "float32"))
    cholesky = replace.plain / replace.seconds if replace and replace.plain else None
    return [
        Ratio("float32 step / two streaming reads", 1 / step["float32"].share if step else None, "<=", 1.2),
        Ratio("bfloat16 step / float32 step", against("bfloat16"), "<=", 0.6 if wide else 0.62),
        Ratio("int8 step / float32 step", against("int8"), "<=", 0.4 if wide else 0.42),
        Ratio("top-k 1% step / float32 step", against("top-k 1%"), "<=", 0.15),
        Ratio("Cholesky / capacitance_replace_", cholesky, ">=", 15),
        Ratio("exponent in m of a step at small d", over_rank.exponent() if over_rank else None, "<=", 2.1),
        Ratio("paper / factor + diagonal, network", paper("factor + diagonal"), ">=", 12 if wide else 7),
        Ratio("factor + diagonal, network, % of GEMM", 100 * both.share if both else None, ">=", 65),
        Ratio("paper / factor + diagonal, noise", paper("factor + diagonal, noise"), ">=", 12 if wide else 7),
        Ratio("paper / block Fisher, all three", paper("block Fisher, all three"), ">=", 10),
    ]


def table(measured: Mapping[str, Sequence[Ratio]]) -> list[str]:
    """One table of the ratios over instruction sets; a ratio that misses its mark says by how much.

    Args:
        measured: The ratios by the instruction set's name.

    Returns:
        Lines of text.
    """
    lines = [f"{'ratio':<40}" + "".join(f" {isa:>28}" for isa in measured)]
    for of_each in zip(*measured.values(), strict=True):
        lines.append(f"{of_each[0].name:<40}" + "".join(f" {_cell(ratio):>28}" for ratio in of_each))
    missed = sum(ratio.missed_by > 0 for found in measured.values() for ratio in found)
    return [*lines, f"{missed} missed" if missed else "none missed"]


def _cell(ratio: Ratio) -> str:
    wanted = f"({ratio.relation} {ratio.limit:g})"
    if ratio.value is None:
        return f"not measured {wanted}"
    miss = f"MISSED by {ratio.missed_by:.0f} % " if ratio.missed_by else ""
    return f"{miss}{ratio.value:.2f} {wanted}"
