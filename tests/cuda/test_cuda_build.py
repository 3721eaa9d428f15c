"""The CUDA part without a GPU: shapes by fake tensors, errors, and a step that never waits."""

import pytest
import torch
from samplers import normal
from torch._subclasses.fake_tensor import FakeTensorMode

import mfac
from mfac.core.devices import capabilities
from mfac.window import capacitance, refused, window
from mfac.window.formats.dense import row_stride

pytestmark = pytest.mark.cpu_only("fake tensors in the place of a GPU")

F32, F64, BF16, INT8 = torch.float32, torch.float64, torch.bfloat16, torch.int8
built_with_cuda = pytest.mark.skipif(mfac.build_info()["cuda_toolkit"] is None, reason="built without a CUDA toolkit")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


class NeverRead:
    """In place of a `Reading`: a number that the step that computes it must not ask for."""

    made = 0

    def __init__(self, value: torch.Tensor) -> None:
        assert value.device.type == "cuda"
        self.on_device = value
        NeverRead.made += 1

    def value(self) -> float:
        return float(self.on_device.dtype != torch.bool)  # nothing was refused, and no pivot is small


@pytest.fixture
def fake_gpu(monkeypatch):
    """Fake CUDA tensors: shapes without memory, of which no value can be read."""
    monkeypatch.setattr(window, "usable_device", lambda name, device: torch.device("cuda", 0))
    monkeypatch.setattr(refused, "Reading", NeverRead)
    monkeypatch.setattr(capacitance, "Reading", NeverRead)
    monkeypatch.setattr(capacitance.InverseCapacitance, "look_back", lambda self: None)
    monkeypatch.setattr(window, "check_out", lambda *arguments, **options: None)  # fake tensors have no addresses
    NeverRead.made = 0
    with FakeTensorMode():
        yield


@built_with_cuda
@pytest.mark.parametrize(("dtype", "density"), [(F32, 1.0), (F64, 1.0), (BF16, 1.0), (INT8, 1.0), (F32, 0.1)])
def test_a_step_of_the_window_reads_nothing_back(fake_gpu, dtype: torch.dtype, density: float):
    W = mfac.GradientWindow(64, 1001, damping=1e-3, dtype=dtype, density=density, device="cuda")
    for _ in range(3):
        W.push(torch.empty(1001, dtype=W.vector_dtype, device="cuda"))
        update = W.precondition()
        assert update.device == torch.device("cuda", 0) and update.shape == (1001,)
    assert W.num_filled == 3 and NeverRead.made == 9  # the gradient's norm, the pivot and the backward error of each


@built_with_cuda
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_step_of_the_optimizer_reads_nothing_back(fake_gpu, momentum: float, density: float):
    parameters = [torch.nn.Parameter(torch.empty(shape, device="cuda")) for shape in ((30, 7), (30,))]
    opt = mfac.MFAC(parameters, 1e-3, 8, 1e-2, momentum, 1e-4, density=density)  # the paper's rule, λ fixed
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        opt.step()
    assert opt.window.num_filled == 3


@built_with_cuda
def test_every_operator_has_a_cuda_kernel():
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("mfac::")}
    with_cuda = {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"mfac::{name}", "CUDA")}
    assert names - with_cuda == {"prefer_huge_pages_"}


@built_with_cuda
@without_gpu
def test_a_gpu_that_is_not_there_is_an_error_that_says_why():
    with pytest.raises(RuntimeError, match=r"Parameter `device` should be a device that is there\. Found cuda: this"):
        mfac.GradientWindow(2, 3, device="cuda")


def test_rows_begin_at_packets_on_a_gpu():
    assert mfac.GradientWindow(4, 10).nbytes == 4 * 10 * 4 + 2 * 8 * 16
    gpu = torch.device("cuda", 0)
    assert [row_stride(10, dtype, gpu) for dtype in (F32, F64, BF16, INT8)] == [12, 10, 16, 16]


@pytest.fixture
def deferred(monkeypatch):
    """Windows of the CPU that believe they are on a GPU: refusals are read at the next step."""
    gpu = torch.device("cuda", 0)

    def make(rank: int, dim: int, **options: object) -> mfac.GradientWindow:
        with monkeypatch.context() as patch:
            patch.setattr(window, "capabilities", lambda device: capabilities(gpu))
            return mfac.GradientWindow(rank, dim, **{"damping": 1e-2, **options})

    return make


@pytest.fixture
def deferred_optimizer(monkeypatch):
    """`MFAC` with such a window."""

    def make(*arguments: object, **options: object) -> mfac.MFAC:
        with monkeypatch.context() as patch:
            patch.setattr(window, "capabilities", lambda device: capabilities(torch.device("cuda", 0)))
            return mfac.MFAC(*arguments, **options)

    return make


TAKEN_AS_ZEROS = r"Found another in the last push: its row counts as zeros\."
FORMATS = [(F32, 1.0), (BF16, 1.0), (INT8, 1.0), (F32, 0.4)]


