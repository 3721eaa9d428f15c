"""Windows in 16 and 8 bits and of sparse rows: exactly the Fisher of the rows as they are stored."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator

import oracle
import pytest
import torch
from rounding import U, relative_error
from samplers import normal, window
from torch import Tensor

import mfac

F32, F64, BF16, F16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8
DENSE = [(BF16, 1.0), (F16, 1.0), (INT8, 1.0)]
SPARSE = [(dtype, density) for dtype in (F32, BF16, F64) for density in (0.01, 0.1, 0.5)]
FORMATS = [*DENSE, *SPARSE]
SOME = [*DENSE, (F32, 0.1), (BF16, 0.01), (F64, 0.5), (F16, 0.1)]
# (m, d): narrower than a tile of scales, several tiles, two blocks of a sparse row; as high as wide and higher.
SHAPES = [(5, 300), (9, 2500), (4, 20_001), (33, 33), (40, 17)]


def gradients(W: mfac.GradientWindow, count: int, seed: int = 0) -> Tensor:
    """[count, d] of norm 1 in the window's vector dtype."""
    return window(count, W.dim, dtype=W.vector_dtype, seed=seed)


def made(rank: int, dim: int, dtype: torch.dtype, density: float, pushes: int = 0, **options: object):
    W = mfac.GradientWindow(rank, dim, **{"damping": 1e-3, "dtype": dtype, "density": density, **options})
    for g in gradients(W, pushes) if pushes else ():
        W.push(g)
    return W


def tensors(W: mfac.GradientWindow) -> dict[str, Tensor]:
    return {name: value for name, value in W.state_dict().items() if isinstance(value, Tensor)}


def assert_same_state(a: mfac.GradientWindow, b: dict[str, object]) -> None:
    for name, mine in a.state_dict(copy=False).items():
        if name in {"gram", "inverse"}:  # of which only the lower triangles count
            assert torch.equal(mine.tril(), b[name].tril())
        elif isinstance(mine, Tensor):
            assert mine.dtype == b[name].dtype and torch.equal(mine, b[name]), name
        else:
            assert mine == b[name], name


def assert_exact_for_the_stored_rows(W: mfac.GradientWindow) -> None:
    """K, precondition, ihvp and matvec against float64 references of `W.rows`."""
    G = W.rows.double()
    K = W._capacitance.gram.tril()
    # Sums of d terms on either side, in float64; an int8 tile's scales add two roundings.
    bound = 2 * (W.dim + 4) * U[F64] * (G.abs() @ G.abs().T)
    assert bool(((K - (G @ G.T).tril()).abs() <= bound).all())

    u, kappa = U[W.vector_dtype], oracle.condition(G, W.damping, W.num_terms)
    if W.newest is not None:
        # As for windows that are not compressed: the rounding of the result and (m + d)·u·κ^1.5 from the solve
        # (tests/test_window.py, precondition_bound).
        found, expected = W.precondition(), oracle.ihvp(G, G[W.newest], W.damping, num_terms=W.num_terms)
        assert found.dtype == W.vector_dtype and found.shape == (W.dim,)
        assert relative_error(found, expected) <= 2 * u + min(1e-4, (W.rank + W.dim) * U[F64] * kappa**1.5)
    held = G if W.normalize == "rank" else G[W._ages >= 0]
    F, v = mfac.EmpiricalFisher(held, W.damping), normal(2, W.dim, seed=1, dtype=W.vector_dtype)
    # Both lose at most about u·κ, in sums of m and d terms; results are rounded to the vectors' dtype.
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
    assert torch.equal(W.rows[W._ages.argsort()], G[-3:].to(dtype))


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
            # One product is made in float64 either way, and rounded to 16 bits or to float32 and then to 16.
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
        with pytest.raises(ValueError, match=r"should be finite\. Found a NaN or infinity; the window is unchanged"):
            W.push(g)
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
    with pytest.raises(ValueError, match=r"Found an entry of .*, which a window of torch\.\w+ cannot hold") as caught:
        W.push(g)
    assert f"an entry of {abs(most):.3g}, which a window of {dtype}" in str(caught.value)
    assert_same_state(W, before)


