"""What holds for every static Fisher, whatever its values."""

import oracle
import pytest
import torch
from rounding import U, entry_error, relative_error
from samplers import SHAPES, normal, window

import mfac

F32, F64 = torch.float32, torch.float64
DAMPING = 0.1
# Rows have norm 1, so κ <= 1 + 1/λ = 11. Two ways to the same value differ by a few sums of up to
# 300 terms: 4·300·u·κ.
BOUND = 4 * 300 * U[F64] * 11

every_window = pytest.mark.parametrize(("kind", "rank", "dim"), SHAPES)
every_form = pytest.mark.parametrize("block_size", [None, 4, 40])


def fisher(kind: str, rank: int, dim: int, block_size: int | None) -> mfac.EmpiricalFisher:
    return mfac.EmpiricalFisher(window(rank, dim, kind=kind), DAMPING, block_size)


@every_form
@every_window
def test_inverse_is_symmetric_with_a_positive_diagonal(kind: str, rank: int, dim: int, block_size: int | None):
    F = fisher(kind, rank, dim, block_size)
    whole = F.inverse_submatrix(torch.arange(dim), torch.arange(dim))
    assert entry_error(whole, whole.T, whole) <= BOUND
    assert bool((F.inverse_diagonal() > 0).all())
    assert bool((torch.linalg.eigvalsh(whole) > 0).all())


@every_form
@every_window
def test_ways_to_an_entry_agree(kind: str, rank: int, dim: int, block_size: int | None):
    F = fisher(kind, rank, dim, block_size)
    whole = F.ihvp(torch.eye(dim, dtype=F64))
    index = torch.arange(dim)
    assert entry_error(F.inverse_diagonal(), whole.diagonal(), whole) <= BOUND
    assert entry_error(F.inverse_submatrix(index, index), whole, whole) <= BOUND
    assert entry_error(F.inverse_element(index, index.flip(0)), whole[index, index.flip(0)], whole) <= BOUND


@every_form
@every_window
def test_product_with_the_inverse_is_undone_by_the_product_and_linear(
    kind: str, rank: int, dim: int, block_size: int | None
):
    F = fisher(kind, rank, dim, block_size)
    v, w = normal(dim, seed=1), normal(dim, seed=2)
    assert relative_error(F.matvec(F.ihvp(v)), v) <= BOUND
    assert relative_error(F.ihvp(F.matvec(v)), v) <= BOUND
    assert relative_error(F.ihvp(2 * v - 3 * w), 2 * F.ihvp(v) - 3 * F.ihvp(w)) <= BOUND


@every_form
@every_window
def test_order_of_the_rows_does_not_matter(kind: str, rank: int, dim: int, block_size: int | None):
    G, v = window(rank, dim, kind=kind), normal(dim)
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(3))
    one, other = (mfac.EmpiricalFisher(rows, DAMPING, block_size) for rows in (G, G[order]))
    assert relative_error(other.ihvp(v), one.ihvp(v)) <= BOUND
    assert float(other.logdet()) == pytest.approx(float(one.logdet()), rel=BOUND, abs=BOUND * dim)


@every_form
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("rank", "dim"), [(9, 300), (40, 30)])
def test_many_vectors_agree_with_one_at_a_time(rank: int, dim: int, dtype: torch.dtype, block_size: int | None):
    F = mfac.EmpiricalFisher(window(rank, dim, dtype=dtype), DAMPING, block_size)
    for count in (0, 1, 3, 8, 9, 40):
        V = normal(count, dim, dtype=dtype)
        for many, one in ((F.ihvp(V), F.ihvp), (F.matvec(V), F.matvec)):
            assert many.shape == V.shape and many.dtype == dtype
            for row, v in zip(many, V, strict=True):
                assert relative_error(row, one(v).double()) <= BOUND + 2 * U[dtype]


@pytest.mark.parametrize(("rank", "dim"), [(1, 5), (9, 300), (300, 9), (30, 30)])
def test_a_block_of_the_whole_dimension_is_the_full_fisher(rank: int, dim: int):
    G, v = window(rank, dim), normal(dim)
    full = mfac.EmpiricalFisher(G, DAMPING)
    for block_size in (dim, dim + 1, 10 * dim):
        F = mfac.EmpiricalFisher(G, DAMPING, block_size)
        assert F.block_size == block_size
        assert torch.equal(F.ihvp(v), full.ihvp(v))
        assert torch.equal(F.inverse_diagonal(), full.inverse_diagonal())
        assert torch.equal(F.logdet(), full.logdet())


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(("rank", "dim"), [(1, 5), (9, 300), (64, 20_000), (30, 9)])
def test_stored_columns_change_no_value(rank: int, dim: int, dtype: torch.dtype):
    G = window(rank, dim, dtype=dtype)
    stored, computed = (mfac.EmpiricalFisher(G, DAMPING, store_columns=choice) for choice in (True, False))
    i, j = torch.arange(0, dim, 3), torch.arange(0, dim, 3).flip(0)
    diagonal = computed.inverse_diagonal()
    tolerance = BOUND + 2 * U[dtype]
    assert entry_error(stored.inverse_diagonal(), diagonal.double(), diagonal) <= tolerance
    assert entry_error(stored.inverse_element(i, j), computed.inverse_element(i, j).double(), diagonal) <= tolerance
    few = stored.inverse_submatrix(i[:50], j[:70])
    assert entry_error(few, computed.inverse_submatrix(i[:50], j[:70]).double(), diagonal) <= tolerance


