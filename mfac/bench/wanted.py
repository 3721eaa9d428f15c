"""The ratios that the library is built to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from mfac.bench.measurement import Measurement
from mfac.bench.sweep import Series


def wanted(lines: Sequence[Measurement], over_rank: Series | None) -> list[str]:
    """A line for each ratio: met, NOT met, or not measured.

    Args:
        lines: What was measured.
        over_rank: Steps over m at a small d.

    Returns:
        Text.
    """
    found = {(line.op, line.dtype): line for line in lines}
    step = {line.dtype: line for line in lines if line.op == "push + precondition"}

    def against(dtype: str) -> float | None:
        return step[dtype].seconds / step["float32"].seconds if step else None

    def paper(op: str) -> float | None:
        line = found.get((op, "float32"))
        return line.paper / line.seconds if line and line.paper else None

    replace, both = found.get(("capacitance_replace_", "float64")), found.get(("factor + diagonal", "float32"))
    cholesky = replace.plain / replace.seconds if replace and replace.plain else None
    return [
        _line("float32 step / two streaming reads", 1 / step["float32"].share if step else None, most=1.2),
        _line("bfloat16 step / float32 step", against("bfloat16"), most=0.6),
        _line("int8 step / float32 step", against("int8"), most=0.4),
        _line("top-k 1% step / float32 step", against("top-k 1%"), most=0.15),
        _line("Cholesky / capacitance_replace_", cholesky, least=15),
        _line("exponent in m of a step at small d", over_rank.exponent() if over_rank else None, most=2.1),
        _line("paper / factor", paper("factor"), least=15),
        _line("paper / factor + diagonal", paper("factor + diagonal"), least=20),
        _line("factor + diagonal, % of GEMM float32", 100 * both.share if both else None, least=65),
        _line("paper / block Fisher, all three", paper("block Fisher, all three"), least=10),
    ]


def _line(name: str, value: float | None, most: float | None = None, least: float | None = None) -> str:
    limit = f"<= {most:g}" if most is not None else f">= {least:g}"
    if value is None:
        return f"  {name:<40} {'-':>8}  {limit:<8} not measured"
    met = value <= most if most is not None else least is not None and value >= least
    return f"  {name:<40} {value:>8.2f}  {limit:<8} {'met' if met else 'NOT met'}"