def test_an_error_feedback_that_outgrows_the_format_is_refused():
    W = made(2, 4, F16, 0.25)
    W.push(torch.tensor([60_000.0, 50_000.0, 0.0, 0.0]))
    before = W.state_dict()
    with pytest.raises(ValueError, match="the window is unchanged"):
        W.push(torch.tensor([0.0, 50_000.0, 0.0, 0.0]))
    assert_same_state(W, before)


@pytest.mark.parametrize(("dtype", "density"), FORMATS)
def test_state_goes_on_bit_by_bit(dtype: torch.dtype, density: float):
    W = made(4, 1500, dtype, density, pushes=7)
    W.remove(1)
    state = copy.deepcopy(W.state_dict())
    names = {"values", "indices", "error"} if density < 1 else {"rows", "scales"} if dtype == INT8 else {"rows"}
    assert set(tensors(W)) == names | {"gram", "inverse", "ages"}
    other = made(4, 1500, dtype, density, pushes=2)
    other.load_state_dict(state)
    assert_same_state(other, W.state_dict())
    for g in gradients(W, 5, seed=3):
        W.push(g)
        other.push(g)
        assert torch.equal(W.precondition(), other.precondition())
    assert_same_state(other, W.state_dict())
    v = normal(1500, dtype=W.vector_dtype)
    assert torch.equal(W.ihvp(v), other.ihvp(v))
    made(4, 1500, dtype, density).load_state_dict(state)  # the copy was neither kept nor written to
    assert state["newest"] == 2


def test_states_of_other_formats_are_refused():
    formats = [(F32, 1.0), *DENSE, (F32, 0.1), (BF16, 0.1), (F32, 0.5), (F64, 0.1)]
    for mine in formats:
        W = made(3, 400, *mine, pushes=4)
        result, before = W.precondition(), W.state_dict()
        for theirs in formats:
            if mine != theirs:
                with pytest.raises((KeyError, ValueError), match="Parameter `state` should have"):
                    W.load_state_dict(made(3, 400, *theirs, pushes=4).state_dict())
        assert_same_state(W, before)
        assert torch.equal(W.precondition(), result)


def test_a_state_whose_offsets_lie_outside_their_block_is_refused():
    W = made(2, 10, F32, 0.2, pushes=3)
    before = W.state_dict()
    state = W.state_dict()
    state["indices"][0, 0, 0] = 10
    with pytest.raises(ValueError, match="Parameter `state` should have"):
        W.load_state_dict(state)
    assert_same_state(W, before)


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_pickled_windows_go_on_as_before(density: float):
    W = made(2, 10, F32, density, pushes=3)
    other = pickle.loads(pickle.dumps(W))
    for either in (W, other):
        either.push(torch.arange(10.0))
    assert torch.equal(W.precondition(), other.precondition())


