"""The definition F = λI + GᵀG/n, as a dense float64 matrix and as products in extended precision.

With B given, F is zero outside the diagonal blocks of B columns. Imports nothing of the library
under test.

Condition numbers here reach 1e8, where a dense float64 solve is wrong in the eighth digit before
the library is. So the solves are refined against residuals of the definition in extended precision
(numpy's longdouble, 64 bits of mantissa on x86). What is left is the error of those residuals,
amplified by the condition number: `error_bound`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_EXTENDED = np.longdouble
_EPS = float(np.finfo(_EXTENDED).eps)


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
    """κ = (λ + ‖G‖²/n)/λ, the condition number of F where m < d and a bound on it elsewhere.

    The value is hardly too large.

    ‖K‖ <= ‖K³²‖_F^(1/32) <= r^(1/64) ‖K‖ for a Gram matrix K of rank r: r^(1/64) is 1.1 at
    r = 1000.
    """
    G = grads.double()
    power = G @ G.T if G.shape[0] < G.shape[1] else G.T @ G
    trace = float(power.trace())
    if trace == 0:
        return 1.0
    power /= trace
    for _ in range(5):
        power = power @ power
    return 1 + trace * float(power.norm()) ** (1 / 32) / ((num_terms or G.shape[0]) * damping)


def error_bound(kappa: float) -> float:
    """Relative error of `ihvp` at condition number κ: float64 rounding, and κ extended ones."""
    return 2e-15 + 16 * _EPS * kappa


def _multiply(G: np.ndarray, x: np.ndarray, damping: float, num_terms: float) -> np.ndarray:
    """Fx by the definition, in extended precision; x [d, k]."""
    return _EXTENDED(damping) * x + G.T @ (G @ x) / _EXTENDED(num_terms)


def _approximate_inverse(G: Tensor, damping: float, num_terms: float) -> Callable[[np.ndarray], np.ndarray]:
    """x -> about F⁻¹x in float64. Neither form need be trusted: the refinement settles the value.

    Through G = UΣVᵀ it is off by about u·κ, whereas with C⁻¹ the refinement does not converge on
    every CPU.
    """
    if G.shape[0] >= G.shape[1]:
        dense = torch.linalg.inv(fisher(G, damping, num_terms=num_terms)).cpu().numpy()
        return lambda x: dense @ x
    _, sigma, Vt = torch.linalg.svd(G, full_matrices=False)
    scale, vt = (damping + sigma.square() / num_terms).cpu().numpy()[:, None], Vt.cpu().numpy()

    def apply(x: np.ndarray) -> np.ndarray:
        coordinates = vt @ x
        return vt.T @ (coordinates / scale) + (x - vt.T @ coordinates) / damping

    return apply


def _solve(G: Tensor, v: np.ndarray, damping: float, num_terms: float) -> np.ndarray:
    """F⁻¹v for v [d, k]: a float64 solve, refined by the definition until steps stop shrinking."""
    approximately = _approximate_inverse(G.double(), damping, num_terms)
    extended = G.cpu().numpy().astype(_EXTENDED)
    y, before = np.zeros_like(v), np.inf
    for _ in range(20):
        residual = v - _multiply(extended, y, damping, num_terms)
        step = approximately(residual.astype(np.float64))
        length = np.linalg.norm(step)
        if not length < before / 2:
            break
        y, before = y + step, length
    kappa = 1 + float(G.double().norm()) ** 2 / (num_terms * damping)
    assert before <= error_bound(kappa) * np.linalg.norm(y.astype(np.float64)), "The reference itself did not converge."
    return y


def ihvp(
    grads: Tensor, v: Tensor, damping: float, block_size: int | None = None, num_terms: float | None = None
) -> Tensor:
    """F⁻¹v for v [d] or [k, d]: float64, right to `error_bound`."""
    rank, dim = grads.shape
    vectors = v.reshape(-1, dim).cpu().numpy().T.astype(_EXTENDED)  # [d, k]
    y = np.empty(vectors.shape)
    for block in blocks(dim, block_size):
        y[block] = _solve(grads[:, block], vectors[block], damping, num_terms or rank)
    return torch.from_numpy(y.T.copy()).to(v.device).reshape(v.shape)


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
