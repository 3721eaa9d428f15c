"""Windows in 16 and 8 bits and of sparse rows: exactly the Fisher of the rows as stored."""

import re

import oracle
import pytest
import torch
from compressed import (
    BF16,
    F16,
    F32,
    F64,
    FORMATS,
    INT8,
    SOME,
    SPARSE,
    assert_same_state,
    gradients,
    made,
)
from device import push, refusal
from rounding import U, relative_error
from samplers import normal

import mfac

# (m, d): narrower than a tile of scales, several tiles, two blocks of a sparse row; as high as wide
# and higher.
SHAPES = [(5, 300), (9, 2500), (4, 20_001), (33, 33), (40, 17)]


def assert_exact_for_the_stored_rows(W: mfac.GradientWindow) -> None:
    """K, precondition, ihvp and matvec against float64 references of `W.rows`."""
    G = W.rows.double()
    K = W.capacitance.gram.tril()
    # Sums of d terms on either side, in float64; an int8 tile's scales add two roundings.
    bound = 2 * (W.dim + 4) * U[F64] * (G.abs() @ G.abs().T)
    assert bool(((K - (G @ G.T).tril()).abs() <= bound).all())

    u, kappa = U[W.vector_dtype], oracle.condition(G, W.damping, W.num_terms)
    if W.newest is not None:
        # As for windows that are not compressed: the rounding of the result and (m + d)·u·κ^1.5
        # from the solve (tests/window/test_window.py, precondition_bound).
        found, expected = W.precondition(), oracle.ihvp(G, G[W.newest], W.damping, num_terms=W.num_terms)
        assert found.dtype == W.vector_dtype and found.shape == (W.dim,)
        assert relative_error(found, expected) <= 2 * u + min(1e-4, (W.rank + W.dim) * U[F64] * kappa**1.5)
    held = G if W.normalize == "rank" else G[torch.tensor(W.ring.written_by) >= 0]
    F, v = mfac.EmpiricalFisher(held, W.damping), normal(2, W.dim, seed=1, dtype=W.vector_dtype)
    # Both lose at most about u·κ, in sums of m and d terms; results are rounded to the vectors'
    # dtype.
    bound = 2 * u + (W.rank + W.dim) * U[F64] * kappa
    for product in ("ihvp", "matvec"):
        found = getattr(W, product)(v)
        assert found.dtype == v.dtype and found.shape == v.shape
        assert relative_error(found, getattr(F, product)(v.double())) <= bound
        assert relative_error(getattr(W, product)(v[1]), found[1].double()) <= 2 * bound


@pytest.mark.parametrize(("rank", "dim"), SHAPES)
@pytest.mark.parametrize(("dtype", "density"), FORMATS)
def test_values_are_exact_for_the_rows_as_stored(dtype: torch.dtype, density: float, rank: int, dim: int):
    W = made(rank, dim, dtype, density)
    for i, g in enumerate(gradients(W, rank + 3), start=1):
        W.push(g)
        if i in {1, rank + 3}:  # while it fills, and past wrap-around
            assert_exact_for_the_stored_rows(W)
    if rank > 1:
        W.remove((W.newest + 1) % rank)
        assert_exact_for_the_stored_rows(W)
    W.remove(W.newest)
    assert W.num_filled == rank - 2 and W.newest is None
    assert_exact_for_the_stored_rows(W)
    W.push(gradients(W, 1, seed=9)[0])
    assert_exact_for_the_stored_rows(W)


@pytest.mark.parametrize("normalize", ["rank", "filled"])
@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_values_of_other_dampings_and_divisors(dtype: torch.dtype, density: float, normalize: str):
    for damping in (1e-6, mfac.relative(0.1)):
        W = made(5, 400, dtype, density, damping=damping, normalize=normalize)
        for g in gradients(W, 8):
            W.push(g)
            assert_exact_for_the_stored_rows(W)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_rows_of_16_bits_are_torchs_rounding(dtype: torch.dtype):
    W = made(3, 500, dtype, 1.0)
    G = gradients(W, 5)
    for g in G:
        W.push(g)
    assert W.rows.dtype == dtype
    assert torch.equal(W.rows[torch.tensor(W.ring.written_by).argsort()], G[-3:].to(dtype))


