"""The definition F = λI + GᵀG/n, as a dense float64 matrix and as products in extended precision.

With B given, F is zero outside the diagonal blocks of B columns. Imports nothing of the library under test.

Condition numbers here reach 1e8, where a dense float64 solve is wrong in the eighth digit before the library is. So the
solves are refined against residuals of the definition in extended precision (numpy's longdouble) until they no longer move,
which makes them right to about float64's last digit.
"""

import numpy as np
import torch
from torch import Tensor

_EXTENDED = np.longdouble
_CONVERGED = 1e-15


def blocks(dim: int, block_size: int | None) -> list[slice]:
    """The columns of every block."""
    size = dim if block_size is None else min(block_size, dim)
    return [slice(begin, min(begin + size, dim)) for begin in range(0, dim, size)]


def fisher(grads: Tensor, damping: float, block_size: int | None = None, num_terms: float | None = None) -> Tensor:
    """F, [d, d] float64."""
    rank, dim = grads.shape
    G = grads.double()
    dense = torch.zeros(dim, dim, dtype=torch.float64)
    for block in blocks(dim, block_size):
        dense[block, block] = G[:, block].T @ G[:, block] / (num_terms or rank)
    return dense + damping * torch.eye(dim, dtype=torch.float64)


def relative_damping(grads: Tensor, scale: float, num_terms: float | None = None) -> float:
    """λ = scale · mean of diag((1/n) GᵀG)."""
    return scale * float((grads.double().square().sum(0) / (num_terms or grads.shape[0])).mean())


def condition(grads: Tensor, damping: float, num_terms: float | None = None) -> float:
    """κ = (λ + ‖G‖²/n)/λ, the condition number of F where m < d and a bound on it elsewhere."""
    norm = float(torch.linalg.matrix_norm(grads.double(), ord=2))
    return 1 + norm**2 / ((num_terms or grads.shape[0]) * damping)


def _multiply(G: np.ndarray, x: np.ndarray, damping: float, num_terms: float) -> np.ndarray:
    """Fx by the definition, in extended precision; x [d, k]."""
    return _EXTENDED(damping) * x + G.T @ (G @ x) / _EXTENDED(num_terms)


def _solve(G: np.ndarray, v: np.ndarray, damping: float, num_terms: float) -> np.ndarray:
    """F⁻¹v for v [d, k]: the spectral form in float64, refined by the definition."""
    _, singular, V = np.linalg.svd(G.astype(np.float64), full_matrices=False)
    shrink = 1 / (damping + singular**2 / num_terms) - 1 / damping

    def approximately(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64)
        return x / damping + V.T @ (shrink[:, None] * (V @ x))

    y = approximately(v).astype(_EXTENDED)
    for _ in range(12):
        step = approximately(v - _multiply(G, y, damping, num_terms))
        y += step
        if np.linalg.norm(step) <= _CONVERGED * np.linalg.norm(y.astype(np.float64)):
            return y
    raise AssertionError("The reference itself did not converge.")


def ihvp(grads: Tensor, v: Tensor, damping: float, block_size: int | None = None, num_terms: float | None = None) -> Tensor:
    """F⁻¹v for v [d] or [k, d]: float64, right to its last digits."""
    rank, dim = grads.shape
    vectors = v.reshape(-1, dim).numpy().T.astype(_EXTENDED)  # [d, k]
    y = np.empty(vectors.shape)
    for block in blocks(dim, block_size):
        G = grads[:, block].numpy().astype(_EXTENDED)
        y[block] = _solve(G, vectors[block], damping, num_terms or rank)
    return torch.from_numpy(y.T.copy()).reshape(v.shape)


def inverse(grads: Tensor, damping: float, block_size: int | None = None) -> Tensor:
    """F⁻¹, [d, d] float64."""
    return ihvp(grads, torch.eye(grads.shape[1], dtype=torch.float64), damping, block_size)


def matvec(grads: Tensor, v: Tensor, damping: float, block_size: int | None = None) -> Tensor:
    """Fv for v [d] or [k, d], float64."""
    rank, dim = grads.shape
    G, x = grads.double(), v.double().reshape(-1, dim)
    products = [(x[:, b] @ G[:, b].T) @ G[:, b] / rank for b in blocks(dim, block_size)]
    return (damping * x + torch.cat(products, dim=1)).reshape(v.shape)


def logdet(grads: Tensor, damping: float, block_size: int | None = None) -> float:
    """log det F, from the eigenvalues λ + σ²/m of every block."""
    total = 0.0
    for block in blocks(grads.shape[1], block_size):
        singular = torch.linalg.svdvals(grads[:, block].double())
        size = block.stop - block.start
        eigenvalues = torch.full((size,), damping, dtype=torch.float64)
        eigenvalues[: singular.numel()] += singular.square() / grads.shape[0]
        total += float(eigenvalues.log().sum())
    return total
