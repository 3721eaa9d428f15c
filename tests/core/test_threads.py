"""Threads: results do not depend on their number, and torch's own setting is their number."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from samplers import normal, window

import mfac
from mfac.core import ops

pytestmark = pytest.mark.cpu_only("threads of the CPU")


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gram() -> list[torch.Tensor]:
    return [ops.gram(window(70, 20_001, dtype=torch.float32))]


def window_dot() -> list[torch.Tensor]:
    return [ops.window_dot(window(33, 70_001), normal(3, 70_001))]


def window_combine() -> list[torch.Tensor]:
    return [ops.window_combine_(normal(2, 70_001), window(33, 70_001), normal(2, 33), 0.5, 2.0)]


def capacitance() -> list[torch.Tensor]:
    rows = window(1100, 1200)
    gram = ops.gram(rows)
    inverse = torch.eye(1100, dtype=torch.float64) / 4 + gram / 100  # nearer to (2I + K)⁻¹ than none
    y, error = ops.capacitance_solve(inverse, gram, rows[:, 0][None].contiguous(), 2.0)
    pivot = ops.capacitance_replace_(inverse, gram, 500, y[0] / 100, 2.0)
    return [y, error, pivot, inverse.tril(), gram.tril()]


def blocks() -> list[torch.Tensor]:
    G, v = window(40, 10_001), normal(3, 10_001)
    F = mfac.EmpiricalFisher(G, damping=0.01, block_size=64)
    return [F.ihvp(v), F.matvec(v), F.inverse_diagonal()]


def pushes() -> list[torch.Tensor]:
    W = mfac.GradientWindow(8, 40_001, damping=1e-3)
    for g in window(12, 40_001, dtype=torch.float32):
        W.push(g)
    return [W.precondition(), W.ihvp(W.rows[0].clone()), W.matvec(W.rows[0].clone())]


@cache  # LAPACK's own last bits depend on threads
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    rows = window(200, 90)
    H = rows.T @ rows + torch.eye(90, dtype=torch.float64)
    return torch.linalg.cholesky(H.flip(0, 1)).flip(0, 1).contiguous(), torch.linalg.inv(H).contiguous()


def layers() -> list[torch.Tensor]:
    W, (R, inverse) = normal(70, 90), layer()
    Q, errors, kept = W.clone(), torch.zeros_like(W), torch.zeros_like(W, dtype=torch.bool)
    ops.obs_sweep_(Q, errors, R, kept, 2, 4)
    return [Q, errors, kept, *ops.obs_eliminate(W, inverse, W > 1, 60, 0, 1)]


@pytest.mark.parametrize("compute", [gram, window_dot, window_combine, capacitance, blocks, pushes, layers])
@pytest.mark.usefixtures("restored_threads")
def test_results_are_bit_identical_for_any_number_of_threads(compute: Callable[[], list[torch.Tensor]]):
    torch.set_num_threads(1)
    one = compute()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for a, b in zip(one, compute(), strict=True):
            assert torch.equal(a, b)


COUNT_THREADS = """
import os, torch
from mfac.core import ops
torch.set_num_threads(1)
window, vectors = torch.ones(64, 100_000), torch.ones(1, 100_000)
def started():
    before = len(os.listdir("/proc/self/task"))
    ops.gram(window)
    ops.window_dot(window, vectors)
    ops.window_combine_(vectors, window, torch.ones(1, 64).double(), 1.0, 1.0)
    return len(os.listdir("/proc/self/task")) - before
print(started())
torch.set_num_threads(3)
print(started())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_set_num_threads_is_obeyed():
    # In a process of its own: threads that earlier work started would hide those that this work
    # starts.
    run = subprocess.run([sys.executable, "-c", COUNT_THREADS], capture_output=True, text=True, check=True, timeout=100)
    alone, with_three = map(int, run.stdout.split())
    assert alone == 0
    assert with_three == 2  # and the calling thread