def test_rows_of_int8_and_of_sparse_windows_are_dense_floats():
    for dtype, density in ((INT8, 1.0), *SPARSE, (F16, 0.1)):
        W = made(3, 1500, dtype, density, pushes=4)
        assert W.rows.dtype == W.vector_dtype and W.rows.shape == (3, 1500)
        if density < 1:
            assert bool(((W.rows != 0).sum(1) == -int(-density * 1500 // 1)).all())  # one block; normal draws are not 0
        else:  # half a scale of 1/127 of the largest entry, and the rounding of the scale
            error = (W.rows[W.newest] - gradients(W, 4)[3]).abs().max()
            assert 0 < float(error) <= float(gradients(W, 4)[3].abs().max()) / 254 * (1 + 2.0**-14)


@pytest.mark.parametrize(("dtype", "density"), [(F32, 0.1), (BF16, 0.1), (F64, 0.5)])
def test_what_a_sparse_row_leaves_out_enters_later(dtype: torch.dtype, density: float):
    W = made(2, 1000, dtype, density)
    carried = torch.zeros(1000, dtype=W.vector_dtype)
    for g in gradients(W, 5):
        carried = carried + g
        W.push(g)
        error = W.state_dict()["error"]
        assert torch.equal(W.rows[W.newest].double() + error.double(), carried.double())  # nothing rounds
        carried = error.clone()


@pytest.mark.parametrize(("dtype", "density"), FORMATS)
def test_a_zero_gradient_is_a_row_of_zeros(dtype: torch.dtype, density: float):
    W = made(3, 50, dtype, density)
    W.push(torch.zeros(50, dtype=W.vector_dtype))
    assert W.num_filled == 1 and not W.rows.any() and not W.precondition().any()
    W.push(gradients(W, 1)[0])
    assert_exact_for_the_stored_rows(W)


@pytest.mark.parametrize("density", [1.0, 0.1])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_gradients_and_vectors_of_the_windows_own_dtype(dtype: torch.dtype, density: float):
    W, same = made(4, 200, dtype, density), made(4, 200, dtype, density)
    for g in gradients(W, 6):
        W.push(g.to(dtype))
        same.push(g.to(dtype).float())
    assert_same_state(W, same.state_dict())
    assert W.precondition().dtype == F32
    for v in (normal(200, dtype=F32).to(dtype), normal(3, 200, dtype=F32).to(dtype)):
        for product in ("ihvp", "matvec"):
            found = getattr(W, product)(v)
            assert found.dtype == dtype and found.shape == v.shape
            # One product is made in float64 either way, and rounded to 16 bits or to float32 and
            # then to 16.
            twice = getattr(W, product)(v.float()).to(dtype)
            assert bool(((found.float() - twice.float()).abs() <= torch.finfo(dtype).eps * twice.float().abs()).all())


@pytest.mark.parametrize(
    ("dtype", "density", "wrong"),
    [(BF16, 1.0, F64), (BF16, 1.0, F16), (INT8, 1.0, BF16), (INT8, 1.0, F64), (F32, 0.1, F64), (F64, 0.1, F32)],
)
def test_other_dtypes_are_refused(dtype: torch.dtype, density: float, wrong: torch.dtype):
    W = made(2, 10, dtype, density, pushes=1)
    before = W.state_dict()
    for refused in (W.push, W.ihvp, W.matvec):
        with pytest.raises(TypeError, match=r"should (have the gradients' dtype torch\.|be )float"):
            refused(torch.ones(10, dtype=wrong))
    assert_same_state(W, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": INT8, "density": 0.1}, ValueError, "Parameter `density` should be 1 for an int8 window"),
        ({"density": 0.0}, ValueError, "Parameter `density` should be finite and > 0 and <= 1. Found 0.0"),
        ({"density": 1.5}, ValueError, "Parameter `density` should be finite and > 0 and <= 1. Found 1.5"),
        ({"density": "0.1"}, TypeError, "Parameter `density` should be a real number"),
        ({"dtype": torch.int16}, TypeError, "Parameter `dtype` should be float32, float64, bfloat16, float16 or int8"),
    ],
)
def test_formats_that_do_not_exist_are_refused(arguments: dict[str, object], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        mfac.GradientWindow(2, 10, **arguments)
    renamed = {{"dtype": "window_dtype"}.get(name, name): value for name, value in arguments.items()}
    with pytest.raises(error, match=message.replace("`dtype`", "`window_dtype`")):
        mfac.MFAC(torch.nn.Linear(2, 1).parameters(), **renamed)


@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_refused_gradients_leave_the_window_as_it_was(dtype: torch.dtype, density: float):
    W = made(3, 100, dtype, density, pushes=4)
    result, before = W.precondition(), W.state_dict()  # in this order: a solve may compute the inverse anew
    for bad in (float("nan"), float("inf")):
        g = gradients(W, 1, seed=5)[0]
        g[50] = bad
        with pytest.raises(
            ValueError, match=refusal(r"should be finite\. Found a NaN or infinity; the window is unchanged")
        ):
            push(W, g)
    assert_same_state(W, before)
    assert torch.equal(W.precondition(), result)


@pytest.mark.parametrize(
    ("dtype", "density", "most"), [(F16, 1.0, 65520.0), (F16, 0.5, 1e6), (BF16, 1.0, 3.4e38), (BF16, 0.5, -3.4e38)]
)
def test_gradients_beyond_the_format_are_refused_with_their_size(dtype: torch.dtype, density: float, most: float):
    W = made(3, 10, dtype, density, pushes=2)
    before = W.state_dict()
    g = torch.ones(10)
    g[7] = most
    message = f"Found an entry of {abs(most):.3g}, which a window of {dtype} cannot hold"
    with pytest.raises(ValueError, match=refusal(re.escape(message))):
        push(W, g)
    assert_same_state(W, before)


def test_an_error_feedback_that_outgrows_the_format_is_refused():
    W = made(2, 4, F16, 0.25)
    W.push(torch.tensor([60_000.0, 50_000.0, 0.0, 0.0]))
    before = W.state_dict()
    with pytest.raises(ValueError, match=refusal("the window is unchanged")):
        push(W, torch.tensor([0.0, 50_000.0, 0.0, 0.0]))
    assert_same_state(W, before)


def test_a_sparse_window_says_which_columns_its_newest_row_carries():
    W = made(3, 20_001, F32, 0.01)
    assert W.carried_columns() is None
    for g in gradients(W, 2):
        W.push(g)
    assert torch.equal(W.carried_columns(), W.rows[W.newest].nonzero()[:, 0])
    assert made(3, 100, BF16, 1.0, pushes=2).carried_columns() is None