def resident() -> int:
    """Bytes."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("dtype", "density"), FORMATS)
def test_nbytes_is_known_before_anything_is_allocated(dtype: torch.dtype, density: float):
    before = resident()
    W = mfac.GradientWindow(10**5, 10**8, dtype=dtype, density=density)
    assert W.nbytes > 10**5 * 10**8 * density  # terabytes
    assert resident() - before < 2**24  # the ages are 0.8 MB
    if dtype == INT8:
        assert W.nbytes == 10**5 * (10**8 + 4 * 97_657) + 16 * 10**10  # ceil(10⁸ / 1024) = 97 657 scales


@pytest.mark.parametrize(("rank", "dim"), [(1, 1), (3, 1025), (4, 20_001)])
@pytest.mark.parametrize(("dtype", "density"), [*FORMATS, (F16, 0.1), (F32, 1.0), (F64, 1.0)])
def test_nbytes_is_what_the_tensors_take(dtype: torch.dtype, density: float, rank: int, dim: int):
    W = made(rank, dim, dtype, density)
    known = W.nbytes
    W.push(gradients(W, 1)[0])
    held = {name: tensor for name, tensor in W.state_dict(copy=False).items() if isinstance(tensor, Tensor)}
    stored = sum(tensor.nbytes for name, tensor in held.items() if name not in {"gram", "inverse", "ages"})
    assert W.nbytes == known == stored + 16 * rank**2
    assert held["gram"].nbytes + held["inverse"].nbytes == 16 * rank**2


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_results_are_bit_identical_for_any_number_of_threads(dtype: torch.dtype, density: float):
    def compute() -> list[Tensor]:
        W = made(9, 70_001, dtype, density, pushes=12)
        v = normal(2, 70_001, dtype=W.vector_dtype)
        return [W.precondition(), W.ihvp(v), W.matvec(v), W.rows, W._capacitance.gram.tril()]

    torch.set_num_threads(1)
    one = compute()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, compute(), strict=True))


def problem(seed: int = 0) -> tuple[torch.nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(10, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
    x = normal(64, 10, dtype=F32)
    return model, x, x[:, :1].sin() + x[:, 1:2]


@torch.no_grad()
def loss_of(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    return float((model(x) - y).square().mean())


def train(model: torch.nn.Module, opt: mfac.MFAC, x: Tensor, y: Tensor, steps: int) -> float:
    for _ in range(steps):
        opt.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        opt.step()
    return loss_of(model, x, y)


def optimizer(model: torch.nn.Module, dtype: torch.dtype, density: float) -> mfac.MFAC:
    return mfac.MFAC(
        model.parameters(), lr=0.06, rank=16, damping=0.1, momentum=0.5, window_dtype=dtype, density=density
    )


@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_the_optimizer_trains(dtype: torch.dtype, density: float):
    model, x, y = problem()
    opt = optimizer(model, dtype, density)
    assert opt.window.dtype == dtype and opt.window.density == density
    before = loss_of(model, x, y)
    assert train(model, opt, x, y, 30) < before / 2


@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_the_optimizers_state_goes_on_bit_by_bit(dtype: torch.dtype, density: float):
    model, x, y = problem()
    opt = optimizer(model, dtype, density)
    train(model, opt, x, y, 18)  # past wrap-around
    other, *_ = problem(seed=1)
    resumed = optimizer(other, dtype, density)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert_same_state(resumed.window, opt.window.state_dict())
    assert train(model, opt, x, y, 4) == train(other, resumed, x, y, 4)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


PROGRAM = """
import torch, mfac
torch.set_num_threads(2)
def kilobytes(name):  # of this process alone; resource.getrusage would start from its parent's peak
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
def steps(rank, dim):
    W = mfac.GradientWindow(rank, dim, 1e-3, {format})
    g = torch.ones(dim)
    for i in range(rank + 3):
        g[i] = i
        W.push(g)
    W.precondition()
    return W
steps(4, 5000)  # loads what is loaded on first use
before = kilobytes("VmRSS")
W = steps(64, 1_000_000)
print(W.nbytes // 2**20, (kilobytes("VmHWM") - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("format", ["torch.bfloat16", "torch.int8", "torch.bfloat16, 0.05"])
def test_peak_memory_of_steps_is_the_window_and_a_few_vectors(format: str):
    # The gradient, and of it the row as rounded or the result, never at once; a sparse push holds the carried gradient
    # and the row in place of these: three vectors of 4 MB. As much again for the allocator, threads and tiles. A
    # float32 copy of the window is 256 MB.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=format)], capture_output=True, text=True, check=False, timeout=200
    )
    assert run.returncode == 0, run.stderr
    nbytes, peak = map(int, run.stdout.split())
    assert nbytes <= peak < nbytes + 24
