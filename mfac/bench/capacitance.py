"""The inverse capacitance: a replaced row and a product, both O(m²)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mfac.bench.measurement import DAMPING, READ, Measurement, Setting
from mfac.bench.recurrence import DynamicRecurrence
from mfac.bench.timing import check, relative_error
from mfac.core import ops
from mfac.window.capacitance import InverseCapacitance


def capacitance(setting: Setting) -> list[Measurement]:
    """A replaced row of the inverse capacitance, against Cholesky and the paper's O(m³) rebuild.

    Args:
        setting: Shapes and rounds.

    Returns:
        A line each for `capacitance_replace_` in and out of cache, a refined solve, and the
        factorisation that is due every m replacements.
    """
    rank = 2 * setting.rank
    rows = setting.normal(rank, 2 * rank, dtype=torch.float64)
    matrix, shift = ops.gram(rows), rank * DAMPING
    full = matrix + shift * torch.eye(rank, dtype=torch.float64)
    inverse = torch.linalg.inv(full).contiguous()
    row = rows[rank // 2] = setting.normal(2 * rank, dtype=torch.float64)
    products = rows @ row
    ops.capacitance_replace_(inverse, matrix, rank // 2, products, shift)
    full = rows @ rows.T + shift * torch.eye(rank, dtype=torch.float64)
    check("capacitance_replace_", relative_error(inverse.tril(), torch.linalg.inv(full).tril()), 1e-11)
    kept = InverseCapacitance(rank, shift, torch.device("cpu"))
    kept.gram.copy_(full - shift * torch.eye(rank, dtype=torch.float64))
    kept.replaced = -1  # the first solve factors
    unit = torch.eye(1, rank, dtype=torch.float64)
    check("solve", relative_error(kept.solve(unit, shift)[0] @ full, unit[0]), 1e-12)
    paper = DynamicRecurrence(rows, DAMPING)
    triangle = 4.0 * rank**2
    functions: dict[str, Callable[[], object]] = {
        "replace": lambda: ops.capacitance_replace_(inverse, matrix, rank // 2, products, shift),
        "Cholesky": lambda: torch.linalg.cholesky(full),
        "solve": lambda: kept.solve(unit, shift),
        "Cholesky, solve": lambda: torch.cholesky_solve(unit.T, torch.linalg.cholesky(full)),
        "refactor": lambda: kept._refactor(shift),
    }
    seconds, rates = setting.time(functions, READ, rounds=3 * setting.rounds)
    # Above, after a read of other memory, everything is cold; here it may stay in cache.
    warm, _ = setting.time({"replace": functions["replace"]}, rounds=3 * setting.rounds)
    cholesky, _ = setting.time({"Cholesky": functions["Cholesky"]}, rounds=3 * setting.rounds)
    rebuild, _ = setting.time({"paper": paper.rebuild}, rounds=setting.slow_rounds)
    return [
        Measurement(
            "capacitance_replace_",  # read for a product, then read and written
            *(rank, 2 * rank, "float64", warm["replace"], 3 * triangle, rates[READ]),
            plain=cholesky["Cholesky"],
            paper=rebuild["paper"],
        ),
        Measurement(
            "the same, out of cache",
            *(rank, 2 * rank, "float64", seconds["replace"], 3 * triangle, rates[READ]),
            plain=seconds["Cholesky"],
        ),
        Measurement(  # a product with A, and a residual and a correction until one more does not help
            "capacitance_solve",
            *(rank, 2 * rank, "float64", seconds["solve"], 3 * triangle, rates[READ]),
            plain=seconds["Cholesky, solve"],
        ),
        Measurement(
            "factored anew, 1/m of it",
            *(rank, 2 * rank, "float64", seconds["refactor"] / rank, 3 * triangle / rank, rates[READ]),
        ),
    ]
