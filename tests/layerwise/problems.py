"""Correlated layers, and dense definitions of what solvers are held against."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor


def correlated(rows: int, columns: int, seed: int, samples: int = 2048) -> tuple[Tensor, Tensor]:
    """XᵀX/n of inputs with a decaying spectrum, and a weight; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = torch.linspace(1, 0.02, columns, dtype=torch.float64)
    x = (normal(samples, columns) * decay) @ normal(columns, columns) / columns**0.5 + 0.3 * normal(samples, columns)
    return x.T @ x / samples, normal(rows, columns)


def published_sweep(weight: Tensor, hessian: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """SparseGPT's column loop as published, on a given mask: weights and Σ((w - q)/U_jj)²."""
    w, upper = weight.clone(), torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    losses = torch.zeros((), dtype=torch.float64)
    for j in range(w.shape[1]):
        q = w[:, j] * kept[:, j]
        error = (w[:, j] - q) / upper[j, j]
        losses += error.square().sum()
        w[:, j:] -= error[:, None] * upper[j, j:]
        w[:, j] = q
    return w, losses


def best_on(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """The normal equations of each row on what it keeps."""
    found = torch.zeros_like(weight)
    for row, mask in enumerate(kept):
        if mask.any():
            found[row, mask] = torch.linalg.solve(hessian[mask][:, mask], (weight[row] @ hessian)[mask])
    return found


def greedy(weight: Tensor, hessian: Tensor) -> tuple[list[int], list[float]]:
    """The order in which one row loses its weights, by trying each and solving anew."""
    columns = len(weight)
    gone: list[int] = []
    losses = []
    last = 0.0
    while len(gone) < columns:
        best = None
        for candidate in [j for j in range(columns) if j not in gone]:
            kept = torch.ones(1, columns, dtype=torch.bool)
            kept[0, [*gone, candidate]] = False
            delta = best_on(weight[None], hessian, kept) - weight
            loss = float((delta @ hessian * delta).sum())
            if best is None or loss < best[1] - 1e-12:
                best = (candidate, loss)
        assert best is not None
        gone.append(best[0])
        losses.append(best[1] - last)
        last = best[1]
    return gone, losses


def best_support(weight: Tensor, hessian: Tensor, kept: int) -> float:
    """The least error of one row over all masks of so many weights."""
    columns = len(weight)
    least = float("inf")
    for chosen in combinations(range(columns), kept):
        mask = torch.zeros(1, columns, dtype=torch.bool)
        mask[0, list(chosen)] = True
        delta = best_on(weight[None], hessian, mask) - weight
        least = min(least, float((delta @ hessian * delta).sum()))
    return least