@pytest.mark.parametrize("filled", [2, 4])
@pytest.mark.parametrize("normalize", ["rank", "filled"])
@pytest.mark.parametrize(("dtype", "density"), FORMATS)
def test_a_refused_gradient_is_a_row_of_zeros_and_is_reported_by_the_next_push(
    deferred, filled: int, normalize: str, dtype: torch.dtype, density: float
):
    W = deferred(4, 9, normalize=normalize, dtype=dtype, density=density)
    same = mfac.GradientWindow(4, 9, 1e-2, dtype, density, normalize=normalize)
    for i in range(filled):
        for one in (W, same):
            one.push(normal(9, seed=i, dtype=F32))
    error = W.state_dict()["error"] if density < 1 else None

    bad = normal(9, seed=7, dtype=F32)
    bad[3] = float("inf")
    W.push(bad)
    assert not W.precondition().any()
    assert not W.rows[W.newest].any() and W.num_filled == min(filled + 1, 4)
    with pytest.raises(ValueError, match=TAKEN_AS_ZEROS):
        W.push(normal(9, seed=8, dtype=F32))
    if error is not None:  # what had not entered yet still has not
        assert torch.equal(W.state_dict()["error"], error)
        same.load_state_dict(W.state_dict())
    else:
        same.push(torch.zeros(9))
    for i in (8, 9):  # and it goes on, as a window with such a row does
        for one in (W, same):
            one.push(normal(9, seed=i, dtype=F32))
        torch.testing.assert_close(W.precondition(), same.precondition())
    torch.testing.assert_close(W.capacitance.gram.tril(), (W.rows.double() @ W.rows.double().T).tril())


def test_a_refused_gradient_counts_as_zero_where_there_are_more_rows_than_columns(deferred):
    W = deferred(4, 3)
    for i in range(4):
        W.push(normal(3, seed=i, dtype=F32))
    W.push(torch.full((3,), float("nan")))
    assert not W.precondition().any()


def test_a_state_can_be_taken_up_after_a_refusal(deferred):
    W = deferred(3, 9)
    W.push(normal(9, seed=1, dtype=F32))
    state, update = W.state_dict(), W.precondition()
    for _ in range(2):
        W.push(torch.full((9,), float("inf")))
        W.load_state_dict(state)
    assert W.num_filled == 1 and torch.equal(W.precondition(), update)
    W.push(normal(9, seed=2, dtype=F32))


def test_refusals_in_a_row_are_rows_of_zeros_each(deferred):
    W, other = deferred(5, 20), mfac.GradientWindow(5, 20, damping=1e-2)
    for i in range(12):
        g = normal(20, seed=i, dtype=F32)
        W.push(g)
        other.push(g)
        torch.testing.assert_close(W.precondition(), other.precondition())
        for _ in range(2):
            W.push(torch.full((20,), float("nan")))
            other.push(torch.zeros(20))
            with pytest.raises(ValueError, match=TAKEN_AS_ZEROS):
                W.matvec(g)
            torch.testing.assert_close(W.matvec(g), other.matvec(g))
        assert torch.equal(W.capacitance.gram.tril(), other.capacitance.gram.tril())


def test_zero_gradients_and_a_relative_damping_give_zero_on_a_gpu_too(deferred):
    W = deferred(3, 9, damping=mfac.relative(1e-2))
    W.push(torch.zeros(9))
    assert not W.precondition().any()


def test_a_step_with_an_inverse_that_has_drifted_is_zero_and_the_next_is_right(deferred):
    W, other = deferred(6, 40), mfac.GradientWindow(6, 40, damping=1e-2)
    for i in range(4):
        for one in (W, other):
            one.push(normal(40, seed=i, dtype=F32))
    W.capacitance.inverse.mul_(1.5)
    W.push(normal(40, seed=5, dtype=F32))
    assert not W.precondition().any()
    W.push(normal(40, seed=6, dtype=F32))
    for i in (5, 6):
        other.push(normal(40, seed=i, dtype=F32))
    torch.testing.assert_close(W.precondition(), other.precondition())
    W.capacitance.inverse.mul_(1.5)
    v = normal(40, seed=7, dtype=F32)
    torch.testing.assert_close(W.ihvp(v), other.ihvp(v))  # which waits in any case


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_the_optimizer_trains_on_after_a_refused_gradient(deferred_optimizer, density: float):
    weights = torch.nn.Parameter(normal(20, seed=1, dtype=F32))
    opt = deferred_optimizer([weights], lr=0.1, rank=4, damping=1e-2, density=density)
    for i in range(6):
        weights.grad = normal(20, seed=i, dtype=F32)
        opt.step()
    before = weights.detach().clone()
    weights.grad = torch.full((20,), float("nan"))
    opt.step()
    assert torch.equal(weights, before)
    weights.grad = normal(20, seed=7, dtype=F32)
    with pytest.raises(ValueError, match=TAKEN_AS_ZEROS):
        opt.step()
    assert torch.equal(weights, before)
    opt.step()
    assert not torch.equal(weights, before) and weights.isfinite().all()


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_a_refused_gradient_counts_as_zero_in_the_momentum(deferred_optimizer, density: float):
    """No average starts anew: the row that a refused gradient would have replaced stays out."""
    weights = torch.nn.Parameter(normal(20, seed=1, dtype=F32))
    opt = deferred_optimizer([weights], 0.1, 4, 1e-2, 0.5, density=density)
    for i in range(6):
        weights.grad = normal(20, seed=i, dtype=F32)
        opt.step()
    before, average = weights.detach().clone(), opt.state_dict()["momentum"].clone()
    weights.grad = torch.full((20,), float("nan"))
    opt.step()
    with pytest.raises(ValueError, match=TAKEN_AS_ZEROS):
        opt.state_dict()
    assert torch.equal(opt.state_dict()["momentum"], 0.5 * average)
    torch.testing.assert_close(weights.detach(), before - 0.05 * average, rtol=1e-6, atol=1e-7)


def test_a_window_that_defers_computes_what_one_does_that_reads_at_once(deferred):
    one, other = deferred(5, 40), mfac.GradientWindow(5, 40, damping=1e-2)
    for i in range(17):
        g = normal(40, seed=i, dtype=F32)
        one.push(g)
        other.push(g)
        assert torch.equal(one.precondition(), other.precondition())
    assert one.capacitance.refactorisations == other.capacitance.refactorisations == 3
