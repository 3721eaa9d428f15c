"""Values of the block-diagonal operators against dense float64 blocks."""

import oracle
import pytest
import torch
from rounding import U, assert_sums_agree, entry_error, relative_error
from samplers import KINDS, normal, window

from mfac.core import ops

F32, F64 = torch.float32, torch.float64
DIMS = (1, 3, 4, 5, 31, 32, 33, 257, 1000)
RANKS = (3, 1, 4, 9, 33, 70)
BLOCK_SIZES = (1, 4, 7, 32, 70, 5000)  # dual, primal, both in one matrix, and wider than the matrix
DAMPING = 0.1


def assert_blocks_are_right(G: torch.Tensor, block_size: int) -> None:
    rank, dim = G.shape
    v = normal(2, dim, seed=5)
    factors, failed = ops.block_factor(G, block_size, DAMPING, float(rank))
    order = min(rank, block_size, dim)
    assert factors.shape == (-(-dim // block_size), order, order)
    assert torch.equal(failed, torch.full_like(failed, -1))

    # Rows have norm 1, so κ <= 1 + 1/λ = 11. Here and in the dense reference, factors and solves of
    # an order up to 1000 are made of sums of as many terms, each of which may lose terms·u·κ; of
    # random sign, they add up to √1000 of one.
    bound = 4 * 1000**0.5 * U[F64] * 11
    inverse = torch.linalg.inv(oracle.fisher(G, DAMPING, block_size))
    found = ops.block_ihvp(G, factors, v, block_size, DAMPING, float(rank))
    assert relative_error(found, v @ inverse) <= bound
    diagonal = ops.block_inverse_diagonal(G, factors, block_size, DAMPING, float(rank))
    assert entry_error(diagonal, inverse.diagonal(), inverse) <= bound

    wide = G.double().abs()
    product = ops.block_matvec(G, v, block_size, DAMPING, float(rank))
    absolute = oracle.matvec(wide, v.abs(), DAMPING, block_size)
    assert_sums_agree(product, oracle.matvec(G, v, DAMPING, block_size), rank + min(block_size, dim) + 2, absolute)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_block_values(dim: int, dtype: torch.dtype):
    # Every block size meets every dimension; ranks take turns, so that each meets narrower and
    # wider blocks.
    for number, block_size in enumerate(BLOCK_SIZES):
        for rank in (RANKS[number], RANKS[(number + 3) % len(RANKS)]):
            assert_blocks_are_right(window(rank, dim, dtype=dtype, seed=rank), block_size)


@pytest.mark.parametrize("kind", KINDS)
def test_block_values_of_every_kind_of_window(kind: str):
    for rank, block_size in ((5, 40), (37, 10), (20, 21)):
        assert_blocks_are_right(window(rank, 131, dtype=F32, kind=kind), block_size)


@pytest.mark.parametrize("order", [31, 32, 33, 64, 65, 130])
def test_block_values_on_both_sides_of_a_tile(order: int):
    # dual, and in the same matrix a last block that is primal and of a smaller order
    assert_blocks_are_right(window(order, 3 * order + 9, dtype=F32), order + 5)
    assert_blocks_are_right(window(order + 3, 2 * order + 1), order)  # primal, and a last block of one column


@pytest.mark.parametrize(("rank", "dim"), [(1026, 1030), (1030, 1026)])
def test_block_values_of_an_order_beyond_shared_memory(rank: int, dim: int):
    assert_blocks_are_right(window(rank, dim, dtype=F32), dim)


def test_block_diagonal_of_more_blocks_than_have_scratch():
    rank, block_size = 66, 67
    G = window(rank, 200 * block_size)
    factors, _ = ops.block_factor(G, block_size, DAMPING, float(rank))
    found = ops.block_inverse_diagonal(G, factors, block_size, DAMPING, float(rank)).view(-1, block_size)
    for number in (0, 191, 192, 199):
        columns = G[:, number * block_size : (number + 1) * block_size].contiguous()
        factor = factors[number : number + 1].contiguous()
        alone = ops.block_inverse_diagonal(columns, factor, block_size, DAMPING, float(rank))
        assert torch.equal(found[number], alone)


def test_block_factor_holds_the_upper_factor_of_each_block():
    G = window(5, 11)
    factors, _ = ops.block_factor(G, 4, DAMPING, 5.0)  # 4 < m: primal
    upper = factors[1]
    assert torch.equal(upper, upper.triu())
    # Entries below 1: about 10 u.
    torch.testing.assert_close(upper.T @ upper, oracle.fisher(G[:, 4:8], DAMPING), rtol=0, atol=1e-15)
    factors, _ = ops.block_factor(G, 6, DAMPING, 5.0)  # 5 < 6: dual; the last block, of 5 columns, is primal
    K = G[:, :6] @ G[:, :6].T + 5 * DAMPING * torch.eye(5, dtype=F64)
    upper = factors[0]
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, K, rtol=0, atol=3e-15)
    upper = factors[1]
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, oracle.fisher(G[:, 6:], DAMPING), rtol=0, atol=1e-15)


def test_block_factor_reports_the_failing_pivot_of_each_block():
    # Both rows are 2³⁰ in column 0: once nλ is rounded away the second pivot is 2⁶⁰ - (2³⁰)² = 0.
    G = torch.zeros(2, 9, dtype=F64)
    G[:, 0] = 2.0**30
    _, failed = ops.block_factor(G, 3, 1e-9, 2.0)
    assert failed.tolist() == [1, -1, -1]
    G[0, 8] = float("nan")
    _, failed = ops.block_factor(G, 3, 1e-9, 2.0)
    assert failed.tolist() == [1, -1, 0]


@pytest.mark.parametrize("form", ["dual", "primal"])
@pytest.mark.parametrize("first, second", [(0, 64), (3, 70), (66, 70)])
def test_block_factor_reports_a_failing_pivot_in_the_second_tile(form: str, first: int, second: int):
    # Two of the matrix's columns are 2³⁰ in the same place, the others unit vectors elsewhere: as
    # above.
    G = torch.eye(80, 90, dtype=F64)
    if form == "primal":
        G = G.T.contiguous()
    along = G if form == "dual" else G.T
    along[[first, second]] = 0
    along[[first, second], 85] = 2.0**30
    factors, failed = ops.block_factor(G, max(G.shape), 1e-9, 1.0)
    assert failed.tolist() == [second]
    assert torch.equal(factors[0, :first, :first], factors[0, :first, :first].diag().diag())
