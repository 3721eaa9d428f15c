"""The worst relative errors against the dense definition in extended precision (tests/oracle.py).

    python -m bench.accuracy     about two minutes

Over m in {1, 7, 64, 300}, d in {1, 33, 4097}, blocks None, 32, 100, λ from 1e-6 to 1 and row norms
1e-3 to 10, for a random vector, the diagonal and the elements of eight columns. In float32 the
results are split at λ = 1e-6 ‖G‖²/m; below it, `refine=2` is measured too, on the hardest vector, a
row of G. The diagonal of wide windows, which may be computed in float32, is measured entry by
entry. `precondition` is measured with m > d and duplicate rows among the windows.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import torch
from torch import Tensor

import mfac
from mfac.bench.timing import describe_machine
from tests import oracle

RANKS, DIMS, BLOCK_SIZES = (1, 7, 64, 300), (1, 33, 4097), (None, 32, 100)
WIDE = ((16, 70_000), (256, 150_000))
DAMPINGS, NORMS = (1e-6, 1e-4, 1e-2, 1.0), (1e-3, 1e-1, 10.0)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def window(rank: int, dim: int, norm: float, dtype: torch.dtype, duplicates: bool = False) -> Tensor:
    rows = torch.randn(rank, dim, dtype=torch.float64)
    if duplicates:
        rows[rank // 2 :] = rows[: rank - rank // 2]
    return (rows * norm / rows.norm(dim=1, keepdim=True)).to(dtype)


def errors(grads: Tensor, damping: float, block_size: int | None) -> dict[str, float]:
    dim = grads.shape[1]
    fisher = mfac.EmpiricalFisher(grads, damping, block_size)
    v = torch.randn(dim, dtype=grads.dtype)
    some = torch.randint(dim, (8,))
    unit = torch.nn.functional.one_hot(some, dim).double()
    reference = oracle.ihvp(grads, torch.cat([v.double()[None], unit]), damping, block_size)
    columns, j = reference[1:], torch.randint(dim, (8,))
    largest = float(columns.abs().max())
    elements = fisher.inverse_element(some, j).double() - columns[torch.arange(8), j]
    diagonal = fisher.inverse_diagonal()[some].double() - columns[torch.arange(8), some]
    return {
        "ihvp": relative(fisher.ihvp(v), reference[0]),
        "inverse_diagonal": float(diagonal.abs().max()) / largest,
        "elements": float(elements.abs().max()) / largest,
    }


def static(worst: dict[str, tuple[float, str]]) -> None:
    for dtype, rank, dim, damping, norm in itertools.product(
        (torch.float64, torch.float32), RANKS, DIMS, DAMPINGS, NORMS
    ):
        grads = window(rank, dim, norm, dtype)
        hard = dtype == torch.float32 and oracle.condition(grads, damping) > 1e6
        kind = f"{str(dtype)[6:]}{', λ < 1e-6 ‖G‖²/m' if hard else ''}"
        where = f"m={rank} d={dim} λ={damping:g} ‖g‖={norm:g}"
        for block_size in BLOCK_SIZES:
            for name, error in errors(grads, damping, block_size).items():
                worst[f"{kind}: {name}"] = max(worst[f"{kind}: {name}"], (error, f"{where} B={block_size}"))
        if hard:
            expected = oracle.ihvp(grads, grads[0], damping)
            for refine in (0, 2):
                error = relative(mfac.ihvp(grads, grads[0], damping, refine=refine), expected)
                name = f"{kind}: ihvp of a row, refine={refine}"
                worst[name] = max(worst[name], (error, where))


def wide(worst: dict[str, tuple[float, str]]) -> None:
    """Every entry of the diagonal of windows wide enough to have it in float32, against float64."""
    for (rank, dim), damping, norm in itertools.product(WIDE, DAMPINGS, NORMS):
        grads = window(rank, dim, norm, torch.float32)
        rows = grads.double()
        capacitance = rows @ rows.T + rank * damping * torch.eye(rank, dtype=torch.float64)
        whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(capacitance), rows, upper=False)
        expected = (1 - whitened.square_().sum(0)) / damping
        error = float(((mfac.EmpiricalFisher(grads, damping).inverse_diagonal() - expected) / expected).abs().max())
        name = "float32, wide: inverse_diagonal, relative to each entry"
        worst[name] = max(worst[name], (error, f"m={rank} d={dim} λ={damping:g} ‖g‖={norm:g}"))


def dynamic(worst: dict[str, tuple[float, str]]) -> None:
    for dtype, rank, dim, damping, norm, duplicates in itertools.product(
        (torch.float64, torch.float32), (1, 7, 64), (1, 3, 33, 1000), DAMPINGS, NORMS, (False, True)
    ):
        rows = window(2 * rank, dim, norm, dtype, duplicates)
        window_of = mfac.GradientWindow(rank, dim, damping, dtype)
        for row in rows:
            window_of.push(row)
        expected = oracle.ihvp(window_of.rows, rows[-1], damping, num_terms=rank)
        where = f"m={rank} d={dim} λ={damping:g} ‖g‖={norm:g} duplicates={duplicates}"
        name = f"{str(dtype)[6:]}: precondition"
        worst[name] = max(worst[name], (relative(window_of.precondition(), expected), where))


def main() -> None:
    print(describe_machine())
    torch.manual_seed(0)
    worst: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))
    static(worst)
    wide(worst)
    dynamic(worst)
    for name, (error, where) in worst.items():
        print(f"{name:<55} {error:8.1e}  at {where}")


if __name__ == "__main__":
    main()
