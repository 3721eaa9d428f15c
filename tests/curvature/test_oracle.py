"""The reference is tested too: refined solves against exact rational arithmetic."""

from fractions import Fraction

import oracle
import pytest
import torch
from samplers import normal, window


def solve_exactly(grads: torch.Tensor, v: torch.Tensor, damping: float) -> list[float]:
    """F⁻¹v by Gaussian elimination on fractions; F is positive definite, so no pivot is zero."""
    G = [[Fraction(float(x)) for x in row] for row in grads]
    rank, dim = len(G), len(G[0])
    F = [
        [sum(g[i] * g[j] for g in G) / rank + (Fraction(damping) if i == j else 0) for j in range(dim)]
        for i in range(dim)
    ]
    y = [Fraction(float(x)) for x in v]
    for i in range(dim):
        for j in range(dim):
            if j != i:
                ratio = F[j][i] / F[i][i]
                F[j] = [a - ratio * b for a, b in zip(F[j], F[i], strict=True)]
                y[j] -= ratio * y[i]
    return [float(y[i] / F[i][i]) for i in range(dim)]


@pytest.mark.parametrize(
    ("rank", "dim", "norm", "damping"), [(2, 5, 10.0, 1e-6), (6, 4, 10.0, 1e-6), (3, 3, 1e-3, 1.0)]
)
def test_reference_solve_is_as_right_as_it_says(rank: int, dim: int, norm: float, damping: float):
    G = window(rank, dim, norm)
    for v in (normal(dim, seed=1), G[0]):
        y = torch.tensor(solve_exactly(G, v, damping), dtype=torch.float64)
        assert (oracle.ihvp(G, v, damping) - y).norm() <= oracle.error_bound(oracle.condition(G, damping)) * y.norm()


def test_reference_inverse_inverts_the_dense_matrix():
    G = window(5, 23)
    for block_size in (None, 8, 100):
        product = oracle.inverse(G, 0.1, block_size) @ oracle.fisher(G, 0.1, block_size)
        # Entries are sums of 23 products below 1/λ · max F ~ 20: 23 · 20 · 1.1e-16 = 5e-14.
        torch.testing.assert_close(product, torch.eye(23, dtype=torch.float64), rtol=0, atol=5e-14)


def test_reference_logdet_is_that_of_the_dense_matrix():
    for rank, block_size in ((5, None), (40, None), (5, 8)):
        G = window(rank, 23)
        dense = float(torch.linalg.slogdet(oracle.fisher(G, 0.1, block_size)).logabsdet)
        assert oracle.logdet(G, 0.1, block_size) == pytest.approx(dense, rel=1e-13)


def test_condition_number_is_hardly_overestimated():
    for rank, dim in ((1, 9), (9, 1), (30, 40), (40, 30)):
        G = window(rank, dim)
        largest = float(torch.linalg.matrix_norm(G, ord=2)) ** 2
        exact = 1 + largest / (rank * 0.1)
        assert exact * (1 - 1e-12) <= oracle.condition(G, 0.1) <= exact * 1.06  # 40^(1/64)
