"""Compressed windows as states and pickles, their memory, and threads."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from compressed import BF16, DENSE, F16, F32, F64, FORMATS, INT8, SOME, assert_same_state, gradients, made, tensors
from device import push
from samplers import normal
from torch import Tensor

import mfac


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


def assert_boundaries_are_right(W: mfac.GradientWindow) -> None:
    rows = W.format
    for tile in range(rows.boundaries.shape[1]):
        before = (rows.indices.long() < 1024 * (tile + 1)).sum(2)  # [m, blocks]
        assert torch.equal(rows.boundaries[:, tile].long(), before.T)


def test_boundaries_follow_the_rows():
    # What a GPU keeps of sparse rows besides their state: two blocks of 16 tiles.
    def made_with_boundaries(pushes: int) -> mfac.GradientWindow:
        W = made(3, 32_000, F32, 0.01)
        before, W.format.keeps_boundaries = W.nbytes, True
        if W.device.type == "cpu":
            assert W.nbytes == before + 2 * 2 * 15 * 3
        for g in gradients(W, pushes) if pushes else ():
            W.push(g)
        return W

    W, without = made_with_boundaries(4), made(3, 32_000, F32, 0.01, pushes=4)
    assert_boundaries_are_right(W)
    before = W.format.boundaries.clone()
    with pytest.raises(ValueError, match="Parameter `gradient` should be finite"):
        push(W, torch.full((32_000,), float("nan")))
    W.remove(1)
    without.remove(1)
    assert torch.equal(W.format.boundaries, before)
    assert "boundaries" not in W.state_dict()

    loaded, fresh = made_with_boundaries(2), made_with_boundaries(0)
    for other in (loaded, fresh):
        other.load_state_dict(without.state_dict())
    for other in (W, loaded, fresh, copy.deepcopy(W), pickle.loads(pickle.dumps(W))):
        assert_boundaries_are_right(other)
        other.push(gradients(W, 1, seed=5)[0])
        assert_boundaries_are_right(other)
        same = copy.deepcopy(without)
        same.push(gradients(W, 1, seed=5)[0])
        assert torch.equal(other.precondition(), same.precondition())


def test_boundaries_of_a_last_block_filled_up_with_zeros_are_loaded_as_they_were_pushed():
    def made_with_boundaries() -> mfac.GradientWindow:
        W = made(2, 16_385, F32, 0.9999)  # blocks of 8193 and 8192 columns, rows of 8193 entries
        W.format.keeps_boundaries = True
        return W

    W, other = made_with_boundaries(), made_with_boundaries()
    for g in gradients(W, 2):
        W.push(g)
    other.load_state_dict(W.state_dict())
    assert torch.equal(other.format.boundaries, W.format.boundaries)


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
    stored = sum(
        tensor.untyped_storage().nbytes() for name, tensor in held.items() if name not in {"gram", "inverse", "ages"}
    )
    derived = getattr(W.format, "boundaries", None)  # of sparse rows on a GPU
    assert W.nbytes == known == stored + 16 * rank**2 + (0 if derived is None else derived.nbytes)
    assert held["gram"].nbytes + held["inverse"].nbytes == 16 * rank**2


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.cpu_only("threads of the CPU")
@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(("dtype", "density"), SOME)
def test_results_are_bit_identical_for_any_number_of_threads(dtype: torch.dtype, density: float):
    def compute() -> list[Tensor]:
        W = made(9, 70_001, dtype, density, pushes=12)
        v = normal(2, 70_001, dtype=W.vector_dtype)
        return [W.precondition(), W.ihvp(v), W.matvec(v), W.rows, W.capacitance.gram.tril()]

    torch.set_num_threads(1)
    one = compute()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, compute(), strict=True))


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


@pytest.mark.cpu_only("reads the memory of a process")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("format", ["torch.bfloat16", "torch.int8", "torch.bfloat16, 0.05"])
def test_peak_memory_of_steps_is_the_window_and_a_few_vectors(format: str):
    # The gradient, and of it the row as rounded or the result, never at once; a sparse push holds
    # the carried gradient and the row in place of these: three vectors of 4 MB. As much again for
    # the allocator, threads and tiles. A float32 copy of the window is 256 MB.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=format)], capture_output=True, text=True, check=False, timeout=200
    )
    assert run.returncode == 0, run.stderr
    nbytes, peak = map(int, run.stdout.split())
    assert nbytes <= peak < nbytes + 24
