"""Every error that an argument of the public core causes: type, named parameter, reported value."""

# ruff: file-ignore[line-too-long]  one case a line

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from device import DEVICE, push, refusal

import mfac

F32, F64 = torch.float32, torch.float64
G = torch.eye(3, 5)
LAST_STRIDE_TWO = torch.ones(3, 10)[:, ::2]
NAN_ROW, INF_ROW, HUGE = G.clone(), G.clone(), torch.full((2, 5), 1e200, dtype=F64)
NAN_ROW[1, 2], INF_ROW[2, 0] = float("nan"), float("inf")


def fisher(grads: Any = G, **options: Any) -> mfac.EmpiricalFisher:
    return mfac.EmpiricalFisher(grads, **{"damping": 0.5, **options})


def blocked() -> mfac.EmpiricalFisher:
    return fisher(block_size=2)


def gradient_window(pushes: int = 1, **options: Any) -> mfac.GradientWindow:
    W = mfac.GradientWindow(**{"rank": 3, "dim": 5, "damping": 0.5, **options})
    for g in G[:pushes]:
        W.push(g.to(W.rows.dtype))
    return W


POSITIVE = "should be finite and > 0. Found"
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # gradients
    (lambda: fisher([1.0]), TypeError, "Parameter `grads` should be a tensor. Found list."),
    (lambda: fisher(G.half()), TypeError, "Parameter `grads` should be float32 or float64. Found torch.float16."),
    (lambda: fisher(G.to_sparse()), TypeError, "Parameter `grads` should be a strided tensor. Found layout torch.sparse_coo."),
    (lambda: fisher(G.to("meta")), ValueError, "Parameter `grads` should be on the CPU or a CUDA GPU. Found device meta."),
    (lambda: fisher(LAST_STRIDE_TWO), ValueError, "Parameter `grads` should be contiguous in its last dimension. Found strides (10, 2) for shape [3, 5]; pass `grads.contiguous()`."),
    (lambda: fisher(G[0]), ValueError, "Parameter `grads` should have shape [m, d]. Found shape [5]."),
    (lambda: fisher(torch.ones(0, 5)), ValueError, "Parameter `grads` should have at least one row and one column. Found shape [0, 5]."),
    (lambda: fisher(torch.ones(5, 0)), ValueError, "Parameter `grads` should have at least one row and one column. Found shape [5, 0]."),
    (lambda: fisher(NAN_ROW), ValueError, "Parameter `grads` should be finite. Found a NaN or infinity in row 1."),
    (lambda: fisher(INF_ROW, block_size=2), ValueError, "Parameter `grads` should be finite. Found a NaN or infinity in row 2."),
    (lambda: fisher(INF_ROW.T.contiguous()), ValueError, "Parameter `grads` should be finite. Found a NaN or infinity in row 0."),
    (lambda: fisher(HUGE), ValueError, "Parameter `grads` should have rows whose squared norm is finite in float64. Found an overflow."),
    # damping and block size
    *[
        (lambda value=value: fisher(damping=value), ValueError, f"Parameter `damping` {POSITIVE} {value!r}.")
        for value in (0, 0.0, -1.0, float("nan"), float("inf"))
    ],
    (lambda: fisher(damping="1"), TypeError, "Parameter `damping` should be a real number. Found '1'."),
    (lambda: fisher(damping=True), TypeError, "Parameter `damping` should be a real number. Found True."),
    (lambda: fisher(damping=None), TypeError, "Parameter `damping` should be a real number. Found None."),
    (lambda: mfac.relative(0), ValueError, f"Parameter `scale` {POSITIVE} 0."),
    (lambda: mfac.relative(float("inf")), ValueError, f"Parameter `scale` {POSITIVE} inf."),
    (lambda: mfac.relative("1"), TypeError, "Parameter `scale` should be a real number. Found '1'."),
    (lambda: fisher(torch.zeros(2, 5), damping=mfac.relative(0.5)), ValueError, "Parameter `damping` should be a positive number where all gradients are zero. Found relative(0.5), which would be 0."),
    (lambda: fisher(block_size=0), ValueError, "Parameter `block_size` should be at least 1. Found 0."),
    (lambda: fisher(block_size=2.0), TypeError, "Parameter `block_size` should be an integer. Found 2.0."),
    (lambda: fisher(block_size=True), TypeError, "Parameter `block_size` should be an integer. Found True."),
    # vectors
    *[
        case
        for make in (fisher, blocked, gradient_window)
        for method in ("ihvp", "matvec")
        for case in [
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(4)), ValueError, "Parameter `v` should have last dimension d=5. Found shape [4]."),
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(5, 4)), ValueError, "Parameter `v` should have last dimension d=5. Found shape [5, 4]."),
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(1, 1, 5)), ValueError, "Parameter `v` should have shape [d] or [k, d]. Found shape [1, 1, 5]."),
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(())), ValueError, "Parameter `v` should have shape [d] or [k, d]. Found shape []."),
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(5).double()), TypeError, "Parameter `v` should have the gradients' dtype torch.float32. Found torch.float64."),
            (lambda make=make, method=method: getattr(make(), method)(torch.ones(5).int()), TypeError, "Parameter `v` should be float32 or float64. Found torch.int32."),
            (lambda make=make, method=method: getattr(make(), method)([1.0]), TypeError, "Parameter `v` should be a tensor. Found list."),
            (lambda make=make, method=method: getattr(make(), method)(LAST_STRIDE_TWO), ValueError, "Parameter `v` should be contiguous in its last dimension. Found strides (10, 2) for shape [3, 5]; pass `v.contiguous()`."),
        ]
    ],
    (lambda: fisher().ihvp(torch.ones(5), refine=-1), ValueError, "Parameter `refine` should be at least 0. Found -1."),
    (lambda: gradient_window().ihvp(torch.ones(5), refine=1.0), TypeError, "Parameter `refine` should be an integer. Found 1.0."),
    (lambda: blocked().ihvp_of_combination(torch.ones(3, dtype=F64)), ValueError, "Parameter `block_size` should be None for a product with a combination. Found 2."),
    (lambda: fisher().ihvp_of_combination(torch.ones(3)), TypeError, "Parameter `coefficients` should have dtype torch.float64. Found torch.float32."),
    (lambda: fisher().ihvp_of_combination(torch.ones(4, dtype=F64)), ValueError, "Parameter `coefficients` should have last dimension m=3. Found shape [4]."),
    # indices
    (lambda: fisher().inverse_element(5, 0), ValueError, "Parameter `i` should be in [-5, 5). Found 5."),
    (lambda: fisher().inverse_element(0, -6), ValueError, "Parameter `j` should be in [-5, 5). Found -6."),
    (lambda: fisher().inverse_element(0.5, 0), TypeError, "Parameter `i` should be an integer or a CPU tensor of integers. Found 0.5."),
    (lambda: fisher().inverse_element(0, torch.tensor(True)), TypeError, "Parameter `j` should be an integer or a tensor of integers. Found torch.bool."),
    (lambda: fisher().inverse_element(torch.tensor([0, 1]), 0), ValueError, "Parameter `j` should have the shape of `i`, [2]. Found shape []."),
    (lambda: fisher().inverse_submatrix(torch.tensor([[0]]), torch.tensor([0])), ValueError, "Parameter `rows` should be a vector of indices. Found shape [1, 1]."),
    (lambda: fisher().inverse_submatrix(torch.tensor([0]), torch.tensor(0)), ValueError, "Parameter `cols` should be a vector of indices. Found shape []."),
    (lambda: fisher().inverse_submatrix(torch.tensor([0]), torch.tensor([7])), ValueError, "Parameter `cols` should be in [-5, 5). Found 7."),
    # the window
    (lambda: gradient_window(rank=0), ValueError, "Parameter `rank` should be at least 1. Found 0."),
    (lambda: gradient_window(rank=2.5), TypeError, "Parameter `rank` should be an integer. Found 2.5."),
    (lambda: gradient_window(dim=0), ValueError, "Parameter `dim` should be at least 1. Found 0."),
    (lambda: gradient_window(damping=0), ValueError, f"Parameter `damping` {POSITIVE} 0."),
    (lambda: gradient_window(dtype=torch.int32), TypeError, "Parameter `dtype` should be float32, float64, bfloat16, float16 or int8. Found torch.int32."),
    (lambda: gradient_window(device="meta"), ValueError, "Parameter `device` should be on the CPU or a CUDA GPU. Found device meta."),
    (lambda: gradient_window(density=1.5), ValueError, "Parameter `density` should be finite and > 0 and <= 1. Found 1.5."),
    (lambda: gradient_window(density=0), ValueError, "Parameter `density` should be finite and > 0 and <= 1. Found 0."),
    (lambda: gradient_window(dtype=torch.int8, density=0.5), ValueError, "Parameter `density` should be 1 for an int8 window: sparse rows hold float values. Found 0.5."),
    (lambda: gradient_window(normalize="mean"), ValueError, "Parameter `normalize` should be 'rank' or 'filled'. Found 'mean'."),
    (lambda: gradient_window().push(torch.ones(4)), ValueError, "Parameter `gradient` should have last dimension d=5. Found shape [4]."),
    (lambda: gradient_window().push(torch.ones(1, 5)), ValueError, "Parameter `gradient` should have shape [d=5]. Found shape [1, 5]."),
    (lambda: gradient_window().push(torch.ones(5, dtype=F64)), TypeError, "Parameter `gradient` should have the gradients' dtype torch.float32. Found torch.float64."),
    (lambda: push(gradient_window(dtype=F64), HUGE[0]), ValueError, "Parameter `gradient` should be finite. Found a squared norm that overflows float64; the window is unchanged."),
    (lambda: gradient_window(2).remove(2), ValueError, "Parameter `row` should be one of the 2 filled rows of 3. Found 2."),
    (lambda: gradient_window(2).remove(3), ValueError, "Parameter `row` should be one of the 2 filled rows of 3. Found 3."),
    (lambda: gradient_window(2).remove(-1), ValueError, "Parameter `row` should be at least 0. Found -1."),
    (lambda: gradient_window(2).remove(0.0), TypeError, "Parameter `row` should be an integer. Found 0.0."),
    (lambda: gradient_window(0).ihvp(torch.ones(5)), RuntimeError, "The window is empty. Call push() first."),
    (lambda: gradient_window(0).matvec(torch.ones(5)), RuntimeError, "The window is empty. Call push() first."),
    (lambda: gradient_window(0).precondition(), RuntimeError, "The window has no newest gradient to precondition. Call push() first."),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_refused(call: Callable[[], Any], error: type[Exception], message: str):
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert str(raised.value) == message or (DEVICE.type != "cpu" and re.match(refusal(""), str(raised.value)))