@every_form
def test_indices_may_be_negative_integers_of_any_width_and_any_shape(block_size: int | None):
    F = mfac.EmpiricalFisher(window(9, 30), DAMPING, block_size)
    index = torch.arange(30)
    whole = F.inverse_submatrix(index, index)
    i, j = torch.tensor([[0, -1], [5, 29]]), torch.tensor([[-30, 3], [6, 29]])
    assert F.inverse_element(3, -1).shape == ()
    assert entry_error(F.inverse_element(3, -1), whole[3, 29], whole) <= BOUND
    for dtype in (torch.int8, torch.int32, torch.int64):
        assert entry_error(F.inverse_element(i.to(dtype), j.to(dtype)), whole[i, j], whole) <= BOUND
    none = torch.empty(0, dtype=torch.int64)
    assert F.inverse_element(none, none).shape == (0,)
    assert F.inverse_submatrix(none, index).shape == (0, 30)
    twice = torch.tensor([4, 4, -1])
    assert entry_error(F.inverse_submatrix(twice, index), whole[twice], whole) <= BOUND


def test_entries_across_blocks_are_exactly_zero():
    F = mfac.EmpiricalFisher(window(9, 30), DAMPING, 4)
    far = F.inverse_submatrix(torch.arange(0, 4), torch.arange(4, 30))
    assert not far.any()
    assert not F.inverse_element(3, 4)
    assert F.inverse_element(3, 2)


@every_form
@every_window
def test_relative_damping_is_the_mean_of_the_diagonal(kind: str, rank: int, dim: int, block_size: int | None):
    G, v = window(rank, dim, 3.0, kind=kind), normal(dim)
    F = mfac.EmpiricalFisher(G, mfac.relative(0.25), block_size)
    damping = oracle.relative_damping(G, 0.25)
    assert F.damping == pytest.approx(damping, rel=300 * U[F64])  # sums of up to 257 terms
    assert relative_error(F.ihvp(v), mfac.EmpiricalFisher(G, damping, block_size).ihvp(v)) <= BOUND * dim
    scaled = mfac.EmpiricalFisher(8 * G, mfac.relative(0.25), block_size)  # a power of two: every step scales exactly
    assert torch.equal(64 * scaled.ihvp(v), F.ihvp(v))


@every_form
@every_window
def test_no_argument_is_modified(kind: str, rank: int, dim: int, block_size: int | None):
    G, v = window(rank, dim, kind=kind), normal(3, dim)
    before, vectors = G.clone(), v.clone()
    F = mfac.EmpiricalFisher(G, mfac.relative(0.1), block_size, store_columns=True)
    first = F.ihvp(v, refine=1)
    F.matvec(v)
    F.inverse_diagonal()
    index = torch.arange(dim)
    F.inverse_element(index, index)
    F.inverse_submatrix(index, index)
    F.logdet()
    mfac.ihvp(G, v, DAMPING, block_size)
    assert torch.equal(G, before) and torch.equal(v, vectors)
    assert torch.equal(F.ihvp(v, refine=1), first)  # nor is anything inside


@every_form
def test_one_call_is_the_class(block_size: int | None):
    G, v = window(9, 30), normal(2, 30)
    assert torch.equal(mfac.ihvp(G, v, 0.5, block_size), mfac.EmpiricalFisher(G, 0.5, block_size).ihvp(v))


def test_attributes_and_detached_results():
    G = window(9, 30).requires_grad_()
    F = mfac.EmpiricalFisher(G, 0.5, 4)
    assert (F.rank, F.dim, F.damping, F.block_size) == (9, 30, 0.5, 4)
    assert not F.ihvp(normal(30).requires_grad_()).requires_grad


@pytest.mark.parametrize("block_size", [None, 8])
def test_diagonal_stays_positive_where_the_subtraction_cancels(block_size):
    F = mfac.EmpiricalFisher(torch.eye(3, 9, dtype=torch.float64) * 30, 1e-15, block_size)
    # e_0 is a row: F_00 = λ + 30²/3, and F is diagonal.
    torch.testing.assert_close(F.inverse_diagonal()[:3], torch.full((3,), 1 / 300.0, dtype=torch.float64))
