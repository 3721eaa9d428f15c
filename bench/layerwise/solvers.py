"""Solvers of single layers: errors on correlated inputs, and times beside published loops."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import mfac
from mfac.layerwise.hessian import Hessian
from mfac.layerwise.matrix_pattern import MatrixPattern
from mfac.layerwise.solver import SOLVERS
from mfac.masks.patterns import resolve_pattern

ROWS, COLUMNS, SPARSITY = 64, 256, 0.7
MARKS = {"sparsegpt": 0.063, "sparsegpt, refit": 0.049, "exact_obs": 0.041, "alps": 0.041}


def correlated(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """XᵀX/n of inputs that share a few strong directions, as those of trained networks, and W."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shared = normal(4 * columns, columns // 8) @ normal(columns // 8, columns) / (columns // 8) ** 0.5
    x = shared + 0.5 * normal(4 * columns, columns)
    return x.T @ x / len(x), normal(rows, columns)


def errors(seeds: int = 5) -> None:
    """Relative errors at 70 %, a mean over layers, and what the prototypes reached."""
    print(f"{ROWS} x {COLUMNS} at {SPARSITY:.0%}, relative error, mean of {seeds} layers")
    for method in SOLVERS:
        for refit in (False, True):
            if refit and method in ("alps", "exact_obs"):
                continue
            found = []
            for seed in range(seeds):
                hessian, weight = correlated(ROWS, COLUMNS, seed)
                found.append(mfac.solve_layer(hessian, weight, SPARSITY, method=method, refit=refit).error)  # type: ignore[arg-type]
            name = f"{method}, refit" if refit else method
            print(f"  {name:<18} {statistics.fmean(found):.4f}   mark {MARKS.get(name, '')}")


def published_sparsegpt(weight: Tensor, hessian: Tensor, sparsity: float, width: int = 128) -> Tensor:
    """SparseGPT's loop in plain torch, float32, as its paper and script describe it."""
    w, h = weight.clone(), hessian.clone()
    columns = w.shape[1]
    h.diagonal().add_(0.01 * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for begin in range(0, columns, width):
        end = min(begin + width, columns)
        part, square = w[:, begin:end].clone(), upper[begin:end, begin:end]
        errors_ = torch.zeros_like(part)
        scores = part.square() / square.diagonal().square()
        bound = scores.flatten().sort().values[int(scores.numel() * sparsity)]
        dropped = scores <= bound
        for j in range(end - begin):
            q = part[:, j].clone()
            q[dropped[:, j]] = 0
            error = (part[:, j] - q) / square[j, j]
            part[:, j:] -= error[:, None] @ square[j : j + 1, j:]
            part[:, j] = q
            errors_[:, j] = error
        w[:, begin:end] = part
        w[:, end:] -= errors_ @ upper[begin:end, end:]
    return w


def published_exact_obs(weight: Tensor, inverse: Tensor, steps: int) -> Tensor:
    """ExactOBS's loop in plain torch, float32, for a batch of rows, each with its own inverse."""
    w = weight.clone()
    rows, columns = w.shape
    inverses = inverse.expand(rows, columns, columns).clone()
    alive = torch.ones_like(w, dtype=torch.bool)
    row = torch.arange(rows)
    for _ in range(steps):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        scores = (w.square() / diagonal).masked_fill(~alive, torch.inf)
        p = scores.argmin(1)
        column, pivot = inverses[row, :, p], diagonal[row, p]
        w -= column * (w[row, p] / pivot)[:, None]
        alive[row, p] = False
        w.masked_fill_(~alive, 0)
        column = column / pivot.sqrt()[:, None]
        inverses.baddbmm_(column[:, :, None], column[:, None, :], alpha=-1)
        inverses[row, p, p] = 1.0
    return w


def speed() -> None:
    """A 1024 x 4096 layer at half its weights: ours beside the published loops, medians."""
    rows, columns = 1024, 4096
    hessian, weight = correlated(rows, columns, 0, torch.float32)
    pattern = MatrixPattern.of(resolve_pattern("unstructured"), rows, columns, 1, 0.5)
    # The solver alone, as the published loop reports no error of the layer either.
    ours = _median(lambda: SOLVERS["sparsegpt"](Hessian(hessian), weight.double(), pattern, None), 3)
    theirs = _median(lambda: published_sparsegpt(weight, hessian, 0.5), 3)
    print(f"sparsegpt, {rows} x {columns}: {ours:.2f} s, the published loop in float32 {theirs:.2f} s, "
          f"{theirs / ours:.1f} times as long (3 wanted)")  # fmt: skip
    # Of ExactOBS a few rows and steps: whole rows of the published loop take minutes each.
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    inverse = torch.linalg.inv(damped).contiguous()
    few, steps = 2, 40
    theirs = _median(lambda: published_exact_obs(weight[:few], inverse.float(), steps), 1) / few / steps * columns
    none = torch.zeros(few, columns, dtype=torch.bool)
    whole = weight[:few].double().contiguous()
    ours = _median(lambda: torch.ops.mfac.obs_eliminate(whole, inverse, none, columns, 0, 0), 1) / few
    print(f"exact_obs, a row of {columns}: {ours:.2f} s, the published loop {theirs:.1f} s (from {steps} steps), "
          f"{theirs / ours:.1f} times as long (5 wanted)")  # fmt: skip


def _median(function: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
