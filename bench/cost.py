"""The two costs that set mfac apart: factoring a static Fisher, and replacing a row of a sliding window.

python -m bench.cost
"""

from __future__ import annotations

import torch

import mfac
from mfac import ops
from mfac.bench.recurrence import StaticRecurrence
from mfac.bench.timing import check, describe_machine, medians
from mfac.capacitance import InverseCapacitance


def static_factor(rank: int = 256, dim: int = 272_474, damping: float = 1e-2) -> None:
    grads = torch.randn(rank, dim, generator=torch.Generator().manual_seed(0)) / dim**0.5
    v = torch.randn(dim, generator=torch.Generator().manual_seed(1))
    ours, paper = mfac.EmpiricalFisher(grads, damping), StaticRecurrence(grads, damping, with_diagonal=True)
    check(
        "ihvp", float((ours.ihvp(v) - paper.ihvp(v)).norm() / paper.ihvp(v).norm()), 1e-3
    )  # the paper's is in float32
    check("diagonal", float((ours.inverse_diagonal() - paper.diagonal).norm() / paper.diagonal.norm()), 1e-3)
    del ours, paper

    seconds = medians(
        {
            "mfac factor": lambda: mfac.EmpiricalFisher(grads, damping),
            "mfac factor + diagonal": lambda: mfac.EmpiricalFisher(grads, damping).inverse_diagonal(),
            "paper factor": lambda: StaticRecurrence(grads, damping),
            "paper factor + diagonal": lambda: StaticRecurrence(grads, damping, with_diagonal=True),
        }
    )
    print(f"static Fisher, m = {rank}, d = {dim}, float32")
    for name, value in seconds.items():
        print(f"  {name:<26} {value * 1e3:9.1f} ms")
    print(
        f"  paper / mfac, factor             {seconds['paper factor'] / seconds['mfac factor']:5.1f} x  (at least 15)"
    )
    both = seconds["paper factor + diagonal"] / seconds["mfac factor + diagonal"]
    print(f"  paper / mfac, factor + diagonal  {both:5.1f} x")


def replaced_row(rank: int = 1024, dim: int = 4096) -> None:
    rows = torch.randn(rank, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    window = mfac.GradientWindow(rank, dim, damping=1e-3, dtype=torch.float64)
    for row in rows:
        window.push(row)
    window.precondition()  # factors what the filling left to be factored
    capacitance, shift = InverseCapacitance(rank, 1.0), rank * 1e-3
    capacitance.gram.copy_(ops.gram(rows))
    products = capacitance.gram[:, 0].clone()
    capacitance.solve(products[None], shift)
    full = capacitance.gram + shift * torch.eye(rank, dtype=torch.float64)
    unit = torch.zeros(1, rank, dtype=torch.float64)
    unit[0, 0] = 1

    def push_beyond_its_pass() -> None:
        capacitance.replaced = 0  # the refactorisation every m pushes is timed by itself below
        capacitance.replace(0, products, shift)

    seconds = medians(
        {
            "replace a row of C⁻¹": push_beyond_its_pass,
            "float64 Cholesky of C": lambda: torch.linalg.cholesky(full),
            "solve with guard": lambda: capacitance.solve(unit, shift),
            "refactorisation": lambda: capacitance._refactor(shift),
            "pass over the window": lambda: ops.window_dot(window.rows, window.rows[:1]),
            "whole push": lambda: window.push(rows[0]),
        },
        rounds=31,
    )
    print(f"sliding window, m = {rank}, d = {dim}, float64")
    for name, value in seconds.items():
        print(f"  {name:<26} {value * 1e3:9.3f} ms")
    cholesky = seconds["float64 Cholesky of C"]
    amortised = seconds["replace a row of C⁻¹"] + seconds["refactorisation"] / rank
    print(
        f"  Cholesky / replace, with its share of refactorisation        {cholesky / amortised:5.1f} x  (at least 10)"
    )
    beyond = seconds["whole push"] - seconds["pass over the window"]
    print(f"  Cholesky / (whole push - pass over the window)               {cholesky / beyond:5.1f} x")


def main() -> None:
    print(describe_machine())
    static_factor()
    replaced_row()


if __name__ == "__main__":
    main()
