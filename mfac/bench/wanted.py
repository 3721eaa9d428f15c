"""The ratios that the library is built to reach, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from mfac.bench.measurement import Measurement
from mfac.bench.sweep import Series


def wanted(lines: Sequence[Measurement], over_rank: Series | None, judged: bool = True) -> list[str]:
    """A line for each ratio: met, NOT met, not judged, or not measured.

    Args:
        lines: What was measured.
        over_rank: Steps over m at a small d.
        judged: Whether shapes are those that the ratios are meant for.

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
    ratios: list[tuple[str, float | None, str, float]] = [
        ("float32 step / two streaming reads", 1 / step["float32"].share if step else None, "<=", 1.2),
        ("bfloat16 step / float32 step", against("bfloat16"), "<=", 0.6),
        ("int8 step / float32 step", against("int8"), "<=", 0.4),
        ("top-k 1% step / float32 step", against("top-k 1%"), "<=", 0.15),
        ("Cholesky / capacitance_replace_", cholesky, ">=", 15),
        ("exponent in m of a step at small d", over_rank.exponent() if over_rank else None, "<=", 2.1),
        ("paper / factor", paper("factor"), ">=", 15),
        ("paper / factor + diagonal", paper("factor + diagonal"), ">=", 20),
        ("factor + diagonal, % of GEMM float32", 100 * both.share if both else None, ">=", 65),
        ("paper / block Fisher, all three", paper("block Fisher, all three"), ">=", 10),
    ]
    return [_line(*ratio, judged) for ratio in ratios]


def _line(name: str, value: float | None, relation: str, limit: float, judged: bool) -> str:
    wanted = f"{relation} {limit:g}"
    if value is None:
        return f"  {name:<40} {'-':>8}  {wanted:<8} not measured"
    met = value <= limit if relation == "<=" else value >= limit
    verdict = ("met" if met else "NOT met") if judged else "not judged"
    return f"  {name:<40} {value:>8.2f}  {wanted:<8} {verdict}"
